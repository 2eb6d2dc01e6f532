"""config.json of a run -> its settings."""

from __future__ import annotations

import dataclasses
import json
import typing
from pathlib import Path
from typing import Any

from worldr1.config import TrainConfig


def read_run_config(file: Path) -> TrainConfig:
    """The settings that a run wrote to config.json.

    Raises:
      ValueError: not JSON, or names that this version does not know.
    """
    try:
        return _from_json(TrainConfig, json.loads(file.read_text(encoding="utf-8")))
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError) as error:
        raise ValueError(f"config: {file} must be the config.json of a run: {error}") from error


def _from_json(cls: Any, values: dict[str, Any]) -> Any:
    hints = typing.get_type_hints(cls)
    unknown = sorted(values.keys() - hints.keys())
    if unknown:
        raise TypeError(f"{cls.__name__} has no {', '.join(unknown)}")
    out = {}
    for name, value in values.items():
        if dataclasses.is_dataclass(hints[name]):
            out[name] = _from_json(hints[name], value)
        elif hints[name] is Path:
            out[name] = Path(value)
        else:
            out[name] = tuple(value) if isinstance(value, list) else value
    return cls(**out)
