"""Prompts and the motions that a reader finds in them."""

from __future__ import annotations

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worldr1.camera.motion import _Reader, describe_motion, parse_motion
from worldr1.camera.trajectory import MOTIONS
from worldr1.datatypes import MotionToken
from worldr1.microworld.captions import MOTIONS as MICRO_MOTIONS
from worldr1.microworld.captions import all_captions


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


def spelled(prompt: str) -> str:
    """Tokens as "push_in pan_left*.5"."""
    tokens = parse_motion(prompt)
    return " ".join(t.kind + ("" if t.magnitude == 1 else f"*{t.magnitude:g}".replace("*0", "*")) for t in tokens)


# Prompts as people write them, and what they ask of the camera. Nothing in them is reported as unknown.
REAL = [
    ("The camera slowly pushes in on an elderly fisherman mending a net at dawn.", "push_in*.5"),
    ("A slow, steady push in toward a candle on a window sill, shallow depth of field.", "push_in*.5"),
    ("Cinematic dolly-in on a chess board, dust in the light.", "push_in"),
    ("The camera zooms out to reveal an entire coral reef.", "pull_out"),
    ("A misty pine forest at sunrise. The camera glides forward through the trees.", "push_in"),
    ("The camera moves through the crowded market, lanterns swaying overhead.", "push_in"),
    ("The camera flies down the narrow canyon as the river glitters below.", "push_in"),
    ("We push in on the face of a clock, then pan left to a sleeping cat.", "push_in pan_left"),
    ("The camera pulls back from a single flower to a whole meadow.", "pull_out"),
    ("The shot slowly pulls away, revealing the scale of the cathedral.", "pull_out*.5"),
    ("Dolly out from an astronaut's visor into the dark.", "pull_out"),
    ("Camera tracks backwards in front of a marching band.", "pull_out"),
    ("The camera backs away from the sleeping lion.", "pull_out"),
    ("The camera recedes into the distance.", "pull_out"),
    ("The camera approaches the old lighthouse.", "push_in"),
    ("The camera advances toward the gate.", "push_in"),
    ("The camera moves steadily towards the stage.", "push_in"),
    ("Camera pan left across a snowy skyline.", "pan_left"),
    ("The camera pans from right to left over rows of books.", "pan_left"),
    ("A left-to-right pan across a sunlit kitchen.", "pan_right"),
    ("A quick rightward pan to the ringing telephone.", "pan_right*1.5"),
    ("The camera pans across the harbour to the right.", "pan_right"),
    ("Pan the camera to the left, slowly.", "pan_left"),
    ("The camera gracefully turns left towards the window.", "pan_left"),
    ("The camera rotates to the right in the ruined temple.", "pan_right"),
    ("Whip pan right to the explosion.", "pan_right*1.5"),
    ("The camera tilts up from the roots to the crown of a sequoia.", "tilt_up"),
    ("A gentle downward tilt from the stars to the village.", "tilt_down*.5"),
    ("The camera pans up the facade of a skyscraper.", "tilt_up"),
    ("Tilt down, a marble staircase.", "tilt_down"),
    ("The camera pans from top to bottom along the tapestry.", "tilt_down"),
    ("The camera trucks left past shelves of jars.", "move_left"),
    ("Tracking shot moving right alongside a cyclist.", "move_right"),
    ("A rightward tracking shot of a running cheetah.", "move_right"),
    ("The camera slides to the right behind a row of columns.", "move_right"),
    ("The camera strafes left along the wall.", "move_left"),
    ("camera move right, a red door in a white wall", "move_right"),
    ("The drone rises above the clouds at sunset.", "move_up"),
    ("The camera cranes down to the street.", "move_down"),
    ("The camera descends through the canopy.", "move_down"),
    ("Pedestal up, an old radio on a table.", "move_up"),
    ("The camera is slowly lowered to the ground.", "move_down*.5"),
    ("A slow upward crane shot over a battlefield.", "move_up*.5"),
    ("The camera orbits left around a bronze statue.", "orbit_left"),
    ("The camera circles the fountain clockwise.", "orbit_left"),
    ("The camera orbits the monument counter-clockwise.", "orbit_right"),
    ("An arc shot to the right around two dancers.", "orbit_right"),
    ("The camera rotates around the vase to the left.", "orbit_left"),
    ("The drone flies around the tower to the right.", "orbit_right"),
    ("The camera revolves slowly around the couple to the left.", "orbit_left*.5"),
    ("A fast orbit right around a sports car.", "orbit_right*1.5"),
    ("The camera rolls clockwise over the ocean.", "roll_right"),
    ("Camera roll left, an aeroplane in a storm.", "roll_left"),
    ("Camera pull left, a row of poplars.", "pull_left"),
    ("The camera pulls to the right as the train departs.", "pull_right"),
    ("Static shot of a steaming cup of tea.", "fixed"),
    ("A static wide shot of a desert highway.", "fixed"),
    ("Locked-off camera, clouds racing over a mountain.", "fixed"),
    ("The camera does not move while the tide comes in.", "fixed"),
    ("A waterfall in the jungle, no camera movement.", "fixed"),
    ("The camera holds steady on a burning match.", "fixed"),
    ("Fixed. A dog on a porch.", "fixed"),
    ("A crowd crosses the street. Tripod shot.", "fixed"),
    ("Push in, then pan left, a gothic library.", "push_in pan_left"),
    ("Camera orbit left, transitioning to push in, over a glass dome.", "orbit_left push_in"),
    ("Move right, pull out. An abandoned fairground.", "move_right pull_out"),
    ("The camera pushes in and then orbits to the right around the sculpture.", "push_in orbit_right"),
    ("The camera pans left, then right.", "pan_left pan_right"),
    ("The camera moves forward and to the left.", "push_in move_left"),
    ("The camera zooms in and out on the painting.", "push_in pull_out"),
    ("First the camera tilts up, next it pans right, and finally it zooms out.", "tilt_up pan_right pull_out"),
    (
        "Starting with a slow push in, followed by a quick pan left and ending with a tilt up.",
        "push_in*.5 pan_left*1.5 tilt_up",
    ),
    ("The camera glides sideways to the right past ancient pillars.", "move_right"),
    ("A cinematic drone shot slowly ascending over a foggy valley at dawn.", "move_up*.5"),
    ("The camera starts close on a butterfly and gradually pulls back.", "pull_out"),
    ("The car speeds off to the left as the camera tracks right.", "move_right"),
    ("The camera will pan left and then start to zoom in.", "pan_left push_in"),
    ("The camera begins to move to the right, then holds on a door.", "move_right"),
    ("Push in -> pan right -> pull out", "push_in pan_right pull_out"),
    ("1. Push in 2. Orbit left", "push_in orbit_left"),
    ("The camera pushes in on a dog. Then the camera pans left slowly.", "push_in pan_left*.5"),
    ("Slowly, the camera moves to the right.", "move_right*.5"),
    ("The camera pans left at a slow pace.", "pan_left*.5"),
    ("The camera pans left very fast.", "pan_left*1.5"),
    ("In slow motion, the camera pushes in on a splash.", "push_in"),
    ("push_in, orbit_right", "push_in orbit_right"),
    ("CAMERA: PAN LEFT. SCENE: A HARBOUR.", "pan_left"),
    ("The camera doesn’t pan left but tilts up.", "tilt_up"),
    ("The camera neither pans left nor tilts up.", ""),
    ("Instead of panning left, the camera zooms in.", "push_in"),
    ("The camera not only pans left but also zooms in.", "pan_left push_in"),
    ("Without zooming in or panning left, a quiet street.", ""),
    ("Avoid zooming in. A cat by the fire.", ""),
    ("The camera is never static, it pans right.", "pan_right"),
    ("A red fox jumps over a fallen log in the snow.", ""),
    ("A dancer turns left and bows.", ""),
    ("A wave rolls right up to the castle of sand.", ""),
    ("Two elevators move up and down a glass tower.", ""),
    ("A truck moves forward through the mud.", ""),
    ("She pulls out a letter and pushes in the drawer.", ""),
    ("Balloons rise over the valley; people look up.", ""),
    ("A photographer holding a camera moves left.", ""),
    ("A planet and the moons orbiting it.", ""),
    ("The soldiers advance, then retreat into the forest.", ""),
    ("A still pond reflecting the stationary clouds.", ""),
    ("Steam rises from a pan left on the stove.", ""),
    ("The road ahead turns right after the bridge.", ""),
    ("An old film projector rolls in a dark room.", ""),
    ("A static-charged balloon lifts a child's hair.", ""),
    ("Cars drift left and right on the race track.", ""),
    ("The tide moves in and out of the cave.", ""),
]


