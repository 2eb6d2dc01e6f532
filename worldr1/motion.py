"""Prompt -> motion tokens: the camera words of a prompt, in order of appearance.

Most camera verbs are also plain English ("he pulls out a sword", "a pan left on the stove"), so a phrase counts only
where the camera is meant: the camera is its subject, it is an order at the start of a clause, it continues an earlier
camera motion, it stands with a camera adjective ("a slow push in"), or its word has no other sense ("zooms in").
"""

from __future__ import annotations

import re

from worldr1.datatypes import MotionToken

_SLOW = r"slow(?:ly)?|slight(?:ly)?|gentl[ey]|subtl[ey]|a\s+(?:little|bit)"
_FAST = r"fast|quick(?:ly)?|rapid(?:ly)?|swift(?:ly)?"
_MANNER = rf"{_SLOW}|{_FAST}|smooth(?:ly)?|stead(?:y|ily)|gradual(?:ly)?|continuous(?:ly)?|dramatic(?:ally)?|very"
# Between a verb and its direction: "pans slowly to the left", "moves from right to left".
_FROM = r"\s+from\s+(?:the\s+)?(?:left|right|top|bottom)\s+to(?:\s+the)?"
_TO = rf"(?:\s+(?:{_MANNER}))*(?:{_FROM}|\s+(?:to|towards?)(?:\s+(?:the|its))?)?\s+"
_AROUND = r"(?:\s+around(?:\s+\w+){1,3}?)?"

_LEAVE = r"back(?:wards?)?|out(?:wards?)?"
_ENTER = r"in(?:to|wards?)?"
_ADVANCE = r"forwards?|closer"
_MOVE = r"mov(?:es?|ing)|glid(?:es?|ing)|slid(?:es?|ing)|drift(?:s|ing)?|shift(?:s|ing)?|travel(?:s|ing|ling)?"
_ZOOM = r"zoom(?:s|ing)?|doll(?:y|ies|ying)"
_PAN, _ORBIT = r"pan(?:s|ning)?", r"orbit(?:s|ing)?"

# (kind, verb, directions, whether the words have no sense but the camera's); {d} is a side, {v} up or down.
_PHRASES: list[tuple[str, str, str, bool]] = [
    ("push_in", _ZOOM, rf"{_ENTER}|{_ADVANCE}", True),
    ("push_in", rf"push(?:es|ing)?|{_MOVE}|advanc(?:es?|ing)|creep(?:s|ing)?", rf"{_ENTER}|{_ADVANCE}", False),
    ("pull_out", _ZOOM, _LEAVE, True),
    ("pull_out", rf"pull(?:s|ing)?|{_MOVE}|retreat(?:s|ing)?", rf"{_LEAVE}|away", False),
    ("pull_{d}", r"pull(?:s|ing)?", "{d}", False),
    ("move_{d}", r"tracking\s+shot|trucking|dollying", "{d}", True),
    ("move_{d}", rf"track(?:s|ing)?|trucks?|doll(?:y|ies)|{_MOVE}", "{d}", False),
    ("pan_{d}", "panning", "{d}", True),
    ("pan_{d}", _PAN, "{d}", False),
    ("orbit_{d}", _ORBIT + _AROUND, "{d}", True),
    ("orbit_{d}", r"(?:arc(?:s|ing)?|circl(?:es?|ing)|revolv(?:es?|ing))" + _AROUND, "{d}", False),
    ("roll_{d}", r"roll(?:s|ing)?", "{d}", False),
    ("tilt_{v}", r"tilt(?:s|ing)?", r"{v}(?:wards?)?", False),
    ("move_{v}", rf"pedestal(?:s|ing)?|cran(?:es?|ing)|boom(?:s|ing)?|{_MOVE}", r"{v}(?:wards?)?", False),
]
_CAMERA = r"(?:camera|shot|view|viewpoint|lens|drone)"
_FIXED = (
    r"(?:fixed|static|stationary|still|motionless|locked(?:[\s-](?:off|down))?)\s+(?:camera|shot|view|frame|viewpoint)"
    r"|locked[\s-]off|camera\s+(?:(?:is|stays?|remains?|holds?|kept|completely|perfectly|\w+ly)\s+)*"
    r"(?:fixed|static|still|stationary|motionless|locked)"
)

