"""Two lists of sentences as people write them, one with camera words and one without, that the reader did not choose.

camera_sentences.txt: motions | "?" where something must be reported | sentence. no_camera.txt: sentences in which only
other things move. Both were written before the reader saw them; lines 1, 3, 5, ... of the first 282 and 351 served to
mend it, the others to measure it; the last 60 of each were written after that, and measured again. What the measured
ones showed was mended too, so that all of them now hold but those of KNOWN; the first figures are in docs/camera.md.
"""

from __future__ import annotations

import sys
from pathlib import Path
from random import Random

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import hostile

from worldr1.camera.motion import parse_motion, read_camera

HERE = Path(__file__).parent
CAMERA = [tuple(line.split(" | ")) for line in (HERE / "camera_sentences.txt").read_text(encoding="utf-8").splitlines()]
NO_CAMERA = (HERE / "no_camera.txt").read_text(encoding="utf-8").splitlines()
KNOWN = {  # not read but reported: the noun may be a thing, "it" may be the field
    "A meditative truck left along a wall of masks.",
    "A triumphant crane up over the stadium as confetti falls.",
    "The camera is at ground level in a wheat field. It moves right.",
}


def spelled(prompt: str) -> str:
    """Tokens as "push_in pan_left*.5"."""
    tokens = parse_motion(prompt)
    return " ".join(t.kind + ("" if t.magnitude == 1 else f"*{t.magnitude:g}".replace("*0", "*")) for t in tokens)


@pytest.mark.parametrize("expected, unread, prompt", CAMERA)
def test_a_sentence_with_camera_words_is_read_or_reported(expected: str, unread: str, prompt: str) -> None:
    reading = read_camera(prompt)
    if prompt in KNOWN:
        assert reading.tokens == () and reading.unread
    else:
        assert spelled(prompt) == expected.replace("-", "")
        assert bool(reading.unread) == (unread == "?"), reading.unread


def test_a_thousand_sentences_without_a_camera_give_no_motion() -> None:
    rng = Random(1)
    prompts = NO_CAMERA + [hostile.without_camera(rng) for _ in range(1000 - len(NO_CAMERA))]
    assert len(CAMERA) >= 250 and len(NO_CAMERA) >= 300 and len(set(prompts)) >= 990
    readings = {prompt: read_camera(prompt) for prompt in prompts}
    assert [(p, r.tokens) for p, r in readings.items() if r.tokens] == []
    reported = [(p, r.unread) for p, r in readings.items() if r.unread]
    assert len(reported) <= 10, reported
    assert len([p for p, _ in reported if p in NO_CAMERA]) <= 0.01 * len(NO_CAMERA), reported