@pytest.mark.parametrize("prompt, expected", REAL)
def test_real_prompts(prompt: str, expected: str) -> None:
    assert spelled(prompt) == expected
    assert describe_motion(prompt).unknown == ()


def test_the_real_prompts_name_the_whole_taxonomy() -> None:
    said = {token.partition("*")[0] for _, expected in REAL for token in expected.split()}
    assert said == set(MOTIONS) and len(REAL) >= 60


@pytest.mark.parametrize(
    "prompt, expected, unknown",
    [
        # a camera verb without a direction, or with one that it does not have
        ("The camera orbits the statue.", "", ["orbits the statue"]),
        ("The camera zooms.", "", ["zooms"]),
        ("The camera tilts left.", "", ["tilts left"]),
        ("A tracking shot of a runner.", "", ["tracking shot of a"]),
        ("The camera moves in a circle around the house.", "", ["moves in a circle"]),
        ("The camera moves out of the room.", "", ["moves out of the"]),
        ("A 360 degree orbit around a knight in armor.", "", ["orbit around a knight"]),
        ("The camera pans in slow motion.", "", ["pans in slow motion"]),
        ("The camera sinks upwards.", "", ["sinks upwards"]),
        # verbs and techniques outside the taxonomy
        ("The camera swoops over the hills.", "", ["swoops over the hills"]),
        ("The camera spirals upwards.", "", ["spirals upwards"]),
        ("The camera follows the dog as it moves left.", "", ["follows the dog"]),
        ("The camera follows the runner and pans left.", "pan_left", ["follows the runner"]),
        ("The camera shakes violently, then pans left.", "pan_left", ["shakes violently"]),
        ("The camera swoops, then rolls left.", "roll_left", ["swoops"]),
        ("The camera pans left, then dives into the sea.", "pan_left", ["dives into the sea"]),
        ("The camera will spiral down.", "", ["spiral down"]),
        ("The camera moves back and forth.", "", ["moves back and forth"]),
        ("Handheld camera, a busy street.", "", ["Handheld"]),
        ("Fly-through of a cave.", "", ["Fly-through"]),
        ("A dolly zoom on the detective's face.", "", ["dolly zoom"]),
        # amounts: the extent of a motion is the configuration's
        ("The camera orbits 180 degrees to the left around a tree.", "orbit_left", ["180 degrees"]),
        ("A slow 90° pan to the right.", "pan_right*.5", ["90°"]),
        # other languages
        ("镜头缓慢向左平移,一只猫坐在窗边", "", ["镜头缓慢向左平移"]),
        ("La cámara gira a la izquierda.", "", ["cámara gira a la"]),
        # neither is about the motion of the camera
        ("The camera captures a wedding in slow motion.", "", []),
        ("A photographer drops her camera.", "", []),
        ("The camera lens is cracked.", "", []),
    ],
)
def test_what_is_not_understood_is_reported_and_not_guessed(prompt: str, expected: str, unknown: list[str]) -> None:
    assert spelled(prompt) == expected
    assert list(describe_motion(prompt).unknown) == unknown


