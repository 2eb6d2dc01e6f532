"""The vocabulary of the reader: camera verbs with their motions, and words that tell whether the camera is meant."""

from __future__ import annotations

import re
from typing import NamedTuple


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


CLEAR, TERM, PLAIN = range(3)
"""Whether a verb has no sense but the camera's, is a camera term with other senses, or a plain word."""
_TRAVEL = {
    "in": "push_in", "out": "pull_out", "left": "move_left", "right": "move_right", "up": "move_up",
    "down": "move_down",
}  # fmt: skip
_ALONG = {d: _TRAVEL[d] for d in ("in", "out", "left", "right")}
_PAN = {"left": "pan_left", "right": "pan_right", "up": "tilt_up", "down": "tilt_down"}
# Clockwise is seen from above for an orbit, and from behind the camera for a roll.
ORBIT = {"left": "orbit_left", "right": "orbit_right", "clockwise": "orbit_left", "counter": "orbit_right"}
_ROLL = {"left": "roll_left", "right": "roll_right", "clockwise": "roll_right", "counter": "roll_left"}
# (verbs, sense, direction -> kind; the direction is "" where the verb says it all).
_TABLE: list[tuple[str, int, dict[str, str]]] = [
    ("zoom", CLEAR, {"in": "push_in", "out": "pull_out"}),
    ("orbit", CLEAR, ORBIT),
    ("dolly", TERM, _ALONG),
    ("push", TERM, {"in": "push_in"}),
    ("pull", TERM, {"out": "pull_out", "left": "pull_left", "right": "pull_right"}),
    ("move glide slide drift shift travel", TERM, _TRAVEL),
    ("creep", TERM, {"in": "push_in"}),
    ("track truck strafe", TERM, _ALONG),
    ("pan", TERM, _PAN | {"in": "push_in", "out": "pull_out"}),  # "pans out" is said for a zoom
    ("arc circle revolve", TERM, ORBIT),
    ("roll", TERM, _ROLL),
    ("tilt", TERM, {d: _PAN[d] for d in ("up", "down")}),
    ("pedestal crane boom jib", TERM, {d: _TRAVEL[d] for d in ("up", "down")}),
    # A sweep sideways is a turn; how one swoops, the direction says. "Sweeps over the hills" says neither.
    ("sweep", TERM, {d: _PAN[d] for d in ("left", "right")}),
    ("swoop", TERM, _TRAVEL),
    ("fly float soar walk sail", PLAIN, _TRAVEL),
    ("turn rotate swivel pivot swing angle", PLAIN, _PAN),
    ("edge inch ease nudge head come press rush race speed hurtle close step", PLAIN, {"in": "push_in"}),
    ("bring take go", PLAIN, _TRAVEL),
    ("get", PLAIN, {"in": "push_in", "out": "pull_out"}),
    ("rise ascend climb raise lift elevate", PLAIN, {"up": "move_up", "": "move_up"}),
    ("descend lower sink drop", PLAIN, {"down": "move_down", "": "move_down"}),
    ("approach", PLAIN, {"": "push_in"}),
    ("advance", PLAIN, {"in": "push_in", "": "push_in"}),
    ("retreat", PLAIN, {"out": "pull_out", "": "pull_out"}),
    ("recede", PLAIN, {"out": "pull_out", "": "pull_out"}),
    ("back", PLAIN, {"out": "pull_out", "up": "pull_out"}),
    # Camera moves without a counterpart in the taxonomy: where they lead, the scene decides. They are reported.
    ("follow weave spiral dive plunge chase snake skim navigate traverse swirl spin wander meander", TERM, {}),
]
_NO_BASE = _set("edge inch head press rush race speed close step drop swing angle")
"""Verbs that are no verbs beside the camera in their plain form: "camera close-up", "camera speed"."""


def _inflections(base: str) -> tuple[str, str, str]:
    """Third person, -ing and past form of a regular verb."""
    if base.endswith("y"):
        return base[:-1] + "ies", base + "ing", base[:-1] + "ied"
    if base.endswith("e"):
        return base + "s", base[:-1] + "ing", base + "d"
    long = base + base[-1] if base in ("pan", "jib", "drop", "spin", "skim", "step", "get") else base
    return base + ("es" if base.endswith(("h", "ss", "o")) else "s"), long + "ing", long + "ed"


class Verb(NamedTuple):
    base: str
    inflected: bool
    sense: int
    kinds: dict[str, str]


