"""Scenes of different N in one call: padded to the largest with Gaussians of opacity 0, which nothing draws."""

from collections.abc import Mapping

import torch
from torch import Tensor

from worldr1_kernels._checks import Dim, check_same_device, check_shape, check_tensor
from worldr1_kernels.rasterize.arguments import Inputs

PER_GAUSSIAN = ("means", "quats", "scales", "covars", "opacities", "colors")


def _spec(name: str, tensor: Tensor, is_sh: bool) -> tuple[Dim, ...]:
    """The shape that one scene's tensor must have."""
    specs: Mapping[str, tuple[Dim, ...]] = {
        "means": ("N", 3),
        "quats": ("N", 4),
        "scales": ("N", 3),
        "covars": ("N", 3, 3),
        "opacities": ("N",),
    }
    if name != "colors":
        return specs[name]
    tail: tuple[Dim, ...] = ("N", "K", 3) if is_sh else ("N", "D")
    return ("C", *tail) if tensor.dim() > len(tail) else tail


def _pad(tensor: Tensor, dim: int, size: int, value: float) -> Tensor:
    behind = tensor.dim() - 1 - dim
    return torch.nn.functional.pad(tensor, (*(0, 0) * behind, 0, size - tensor.shape[dim]), value=value)


def pad_scenes(op: str, raw: Inputs, *, is_sh: bool) -> Inputs:
    """Stacks lists of scenes. What is added is valid (1 everywhere) and has opacity 0.

    Args:
      op: Name of the public function.
      raw: The caller's arguments; means, quats, scales, covars, opacities and colors are lists of B tensors [N_b, ...]
        or None, the others tensors.
      is_sh: Whether colours are coefficients [.., N_b, K, 3], not [.., N_b, D].
    Returns:
      The same with tensors [B, ..., max N_b, ...]; differentiable.
    Raises:
      ValueError: no scene, lists of different length, a shape or a device is wrong.
      TypeError: something else than lists of tensors.
    """
    lists = {name: value for name, value in raw._asdict().items() if name in PER_GAUSSIAN and value is not None}
    num_scenes = len(lists["means"])
    if num_scenes == 0:
        raise ValueError(f"{op}: means must hold at least one scene, got an empty list")
    for name, tensors in lists.items():
        if not isinstance(tensors, (list, tuple)):
            raise TypeError(f"{op}: {name} must be a list like means, got {type(tensors).__name__}")
        if len(tensors) != num_scenes:
            raise ValueError(f"{op}: {name} must hold {num_scenes} scenes like means, got {len(tensors)}")
    counts = [check_shape(op, f"means[{b}]", t, ("N", 3))["N"] for b, t in enumerate(lists["means"])]
    padded: dict[str, Tensor] = {}
    for name, tensors in lists.items():
        shared: dict[str, int] = {}  # sizes other than N, which all scenes must agree in
        for b, tensor in enumerate(tensors):
            check_tensor(op, f"{name}[{b}]", tensor)
            spec = _spec(name, tensors[0], is_sh)
            bound = check_shape(op, f"{name}[{b}]", tensor, spec, sizes={**shared, "N": counts[b]})
            shared = {key: size for key, size in bound.items() if key != "N"}
        check_same_device(op, {f"{name}[{b}]": tensor for b, tensor in enumerate(tensors)})
        value = 0.0 if name == "opacities" else 1.0
        dim = _spec(name, tensors[0], is_sh).index("N")
        padded[name] = torch.stack([_pad(t, dim, max(counts), value) for t in tensors])
    return raw._replace(**padded)
