"""Runs functions of a target against those of the CPU, and counts what it compares.

Nothing here is an `assert`: under `python -O` a comparison must not vanish. And no comparison is believed that would
let a wrong value pass: each is first shown the same result with its last element spoilt.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

import worldr1_kernels
from worldr1_kernels import _native
from worldr1_kernels.testing import guard_bands, why_not_close
from worldr1_kernels.verify.target import Target

Body = Callable[..., Sequence[Tensor]]
"""Called as body(function, *tensors): a public function on some backend, and tensors where that backend runs."""

Rule = Callable[[Tensor, Tensor, Tensor], str]
"""Called as rule(got, plain, exact): "" where got is as it must be, else what is off."""

FILLS = (0xCD, 0xFF)
"""What unwritten memory holds in the first run and in the second: large numbers, NaN. The results must not tell."""


def two_errors(*, factor: float = 2.0, floor: float | None = None) -> Rule:
    """`testing.why_not_close`; `floor` is its eps relative to the largest reference value (at least 1)."""

    def rule(got: Tensor, plain: Tensor, exact: Tensor) -> str:
        eps = None
        if floor is not None and exact.numel():
            eps = floor * max(1.0, float(exact.abs().max()))
        return why_not_close(got, plain, exact, factor=factor, eps=eps)

    return rule


def same_bits(got: Tensor, plain: Tensor, exact: Tensor) -> str:
    """Equal to what the CPU gives in the same type, bit by bit."""
    del exact
    off = _bits(got) != _bits(plain)
    return f"{int(off.sum())} of {got.numel()} values differ, {_where(off, got, plain)}" if bool(off.any()) else ""


def _bits(tensor: Tensor) -> Tensor:
    """As integers: there NaN is equal to itself, and 0 is not -0."""
    words = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.contiguous().view(words[tensor.element_size()]) if tensor.is_floating_point() else tensor


def _where(off: Tensor, got: Tensor, wanted: Tensor) -> str:
    first = [int(i) for i in off.nonzero()[0]]
    at = tuple(first)
    return f"the first at {first}: {float(got[at]):.9g} in place of {float(wanted[at]):.9g}"


def spoilt(tensor: Tensor) -> Tensor:
    """The same with another last element, beyond any tolerance."""
    out = tensor.detach().clone().contiguous()
    flat = out.view(-1)
    if out.dtype == torch.bool:
        flat[-1] = ~flat[-1]
    else:
        finite = torch.nan_to_num(flat, 0.0, 0.0, 0.0) if out.is_floating_point() else flat
        flat[-1] = finite[-1] + 1 + (finite.abs().max() if out.is_floating_point() else 0)
    return out


class Trial:
    """The checks of one family on one backend of a target.

    Args:
      target: The device under test.
      backend: Under test.
    """

    def __init__(self, target: Target, backend: str) -> None:
        self.target, self.backend = target, backend
        self.comparisons = 0  # of tensors
        self.values = 0  # elements of them
        self.failures: list[str] = []

    def compare(
        self,
        label: str,
        op: str,
        body: Body,
        *tensors: Tensor | None,
        names: Sequence[str],
        rules: Sequence[Rule],
        in_float64: bool = True,
    ) -> None:
        """Runs `body` on the target twice, the second time on a stream of its own, with inputs that are not contiguous
        and with other unwritten memory: the same bits, no byte outside an allocation, no input changed. And on the CPU:
        the values that it must have.

        Args:
          label: Sizes and kind of the case, for the report.
          op: Public function that is handed to the body.
          body: Returns a tensor for each name.
          tensors: On the CPU.
          names: What is returned.
          rules: One for each name; the last is that of all further ones.
          in_float64: Whether the reference in float64 is asked too; where it is too slow, `exact` is the CPU's C++.
        """
        function = self.target.function(op, self.backend)
        got = self._once(label, function, body, tensors, FILLS[0], aside=False)
        again = self._once(label, function, body, tensors, FILLS[1], aside=True)
        referee = "native" if _native.cpu_unavailable() is None else "reference"
        plain = _on_cpu(op, referee, body, tensors, double=False)
        exact = _on_cpu(op, "reference", body, tensors, double=True) if in_float64 else plain
        if not len(got) == len(again) == len(plain) == len(exact) == len(names):
            raise AssertionError(f"{op}: {len(names)} tensors are named, the body returned {len(got)}")
        for i, name in enumerate(names):
            wide = exact[i].double() if exact[i].is_floating_point() else exact[i]
            self.comparisons += 1
            self.values += plain[i].numel()
            self._look(f"{label}: {name}", rules[min(i, len(rules) - 1)], got[i], plain[i], wide)
            self._look(f"{label}: {name} of a second run", same_bits, again[i], got[i], got[i])

    def _look(self, label: str, rule: Rule, got: Tensor, plain: Tensor, exact: Tensor) -> None:
        if got.dtype != plain.dtype or got.shape != plain.shape:
            self._fails(label, f"must be {plain.dtype} {list(plain.shape)}, got {got.dtype} {list(got.shape)}")
            return
        if plain.numel() and rule(spoilt(plain), plain, exact) == "":
            self._fails(label, "the comparison itself is wrong: it lets a spoilt value pass")
            return
        why = rule(got, plain, exact)
        if why:
            self._fails(label, why)

    def _once(
        self,
        label: str,
        function: Callable[..., Any],
        body: Body,
        tensors: Sequence[Tensor | None],
        fill: int,
        aside: bool,
    ) -> list[Tensor]:
        with guard_bands(fill) as bands:
            places = [None if t is None else t.to(self.target.device).contiguous() for t in tensors]
            if aside:  # every second element of something larger
                places = [None if t is None else torch.stack([t, t], -1)[..., 0] for t in places]
            given = [
                None if t is None or place is None else bands.around(place, t)
                for t, place in zip(tensors, places, strict=True)
            ]
            before = [None if t is None else t.clone() for t in given]
            with self.target.stream(aside=aside):
                out = [t.detach() for t in body(function, *given)]
            broken = bands.broken()
            if broken:
                self._fails(f"{label}: guard bands", "; ".join(broken))
            for i, (now, then) in enumerate(zip(given, before, strict=True)):
                if now is not None and then is not None:
                    self._look(f"{label}: input {i} after the call", same_bits, now.detach(), then, then)
            return [t.cpu().clone() for t in out]

    def _fails(self, label: str, why: str) -> None:
        self.failures.append(f"{label}: {why}")


def _on_cpu(op: str, backend: str, body: Body, tensors: Sequence[Tensor | None], *, double: bool) -> list[Tensor]:
    function = partial(getattr(worldr1_kernels, op), backend=backend)
    copies = [
        None if t is None else t.to(torch.float64 if double and t.is_floating_point() else t.dtype, copy=True)
        for t in tensors
    ]
    return [t.detach() for t in body(function, *copies)]
