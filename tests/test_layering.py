"""Imports go down the layers, no module hides one of Python's, and importing is cheap and without effect."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Rooms: the folders of worldr1/, which are stages, and the files at its root. From the bottom up: a module may import
# from its own room and from the rooms of lines above it in this list. The rooms of one line are blind to each other.
LAYERS = (
    ("worldr1_kernels",),
    ("worldr1.datatypes", "worldr1.ranges"),
    ("worldr1.config",),
    ("worldr1.presets", "worldr1.config_checks"),
    ("worldr1.run",),
    ("worldr1.camera",),
    ("worldr1.prompts",),
    ("worldr1.models",),
    ("worldr1.rollout", "worldr1.rewards"),
    ("worldr1.learn", "worldr1.cost", "worldr1.evaluation", "worldr1.report"),
    ("worldr1.microworld", "worldr1.rehearsal", "worldr1.cli"),
    (
        "worldr1.train", "worldr1.generate", "worldr1.study", "worldr1.doctor", "worldr1.sensitivity",
        "worldr1.lpips_weights", "worldr1.evaluate", "worldr1.export",
    ),
)  # fmt: skip
COMMANDS = set(LAYERS[-1])
SHARED = {f"worldr1.{name}" for name in ("config", "ranges", "config_checks", "presets", "datatypes", "cli")}
"""Files at the root: commands, and what all stages share."""
KERNELS_MAY_IMPORT = {"torch", "triton", "numpy", "worldr1_kernels"} | set(sys.stdlib_module_names)
KERNEL_TESTING_MAY_IMPORT = {"pytest", "hypothesis"}


def modules(package: str) -> dict[str, Path]:
    """Dotted name -> file, of a whole package."""
    out = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        out[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return out


MODULES = modules("worldr1") | modules("worldr1_kernels")


def imports(name: str, *, at_import_only: bool = False) -> set[str]:
    """Dotted names that a module imports; those inside functions and the main guard too, unless at_import_only."""
    found: set[str] = set()
    package = name if MODULES[name].name == "__init__.py" else name.rpartition(".")[0]

    def walk(node: ast.AST) -> None:
        inner = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or (
            isinstance(node, ast.If) and "__main__" in ast.unparse(node.test)
        )
        if at_import_only and inner:
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            for alias in node.names:
                deeper = f"{base}.{alias.name}"
                found.add(deeper if deeper in MODULES else base)
        for child in ast.iter_child_nodes(node):
            walk(child)

    walk(ast.parse(MODULES[name].read_text(encoding="utf-8")))
    return found


def room(name: str) -> str:
    """worldr1.rewards.judges.qwen -> worldr1.rewards; all of worldr1_kernels is one room."""
    return "worldr1_kernels" if name.startswith("worldr1_kernels") else ".".join(name.split(".")[:2])


RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


@pytest.mark.parametrize("name", [n for n in MODULES if n != "worldr1"])
def test_imports_go_down(name: str) -> None:
    here = room(name)
    assert here in RANK, f"{here} is in no layer: add it to LAYERS"
    for other in imports(name):
        if other.split(".")[0] not in ("worldr1", "worldr1_kernels") or other == "worldr1" or room(other) == here:
            continue
        assert room(other) in RANK and RANK[room(other)] < RANK[here], f"{name} must not know {other}"


def test_the_package_itself_imports_nothing_of_the_project() -> None:
    assert not {i for i in imports("worldr1") if i.startswith("worldr1")}


def test_a_folder_is_a_stage_and_a_file_a_command_or_shared() -> None:
    files = {f"worldr1.{path.stem}" for path in (ROOT / "worldr1").glob("*.py")} - {"worldr1.__init__"}
    assert files == COMMANDS | SHARED
    for name in COMMANDS:  # python -m NAME runs it
        assert '__name__ == "__main__"' in MODULES[name].read_text(encoding="utf-8")
    rooms = {room(name) for name in MODULES} - {"worldr1"}
    assert rooms == set(RANK), "a room that is gone or has no layer"


def test_no_file_is_long() -> None:
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in MODULES.items()}
    assert {name: n for name, n in lengths.items() if n > 450} == {}


def test_the_walk_sees_what_it_should() -> None:
    assert room("worldr1.rewards.judges.micro_geo") == "worldr1.rewards"
    assert room("worldr1_kernels.se3.api") == "worldr1_kernels"
    # A main guard and the inside of a function count, but not as what an import brings.
    assert "worldr1.cli" in imports("worldr1.train") - imports("worldr1.train", at_import_only=True)
    assert "worldr1.models.wan" in imports("worldr1.generate") - imports("worldr1.generate", at_import_only=True)
    assert "worldr1.datatypes" in imports("worldr1.camera.motion", at_import_only=True)
    assert "worldr1.train" not in imports("worldr1.cli")  # train knows the command line, not the other way round
    assert len(MODULES) > 50


def test_no_cycle_at_import() -> None:
    edges = {name: {o for o in imports(name, at_import_only=True) if o in MODULES and o != name} for name in MODULES}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, f"cycle: {' -> '.join([*trail[trail.index(name) :], name])}"
        if name not in done:
            for other in sorted(edges[name]):
                visit(other, (*trail, name))
            done.add(name)

    # A package's __init__ and the modules that it gathers know each other by construction; walk the modules.
    for package in [n for n in MODULES if MODULES[n].name == "__init__.py"]:
        for name in MODULES:
            if name.startswith(package + "."):
                edges[name].discard(package)
    for name in MODULES:
        visit(name, ())


@pytest.mark.parametrize("name", [n for n in MODULES if n.startswith("worldr1_kernels")])
def test_kernels_stand_alone(name: str) -> None:
    allowed = KERNELS_MAY_IMPORT | (KERNEL_TESTING_MAY_IMPORT if ".testing" in name else set())
    if name == "worldr1_kernels.build":  # runs inside pip's build, never at run time
        allowed = allowed | {"pybind11", "ninja"}
    assert {other.split(".")[0] for other in imports(name)} <= allowed


def test_no_module_hides_one_of_pythons() -> None:
    # `torchrun worldr1/train.py` puts this folder first on the path.
    inside = {path.stem for path in (ROOT / "worldr1").rglob("*.py")} | {p.name for p in (ROOT / "worldr1").iterdir()}
    assert not inside & set(sys.stdlib_module_names) - {"__main__", "__init__"}


def test_tests_mirror_no_package_into_the_path() -> None:
    # tests/worldr1 must stay a plain folder: an __init__.py there would hide the package.
    assert not (ROOT / "tests" / "worldr1" / "__init__.py").exists() and not (ROOT / "tests" / "__init__.py").exists()


def newly_imported(statement: str, after: str = "pass") -> dict:
    """What a fresh interpreter has after `statement`, beyond what `after` brought, and whether anything was changed."""
    code = f"""
