"""A grammar of sentences that use the verbs of cameras: for what else moves, for the camera, and negated."""

from __future__ import annotations

from random import Random

ONE = (
    "bee,satellite,train,crane,old man,prospector,baker,dancer,robot,delivery drone,truck,rusty pickup truck,toy boat,"
    "knight in black armour,fox,gull,wave,storm,glacier,hot air balloon,child,photographer,waiter,drawer,red kite,"
    "shark,barge,elevator,planet,figure skater,marble,snail,security guard,wolf,spaceship,carousel,ghost,tugboat"
).split(",")
MANY = (
    "bees,moons,trains,cranes,soldiers,children,people,cars,motorbikes,swans,lanterns,drones,sheep,dancers,clouds,"
    "elephants,two robots,three tugboats,old women,workers in yellow vests,fireflies,skaters,ships,cattle,vultures"
).split(",")
VERBS = [  # base, third person, -ing
    tuple(f.split())
    for f in (
        "zoom zooms zooming,orbit orbits orbiting,push pushes pushing,pull pulls pulling,move moves moving,"
        "glide glides gliding,slide slides sliding,drift drifts drifting,travel travels travelling,"
        "creep creeps creeping,"
        "track tracks tracking,pan pans panning,arc arcs arcing,circle circles circling,revolve revolves revolving,"
        "roll rolls rolling,tilt tilts tilting,sweep sweeps sweeping,swoop swoops swooping,fly flies flying,"
        "float floats floating,soar soars soaring,walk walks walking,sail sails sailing,turn turns turning,"
        "rotate rotates rotating,pivot pivots pivoting,swing swings swinging,inch inches inching,ease eases easing,"
        "rise rises rising,climb climbs climbing,ascend ascends ascending,descend descends descending,"
        "drop drops dropping,sink sinks sinking,advance advances advancing,retreat retreats retreating,"
        "back backs backing,go goes going,rush rushes rushing,step steps stepping,spin spins spinning"
    ).split(",")
]
DIRECTIONS = (
    "in,out,left,right,up,down,forward,back,away,closer,to the left,to the right,from left to right,upward,downwards,"
    "around the old tower to the left,in a clockwise direction,counterclockwise,towards the door,over the roofs,"
    "through the forest,in on a flower,out of the garage,down the long hall"
).split(",")
ADVERBS = ",,,slowly,suddenly,gently,almost,quickly,now".split(",")
PLACES = ",,at dawn,in the rain,under a pale sky,past the camera,beside a broken camera,near the old mill".split(",")
NO_CAMERA = [  # subject S with its verb; a second one in T
    "{S}.",
    "{S}, then stops.",
    "{S}, soft light, 35mm film.",
    "While {t}, {s}.",
    "As {t}, {s}.",
    "{S} and {t}.",
    "{S} while {t}.",
    "{S}; {t}.",
    "{S}. {T}.",
    "The camera shows that {s}.",
    "In the background {s}.",
    "Behind the glass, {s}.",
    "Wide shot of a bay where {s}.",
    "A close-up of a window behind which {s}.",
    "At night, when nobody looks, {s}.",
    "{S}, and nobody pulls out a phone.",
    "{s} {t} neon light",
    "{S}. It then {v} {d}.",
    "{S}. Then it slowly {v} {d}.",
    'A sign that reads "{b} {d}" hangs over the bar.',
    "The {o} which {v} {d} and then {v} {d} falls asleep.",
    "The camera captures a {o} {g} {d}.",
    "The camera watches a {o} that {v} {d}, then stops.",
    "The camera looks at the {o} who stops and {v} {d}.",
    "The camera rests on a table while {s}.",
    "As the camera rests on a table, {s}.",
    "Seen from a drone, {s}.",
    "{S}, shot on 35mm film.",
    "A {o} in front of the camera {v} {d}.",
    "A {o} runs toward the camera and {v} {d}.",
    "A {o} waves at the camera, then {v} {d}.",
    "Let the {o} {b} {d}.",
    "The director asks the {o} to {b} {d}.",
    "Hands {g} {d}, a {o} on a table.",
    "To {b} {d}, the {o} needs a push.",
    "A sudden push, a loud bang, and the {o} {v} {d}.",
    "A gentle turn to the left wakes the {o}.",
    "A quick slide to the right saves the {o}.",
    "The slow climb up the stairs tires a {o}.",
    "The {o}'s steady drift to the right ends at a wall.",
    "One slow pull on the rope and the {o} {v} {d}.",
    "A {o} left alone in a pan, right on the stove, {v} {d}.",
    "Truck left in the mud, {o} on the roof.",
    "{S}, neither fast nor slow, and {t}.",
    "It is the {o} that {v} {d}.",
    "A {o} {g} {d}, oil on canvas.",
    "{o} {g} {d} {o} {g} {d} film grain",
]
SCENES = (
    "A red fox sleeps in the snow.,Waves break on a rocky shore.,Two bakers roll the dough out to the left.,"
    "Bees zoom in and out of a hive.,A crane lifts a container to the right.,A girl turns left and smiles."
).split(",")
CAMERA = [  # the camera's verb with its direction, and the kind that it means
    (("push", "pushes", "pushing"), "in", "push_in"),
    (("zoom", "zooms", "zooming"), "out", "pull_out"),
    (("pull", "pulls", "pulling"), "back", "pull_out"),
    (("dolly", "dollies", "dollying"), "forward", "push_in"),
    (("move", "moves", "moving"), "to the left", "move_left"),
    (("truck", "trucks", "trucking"), "right", "move_right"),
    (("pan", "pans", "panning"), "left", "pan_left"),
    (("pan", "pans", "panning"), "from left to right", "pan_right"),
    (("tilt", "tilts", "tilting"), "up", "tilt_up"),
    (("orbit", "orbits", "orbiting"), "in a clockwise direction", "orbit_left"),
    (("circle", "circles", "circling"), "around the old tower to the right", "orbit_right"),
    (("crane", "cranes", "craning"), "down", "move_down"),
    (("glide", "glides", "gliding"), "closer", "push_in"),
    (("roll", "rolls", "rolling"), "clockwise", "roll_right"),
]
SAID = [  # base {b}, third person {v}, -ing {g}, direction {d}
    "The camera {v} {d}.",
    "The camera is {g} {d}.",
    "The camera begins to {b} {d}.",
    "The camera will now {b} {d}.",
    "The camera, mounted on a rail, {v} {d}.",
    "The camera, a silent witness, {v} {d}.",
    "The camera, which never blinks, {v} {d}.",
    "The camera that was still now {v} {d}.",
    "The camera starts on a lamp, then {v} {d}.",
    "With the camera {g} {d}, the door opens.",
    "Camera {b} {d}.",
    "[Camera: {b} {d}]",
    "Let the camera {b} {d}.",
    "The shot {v} {d} while {t}.",
    "While {t}, the camera {v} {d}.",
    "As {t}, the camera {v} {d}.",
    "{T}. The camera {v} {d}.",
    "The camera {v} {d} as {t}.",
    "{T} and the camera {v} {d}.",
    "{T}; the camera {v} {d}.",
]
NEGATED = [
    "The camera does not {b} {d}.",
    "The camera doesn't {b} {d}, and {t}.",
    "The camera never {v} {d}.",
    "The camera will not {b} {d}.",
    "The camera shows a lamp without {g} {d}.",
    "Without {g} {d}, the camera shows that {t}.",
    "The camera stops {g} {d}.",
    "The camera holds still instead of {g} {d}.",
    "Do not {b} {d}. {T}.",
    "Avoid {g} {d}; {t}.",
    "The camera neither {v} {d} nor shakes.",
    "No {g} {d}.",
    "The camera rests, never {g} {d}.",
    "The camera cannot {b} {d} here.",
    "The camera isn't {g} {d}.",
]