# A grammar of camera sentences, each with the token that it means.
SIDES = {"left": ["left", "to the left", "leftward", "from right to left", "towards the left"], "right": ["right"]}
SIDES["right"] += ["to the right", "rightwards", "from the left to the right"]
IN = ["in", "forward", "inward", "closer", "towards the door"]
OUT = ["out", "back", "backwards", "outward"]
SAID = {  # kind -> [(base, third person, -ing, directions)]
    "push_in": [("push", "pushes", "pushing", IN), ("zoom", "zooms", "zooming", IN),
                ("dolly", "dollies", "dollying", IN), ("glide", "glides", "gliding", IN[1:]),
                ("track", "tracks", "tracking", IN[1:])],
    "pull_out": [("pull", "pulls", "pulling", OUT), ("zoom", "zooms", "zooming", OUT),
                 ("move", "moves", "moving", OUT[1:])],
    **{f"pull_{d}": [("pull", "pulls", "pulling", SIDES[d])] for d in SIDES},
    **{f"move_{d}": [("move", "moves", "moving", SIDES[d]), ("truck", "trucks", "trucking", SIDES[d]),
                     ("slide", "slides", "sliding", SIDES[d])] for d in SIDES},
    **{f"pan_{d}": [("pan", "pans", "panning", SIDES[d])] for d in SIDES},
    **{f"roll_{d}": [("roll", "rolls", "rolling", SIDES[d][:2])] for d in SIDES},
    **{f"orbit_{d}": [("orbit", "orbits", "orbiting", [*SIDES[d], f"around the old tower to the {d}"]),
                      ("circle", "circles", "circling", [f"around it to the {d}", f"the fountain to the {d}"])]
       for d in SIDES},
    **{f"tilt_{d}": [("tilt", "tilts", "tilting", [d, d + "ward"]), ("pan", "pans", "panning", [d])]
       for d in ("up", "down")},
    **{f"move_{d}": [("crane", "cranes", "craning", [d, d + "wards"]), ("boom", "booms", "booming", [d])]
       for d in ("up", "down")},
}  # fmt: skip
SPEEDS = {"": 1.0, "slowly": 0.5, "gently": 0.5, "quickly": 1.5, "smoothly": 1.0, "gracefully": 1.0}
SCENES = ["", "A red fox sleeps in the snow.", "Waves break on a rocky shore.", "A girl turns left and smiles."]


