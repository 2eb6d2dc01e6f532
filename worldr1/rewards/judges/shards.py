"""The weights of a published folder: one safetensors file, or the shards that an index names."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

NAMES = ("model.safetensors", "model.safetensors.index.json")
"""Of the file and of the index, as transformers and huggingface_hub write them."""


def weights_path(folder: Path, names: Sequence[str] = NAMES) -> Path | None:
    """The file of weights, or the index of its shards: the first of `names` that is there."""
    return next((path for name in names if (path := Path(folder) / name).is_file()), None)


def parts(path: Path) -> list[Path]:
    """The files of a `weights_path`: itself, or the shards of the index.

    Raises:
      ValueError: the index is damaged, or a shard is missing.
    """
    if path.suffix != ".json":
        return [path]
    found = [path.parent / name for name in sorted(set(_index(path).values()))]
    for part in found:
        if not part.is_file():
            raise ValueError(f"weights: {path.parent} must hold {part.name}, {path.name} names it, got no such file")
    return found


def keys(path: Path) -> list[str]:
    """Names of its tensors, which are not read."""
    if path.suffix == ".json":
        return list(_index(path))
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except SafetensorError as error:
        raise _damaged(path, error) from error


def tensors(path: Path, *, device: torch.device | str = "cpu") -> Iterator[tuple[str, Tensor]]:
    """Name and tensor, one after the other, in the precision they were saved in. They are views of the file: copy what
    is to stay.

    Raises:
      ValueError: a shard is missing, damaged, or lacks what the index promises of it.
    """
    from safetensors import SafetensorError, safe_open

    seen = set()
    for part in parts(path):
        try:
            with safe_open(part, framework="pt", device=str(device)) as file:
                for key in file.keys():
                    seen.add(key)
                    yield key, file.get_tensor(key)
        except SafetensorError as error:
            raise _damaged(part, error) from error
    absent = sorted(set(keys(path)) - seen)
    if absent:
        raise ValueError(
            f"weights: the shards beside {path} must hold what it says, got none of {len(absent)} tensors "
            f"({', '.join(absent[:3])})"
        )


def _index(path: Path) -> dict[str, str]:
    """Tensor -> name of the file beside the index that holds it."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        beside = all(Path(name).name == name for name in found.values())
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"weights: {path} must be JSON with a weight_map, got {error!r}") from error
    if not beside:
        raise ValueError(f"weights: weight_map in {path} must map tensors to files beside it, got {str(found)[:80]}")
    return found


def _damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"weights: {path} must be a safetensors file, got {error} in {path.stat().st_size} bytes; download it again"
    )
