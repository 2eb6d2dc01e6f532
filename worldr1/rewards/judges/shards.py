"""The weights of a published folder: model.safetensors, or the shards that model.safetensors.index.json names."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"


def read_shards(folder: Path, *, device: torch.device) -> dict[str, Tensor]:
    """Every tensor of a folder, in the precision it was saved in.

    Args:
      folder: Holds the files.
      device: Where the tensors go, each straight from the file.
    Raises:
      ValueError: no weights, an index that is none, a shard that is missing or lacks tensors that the index promises.
      OSError: a file is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    promised = _index(folder)
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(promised.values())) or [WEIGHTS_NAME]:
        path = folder / name
        if not path.is_file():
            raise ValueError(f"read_shards: {folder} must hold {name}, got no such file; download it")
        try:
            tensors.update(load_file(path, device=str(device)))
        except SafetensorError as error:
            raise OSError(
                f"read_shards: {path} must be a safetensors file, got {error} in {path.stat().st_size} bytes; "
                f"download it again"
            ) from error
    absent = sorted(promised.keys() - tensors.keys())
    if absent:
        raise ValueError(
            f"read_shards: the shards in {folder} must hold what {INDEX_NAME} says, got none of {len(absent)} tensors "
            f"({', '.join(absent[:3])})"
        )
    return tensors


def _index(folder: Path) -> dict[str, str]:
    """Tensor -> file of it; {} where one file has them all."""
    path = folder / INDEX_NAME
    if (folder / WEIGHTS_NAME).is_file() or not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"read_shards: {path} must be JSON with a weight_map, got {error!r}") from error
    if not isinstance(found, dict) or not all(isinstance(v, str) and Path(v).name == v for v in found.values()):
        raise ValueError(
            f"read_shards: weight_map in {path} must map tensors to files beside it, got {str(found)[:80]}"
        )
    return found
