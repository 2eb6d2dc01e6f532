"""A LoRA on the disk: diffusers' file and adapter.json, a copy in the names of Wan's own code, and foreign files.

RUN/adapter/
    pytorch_lora_weights.safetensors   for `WanPipeline.load_lora_weights`; alpha stands in its metadata
    wan_lora.safetensors               the same weights as diffusion_model.blocks.0.self_attn.q.lora_down.weight ...,
                                       with .alpha: for loaders that know Wan's own names, or read no metadata
    adapter.json                       rank, alpha, and the range of sigma in which the adapter acts

diffusers' file cannot hold .alpha itself: its loader refuses any name without "lora" in it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from worldr1.run.files import read_json, read_tensor_metadata, read_tensors, reading, write_json, write_tensors

ADAPTER_JSON = "adapter.json"
LORA_FILE = "pytorch_lora_weights.safetensors"
WAN_FILE = "wan_lora.safetensors"
_PREFIX = "transformer."
_METADATA = "lora_adapter_metadata"  # diffusers' key for the peft configuration
_LAYERS = {
    "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "o", "net.0.proj": "0", "net.2": "2",
    "attn1": "self_attn", "attn2": "cross_attn", "ffn": "ffn",
}  # fmt: skip
"""Part of a name in diffusers -> in Wan's own code."""
_OURS = {wan: ours for ours, wan in _LAYERS.items()}
_FOREIGN = re.compile(
    r"(?:diffusion_model\.|lora_unet_)blocks[._](\d+)[._](self_attn|cross_attn|ffn)[._](q|k|v|o|0|2)"
    r"\.(?:(lora_down|lora_A|lora_up|lora_B)\.weight|(alpha))"
)
_MATRIX = {"lora_down": "lora_A", "lora_up": "lora_B", "lora_A": "lora_A", "lora_B": "lora_B"}


@dataclass(frozen=True)
class AdapterInfo:
    """What a saved adapter says about itself."""

    rank: int
    alpha: int
    ffn: bool
    sigma_min: float  # the adapter acts where sigma >= this


