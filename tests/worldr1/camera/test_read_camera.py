"""Whether a prompt asks for a camera that we know, on a table of paragraphs and on the kinds of loss that it had."""

from __future__ import annotations

from pathlib import Path

import pytest

from worldr1.camera.motion import describe_motion, parse_motion, read_camera
from worldr1.microworld.captions import all_captions

# Prompts as people write them: motions | first words of what must be reported | prompt; "-" is nothing.
PARAGRAPHS = [
    tuple("" if part == "-" else part for part in line.split(" | "))
    for line in Path(__file__).with_name("paragraphs.txt").read_text(encoding="utf-8").splitlines()
]


def spelled(prompt: str) -> str:
    """Tokens as "push_in pan_left*.5"."""
    tokens = parse_motion(prompt)
    return " ".join(t.kind + ("" if t.magnitude == 1 else f"*{t.magnitude:g}".replace("*0", "*")) for t in tokens)


@pytest.mark.parametrize("expected, unread, prompt", PARAGRAPHS)
def test_a_paragraph_is_read_or_reported(expected: str, unread: str, prompt: str) -> None:
    reading = read_camera(prompt)
    assert spelled(prompt) == expected
    assert " ".join(excerpt.split()[0] for excerpt in reading.unread) == unread
    assert reading.asked == bool(expected)


def test_the_table_is_what_the_page_says() -> None:
    kinds = ["motion" if e not in ("", "fixed") else e or ("unread" if u else "nothing") for e, u, _ in PARAGRAPHS]
    assert {k: kinds.count(k) for k in kinds} == {"motion": 97, "fixed": 12, "unread": 21, "nothing": 30}


def test_every_micro_caption_asks() -> None:
    """Their noise and their S_traj stay what the embedded weights and the recorded runs were made with."""
    for caption in all_captions() + all_captions(dynamic=True):
        assert read_camera(caption.text).asked, caption.text


@pytest.mark.parametrize(
    "prompt, asked",
    [
        ("The camera follows the runner and pans left.", True),  # what was read is judged, whatever else was not
        ("The camera orbits 180 degrees to the left around a tree.", True),
        ("Static shot of a lake.", True),
        ("The camera is static, then it swoops over the hills.", False),  # rest is not all that it asks for
        ("Handheld static shot of a lake.", False),
        ("The camera swoops over a red ball.", False),
        ("The camera does not pan left.", False),  # it says what not to do, and nothing else
        ("The camera does not move.", True),
        ("A red ball.", False),
        ("", False),
    ],
)
def test_who_asks(prompt: str, asked: bool) -> None:
    reading = read_camera(prompt)
    assert reading.asked is asked
    assert (reading.tokens, reading.unread) == describe_motion(prompt)


