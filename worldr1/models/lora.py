"""The LoRA of a diffusers transformer: where it sits and how it is switched off."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from worldr1.models.lora_files import AdapterInfo, write_adapter

_NAME = "default"


def add_lora(transformer: Any, *, rank: int, alpha: int, ffn: bool, seed: int = 0) -> list[nn.Parameter]:
    """Freeze `transformer` and put a LoRA on its attention projections (and feed-forward layers, if `ffn`).

    A starts as Kaiming uniform from a generator of its own, so that it is the same on every rank whatever was drawn
    before; B starts at 0, so that the adapter changes nothing at first.

    Args:
      transformer: A diffusers model with PeftAdapterMixin, already on its device.
      rank, alpha: The update of a weight is alpha / rank * B A.
      seed: Of A.
    Returns:
      The trainable parameters, float32 whatever the dtype of the base, in module order.
    """
    from peft import LoraConfig

    targets = ["to_q", "to_k", "to_v", "to_out.0"] + (["ffn.net.0.proj", "ffn.net.2"] if ffn else [])
    transformer.requires_grad_(False)
    transformer.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets), adapter_name=_NAME)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in transformer.named_parameters():
        if not parameter.requires_grad:
            continue
        parameter.data = parameter.data.float()
        if ".lora_A." in name:
            drawn = torch.empty(parameter.shape)
            nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
            parameter.data.copy_(drawn)
        else:
            nn.init.zeros_(parameter)
    return [p for p in transformer.parameters() if p.requires_grad]


class LoraSwitch:
    """Turns the LoRA layers of a model off, or merges them into its weights, for the length of a block."""

    def __init__(self, transformer: Any) -> None:
        from peft.tuners.tuners_utils import BaseTunerLayer

        self._layers: list[Any] = [m for m in transformer.modules() if isinstance(m, BaseTunerLayer)]

    @contextlib.contextmanager
    def off(self) -> Iterator[None]:
        """Inside, the model is its base and records no graph.

        peft also clears requires_grad of a disabled adapter, and a backward pass of an earlier forward would then
        skip its gradients; so the adapter is always on again at the end.
        """
        for layer in self._layers:
            layer.enable_adapters(False)
        try:
            with torch.no_grad():
                yield
        finally:
            for layer in self._layers:
                layer.enable_adapters(True)

    @contextlib.contextmanager
    def merged(self) -> Iterator[None]:
        """Inside, the frozen weights hold W + alpha / rank B A, rounded to their dtype, and no graph is recorded.

        Spares the adapter's products of a pass. The weights come back as the very tensors that they were.
        """
        own = [(layer.base_layer.weight, layer.base_layer.weight.data) for layer in self._layers]
        try:
            for layer, (weight, data) in zip(self._layers, own, strict=True):
                a, b = layer.lora_A[_NAME].weight.detach(), layer.lora_B[_NAME].weight.detach()
                weight.data = torch.addmm(data.float(), b, a, alpha=layer.scaling[_NAME]).to(data.dtype)
            with self.off():
                yield
        finally:
            for weight, data in own:
                weight.data = data


def save_lora(transformer: Any, folder: Path, *, sigma_min: float, ffn: bool) -> None:
    """Write the adapter as `models.lora_files` says.

    Raises:
      RuntimeError: it holds NaN.
      OSError: it cannot be written.
    """
    from peft.utils import get_peft_model_state_dict

    peft_config = transformer.peft_config[_NAME]
    info = AdapterInfo(rank=peft_config.r, alpha=peft_config.lora_alpha, ffn=ffn, sigma_min=sigma_min)
    weights = get_peft_model_state_dict(transformer, adapter_name=_NAME)
    write_adapter(folder, weights, info, peft_config=peft_config.to_dict())


def load_lora(transformer: Any, weights: dict[str, Tensor]) -> None:
    """Copy weights from `lora_files.read_adapter` into the transformer's LoRA.

    Raises:
      ValueError: they belong to another architecture (missing or unexpected layers, other shapes).
    """
    own = lora_parameters(transformer)
    load_parameters(own, {name.replace(".weight", f".{_NAME}.weight"): value for name, value in weights.items()})


def lora_parameters(transformer: Any) -> dict[str, nn.Parameter]:
    """The LoRA's parameters by name, in module order."""
    return {name: p for name, p in transformer.named_parameters() if ".lora_" in name}


def load_parameters(own: dict[str, nn.Parameter], state: dict[str, Tensor]) -> None:
    """Copy `state` into parameters in place; ValueError unless names and shapes are the same."""
    if own.keys() != state.keys():
        missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
        raise ValueError(
            f"load_adapter_state: names must match the adapter, missing {missing[:3]}, unexpected {extra[:3]} "
            f"({len(missing)} and {len(extra)} in all); was it trained on another model?"
        )
    for name, parameter in own.items():
        if parameter.shape != state[name].shape:
            raise ValueError(
                f"load_adapter_state: {name} must have shape {list(parameter.shape)}, got {list(state[name].shape)}; "
                "was it trained with another rank?"
            )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(state[name])
