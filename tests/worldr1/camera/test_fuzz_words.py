"""Hostile sentences by the thousand: whose motion they tell, what they deny, and that no text breaks the reader.

WORLDR1_FUZZ_SENTENCES sets how many sentences a test makes (default 500), WORLDR1_FUZZ_SEED where they begin.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import hostile

from worldr1.camera.motion import describe_motion, parse_motion

pytestmark = pytest.mark.slow
NUM_SENTENCES = int(os.environ.get("WORLDR1_FUZZ_SENTENCES", "500"))
SEED = int(os.environ.get("WORLDR1_FUZZ_SEED", "20"))


def seeded(name: str) -> Random:
    print(f"{name}: seed {SEED}, {NUM_SENTENCES} sentences")
    return Random(f"{name} {SEED}")


def kinds(prompt: str) -> list[str]:
    return [token.kind for token in parse_motion(prompt)]


def test_another_subject_never_gives_a_motion() -> None:
    rng = seeded("another subject")
    prompts = [hostile.without_camera(rng) for _ in range(NUM_SENTENCES)]
    assert [p for p in prompts if kinds(p)] == []
    reported = [p for p in prompts if describe_motion(p).unknown]
    assert len(reported) <= 0.01 * NUM_SENTENCES, reported[:20]


def test_the_camera_beside_other_subjects_is_read() -> None:
    rng = seeded("camera")
    cases = [hostile.with_camera(rng) for _ in range(NUM_SENTENCES)]
    assert [(p, kinds(p)) for p, kind in cases if kinds(p) != [kind]] == []


def test_a_negated_motion_is_never_read() -> None:
    rng = seeded("negated")
    cases = [hostile.negated(rng) for _ in range(NUM_SENTENCES)]
    assert [(p, kinds(p)) for p, _ in cases if set(kinds(p)) - {"fixed"}] == []


CHANGES: dict[str, Callable[[str], str]] = {
    "upper case": str.upper,
    "lower case": str.lower,
    "double spaces": lambda p: p.replace(" ", "  "),
    "other spaces": lambda p: p.replace(" ", "\u00a0"),
    "at the end !": lambda p: p.rstrip(".") + "!",
    "at the end ...": lambda p: p.rstrip(".") + "...",
    "at the end nothing": lambda p: p.rstrip("."),
    "spaces around": lambda p: f" \t{p}\n",
    "a scene before": lambda p: hostile.SCENES[len(p) % len(hostile.SCENES)] + " " + p,
    "a scene behind": lambda p: p.rstrip(".") + ". " + hostile.SCENES[len(p) % len(hostile.SCENES)],
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_does_not_change_the_meaning_does_not_change_the_reading(change: str) -> None:
    rng = seeded(change)
    prompts = [hostile.with_camera(rng)[0] for _ in range(NUM_SENTENCES // 4)]
    prompts += [hostile.without_camera(rng) for _ in range(NUM_SENTENCES // 8)]
    prompts += [hostile.negated(rng)[0] for _ in range(NUM_SENTENCES // 8)]
    changed = [CHANGES[change](p) for p in prompts]
    assert [
        (q, parse_motion(p)) for p, q in zip(prompts, changed, strict=True) if parse_motion(p) != parse_motion(q)
    ] == []


PIECES = [
    *"the camera,shot,drone,we,it,pans,pan,left,right,in,out,zooms,zooming,orbits,clockwise,then,and,while,as,not,"
    "never,without,instead of,slowly,handheld,dolly zoom,side to side,fly-through,360 degrees,90°,static,tripod,"
    "steady,says,reads,close,up,from,to,toward,that,which,a,an,its,stops,neither,nor,no".split(","),
    *".,;:!?\"'“”()[]{}<>-_—…*#`~/\\|°",
    "\n", "\t", "\0", "\x1b[31m", "\u200b", "\u202e", "\ufeff", "\ud800",
    "🎥", "é", "e\u0301", "İ", "ß", "镜头", "カメラ", "камера", "٣", "½", "\U000e0041",
]  # fmt: skip


def test_no_text_breaks_the_reader() -> None:
    rng = seeded("any text")
    for _ in range(NUM_SENTENCES):
        glue = rng.choice(["", " ", " ", " ", "-", "_"])
        text = glue.join(rng.choice(PIECES) for _ in range(rng.randint(0, 25)))
        tokens, unknown = describe_motion(text)
        assert all(excerpt and excerpt in text for excerpt in unknown), repr(text)
        assert "fixed" not in [t.kind for t in tokens] or len(tokens) == 1, repr(text)


def _seconds(prompt: str) -> float:
    start = time.process_time()  # of this process: other work on the machine does not count
    describe_motion(prompt)
    return time.process_time() - start


@pytest.mark.parametrize("source", ["one piece", "pieces", "sentences"])
def test_ten_thousand_characters_take_a_fifth_of_a_second(source: str) -> None:
    rng = seeded(source)

    def text() -> str:
        if source == "sentences":
            makers = [hostile.without_camera, lambda r: hostile.with_camera(r)[0], lambda r: hostile.negated(r)[0]]
            return " ".join(rng.choice(makers)(rng) for _ in range(200))[:10_000]
        if source == "pieces":
            return rng.choice(["", " "]).join(rng.choice(PIECES) for _ in range(10_000))[:10_000]
        return ((rng.choice(PIECES) + rng.choice(["", " "]) + rng.choice(PIECES) + rng.choice([" ", ", "])) * 10_000)[
            :10_000
        ]

    slowest = (0.0, "")
    for _ in range(max(NUM_SENTENCES // 130, 5)):
        prompt = text()
        slowest = max(slowest, (min(_seconds(prompt), _seconds(prompt)), prompt[:80]))
    print(f"slowest: {slowest[0]:.3f} s")
    assert slowest[0] < 0.2, slowest