import json, logging, os, sys
{after}
had, environment, path = set(sys.modules), dict(os.environ), list(sys.path)
{statement}
print(json.dumps(dict(
    new=sorted({{name.split(".")[0] for name in set(sys.modules) - had}}),
    untouched=(environment == dict(os.environ) and path == sys.path and not logging.getLogger().handlers),
    cuda="torch" in sys.modules and sys.modules["torch"].cuda.is_initialized(),
)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=240, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_importing_the_kernels_is_light() -> None:
    found = newly_imported("import worldr1_kernels", after="import torch, numpy")
    heavy = {"triton", "diffusers", "transformers", "peft", "gsplat", "scipy", "matplotlib", "worldr1"}
    assert not heavy & set(found["new"])
    assert found["untouched"] and not found["cuda"]


def test_the_command_line_answers_without_torch() -> None:
    found = newly_imported("import worldr1.cli, worldr1.config, worldr1.presets")
    assert not {"torch", "diffusers", "transformers", "numpy"} & set(found["new"])
    assert found["untouched"]


def test_importing_the_trainer_changes_nothing() -> None:
    found = newly_imported("import worldr1.train")
    assert not {"diffusers", "transformers", "triton", "ray"} & set(found["new"])  # their turn comes with the model
    assert found["untouched"] and not found["cuda"]
