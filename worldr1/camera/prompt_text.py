"""A prompt as words, and what a word is on its own: a manner, a filler, the camera."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from worldr1.camera import words as vocab

_PIECE = re.compile(r"\d+(?:\.\d+)?|[^\W\d_]+(?:'[^\W\d_]+)*|[.!?…。！？]|[^\w\s]")
_SILENT = frozenset("'\"“”‘*`#~")


class Word(NamedTuple):
    text: str  # lower case; "." ends a sentence, "," is any other break
    start: int
    stop: int
    glued: bool = False  # to the word before, by a hyphen or an underscore


def split_words(prompt: str) -> list[Word]:
    out: list[Word] = []
    prompt = vocab.SPOKEN.sub(lambda m: " " * len(m[0]), prompt)
    for match in _PIECE.finditer(prompt.replace("’", "'")):
        start, stop, text = match.start(), match.end(), match[0].lower()
        between = prompt[out[-1].stop if out else 0 : start]
        if "\n" in between:
            out.append(Word(",", start, start))
        if text == "°":
            out.append(Word("degrees", start, stop))
        elif text == "-" and out and out[-1].stop == start and prompt[stop : stop + 1].isalnum():
            continue  # inside a word
        elif text[0].isalnum():
            out.append(Word(text, start, stop, bool(out) and between in ("-", "_") and out[-1].text not in ".,"))
        elif text not in _SILENT:
            out.append(Word("." if text in ".!?…。！？" else ",", start, stop))
    return out


class PromptText:
    """One prompt; positions are indices of its words."""

    def __init__(self, prompt: str) -> None:
        self.prompt = prompt
        self.words = split_words(prompt)
        self.things: frozenset[str] = frozenset()
        self.things = frozenset(w.text for i, w in enumerate(self.words) if w.text in vocab.THINGS and self._thing(i))

    def at(self, i: int) -> str:
        """Text of word i; outside the prompt, the end of a sentence."""
        return self.words[i].text if 0 <= i < len(self.words) else "."

    def _manner(self, i: int) -> bool:
        word = self.at(i)
        adverb = word.endswith("ly") and len(word) > 4 and word not in vocab.NO_ADVERB | vocab.VERBS.keys()
        return adverb or word in vocab.MANNER

    def _fill(self, i: int) -> bool:
        return self._manner(i) or self.at(i) in vocab.FILLERS or (self.at(i) == "not" and self.at(i + 1) == "only")

    def _camera(self, i: int) -> bool:
        """Whether word i is the camera that films, and no camera or drone of the scene."""
        word = self.at(i)
        if word not in vocab.CAMERAS:
            return False
        near = (m for m in (i - 1, i - 2, i - 3) if self.at(m) in ("a", "an", "the", ".", ","))
        article = next(near, i)
        article = i if self.at(article) in (".", ",") else article
        j = article - 1  # "beside a broken camera"
        around = {self.at(i - 1), self.at(i - 2)}
        if around & vocab.OWNERS or (self.at(i - 2) == "with" and self.at(i - 1) in ("a", "an")):
            return False
        behind = self.at(j) in vocab.BEHIND or (self.at(j - 1), self.at(j)) in (("away", "from"), ("front", "of"))
        if behind and word not in vocab.SHOTS | {"we"}:
            return False
        return word not in vocab.THINGS or not (word in self.things or self._thing(i))

    def _thing(self, i: int) -> bool:
        """Whether the drone or lens at word i is one of the scene: "a drone delivers a parcel", but not "a drone shot",
        "filmed from a drone", "the drone"."""
        is_shot = self.at(i + 1) in (vocab.CAMERAS | vocab.SHOTS) - {"move", "we"} - vocab.THINGS
        if is_shot or self._manner(i - 1) or self.at(i - 1) in vocab.BEFORE_THINGS:
            return False
        by = self.at(i - 2) == "by" or (self.at(i - 2) in ("from", "of") and self.at(i - 3) in vocab.FILMING)
        return not (by and self.at(i - 1) in ("a", "an"))

    def _after(self, i: int, skipped: Callable[[int], bool]) -> int:
        """The first word from i on that is not skipped; the end of the prompt is not."""
        while i < len(self.words) and skipped(i):
            i += 1
        return i

    def _before(self, i: int, skipped: Callable[[int], bool]) -> int:
        """The last word before i that is not skipped; -1 at the start of the prompt."""
        i -= 1
        while i >= 0 and skipped(i):
            i -= 1
        return i
