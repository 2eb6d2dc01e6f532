"""A folder -> the judge in it: config.json names the architecture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

MICRO_JUDGES = {
    "reconstructor": "MicroGeo",
    "critic": "MicroCritic",
    "aesthetic": "MicroAesthetic",
    "perceptual": "MicroPerceptual",
}
"""Role -> the architecture that the embedded folder of that role names in its config.json."""


def load_judge(folder: Path, *, role: str, device: torch.device) -> Any:
    """Open the judge of one role from its folder; config.json names the architecture.

    Args:
      folder: Holds config.json with an "architecture", and the weights.
      role: A key of MICRO_JUDGES.
      device: Where it runs.
    Returns:
      The judge, frozen, in evaluation mode.
    Raises:
      ValueError: no such folder, no or unreadable config.json, an architecture that does not fill the role.
    """
    wanted = MICRO_JUDGES[role]
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise ValueError(f"load_judge: the {role} must be a folder with a config.json, got {folder}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"load_judge: {path} must be JSON, got {error}") from error
    config = config if isinstance(config, dict) else {}
    if role == "critic" and config.get("model_type") == "qwen3_vl":
        from worldr1.rewards.judges.qwen import QwenCritic

        return QwenCritic.from_pretrained(Path(folder), device=device)
    found = config.get("architecture")
    if found != wanted:
        raise ValueError(
            f'load_judge: the {role} in {folder} must have "architecture": {wanted!r} in config.json, got {found!r}; '
            f"docs/rewards.md says how another model takes this place"
        )
    from worldr1.rewards.judges.folder import FolderNetwork
    from worldr1.rewards.judges.micro_geo import MicroGeo
    from worldr1.rewards.judges.micro_images import MicroAesthetic, MicroCritic, MicroPerceptual

    classes: tuple[type[FolderNetwork], ...] = (MicroGeo, MicroCritic, MicroAesthetic, MicroPerceptual)
    return {c.__name__: c for c in classes}[wanted].from_pretrained(Path(folder), device=device)
