"""Caption grammar of the micro world: a camera phrase, then a sentence about the scene.

A caption is made from a motion, an object colour and shape, a floor and, for the dynamic subset, one event. The
camera phrase is the one that `worldr1.camera.motion.parse_motion` reads, so a caption and the trajectory asked of it
cannot drift apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from worldr1.camera.motion import parse_motion
from worldr1.evaluation.labels import Labels

MOTIONS = (
    "fixed",
    "push_in",
    "pull_out",
    "move_left",
    "move_right",
    "pan_left",
    "pan_right",
    "orbit_left",
    "orbit_right",
)
COLOURS = ("red", "green", "blue", "yellow")
SHAPES = ("ball", "box")
FLOORS = ("checkered", "wooden")
EVENTS = ("falling", "bouncing", "flickering", "changing")
NUM_CONTENTS = len(COLOURS) * len(SHAPES) * len(FLOORS)

CAMERA_PHRASES = {
    "fixed": "Camera fixed.",
    "push_in": "Camera push in.",
    "pull_out": "Camera pull out.",
    "move_left": "Camera move left.",
    "move_right": "Camera move right.",
    "pan_left": "Camera pan left.",
    "pan_right": "Camera pan right.",
    "orbit_left": "Camera orbit left.",
    "orbit_right": "Camera orbit right.",
}
_EVENT_PHRASES = {
    "falling": "A {colour} {shape} is falling onto a {floor} floor.",
    "bouncing": "A {colour} {shape} is bouncing on a {floor} floor.",
    "flickering": "A flickering {colour} {shape} stands on a {floor} floor.",
    "changing": "A {colour} {shape} is changing its colour on a {floor} floor.",
}
_STATIC_PHRASE = "A {colour} {shape} stands on a {floor} floor."


class Caption(NamedTuple):
    """One caption and what it says.

    Fields: text (the prompt); motion in MOTIONS; colour in COLOURS; shape in SHAPES; floor in FLOORS; dynamic:
    None for a static scene or one of EVENTS.
    """

    text: str
    motion: str
    colour: str
    shape: str
    floor: str
    dynamic: str | None = None

    @property
    def motion_index(self) -> int:
        """Index in MOTIONS, 0..8."""
        return MOTIONS.index(self.motion)

    @property
    def content_index(self) -> int:
        """Index of (colour, shape, floor), 0..15: ((colour * 2) + shape) * 2 + floor."""
        colour, shape, floor = COLOURS.index(self.colour), SHAPES.index(self.shape), FLOORS.index(self.floor)
        return (colour * len(SHAPES) + shape) * len(FLOORS) + floor


def make_caption(motion: str, content: int, *, dynamic: str | None = None) -> Caption:
    """Write the caption of a motion and a content.

    Args:
      motion: One of MOTIONS.
      content: Content index, 0..15 (see `Caption.content_index`).
      dynamic: None or one of EVENTS.
    Returns:
      Caption.
    Raises:
      ValueError: an unknown motion, content or event.
    """
    if motion not in MOTIONS:
        raise ValueError(f"make_caption: motion must be one of {', '.join(MOTIONS)}, got {motion!r}")
    if not 0 <= content < NUM_CONTENTS:
        raise ValueError(f"make_caption: content must be in 0..{NUM_CONTENTS - 1}, got {content}")
    if dynamic is not None and dynamic not in EVENTS:
        raise ValueError(f"make_caption: dynamic must be None or one of {', '.join(EVENTS)}, got {dynamic!r}")
    rest, floor = divmod(content, len(FLOORS))
    colour, shape = divmod(rest, len(SHAPES))
    words = {"colour": COLOURS[colour], "shape": SHAPES[shape], "floor": FLOORS[floor]}
    sentence = _STATIC_PHRASE if dynamic is None else _EVENT_PHRASES[dynamic]
    return Caption(f"{CAMERA_PHRASES[motion]} {sentence.format(**words)}", motion, dynamic=dynamic, **words)


def all_captions(dynamic: bool = False) -> list[Caption]:
    """Every caption of one subset.

    Args:
      dynamic: False for the 9 motions x 16 contents of static scenes; True for the 4 events x 16 contents, all of
        them with the camera at rest.
    Returns:
      144 static or 64 dynamic captions, motion (event) major.
    """
    if dynamic:
        return [make_caption("fixed", content, dynamic=event) for event in EVENTS for content in range(NUM_CONTENTS)]
    return [make_caption(motion, content) for motion in MOTIONS for content in range(NUM_CONTENTS)]


def split_captions() -> tuple[list[Caption], list[Caption]]:
    """Split the static captions into those that reinforcement learning may see and those kept for its evaluation.

    The base model is trained on all of them, so every word of a held-out caption is known to it; only its
    combination of motion and content is new to the fine-tuning. One third is held out, spread evenly over motions
    and contents.

    Returns:
      (train, held_out): 96 and 48 captions, disjoint; each motion has 5 or 6 held-out contents, each content 3
      motions.
    """
    captions = all_captions()
    held_out = [c for c in captions if (c.motion_index + c.content_index) % 3 == 2]
    train = [c for c in captions if (c.motion_index + c.content_index) % 3 != 2]
    return train, held_out


def read_labels(prompts: Sequence[str]) -> Labels:
    """What captions ask for: the motion as index in MOTIONS, "colour", "shape" and "floor" in COLOURS, SHAPES, FLOORS.

    Raises:
      ValueError: a prompt without exactly one camera motion of MOTIONS, one colour, one shape and one floor.
    """
    out: dict[str, list[int]] = {"motion": [], "colour": [], "shape": [], "floor": []}
    for prompt in prompts:
        kinds = [token.kind for token in parse_motion(prompt) if token.kind in MOTIONS]
        words = set(prompt.lower().replace(".", " ").replace(",", " ").split())
        found = {"motion": [MOTIONS.index(kind) for kind in kinds]}
        for name, choices in (("colour", COLOURS), ("shape", SHAPES), ("floor", FLOORS)):
            found[name] = [i for i, word in enumerate(choices) if word in words]
        for name, hits in found.items():
            if len(hits) != 1:
                raise ValueError(f"read_labels: a prompt must name exactly one {name}, got {len(hits)} in {prompt!r}")
            out[name].append(hits[0])
    labels = {name: torch.tensor(values) for name, values in out.items()}
    return Labels(MOTIONS, labels.pop("motion"), labels)
