"""What a device's kernels found wrong with their inputs, said late: no call waits for the device to look.

A kernel that meets a matrix that is not rigid, or a depth that is not positive, makes that item's results NaN and
writes down which item of which input it was, in host memory that the device can write (pinned). Reading it costs
nothing and synchronises nothing, also while a graph is captured. `raise_found`, called by every public function first,
raises what earlier calls on that device left there; `check` waits for the device before.

Layout: csrc/common/se3_faults.h. One record a device, made at its first call; kernels and graphs keep its address, so
it lives as long as the process.
"""

import functools
import struct

import torch
from torch import Tensor

ORTHOGONAL = 1e-3
"""Allowed error of R^T R = I, and of the last row."""

INPUTS = {
    "trajectory_error": ("viewmats_pred", "viewmats_target", "median_depth"),
    "trajectory_reward": ("viewmats_pred", "viewmats_target", "median_depth"),
    "geodesic_distance": ("R_a", "R_b", ""),
    "relative_poses": ("viewmats", "", ""),
    "path_length": ("viewmats", "", ""),
}
"""Functions and their inputs, in the order of a record."""
TEXTS = (
    "must be finite, got NaN or infinity",
    f"must hold rotations (R^T R = I to {ORTHOGONAL}), got an error of {{0:.3g}}",
    "must hold rotations with determinant +1, got a reflection",
    "must have the last row [0, 0, 0, 1], got an error of {0:.3g}",
    "must be > 0, got {0:.6g}",
)
"""Of the kinds of fault, in the order of a record."""
_WORDS = 3 * len(TEXTS)


@functools.cache
def record(device: torch.device) -> Tensor:
    """int64 [1 + functions * inputs * kinds] on the host: the flag, then a word a fault, 0 for none."""
    words = torch.zeros(1 + len(INPUTS) * _WORDS, dtype=torch.int64)
    if device.type != "cuda":
        return words
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError(f"se3: one call on {device} must precede the capture of a graph, got none")
    return words.pin_memory()


def sink(op: str, device: torch.device) -> tuple[int, int, float]:
    """What a kernel of `op` is told: addresses of the flag and of the words of `op`, and the tolerance."""
    start = record(device).data_ptr()
    return start, start + 8 * (1 + list(INPUTS).index(op) * _WORDS), ORTHOGONAL


def raise_found(device: torch.device) -> None:
    """Raises ValueError for the first fault that kernels on `device` have written down so far, and forgets all of them.
    Reads host memory alone."""
    words = record(device).numpy()
    if words[0] == 0:
        return
    words[0] = 0  # first: what is written from here on raises the flag anew
    found = words.nonzero()[0]
    if len(found) == 0:
        return
    place = int(found[0])
    word = int(words[place])
    words[found] = 0
    op, (number, kind) = list(INPUTS)[(place - 1) // _WORDS], divmod((place - 1) % _WORDS, len(TEXTS))
    amount = struct.unpack("f", struct.pack("I", word & 0xFFFFFFFF))[0]
    raise ValueError(
        f"{op}: {INPUTS[op][number]} {TEXTS[kind].format(amount)} in item {(word >> 32) - 1} "
        f"(found on {device} by an earlier call, whose results for it are NaN)"
    )


def check(device: torch.device | str | int | None = None) -> None:
    """Waits for the device and raises what its kernels found wrong with the inputs of earlier calls.

    The native backend on a CUDA device does not wait for it: a bad input makes the results of its item NaN (those of
    `relative_poses` and `path_length` whatever the formula gives), and the ValueError comes from the next call of this
    family on that device, or from here. Under torch.compile it comes from here alone.

    Args:
      device: Default: the current CUDA device. Nothing is to be done for a CPU, where bad input is refused at once.
    Raises:
      ValueError: an input was not finite, not rigid or, of a depth, not positive; the function, the input and one such
        item are named.
    """
    found = torch.device("cuda" if device is None else device)
    if found.type != "cuda":
        return
    if found.index is None:
        found = torch.device("cuda", torch.cuda.current_device())
    torch.cuda.synchronize(found)
    raise_found(found)