@st.composite
def camera_sentences(draw: st.DrawFn) -> tuple[str, list[MotionToken]]:
    tokens: list[MotionToken] = []
    clauses: list[str] = []
    is_order = draw(st.booleans())
    for i in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(sorted(SAID)))
        base, third, ing, directions = draw(st.sampled_from(SAID[kind]))
        direction, speed = draw(st.sampled_from(directions)), draw(st.sampled_from(sorted(SPEEDS)))
        verb = base if is_order else third
        subject = "" if is_order or i else "the camera"
        if subject and draw(st.booleans()):
            clauses.append(f"the camera is {speed} {ing} {direction}")
        elif " " not in direction and draw(st.booleans()):
            clauses.append(f"{subject} {verb} {direction} {speed}")
        else:
            clauses.append(f"{subject} {speed} {verb} {direction}")
        tokens.append(MotionToken(kind, SPEEDS[speed]))
    joints = (
        [", then ", ", ", "; ", ". Then "] if is_order else [", then ", " and then ", ", and ", " before ", "; then "]
    )
    text = clauses[0] + "".join(draw(st.sampled_from(joints)) + clause for clause in clauses[1:])
    text = draw(st.sampled_from(["", "A red fox. "])) + " ".join(text.split()) + ". " + draw(st.sampled_from(SCENES))
    change = draw(st.sampled_from([str, str.upper, str.capitalize, lambda t: t.replace(" ", "  ")]))
    return change(text), tokens


@settings(max_examples=200, deadline=None)
@given(camera_sentences())
def test_generated_sentences_say_what_they_were_made_from(case: tuple[str, list[MotionToken]]) -> None:
    text, tokens = case
    reading = describe_motion(text)
    assert list(reading.tokens) == tokens and reading.unknown == (), text


@pytest.mark.parametrize("no", ["does not", "doesn't", "never", "does not ever", "doesn’t slowly"])
@pytest.mark.parametrize("kind", sorted(SAID))
def test_a_negated_motion_is_left_out(kind: str, no: str) -> None:
    for base, _, _, directions in SAID[kind]:
        for direction in directions:
            assert describe_motion(f"The camera {no} {base} {direction}.") == ((), ())


WORDS = st.sampled_from(
    sorted(
        {w for prompt, _ in REAL for w in prompt.split()} | set(string.punctuation) | {"°", "镜头", "360", "\n", "—"}
    )
)
ANY_TEXT = st.text(st.characters(exclude_categories=()))  # every code point, lone surrogates too


@settings(max_examples=200, deadline=None)
@given(st.one_of(ANY_TEXT, st.lists(st.one_of(WORDS, ANY_TEXT), max_size=30).map(" ".join)))
def test_any_text_is_read_without_a_crash(text: str) -> None:
    tokens, unknown = describe_motion(text)
    assert {t.kind for t in tokens} <= set(MOTIONS) and {t.magnitude for t in tokens} <= {0.5, 1.0, 1.5}
    assert all(excerpt and excerpt in text for excerpt in unknown)
    assert "fixed" not in [t.kind for t in tokens] or len(tokens) == 1


@pytest.mark.parametrize(
    "piece",
    [
        "back ",
        "slowly ",
        ",",
        "the camera ",
        "pan ",
        "left to ",
        "not ",
        " ",
        "-",
        "pan left ",
        "zooms ",
        "it then moves ",
        "and moves, ",
        "slow, sweeping ",
        "camera, which is ",
    ],
)
def test_long_prompts_take_no_longer_than_their_length(piece: str) -> None:
    """Words looked up grow with the prompt and not with its square."""
    counts = []
    for repeats in (500, 1000):
        reader = _Counting("The camera pans left, " + piece * repeats + "then pulls out.")
        reader.read()
        counts.append(reader.looked_up)
    assert counts[1] < 2.2 * counts[0]


class _Counting(_Reader):
    looked_up = 0

    def at(self, i: int) -> str:
        self.looked_up += 1
        return super().at(i)


@pytest.mark.parametrize("prompt", [None, b"pan left", 3, ["pan left"]])
def test_a_prompt_must_be_text(prompt: object) -> None:
    with pytest.raises(TypeError, match="parse_motion: prompt must be a str, got"):
        parse_motion(prompt)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("pan to the left, then dolly in, then orbit to the left.", ["pan_left", "push_in", "orbit_left"]),
        ("Dolly in. Then orbit left.", ["push_in", "orbit_left"]),
        ("pan left again", ["pan_left"]),
    ],
)
def test_what_follows_a_motion_is_no_part_of_it(text: str, kinds: list[str]) -> None:
    assert [token.kind for token in parse_motion(text)] == kinds