def other_clause(rng: Random) -> str:
    """Another subject that moves, without a capital: "a rusty truck, startled, slowly rolls to the left at dawn"."""
    many = rng.random() < 0.4
    subject = rng.choice(MANY) if many else rng.choice(("a", "the", "one", "every")) + " " + rng.choice(ONE)
    base, third, ing = rng.choice(VERBS)
    finite = base if many else third
    form = rng.random()
    if form < 0.15:
        verb = f"{'are' if many else 'is'} {ing}"
    elif form < 0.25:
        verb = f"that {'were' if many else 'was'} resting now {finite}"
    elif form < 0.35:
        verb = f", lit from behind, {finite}"
    elif form < 0.45:
        verb = f"can {base}"
    elif form < 0.55:
        verb = f"{'stop' if many else 'stops'} and {finite}"
    else:
        verb = finite
    direction = rng.choice(DIRECTIONS)
    if rng.random() < 0.15:
        direction += ", then " + rng.choice(DIRECTIONS[2:8])
    adverb = rng.choice(ADVERBS) if verb in (base, third) else ""
    words = f"{subject} {adverb} {verb} {direction} {rng.choice(PLACES)}"
    return " ".join(words.split()).replace(" ,", ",")


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def without_camera(rng: Random) -> str:
    """A sentence in which only other subjects move."""
    s, t, (base, third, ing) = other_clause(rng), other_clause(rng), rng.choice(VERBS)
    words = {"b": base, "v": third, "g": ing, "d": rng.choice(DIRECTIONS), "o": rng.choice(ONE)}
    return capital(rng.choice(NO_CAMERA).format(s=s, t=t, S=capital(s), T=capital(t), **words))


def _camera(rng: Random, templates: list[str]) -> tuple[str, str]:
    (base, third, ing), direction, kind = rng.choice(CAMERA)
    t = other_clause(rng)
    return rng.choice(templates).format(b=base, v=third, g=ing, d=direction, t=t, T=capital(t)), kind


def with_camera(rng: Random) -> tuple[str, str]:
    """A sentence with one camera motion, often beside another subject's; and its kind."""
    return _camera(rng, SAID)


def negated(rng: Random) -> tuple[str, str]:
    """A sentence that denies a camera motion; and its kind."""
    return _camera(rng, NEGATED)
