"""config.json of a run -> its settings."""

from __future__ import annotations

import dataclasses
import math
import typing
from pathlib import Path
from typing import Any

from worldr1.config import TrainConfig
from worldr1.run.files import read_json, reading

OURS = ("max_iterations", "output_dir", "rollout", "schedule")
"""Settings by which the config.json of a run is told from those of models."""


def read_run_config(file: Path) -> TrainConfig:
    """The settings that a run wrote to config.json.

    Raises:
      ValueError: not JSON, names that this version does not know, or values of another type.
      OSError: it cannot be read.
    """
    values = read_json(file, "the config.json of a run")
    with reading(file, "the config.json of a run"):
        return _from_json(TrainConfig, values, "")


def is_run(folder: Path) -> bool:
    """Whether a folder is the output of a run: models have a config.json too, with other names in it."""
    try:
        values = read_json(Path(folder) / "config.json", "the config.json of a run")
    except (OSError, ValueError):
        return False
    return all(name in values for name in OURS)


def _from_json(cls: Any, values: Any, prefix: str) -> Any:
    if not isinstance(values, dict):
        raise ValueError(f"{prefix.rstrip('.')} must hold settings, got {values!r}")
    hints = typing.get_type_hints(cls)
    if unknown := sorted(values.keys() - hints.keys()):
        raise ValueError(f"{cls.__name__} has no {', '.join(unknown)}")
    return cls(**{name: _value(hints[name], value, prefix + name) for name, value in values.items()})


def _value(hint: Any, value: Any, name: str) -> Any:
    """A JSON value as the type of its setting; ValueError where it is none."""
    if dataclasses.is_dataclass(hint):
        return _from_json(hint, value, f"{name}.")
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        right = value in args
    elif origin is tuple:
        if isinstance(value, list):
            inner = args[:1] * len(value) if args[1:] == (...,) else args
            if len(inner) == len(value):
                return tuple(_value(a, v, f"{name}[{i}]") for i, (a, v) in enumerate(zip(inner, value, strict=True)))
        right = False
    elif hint is float:
        right = type(value) in (int, float) and not math.isnan(value)
    else:
        right = type(value) is (str if hint is Path else hint)
    if not right:
        kind = f"one of {', '.join(args)}" if origin is typing.Literal else getattr(hint, "__name__", hint)
        raise ValueError(f"{name} must be {kind}, got {value!r}")
    return Path(value) if hint is Path else value