VERBS = {
    form: Verb(base, form != base, CLEAR if form in ("panning", "dollying", "trucking") else sense, kinds)
    for bases, sense, kinds in _TABLE
    for base in bases.split()
    for form in ((base, *_inflections(base)) if base not in _NO_BASE else _inflections(base))
}

del VERBS["elevated"]  # "the camera is elevated" tells where it is

DIRECTIONS = {
    word: direction
    for direction, words in {
        "in": "in into inward inwards forward forwards closer nearer ahead",
        "out": "out outward outwards back backward backwards away",
        "left": "left leftward leftwards",
        "right": "right rightward rightwards",
        "up": "up upward upwards skyward",
        "down": "down downward downwards",
        "clockwise": "clockwise",
        "counter": "counterclockwise anticlockwise",
    }.items()
    for word in words.split()
}
ENDS = {"left": "left", "right": "right", "top": "up", "bottom": "down"}  # of "from left to right"
SLOW = _set("slow slowly slight slightly gentle gently subtle subtly little bit leisurely softly barely")
FAST = _set("fast quick quickly rapid rapidly swift swiftly speedily briskly sudden suddenly whip swish crash snap")
MANNER = SLOW | FAST | _set("smooth steady gradual continuous dramatic very")  # and adverbs in -ly
CAMERA_ADJECTIVES = _set(
    "cinematic epic majestic elegant graceful fluid seamless sweeping lateral horizontal vertical aerial handheld long "
    "lazy languid deliberate controlled measured stately unhurried hypnotic breathtaking immersive panoramic "
    "cinematographic degree degrees full half"
)
"""Said of camera motions and of little else; beside "a push in" and its like any other adjective does too."""
NO_ADVERB = _set("family butterfly dragonfly assembly jelly belly reply supply lily bully italy july")
CAMERAS = _set("camera camera's cam shot view viewpoint lens drone pov perspective steadicam footage hyperlapse we")
TURNED = CAMERAS - {"we", "drone", "lens"}
"""Of those, what a verb may have for an object: "pan the camera left"."""
THINGS = _set("drone lens")
"""Of those, things in a scene where an article "a" or a word that tells which one stands before: "a delivery drone"."""
FILMING = _set("shot filmed seen captured recorded view pov perspective footage taken")
BEFORE_THINGS = _set(
    "the our fpv aerial camera and as while when until then before with because but first but slow . ,"
)
BEHIND = _set("toward towards at into past near behind beside to facing for away front")
"""Words before a camera that something else does something to: "runs towards the camera and rolls left"."""
SHOTS = _set("shot shots movement motion move")
PICTURES = _set(
    "image picture video scene frame footage film clip animation sequence focus timelapse hyperlapse closeup director "
    "operator cinematographer filmmaker burns"
)
VIEWS = _set("view viewpoint perspective")
"""What rises while a camera tilts up."""
FILMED = _set("operator cinematographer video scene frame clip sequence timelapse lapse composition")
"""What pans and tilts as a camera does."""
"""With the camera and its shots, what may zoom as a camera does."""
BEFORE_SHOTS = _set("drone aerial wide fpv camera cinematic handheld crane tracking")
# What may stand between the camera and its verb, or between two motions of one sentence.
FILLERS = _set(
    "is that which will can should must to then starts start begins begin continues performs perform does makes make "
    "a an the motion motions movement movements angle and next first finally also now keeps just only later "
    "almost ever so"
)
JOINERS = FILLERS | _set(
    "with while before after afterward afterwards into followed by transition transitions transitioning in it plus "
    "ending ends finishing combined but instead rather"
)
ORDINALS = _set("then and next first finally now")
STOPPING = _set("stop stops stopped stopping cease ceases ceased halts quits")
NEGATIONS = _set("not never no without cannot avoid avoiding avoids nor neither instead rather zero")
OWNERS = _set(
    "security surveillance his her their my your holding holds carrying carries"
)  # "his camera" is a thing in the scene
DETERMINERS = _set("a an the one every each another")
ARTICLES = _set("a an the his her their its my some")
AT_REST = _set("fixed static stationary motionless immobile locked tripod still")
RESTING = _set("is are stays stay remains remain holds hold held kept keeps mounted sits on a ,")
PREPOSITIONS = _set("in on of the a an and to at by with is . ,")  # "fixed in the frame" is not about the camera
ACROSS = _set("it him them around about across along over the a an this its")
BREAK = _set("and then while before as with but or who that which . ,")
RELATIVE = _set("who that which whose where as while when ,")
ORDERS = _set("start begin open hold wide end")
OPENINGS = _set("starts begins opens lingers holds pauses rests waits stays remains hovers sits looks")
"""Verbs after which the next verb of the sentence is the camera's too; what it follows or shows may act itself."""
PARTED = _set("lit lost hung held built caught seen half still in on at with who which")
"""With participles, what opens an insertion behind a subject: "soldiers, lit from behind, push forward"."""
AGAIN = _set("then again next finally before further second twice repeats afterwards lastly")
CIRCLES = _set("arc circle orbit loop circuit")
WAYS = CIRCLES | _set("direction motion movement manner fashion sweep path")
STOP = BREAK | frozenset(VERBS)
COOKWARE = _set("frying hot iron cast copper sauce baking roasting steel metal dirty empty greasy large small deep")
NOT_ADJECTIVES = _set(  # what cannot stand between an article and a noun; with plurals, which are subjects
    "he she it they we you i who which that this these those his her their its people men women children kids crowd "
    "police cattle some many all both others is are was were be been will would can could should must may might do "
    "does did to not never no as while when if than at on over under through across along past near behind from up "
    "down left right out off has have had gets got make let us them him me"
)
CAUSES = _set("let lets see sees watch watches hear hears help helps")
"""Verbs whose object does what a plain verb behind it says: "let the ghost zoom in"."""
HELPERS = _set("is are was were be can will would could should must may might")
PEOPLE = _set(
    "sheep deer fish people men women children kids police cattle they we you i these those some many all both others"
)
NP_STARTS = _set("a an the another one with using by in of for via into and then , .")
AUXILIARIES = HELPERS | _set("to just also now almost even still soon")
NOT_SUBJECTS = (
    NP_STARTS
    | ORDINALS
    | _set(  # words before a verb that are not its subject
        "it while before after without by with on in of for or nor but as when where until not never no start "
        "starts begin begins keep keeps continue continues up close"
    )
)
CLAUSE_STARTS = _set(". , and as while then when with")
SPATIAL = _set("across over to toward towards from through along alongside as while past around of then . ,")
AFTER_IN = _set(
    "on to toward towards close closer tight tightly for from and then with while as until before after over through "
    "past behind beside above below under beneath into . ,"
)
EMPHASIS = _set("all straight sideways further ever even so by full degree degrees camera")
OBJECTS = _set("pan dolly truck crane track roll boom jib pedestal")
"""Verbs that are things too: "truck left in the ditch"; an order or a noun of the camera's goes on over something."""
NOUNS = _set("push pull zoom dolly tilt orbit pedestal")  # "a push in" needs no more than its article
PATHS = _set("hall hallway corridor street road path trail aisle alley lane tunnel river track avenue canyon valley")
NO_MOTION = _set(  # what a camera does, has or is without moving
    "is was has captures shows reveals focuses films records frames faces looks sees watches catches lingers holds "
    "stays remains rests stands sits uses needs opens lens lenses angles details settings placed positioned mounted "
    "fixed locked still during capturing showing revealing focusing filming recording looking facing framing none "
    "adds highlights emphasizes completes enhances creates conveys allows provides gives includes emphasize capture "
    "highlight reveal show focus create enhance convey allow provide give include"
)
TECHNIQUES = frozenset(
    "handheld,hand-held,hand held,shaky cam,shaky camera,dolly zoom,dolly-zoom,vertigo effect,fly-through,flythrough,"
    "fly-over,flyover,bullet time,barrel roll,orbital shot,dutch angle,dutch tilt,side to side,side-to-side,"
    "back and forth".split(",")
)
_SAYS = r"(?:says?|said|saying|reads?|reading|shouts?|shouting|yells?|whispers?|calls?|asks?|answers?|cries|screams?)"
SPOKEN = re.compile(rf'\b{_SAYS}\W{{1,3}}["“][^"“”]{{0,200}}["”]|["“][^"“”]{{0,200}}["”]\W{{0,2}}{_SAYS}\b', re.I)
"""What somebody in the scene says, or a sign: "a man who shouts "pull back"."""
FOREIGN = re.compile("telecamera|镜头|鏡頭|摄像|攝像|相机|相機|カメラ|카메라|камер|cámara|câmera|caméra|kamera", re.I)
