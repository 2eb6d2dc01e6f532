"""Every number among the settings has a range; what lies outside is refused by name before anything loads."""

from __future__ import annotations

import dataclasses
import math
import typing
from dataclasses import replace
from typing import Any

import pytest

from worldr1 import cli
from worldr1.config import TrainConfig
from worldr1.config_checks import validate
from worldr1.presets import PRESETS, preset
from worldr1.ranges import Range, Real, Whole, ranges_of

RANGES = {name: bounds for name, _, bounds in ranges_of(TrainConfig())}


def numbers(config: Any, prefix: str = "") -> dict[str, type]:
    """Name -> type of every setting that is a number."""
    hints, found = typing.get_type_hints(type(config)), {}
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            found |= numbers(value, f"{name}.")
        elif hints[field.name] in (int, float):
            found[name] = hints[field.name]
    return found


def changed(config: Any, name: str, value: Any) -> Any:
    head, _, rest = name.partition(".")
    return replace(config, **{head: changed(getattr(config, head), rest, value) if rest else value})


def outside(bounds: Range) -> list[float]:
    """The nearest numbers that do not hold, and what is no number."""
    low, high = bounds.ends
    step = 1 if bounds.kind is int else 1e-9 * max(1.0, abs(high))
    below = low if bounds.open_ends[0] else low - step
    above = high if bounds.open_ends[1] else high + 2 * step
    return [below, above, math.nan, math.inf, -math.inf, *([1.5] if bounds.kind is int else [])]


def test_every_number_has_a_range_of_its_kind() -> None:
    found = numbers(TrainConfig())
    assert found.keys() == RANGES.keys() and len(found) == 72
    assert {name: bounds.kind for name, bounds in RANGES.items()} == found
    assert all(math.isfinite(end) for bounds in RANGES.values() for end in bounds.ends)


@pytest.mark.parametrize("name", RANGES)
def test_outside_is_refused_by_name(name: str) -> None:
    for value in outside(RANGES[name]):
        with pytest.raises(ValueError) as caught:
            validate(changed(TrainConfig(), name, value))
        assert f"{name} must be in {RANGES[name].interval}, got {value}" in str(caught.value)


@pytest.mark.parametrize("name", list(PRESETS))
def test_presets_lie_inside(name: str) -> None:
    assert [found for found, value, bounds in ranges_of(preset(name)) if not bounds.holds(value)] == []


@pytest.mark.parametrize("name", ["advantage.clip", "update.learning_rate", "seed", "video.height"])
def test_the_command_line_refuses_and_shows_the_range(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    flag = f"--{name.replace('_', '-')}"
    with pytest.raises(SystemExit) as caught:
        cli.parse([f"{flag}=-1"])
    said = capsys.readouterr()
    assert caught.value.code == 2 and RANGES[name].interval in said.err + said.out
    with pytest.raises(SystemExit):
        cli.parse(["--help"])
    assert RANGES[name].metavar in " ".join(capsys.readouterr().out.split())


def test_intervals() -> None:
    half_open = Real("(0, 1]")
    assert [half_open.holds(x) for x in (0.0, 1e-300, 1, 1.0, 1.0000001, True, "1", None)] == [
        False, True, True, True, False, False, False, False,
    ]  # fmt: skip
    seeds = Whole("[0, 2^63)")
    assert seeds.holds(0) and seeds.holds(2**63 - 1) and not seeds.holds(2**63) and not seeds.holds(-1)
    assert not seeds.holds(0.5) and not seeds.holds(math.nan)
    for wrong in ("0, 1", "[0 1]", "[1, 2", ""):
        with pytest.raises(AssertionError):
            Real(wrong)
