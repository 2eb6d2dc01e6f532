"""The range of a number among the settings: --help shows it, and it is checked before anything loads."""

from __future__ import annotations

import dataclasses
import math
import re
import typing
from collections.abc import Iterator
from typing import Any

from tyro.constructors import PrimitiveConstructorSpec

_INTERVAL = re.compile(r"([\[(])(\S+), (\S+)([\])])")


class Range(PrimitiveConstructorSpec[Any]):
    """Stands in an annotation: `learning_rate: Annotated[float, Real("(0, 1]")]`. Use `Whole` or `Real`.

    Args:
      interval: As in mathematics, a round bracket leaving its end out; "2^63" is a power. Ends are finite.
    """

    kind: type = float
    interval: str
    ends: tuple[float, float]
    open_ends: tuple[bool, bool]

    def __init__(self, interval: str) -> None:
        found = _INTERVAL.fullmatch(interval)
        assert found is not None, f"no interval: {interval}"
        left, low, high, right = found.groups()
        object.__setattr__(self, "interval", interval)  # the class it extends is a frozen dataclass
        object.__setattr__(self, "ends", (_number(low), _number(high)))
        object.__setattr__(self, "open_ends", (left == "(", right == ")"))
        super().__init__(
            nargs=1,
            metavar=f"{'INT' if self.kind is int else 'FLOAT'} {interval}",
            instance_from_str=lambda args: self._read(args[0]),
            is_instance=lambda value: isinstance(value, int | float),
            str_from_instance=lambda value: [str(value)],
        )

    def holds(self, value: Any) -> bool:
        """Whether it is a number of this kind within the ends; NaN and infinities never are."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return False
        if self.kind is int and value != int(value):
            return False
        (low, high), (without_low, without_high) = self.ends, self.open_ends
        return (low < value if without_low else low <= value) and (value < high if without_high else value <= high)

    def _read(self, text: str) -> Any:
        value = self.kind(text)  # ValueError: told by the parser
        if not self.holds(value):
            raise ValueError(f"must be in {self.interval}")
        return value


class Whole(Range):
    """Of an integer."""

    kind = int


class Real(Range):
    """Of a float."""


def ranges_of(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, Range]]:
    """(dotted name, value, range) of every number that has one, groups of settings included."""
    hints = typing.get_type_hints(type(config), include_extras=True)
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            yield from ranges_of(value, f"{name}.")
        for extra in getattr(hints[field.name], "__metadata__", ()):
            if isinstance(extra, Range):
                yield name, value, extra


def _number(text: str) -> float:
    base, _, power = text.partition("^")
    number = float(base) if "." in base or "e" in base else int(base)
    return number ** int(power) if power else number
