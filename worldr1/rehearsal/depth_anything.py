"""A Depth Anything 3 folder with untrained weights: the real network with its smallest backbone and thin heads."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import torch

MODEL_NAME = "da3-tiny"
"""In no registry of the package, so that `config` counts."""


def _object(module: str, class_: str, /, **args: Any) -> dict[str, Any]:
    """A class of the package and its arguments, as its configurations write them."""
    return {"__object__": {"path": f"depth_anything_3.model.{module}", "name": class_, "args": "as_params"}, **args}


_HEAD = {"dim_in": 768, "features": 16, "out_channels": [16, 16, 16, 16]}

CONFIG: dict[str, Any] = _object(
    "da3",
    "DepthAnything3Net",
    net=_object(
        "dinov2.dinov2", "DinoV2", name="vits", out_layers=[5, 7, 9, 11], alt_start=4, qknorm_start=4, rope_start=4,
        cat_token=True,
    ),
    head=_object("dualdpt", "DualDPT", output_dim=2, **_HEAD),
    cam_enc=_object("cam_enc", "CameraEnc", dim_out=32, num_heads=2, trunk_depth=1),
    cam_dec=_object("cam_dec", "CameraDec", dim_in=768),
    gs_head=_object("gsdpt", "GSDPT", output_dim=38, **_HEAD),
    gs_adapter=_object(
        "gs_adapter", "GaussianAdapter", sh_degree=2, pred_color=False, pred_offset_depth=True, pred_offset_xy=True,
        gaussian_scale_min=1e-5, gaussian_scale_max=30.0,
    ),
)  # fmt: skip
"""The giant's configuration with the small model's backbone (12 blocks of 384; the package has none smaller)."""


def save_tiny_depth_anything(folder: Path, *, seed: int = 0) -> Path:
    """Write config.json and model.safetensors as the package's class saves them; returns the folder.

    Its cameras turn by some degrees and move by some hundredths of the depth, with a lens of about 60 degrees; all that
    it says depends on the video and means nothing.
    """
    return save_untrained(folder, CONFIG, seed=seed)


def save_untrained(folder: Path, config: dict[str, Any], *, seed: int) -> Path:
    """`save_tiny_depth_anything` of another configuration in the form of the package's yaml files."""
    from safetensors.torch import save_file

    from worldr1.rewards.judges.depth_anything_network import build_network

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"model_name": MODEL_NAME, "config": copy.deepcopy(config)}
    net = build_network(settings, source=folder)
    generator = torch.Generator().manual_seed(seed)
    weights = {f"model.{key}": _draw(key, value.shape, generator) for key, value in net.named_parameters()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    return folder


def _draw(key: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """A parameter: layers keep the size of what goes through them, the outputs stay where a network's would."""
    x = torch.randn(shape, generator=generator)
    if key.endswith(("cam_dec.fc_qvec.bias", "cam_dec.fc_fov.0.bias")):
        middle = [0.0, 0.0, 0.0, 1.0] if "qvec" in key else [0.9, 1.1]  # no turn, xyzw; angles of view in radians
        return torch.tensor(middle)
    if "cam_dec.fc_" in key:
        return 0.05 * x / math.sqrt(shape[-1])
    if key.endswith("output_conv2.2.weight"):  # of depth; of Gaussians, whose offsets must not reach behind the camera
        return (0.03 if "gs_head" in key else 0.3) * x / math.sqrt(shape[1])
    if len(shape) > 1 and not key.endswith(("cls_token", "camera_token", "pos_embed")):
        return x / math.sqrt(math.prod(shape[1:]))
    if key.endswith("weight") or key.endswith("gamma"):
        return torch.full(shape, 0.5 if key.endswith("gamma") else 1.0)
    return 0.1 * x