def write_adapter(folder: Path, weights: Mapping[str, Tensor], info: AdapterInfo, *, peft_config: dict) -> None:
    """Write the three files of an adapter.

    Args:
      folder: Made where it is not there.
      weights: By name of the transformer's module, blocks.0.attn1.to_q.lora_A.weight ...
      info: Goes to adapter.json.
      peft_config: LoraConfig.to_dict(), for diffusers.
    Raises:
      RuntimeError: weights that are not finite, which would destroy every video.
      OSError: it cannot be written.
    """
    weights = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    if bad := _not_finite(weights):
        raise RuntimeError(f"save_lora: weights must be finite to be saved in {folder}, got NaN or infinity in {bad}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    described = {f"{_PREFIX}{k}": sorted(v) if isinstance(v, set) else v for k, v in peft_config.items()}
    metadata = {"format": "pt", _METADATA: json.dumps(described, indent=2, sort_keys=True)}
    write_tensors(folder / LORA_FILE, {_PREFIX + k: v for k, v in weights.items()}, metadata=metadata)
    write_tensors(folder / WAN_FILE, in_wan_names(weights, alpha=info.alpha), metadata={"format": "pt"})
    write_json(folder / ADAPTER_JSON, asdict(info))


def in_wan_names(weights: Mapping[str, Tensor], *, alpha: float) -> dict[str, Tensor]:
    """Weights by names of Wan's own code, with the alpha of each layer: the strength is alpha / rank."""
    out = {}
    for name, value in weights.items():
        _, block, part, rest = name.split(".", 3)
        layer, matrix = rest.removesuffix(".weight").rsplit(".", 1)
        stem = f"diffusion_model.blocks.{block}.{_LAYERS[part]}.{_LAYERS[layer]}"
        out[f"{stem}.{'lora_down' if matrix == 'lora_A' else 'lora_up'}.weight"] = value
        out[f"{stem}.alpha"] = torch.tensor(float(alpha))
    return out


def read_adapter(path: Path) -> tuple[AdapterInfo, dict[str, Tensor]]:
    """An adapter of this project, or a LoRA for Wan by others.

    Args:
      path: A folder as `write_adapter` makes it; or a .safetensors file (or a folder with one) in diffusers' names, in
        those of Wan's own code (diffusion_model.blocks.0.self_attn.q ...) or of kohya's trainers
        (lora_unet_blocks_0_self_attn_q ...), as lora_A and lora_B or lora_down, lora_up and alpha. Their strength goes
        into the weights, and they act at all sigma.
    Returns:
      (AdapterInfo, weights by name of the transformer's module).
    Raises:
      ValueError: a file is missing, damaged or of another kind, or holds NaN; it is named.
      OSError: a file cannot be read.
    """
    path = Path(path)
    if (path / ADAPTER_JSON).exists():
        return _read_own(path)
    if path.is_dir():
        found = sorted(path.glob("*.safetensors"))
        if len(found) != 1:
            raise ValueError(
                f"read_adapter: {path} must hold {LORA_FILE} and {ADAPTER_JSON}, or one .safetensors file of another "
                f"trainer, {ADAPTER_JSON} is missing and it has {len(found)} of them"
            )
        path = found[0]
    tensors = _read_finite(path)
    with reading(path, "a LoRA of a Wan transformer"):
        if any(_FOREIGN.fullmatch(name) for name in tensors):
            weights = from_foreign_names(tensors)
        else:
            weights = _from_diffusers(tensors, read_tensor_metadata(path, "a LoRA"))
        ranks = {value.shape[0] for name, value in weights.items() if ".lora_A." in name}
        if len(ranks) != 1:
            raise ValueError(f"ranks {sorted(ranks)} instead of one for all layers")
        info = AdapterInfo(rank=ranks.pop(), alpha=0, ffn=any(".ffn." in name for name in weights), sigma_min=0.0)
        info = AdapterInfo(info.rank, info.rank, info.ffn, info.sigma_min)
        _check_shapes(weights, info.rank)
    return info, weights


def from_foreign_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights in the names of Wan's own code or of kohya's trainers -> in ours; alpha / rank goes into lora_B."""
    weights: dict[str, Tensor] = {}
    alphas: dict[str, float] = {}
    for name, value in tensors.items():
        match = _FOREIGN.fullmatch(name)
        if match is None:
            raise ValueError(f"a tensor that this model's adapters do not have, {name}")
        block, part, layer, matrix, alpha = match.groups()
        stem = f"blocks.{block}.{_OURS[part]}.{_OURS[layer]}"
        if alpha:
            alphas[stem] = float(value)
        else:
            weights[f"{stem}.{_MATRIX[matrix]}.weight"] = value.float()
    for stem, alpha in alphas.items():
        up, down = weights[f"{stem}.lora_B.weight"], weights[f"{stem}.lora_A.weight"]
        weights[f"{stem}.lora_B.weight"] = up * (alpha / down.shape[0])
    return weights


def _from_diffusers(tensors: dict[str, Tensor], metadata: dict[str, str]) -> dict[str, Tensor]:
    """Weights in diffusers' names, with the strength that its metadata gives them; 1 without."""
    for name in tensors:
        if not re.fullmatch(r"transformer\.blocks\.\d+\..*\.lora_[AB]\.weight", name):
            raise ValueError(
                f"a tensor called {name}; convert it with diffusers: WanPipeline.lora_state_dict(FILE), then "
                "WanPipeline.save_lora_weights"
            )
    described = json.loads(metadata.get(_METADATA, "{}"))
    strength = float(described.get(f"{_PREFIX}lora_alpha", 1)) / float(described.get(f"{_PREFIX}r", 1))
    named = {name.removeprefix(_PREFIX): value.float() for name, value in tensors.items()}
    return {name: value * strength if ".lora_B." in name else value for name, value in named.items()}


def _read_own(folder: Path) -> tuple[AdapterInfo, dict[str, Tensor]]:
    if not (folder / LORA_FILE).is_file():
        raise ValueError(f"read_adapter: {folder} must hold {LORA_FILE} and {ADAPTER_JSON}, {LORA_FILE} is missing")
    file = folder / ADAPTER_JSON
    values = read_json(file, "the description of an adapter")
    with reading(file, "the description of an adapter"):
        fields = {"rank": int, "alpha": int, "ffn": bool, "sigma_min": float}
        right = values.keys() == fields.keys() and all(
            type(values[k]) is kind or (kind is float and type(values[k]) is int) for k, kind in fields.items()
        )
        if not right or min(values["rank"], values["alpha"]) < 1 or not 0 <= values["sigma_min"] <= 1:
            raise ValueError(f"{values}: it must hold rank and alpha >= 1, ffn, and sigma_min in [0, 1]")
    info = AdapterInfo(**values)
    weights = {k.removeprefix(_PREFIX): v for k, v in _read_finite(folder / LORA_FILE).items()}
    with reading(folder / LORA_FILE, "the LoRA that adapter.json describes"):
        _check_shapes(weights, info.rank)
    return info, weights


def _read_finite(file: Path) -> dict[str, Tensor]:
    tensors = read_tensors(file, "a LoRA in .safetensors")
    with reading(file, "a LoRA in .safetensors"):
        if not tensors:
            raise ValueError("no tensor at all")
        if bad := _not_finite(tensors):
            raise ValueError(f"NaN, infinity or whole numbers in {bad}")
    return tensors


def _check_shapes(weights: Mapping[str, Tensor], rank: int) -> None:
    for name, value in weights.items():
        if value.ndim != 2 or value.shape[0 if ".lora_A." in name else 1] != rank:
            raise ValueError(f"{name} of shape {list(value.shape)} where the rank is {rank}")


def _not_finite(weights: Mapping[str, Tensor]) -> str:
    """The first tensor that holds anything but finite real numbers, or nothing."""
    for name, value in weights.items():
        if not value.is_floating_point() or not math.isfinite(float(value.double().abs().sum())):
            return name
    return ""