# What may stand between the camera and its verb, or between two motions of one sentence.
_FILL = (
    rf"(?:{_MANNER}|is|that|which|will|can|to|then|starts?|begins?|performs?|does|makes?"
    r"|a|an|the|motions?|movements?|angle|and|next|first|finally)"
)
_JOIN = rf"(?:{_FILL}|with|while|before|after(?:wards)?|into|followed\s+by|transition(?:s|ing)?|in\s+to)"
_SUBJECT = re.compile(rf"\b{_CAMERA}(?:[\s:,]+{_FILL})*[\s:,-]+$", re.I)
_ORDER = re.compile(rf"(?:^|[.!?;:,\n])\s*(?:(?:then|and|next|first|finally|{_MANNER})[\s,]+)*$", re.I)
_NOUN = re.compile(rf"\b(?:{_MANNER})\s+(?:camera\s+)?$", re.I)
_GOES_ON = re.compile(rf"^(?:[\s,;-]+{_JOIN})*[\s,;-]+$|\b(?:then|before)\s+(?:{_FILL}\s+)*$", re.I)
_OBJECT = re.compile(r"^\s+(?:a|an|the|his|her|their|its|my|some|on)\b", re.I)
_INFLECTED = re.compile(r"^\w+?(?:s|ing)\b", re.I)
_NOT = re.compile(r"(?:\b(?:not|never|no|without|cannot)|n't)\s+(?:\w+\s+){0,2}$", re.I)
_BEFORE = re.compile(rf"\b(?:(?P<slow>{_SLOW})|(?P<fast>{_FAST}))\s+(?:{_FILL}\s+)*$", re.I)
_INSIDE = re.compile(rf"\b(?:(?P<slow>{_SLOW})|(?P<fast>{_FAST}))\b", re.I)
_AFTER = re.compile(rf"^\s+(?:very\s+)?(?:(?P<slow>{_SLOW})|(?P<fast>{_FAST}))\b", re.I)


def _compiled() -> list[tuple[str, re.Pattern[str], bool]]:
    out = [("fixed", re.compile(rf"\b(?:{_FIXED})\b", re.I), True)]
    for kind, verb, directions, clear in _PHRASES:
        words = ("left", "right") if "{d}" in kind else ("up", "down") if "{v}" in kind else ("",)
        for word in words:
            name = kind.replace("{d}", word).replace("{v}", word)
            ends = directions.replace("{d}", word).replace("{v}", word)
            out.append((name, re.compile(rf"\b(?:{verb}){_TO}(?:{ends})\b", re.I), clear))
            out.append((name, re.compile(rf"\b(?:{verb})[_-](?:{ends})\b", re.I), True))  # the written token
    return out


_COMPILED = _compiled()


def parse_motion(prompt: str) -> tuple[MotionToken, ...]:
    """The camera motions that a prompt asks for, in order.

    Slow words beside a motion halve its magnitude, fast ones make it 1.5; a negated motion is left out. `fixed` is kept
    only where nothing moves.

    Args:
      prompt: Any text.
    Returns:
      Motion tokens; empty where the prompt names no camera motion (a camera at rest is then used).
    """
    found = [(m.start(), -m.end(), kind, clear) for kind, pattern, clear in _COMPILED for m in pattern.finditer(prompt)]
    tokens: list[MotionToken] = []
    end = 0  # of the motion before
    for start, minus_stop, kind, clear in sorted(found):
        stop = -minus_stop
        before, phrase, after = prompt[:start], prompt[start:stop], prompt[stop:]
        if start < end or _NOT.search(before):
            continue
        if not clear and not _means_camera(before, phrase, after, prompt[end:start] if tokens else None):
            continue
        # An adverb before the verb belongs to it only if the motion before has not ended with it.
        hits = [_INSIDE.search(phrase), _AFTER.search(after), _BEFORE.search(prompt[end:start])]
        hit = next((h for h in hits if h), None)
        if hit is hits[2] and hit and tokens and _AFTER.search(prompt[end:start]):
            hit = None
        tokens.append(MotionToken(kind, 1.0 if hit is None else 0.5 if hit["slow"] else 1.5))
        end = stop
    moving = [t for t in tokens if t.kind != "fixed"]
    return tuple(moving or tokens[:1])


def _means_camera(before: str, phrase: str, after: str, between: str | None) -> bool:
    """Whether an ambiguous phrase is about the camera; `between` is the text since the camera motion before it."""
    inflected = bool(_INFLECTED.search(phrase))
    if _SUBJECT.search(before) or (not inflected and _NOUN.search(before)):
        return True
    if _OBJECT.search(after):  # "pulls out a sword", "pan left on the stove"
        return False
    if between is not None and not re.search(r"[.!?]", between) and _GOES_ON.search(between):
        return True
    return not inflected and bool(_ORDER.search(before))
