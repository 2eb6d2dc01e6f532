"""What a setting names -> the judge: a folder whose kind is recognised, a server, or something of the user's own."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch

from worldr1.config import RewardConfig
from worldr1.rewards.base import JudgeKind
from worldr1.rewards.judges.endpoint import EndpointCritic
from worldr1.run.quiet import no_progress_bars

KINDS = (
    "worldr1.rewards.judges.micro_geo:MicroGeo",
    "worldr1.rewards.judges.micro_images:MicroCritic",
    "worldr1.rewards.judges.micro_images:MicroAesthetic",
    "worldr1.rewards.judges.micro_images:MicroPerceptual",
    "worldr1.rewards.judges.qwen:QwenCritic",
    "worldr1.rewards.judges.depth_anything:DepthAnything",
    "worldr1.rewards.judges.hpsv3:HPSv3",
    "worldr1.rewards.judges.lpips:LPIPS",
)
"""The kinds that come with the package. Their modules import nothing heavy; `load` does."""

ENTRY_POINTS = "worldr1.rewards.judges"
"""Entry point group of an installed package that brings kinds of its own."""


def kinds() -> Iterator[type[JudgeKind]]:
    """Every kind of folder that can be recognised: those of installed packages first, then the package's own."""
    for point in entry_points(group=ENTRY_POINTS):
        yield point.load()
    for name in KINDS:
        yield by_name(name)


def load_judge(source: str | Path, *, role: str, device: torch.device, config: RewardConfig | None = None) -> Any:
    """Open the judge that a setting names.

    Args:
      source: A folder; for the critic also the http(s) address of an OpenAI-compatible server; or `module:name`, a
        function or class of the user's that is called with `device` and returns the judge.
      role: "reconstructor", "critic", "aesthetic" or "perceptual".
      device: Where it runs.
      config: Settings of the kinds that have some.
    Returns:
      The judge, frozen, in evaluation mode.
    Raises:
      ValueError: nothing there, no server at an address, nothing that is recognised, or a judge of another role.
      OSError: a file of the folder is missing or damaged.
    """
    source, config = os.fspath(source), config or RewardConfig()
    if is_address(source):
        if role == "critic":
            return EndpointCritic(source, model=config.critic_model, timeout=config.critic_timeout)
        raise ValueError(f"load_judge: reward.{role} must be a folder or module:name, got {source}")
    if is_dotted(source):
        return by_name(source)(device=device)
    kind, folder = kind_of(source, role=role), Path(source)
    with no_progress_bars():
        return kind.load(folder, device=device, config=config)


def kind_of(source: str | Path, *, role: str) -> type[JudgeKind]:
    """The kind that a folder holds, without reading its weights. ValueError where it fills no or another role."""
    folder = Path(source)
    if not folder.is_dir():
        raise ValueError(f"load_judge: reward.{role} must be a folder, got {source} (no such folder)")
    settings = _config_of(folder)
    found = [kind for kind in kinds() if kind.recognises(folder, settings)]
    for kind in found:
        if kind.role == role:
            return kind
    known = ", ".join(kind.__name__ for kind in kinds() if kind.role == role)
    what = settings.get("architecture") or settings.get("model_type") or settings.get("model_name")
    is_a = ", ".join(f"{kind.__name__} ({kind.role})" for kind in found) or (
        f"no kind that is known (config.json says {what!r})" if what else "no kind that is known"
    )
    raise ValueError(
        f"load_judge: reward.{role} must be a folder of {known}, got {folder}, which is {is_a}; docs/rewards.md says "
        f"how another model takes this place"
    )


def is_address(source: str) -> bool:
    """Whether it names a server."""
    return source.startswith(("http://", "https://"))


def is_dotted(source: str) -> bool:
    """Whether it is `module:name`; a folder of that name wins."""
    module, _, name = source.partition(":")
    return not Path(source).exists() and name.isidentifier() and all(p.isidentifier() for p in module.split("."))


def by_name(source: str) -> Any:
    """`module:name` -> the thing itself. ValueError where there is no such module or name."""
    module, _, name = source.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{source}: no module {error.name}; the working directory and installed packages count"
        ) from error
    except AttributeError as error:
        raise ValueError(f"{source}: module {module} has no {name}") from error


def _config_of(folder: Path) -> dict[str, Any]:
    """config.json of a folder; {} where there is none (some published folders have none)."""
    path = folder / "config.json"
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"load_judge: {path} must be JSON, got {error}") from error
    return config if isinstance(config, dict) else {}
