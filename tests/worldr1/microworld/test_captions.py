"""The caption grammar, its agreement with parse_motion, and the split."""

from collections import Counter

import pytest

from worldr1.camera.motion import parse_motion
from worldr1.config import EMBEDDED
from worldr1.microworld.captions import (
    COLOURS,
    EVENTS,
    FLOORS,
    MOTIONS,
    NUM_CONTENTS,
    SHAPES,
    all_captions,
    make_caption,
    read_labels,
    split_captions,
)


def test_there_are_144_static_and_64_dynamic_captions_all_different():
    static, dynamic = all_captions(), all_captions(dynamic=True)
    assert (len(static), len(dynamic)) == (144, 64)
    assert len({c.text for c in static + dynamic}) == 208
    assert {c.motion for c in dynamic} == {"fixed"} and {c.dynamic for c in dynamic} == set(EVENTS)


@pytest.mark.parametrize("dynamic", [False, True])
def test_every_caption_asks_for_exactly_its_motion(dynamic: bool):
    for caption in all_captions(dynamic=dynamic):
        tokens = parse_motion(caption.text)
        assert [(t.kind, t.magnitude) for t in tokens] == [(caption.motion, 1.0)], caption.text


def test_content_index_and_make_caption_are_inverse():
    for motion in MOTIONS:
        assert [make_caption(motion, c).content_index for c in range(NUM_CONTENTS)] == list(range(NUM_CONTENTS))


def test_split_holds_a_third_out_evenly():
    train, held_out = split_captions()
    assert (len(train), len(held_out)) == (96, 48)
    assert not {c.text for c in train} & {c.text for c in held_out}
    assert set(Counter(c.motion for c in held_out).values()) == {5, 6}
    assert set(Counter(c.content_index for c in held_out).values()) == {3}
    # Every word of a held-out caption is known from a training caption.
    words = {w for c in train for w in c.text.split()}
    assert {w for c in held_out for w in c.text.split()} <= words


def test_prompt_files_are_the_split():
    train, held_out = split_captions()
    for name, captions in (
        ("micro_train", train),
        ("micro_heldout", held_out),
        ("micro_dynamic", all_captions(dynamic=True)),
    ):
        lines = (EMBEDDED / "prompts" / f"{name}.txt").read_text(encoding="utf-8").split("\n")
        assert sorted(filter(None, lines)) == sorted(c.text for c in captions)


@pytest.mark.parametrize(
    ("arguments", "keywords"), [(("tilt", 0), {}), (("fixed", 16), {}), (("fixed", 0), {"dynamic": "melting"})]
)
def test_unknown_words_are_refused(arguments: tuple, keywords: dict):
    with pytest.raises(ValueError, match="make_caption: .* must be .* got"):
        make_caption(*arguments, **keywords)


def test_labels_are_read_from_the_words():
    captions = all_captions()
    labels = read_labels([c.text for c in captions])
    assert labels.motions == MOTIONS and labels.motion.tolist() == [c.motion_index for c in captions]
    assert labels.contents["colour"].tolist() == [COLOURS.index(c.colour) for c in captions]
    assert labels.contents["shape"].tolist() == [SHAPES.index(c.shape) for c in captions]
    assert labels.contents["floor"].tolist() == [FLOORS.index(c.floor) for c in captions]
    with pytest.raises(ValueError, match="exactly one colour, got 2"):
        read_labels(["Camera push in. A red blue ball stands on a wooden floor."])
    with pytest.raises(ValueError, match="exactly one motion, got 0"):
        read_labels(["A red ball stands on a wooden floor."])