@pytest.mark.parametrize(
    "prompt, expected",
    [
        # another subject's motion is not the camera's
        ("Bees zoom in on a flower.", ""),
        ("A satellite orbits around the planet to the left.", ""),
        ("Motorbikes zoom out of the garage.", ""),
        ("A bee that zooms in on a flower.", ""),
        ("A car stops and zooms out of the frame.", ""),
        ("Two moons orbiting left around a planet.", ""),
        ("They slowly pull back from the edge.", ""),
        ("She begins to slowly pull back the curtain.", ""),
        ("A slow truck left the road.", ""),
        ("The camera captures a dancer who turns left and moves right.", ""),
        ("The camera shows a dog. It moves left.", ""),
        # any adjective before a noun of the camera's
        ("A slow, cinematic push in on a lamp.", "push_in*.5"),
        ("Cinematic pan left.", "pan_left"),
        ("A weirdly beautiful orbit right around a cactus.", "orbit_right"),
        ("A rusty pan left on the stove.", ""),
        ("An iron pan left, forgotten.", ""),
        ("A hard push in the back.", ""),
        # a negation ends where its phrase ends
        ("Instead of zooming in, pan left.", "pan_left"),
        ("Rather than panning left, zoom out.", "pull_out"),
        ("Without zooming in, tilt up.", "tilt_up"),
        ("No zooming in, panning left or tilting up.", ""),
        ("Do not zoom in, pan left or tilt up.", ""),
        # a subject behind an insertion or a clause
        ("The camera, mounted on a car, moves forward.", "push_in"),
        ("The camera, which hangs from a crane, moves right.", "move_right"),
        ("The camera that was static now pans left.", "pan_left"),
        ("In front of the camera, a horse, startled, moves left.", ""),
        # a direction told another way
        ("The camera gracefully orbits in a clockwise direction.", "orbit_left"),
        ("The camera circles in an anti-clockwise arc.", "orbit_right"),
        ("The camera moves in a forward motion.", "push_in"),
        ("The camera moves in a circle.", ""),
        # told twice is meant once
        ("The camera slowly pans left over a quay. Boats rock. Wide shot, slowly panning left.", "pan_left*.5"),
        ("Camera pan left. The camera pans slowly left over a quay.", "pan_left*.5"),
        ("Push in, then pan left. A quay. The camera pushes in, then pans left.", "push_in pan_left"),
        ("The camera pushes in on a doll, moving closer to its eye.", "push_in"),
        ("The camera pans left. The camera pans right. The camera pans left.", "pan_left pan_right pan_left"),
        ("The camera pans left. Then it pans left again.", "pan_left pan_left"),
        ("Wide shot, tilting up. The tilt up goes on as the camera rises.", "tilt_up move_up"),
        # the second verb of a sentence whose subject is the camera
        ("The camera starts at eye level, then rises.", "move_up"),
        ("The camera orbits the vase, moving from left to right.", "orbit_right"),
        ("The camera follows the runner, turning left.", ""),
        ("A medium shot, focusing on the girl, tilted down.", ""),
        ("The camera angle is slightly elevated. Static shot.", "fixed"),
        ("The steadicam moves forward into a kitchen.", "push_in"),
        ("The camera gradually, almost imperceptibly, pushes in.", "push_in"),
        ("Smooth lateral tracking to the right past market stalls.", "move_right"),
        ("The frame is completely static.", "fixed"),
        # verbs
        ("The camera advances, then retreats through the doorway.", "push_in pull_out"),
        ("The camera pans out to a harbour.", "pull_out"),
        ("Swish pan to the left.", "pan_left*1.5"),
        ("Bring the camera closer.", "push_in"),
        ("The camera swoops down to the street.", "move_down"),
        ("The camera sweeps right across the hall.", "pan_right"),
        ("The camera flies over a city.", "push_in"),
        ("A bird flies over a city.", ""),
        # a drone is the camera or a thing
        ("A drone shot rises over the sea.", "move_up"),
        ("Filmed from a drone moving left along a cliff.", "move_left"),
        ("The drone rises over the sea.", "move_up"),
        ("A drone delivers a parcel. The drone rises over the sea.", ""),
        ("A swarm of drones rises and moves left.", ""),
        # what somebody does before, at or with a camera
        ("The dog runs toward the camera and rolls left.", ""),
        ("The bride turns away from the camera and lowers her veil.", ""),
        ("The camera captures a planet zooming in.", ""),
        ("As the camera rests on a table, a guard stops and turns left.", ""),
        # whoever is let, told or said to move
        ("Let the camera pull left.", "pull_left"),
        ("Let the knight pull left.", ""),
        ("The director asks the guard to zoom in.", ""),
        ('A sign that reads "zoom in" hangs over the bar.', ""),
        ('"Zoom in," says the detective.', ""),
        ("Soldiers, lit from behind, swoop towards the door, soft light.", ""),
        ("The marble, lit from behind, orbits to the left.", ""),
        # a participle belongs to the subject that follows
        ("Pulling back from a nest, the camera tilts up.", "pull_out tilt_up"),
        ("Pulling back from a nest.", "pull_out"),
        ("Pushing forward, the explorer cuts a path.", ""),
        # lists of directions
        ("The camera tilts up, down, up.", "tilt_up tilt_down tilt_up"),
        ("The camera glides forward, then right, then down into the cellar.", "push_in move_right move_down"),
        # a pronoun keeps the subject of the sentence before
        ("The camera pans left. It then tilts up.", "pan_left tilt_up"),
        ("The camera pans left. It is a calm move. Next, it pulls back.", "pan_left pull_out"),
        ("A fox sleeps. It then zooms out.", ""),
        # stopping is no motion
        ("The camera stops panning left and tilts up.", "tilt_up"),
        ("The camera ceases to move right.", ""),
        ("The camera doesn't zoom in; instead it pans right.", "pan_right"),
        # one orbit, wherever its sense is told
        ("In a clockwise direction the camera orbits a vase.", "orbit_left"),
        ("The camera circles, in a counter-clockwise direction, a knight.", "orbit_right"),
        ("The camera orbits left around a samurai, circling him to the left.", "orbit_left"),
        ("The camera rotates clockwise around the vase.", "orbit_left"),
        ("The camera pans from the fire on the left to the door on the right.", "pan_right"),
        # what a tilt shows is no second motion
        ("The camera tilts up a tower. The view ascends to the clouds.", "tilt_up"),
    ],
)
def test_readings_that_were_wrong_or_lost(prompt: str, expected: str) -> None:
    assert spelled(prompt) == expected


@pytest.mark.parametrize(
    "prompt, unread",
    [
        ("The camera sweeps over the hills.", ["sweeps over the hills"]),
        ("The camera pans left, then swoops.", ["swoops"]),
        ("The camera pushes in. It moves left.", ["moves left"]),  # or the thing that it pushed in on
        ("A whip pan to the door.", ["pan to the door"]),
        ("An orbital shot of a castle.", ["orbital shot"]),
        ("La telecamera si sposta a sinistra.", ["telecamera si sposta a"]),
        ("A slow rising crane shot above a village.", []),
        ("A teenager looks into the camera and smiles.", []),
        ("A sombre crane up over a city.", ["crane up"]),  # or a bird
        ("A car stops, then zooms out.", ["zooms out"]),  # or the camera
        ("A quiet street, handheld", ["handheld"]),  # also at the very end
        ("Camera: Dolly Zoom", ["Dolly Zoom"]),
        ("The camera, spinning wildly, pans left.", ["spinning wildly"]),
        ("The camera, gliding like a ghost, moves left.", []),
        ("The camera executes a smooth pull out.", []),
        ("The camera will not pan left.", []),
        ("The camera makes a sweeping pan left.", []),  # the word belongs to what was read
    ],
)
def test_what_is_lost_is_said(prompt: str, unread: list[str]) -> None:
    assert list(read_camera(prompt).unread) == unread
