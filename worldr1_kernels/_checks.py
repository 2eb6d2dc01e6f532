"""Argument checks with one form of message: `function: what must hold, got X`."""

import difflib
from collections.abc import Mapping, Sequence

import torch

Dim = int | str


def _spell(spec: Sequence[Dim], leading: bool) -> str:
    return "[" + ", ".join((["..."] if leading else []) + [str(dim) for dim in spec]) + "]"


def check_tensor(op: str, name: str, value: object) -> None:
    """Raises TypeError unless `value` is a tensor."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{op}: {name} must be a torch.Tensor, got {type(value).__name__}")


def check_shape(
    op: str,
    name: str,
    tensor: torch.Tensor,
    spec: Sequence[Dim],
    *,
    sizes: Mapping[str, int] | None = None,
    leading: bool = False,
) -> dict[str, int]:
    """Checks the shape of `tensor` against `spec` and returns the sizes of its named dimensions.

    Args:
      op: Name of the public function.
      name: Name of its argument.
      tensor: The argument.
      spec: One entry per dimension: an int must match; a name must match `sizes` (or its earlier occurrence in
        `spec`), and is bound to whatever is found when it is new. `("B", "F-1", 2, "H", "W")` reads as in the
        docstrings.
      sizes: Names already bound, from other arguments. Not written.
      leading: Allow any number of dimensions in front of `spec`.
    Returns:
      `sizes` together with the names bound here.
    Raises:
      TypeError: not a tensor.
      ValueError: `op: name must have shape [B, F-1, 2, H, W], got [2, 480, 832]`; a clash of a bound size says which.
    """
    check_tensor(op, name, tensor)
    shape = tuple(tensor.shape)
    bound = dict(sizes) if sizes else {}
    fits = len(shape) >= len(spec) if leading else len(shape) == len(spec)
    clash = ""
    if fits:
        for dim, size in zip(spec, shape[len(shape) - len(spec) :], strict=True):
            if isinstance(dim, str):
                expected = bound.setdefault(dim, size)
                if expected != size and not clash:
                    clash = f" with {dim} = {expected}"
            elif dim != size:
                fits = False
    if not fits or clash:
        raise ValueError(f"{op}: {name} must have shape {_spell(spec, leading)}{clash}, got {list(shape)}")
    return bound


def check_dtype(op: str, name: str, tensor: torch.Tensor, allowed: Sequence[torch.dtype]) -> None:
    """Raises TypeError unless `tensor` has one of the `allowed` dtypes."""
    check_tensor(op, name, tensor)
    if tensor.dtype not in allowed:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
        raise TypeError(f"{op}: {name} must have dtype {names}, got {str(tensor.dtype).removeprefix('torch.')}")


def check_same_device(op: str, tensors: Mapping[str, torch.Tensor | None]) -> torch.device:
    """Returns the device shared by all `tensors` (None entries are skipped); raises ValueError when they differ."""
    first_name, device = "", torch.device("cpu")
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if not first_name:
            first_name, device = name, tensor.device
        elif tensor.device != device:
            raise ValueError(f"{op}: {name} must be on {device} like {first_name}, got {tensor.device}")
    return device


def check_finite(op: str, name: str, tensor: torch.Tensor) -> None:
    """Raises ValueError when `tensor` holds NaN or infinity. Reads the data: a synchronisation on CUDA, so do not call
    it from a hot path or under torch.compile."""
    finite = torch.isfinite(tensor)
    if not bool(finite.all()):
        bad = int(finite.numel() - int(finite.sum()))
        raise ValueError(f"{op}: {name} must be finite, got {bad} of {tensor.numel()} values NaN or infinite")


def check_choice(op: str, name: str, value: str, choices: Sequence[str]) -> None:
    """Raises ValueError unless `value` is one of `choices`; names the nearest one."""
    if value not in choices:
        near = difflib.get_close_matches(str(value), choices, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"{op}: {name} must be one of {tuple(choices)}, got {value!r}{hint}")


def check_positive(op: str, name: str, value: float) -> None:
    """Raises ValueError unless the number `value` is finite and > 0."""
    if not 0.0 < float(value) < float("inf"):
        raise ValueError(f"{op}: {name} must be finite and > 0, got {value}")
