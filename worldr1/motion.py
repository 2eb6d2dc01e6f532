"""Prompt -> motion tokens: the camera words of a prompt, in order of appearance."""

from __future__ import annotations

import re

from worldr1.datatypes import MotionToken

_CAMERA = r"(?:the\s+)?camera\s+"
_SIDE = r"(?:\s+(?:to|towards?)\s+(?:the|its)|\s+to)?\s+"
_PATTERNS: list[tuple[str, str]] = [  # (kind, pattern); {d} stands for a side word
    ("push_in", r"push(?:es|ing)?[\s_-]in|(?:doll(?:y|ies|ying)|zoom(?:s|ing)?)\s+in|" + _CAMERA + r"(?:moves?|moving|advances?|glides?)\s+forwards?"),
    ("pull_out", r"pull(?:s|ing)?[\s_-](?:out|back)|(?:doll(?:y|ies|ying)|zoom(?:s|ing)?)\s+(?:out|back)|" + _CAMERA + r"(?:moves?|moving|retreats?)\s+backwards?"),
    ("pull_{d}", r"pull(?:s|ing)?[\s_-]{d}"),
    ("move_{d}", r"(?:truck|track)(?:s|ing)?" + _SIDE + r"{d}|" + _CAMERA + r"(?:moves?|moving|slides?|sliding)" + _SIDE + r"{d}|mov(?:e|es|ing)[\s_-]{d}"),
    ("pan_{d}", r"pan(?:s|ning)?[_-]{d}|pan(?:s|ning)?" + _SIDE + r"{d}"),
    ("orbit_{d}", r"(?:orbit(?:s|ing)?|arc(?:s|ing)?|circl(?:e|es|ing))[_-]{d}|(?:orbit(?:s|ing)?|arc(?:s|ing)?|circl(?:e|es|ing))" + _SIDE + r"{d}"),
    ("roll_{d}", r"roll(?:s|ing)?[_-]{d}|" + _CAMERA + r"rolls?" + _SIDE + r"{d}"),
    ("tilt_{v}", r"tilt(?:s|ing)?[\s_-]{v}(?:wards?)?"),
    ("move_{v}", r"(?:pedestal|crane)(?:s|ing)?[\s_-]{v}|" + _CAMERA + r"(?:moves?|moving)\s+{v}(?:wards?)?|move_{v}"),
    ("fixed", r"(?:fixed|static|stationary|locked[\s-]off|still)\s+(?:camera|shot|view)|" + _CAMERA + r"(?:is|stays?|remains?|holds?)\s+(?:fixed|static|still|stationary)|camera\s+fixed"),
]
_SLOW = re.compile(r"\b(?:slowly|slightly|gently|subtly|a\s+little)\b[\s,]*$", re.I)
_FAST = re.compile(r"\b(?:fast|quickly|rapidly|swiftly)\b[\s,]*$", re.I)
_NOT = re.compile(r"\b(?:not|never|no|without|doesn't|does\s+not|don't)\b[\w\s,]{0,12}$", re.I)


def _compiled() -> list[tuple[str, re.Pattern[str]]]:
    out = []
    for kind, pattern in _PATTERNS:
        words = ("left", "right") if "{d}" in kind else ("up", "down") if "{v}" in kind else ("",)
        for word in words:
            filled = pattern.replace("{d}", word).replace("{v}", word)
            out.append((kind.replace("{d}", word).replace("{v}", word), re.compile(r"\b(?:" + filled + r")\b", re.I)))
    return out


_COMPILED = _compiled()


def parse_motion(prompt: str) -> tuple[MotionToken, ...]:
    """The camera motions that a prompt asks for, in order.

    Slow words before a motion halve its magnitude, fast ones make it 1.5; a negated motion is left out.

    Args:
      prompt: Any text.
    Returns:
      Motion tokens; empty where the prompt names no camera motion (a camera at rest is then used).
    """
    found: list[tuple[int, int, str]] = []
    for kind, pattern in _COMPILED:
        found += [(m.start(), m.end(), kind) for m in pattern.finditer(prompt)]
    found.sort(key=lambda f: (f[0], -f[1]))
    tokens, end = [], 0
    for start, stop, kind in found:
        before = prompt[max(0, start - 24) : start]
        if start < end or _NOT.search(before):
            continue
        end = stop
        magnitude = 0.5 if _SLOW.search(before) else 1.5 if _FAST.search(before) else 1.0
        tokens.append(MotionToken(kind, magnitude))
    moving = [t for t in tokens if t.kind != "fixed"]
    return tuple(moving or tokens[:1])
