"""Native build of worldr1_kernels; everything else about the package is in pyproject.toml."""

import importlib.util
import os
import shutil
from pathlib import Path
from types import ModuleType

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def load_build() -> ModuleType:
    """Loads worldr1_kernels/build.py by path: the package imports torch, which an isolated build does not have."""
    spec = importlib.util.spec_from_file_location("worldr1_build", ROOT / "worldr1_kernels" / "build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


BUILD = load_build()


class NinjaBuild(build_ext):
    """Hands the extensions to ninja, then puts each shared library where setuptools wants it."""

    def build_extensions(self) -> None:
        libraries = BUILD.run(ROOT, os.environ)
        for extension in self.extensions:
            target = Path(self.get_ext_fullpath(extension.name))
            target.parent.mkdir(parents=True, exist_ok=True)
            # A new file, not an overwritten one: a process that has the old library mapped must not crash.
            target.unlink(missing_ok=True)
            shutil.copyfile(libraries[extension.name.rsplit(".", 1)[1]], target)
        for stale in (ROOT / "worldr1_kernels").glob("_C_cuda*.so"):
            if "_C_cuda" not in libraries:
                stale.unlink()


setup(
    ext_modules=[Extension(f"worldr1_kernels.{name}", sources=[]) for name in BUILD.module_names()],
    cmdclass={"build_ext": NinjaBuild},
)
