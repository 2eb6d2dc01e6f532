"""Prompts and the motions that a reader finds in them."""

import pytest

from worldr1.datatypes import MotionToken
from worldr1.microworld.captions import MOTIONS as MICRO_MOTIONS
from worldr1.microworld.captions import all_captions
from worldr1.motion import parse_motion
from worldr1.trajectory import MOTIONS


def kinds(prompt: str) -> list[str]:
    return [token.kind for token in parse_motion(prompt)]


@pytest.mark.parametrize("kind", sorted(MOTIONS))
def test_every_kind_can_be_said(kind: str) -> None:
    words = kind.replace("_", " ") if kind != "fixed" else "fixed"
    assert kinds(f"Camera {words}. A red ball stands on a floor.") == [kind]
    if kind != "fixed":
        assert kinds(f"A red ball, {kind}") == [kind]
        assert kinds(f"{words}, a red ball") == [kind]


def test_micro_captions_say_their_motion() -> None:
    assert set(MICRO_MOTIONS) <= set(MOTIONS)
    captions = all_captions() + all_captions(dynamic=True)
    assert len(captions) == 208  # the embedded networks were trained on this reading of them
    for caption in captions:
        assert parse_motion(caption.text) == (MotionToken(caption.motion, 1.0),), caption.text


@pytest.mark.parametrize(
    "prompt, expected",
    [
        # forms and synonyms
        ("The camera zooms in on a face.", ["push_in"]),
        ("Zooming out from a city at night", ["pull_out"]),
        ("A slow dolly in towards the door", ["push_in"]),
        ("the camera dollies back", ["pull_out"]),
        ("The camera is panning left over the bay", ["pan_left"]),
        ("Panning to the right across a beach", ["pan_right"]),
        ("The camera trucks right along the shelf", ["move_right"]),
        ("A tracking shot to the left of a runner", ["move_left"]),
        ("The camera arcs to the left around the statue", ["orbit_left"]),
        ("The camera circles around the old tree to the right", ["orbit_right"]),
        ("Orbiting right around a cathedral", ["orbit_right"]),
        ("the camera tilts upward to the sky", ["tilt_up"]),
        ("The camera pedestals down", ["move_down"]),
        ("the camera cranes up over the roofs", ["move_up"]),
        ("the camera moves forward through a forest", ["push_in"]),
        ("The camera moves closer", ["push_in"]),
        ("The camera glides backwards down the hall", ["pull_out"]),
        ("A locked-off view of a street", ["fixed"]),
        ("Static shot of a lake", ["fixed"]),
        ("The camera remains completely still.", ["fixed"]),
        # word order and magnitude words in between
        ("The camera slowly pans to the left", ["pan_left"]),
        ("The camera pans slowly to the left", ["pan_left"]),
        ("The camera pans from left to right", ["pan_right"]),
        ("camera movement: pan right", ["pan_right"]),
        ("The camera begins to push in", ["push_in"]),
        # several
        ("push in, then pan left", ["push_in", "pan_left"]),
        ("move right, pull out", ["move_right", "pull_out"]),
        ("Camera orbit left, transitioning to pan right", ["orbit_left", "pan_right"]),
        ("The camera pans left across the room, then pulls out.", ["pan_left", "pull_out"]),
        ("The camera pushes in and tilts up", ["push_in", "tilt_up"]),
        ("PUSH IN, THEN ORBIT LEFT, THEN MOVE RIGHT", ["push_in", "orbit_left", "move_right"]),
        ("Static camera at first, then the camera pans left", ["pan_left"]),
        # negation
        ("The camera does not pan left", []),
        ("The camera never moves left.", []),
        ("A ball, without zooming in", []),
        # plain English
        ("A man pulls out a sword", []),
        ("A frying pan left on the stove", []),
        ("Pots and pans left in the sink", []),
        ("The truck left the road", []),
        ("Tracks left in the snow", []),
        ("A child pushing in a chair", []),
        ("A car moves left past a house", []),
        ("The camera pans left and a man pulls out a knife", ["pan_left"]),
        ("A ball rolls right off the table", []),
        ("A fixed stare", []),
        ("A still life with fruit", []),
        ("A bird circles to the left", []),
        ("Turn left, right here", []),
        ("", []),
    ],
)
def test_reading(prompt: str, expected: list[str]) -> None:
    assert kinds(prompt) == expected


@pytest.mark.parametrize(
    "prompt, magnitudes",
    [
        ("Camera pan left.", [1.0]),
        ("The camera slowly pans left", [0.5]),
        ("The camera pans slowly left", [0.5]),
        ("The camera pans left slowly", [0.5]),
        ("A slow push in on a vase", [0.5]),
        ("Slightly push in", [0.5]),
        ("The camera quickly moves to the right", [1.5]),
        ("The camera moves rapidly to the right", [1.5]),
        ("The camera pans left slowly, then pans right", [0.5, 1.0]),
        ("The camera pans left, then quickly pulls out", [1.0, 1.5]),
        ("A fast car. Camera pan left.", [1.0]),
        ("Camera pan left. Slowly falling snow.", [1.0]),
    ],
)
def test_magnitudes(prompt: str, magnitudes: list[float]) -> None:
    assert [token.magnitude for token in parse_motion(prompt)] == magnitudes
