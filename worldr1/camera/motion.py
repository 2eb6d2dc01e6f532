"""Prompt -> motion tokens: the camera words of a prompt, in order of appearance; docs/camera.md has the taxonomy.

Most camera verbs are also plain English ("he pulls out a sword", "a pan left on the stove"), so a phrase counts only
where the camera is meant: the camera is its subject or object, it is an order at the start of a clause, it continues an
earlier camera motion, it stands with a camera adjective ("a slow push in"), or its word has no other sense ("zooms
in"). What is said of the camera and is no motion of the taxonomy is reported, never guessed.

    python -m worldr1.camera "The camera pushes in, then pans left"    # shows how a prompt is read
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from worldr1.camera import words as vocab
from worldr1.datatypes import MotionToken

_PIECE = re.compile(r"\d+(?:\.\d+)?|[^\W\d_]+(?:'[^\W\d_]+)*|[.!?…。！？]|[^\w\s]")
_SILENT = frozenset("'\"“”‘*`#~")


class MotionReading(NamedTuple):
    """What a prompt asks of the camera, and what it says of it that was not understood."""

    tokens: tuple[MotionToken, ...]
    unknown: tuple[str, ...]


def parse_motion(prompt: str) -> tuple[MotionToken, ...]:
    """The camera motions that a prompt asks for, in order.

    Slow words beside a motion halve its magnitude, fast ones make it 1.5; a negated motion is left out. `fixed` is kept
    only where nothing moves. Motions asked for at once ("while") come one after the other.

    Args:
      prompt: Any text.
    Returns:
      Motion tokens; empty where the prompt names no camera motion (a camera at rest is then used).
    Raises:
      TypeError: prompt is not a str.
    """
    return describe_motion(prompt).tokens


def describe_motion(prompt: str) -> MotionReading:
    """`parse_motion`, and the words about the camera that it did not understand.

    Args:
      prompt: Any text.
    Returns:
      MotionReading(tokens: as `parse_motion`; unknown: excerpts of the prompt in order: a camera verb without a
      direction or with one that it does not have, a technique outside the taxonomy, an amount in degrees, a camera
      word of another language).
    Raises:
      TypeError: prompt is not a str.
    """
    if not isinstance(prompt, str):
        raise TypeError(f"parse_motion: prompt must be a str, got {type(prompt).__name__}")
    return _Reader(prompt).read()


class _Word(NamedTuple):
    text: str  # lower case; "." ends a sentence, "," is any other break
    start: int
    stop: int
    glued: bool = False  # to the word before, by a hyphen or an underscore


def _words(prompt: str) -> list[_Word]:
    out: list[_Word] = []
    for match in _PIECE.finditer(prompt.replace("’", "'")):
        start, stop, text = match.start(), match.end(), match[0].lower()
        between = prompt[out[-1].stop if out else 0 : start]
        if "\n" in between:
            out.append(_Word(",", start, start))
        if text == "°":
            out.append(_Word("degrees", start, stop))
        elif text == "-" and out and out[-1].stop == start and prompt[stop : stop + 1].isalnum():
            continue  # inside a word
        elif text[0].isalnum():
            out.append(_Word(text, start, stop, bool(out) and between in ("-", "_") and out[-1].text not in ".,"))
        elif text not in _SILENT:
            out.append(_Word("." if text in ".!?…。！？" else ",", start, stop))
    return out


class _Reader:
    """One prompt; positions are indices of its words."""

    def __init__(self, prompt: str) -> None:
        self.prompt = prompt
        self.words = _words(prompt)
        self.tokens: list[MotionToken] = []
        self.unknown: list[tuple[int, int]] = []  # first word, word after the last
        self.end = -1  # word after the motion before, and its adverb; -1: none yet
        self.denied = -1  # word after the negated motion before
        self.period = self.seen = -1  # the latest end of a sentence, the latest word for the camera

    def read(self) -> MotionReading:
        i = 0
        while i < len(self.words):
            i = max(self._step(i), i + 1)
        moving = [t for t in self.tokens if t.kind != "fixed"]
        excerpts = [self.prompt[self.words[a].start : self.words[b - 1].stop] for a, b in sorted(self.unknown)]
        return MotionReading(tuple(moving or self.tokens[:1]), tuple(excerpts))

    def _step(self, i: int) -> int:
        """Reads what begins at word i; returns the word after it, or i where nothing does."""
        if self.at(i) == ".":
            self.period = i
        if self._camera(i):
            self.seen = i
        for size in (3, 2, 1):
            words = "".join(("-" if w.glued else " ") + w.text for w in self.words[i : i + size])[1:]
            if words in vocab.TECHNIQUES and not self._negated(i):
                self._note(i, i + size)
                return i + size
        if stop := self._fixed(i):
            self.tokens.append(MotionToken("fixed"))
            self.end = stop
            return stop
        hit = self._motion(i)
        if hit is None:
            self._report(i)
            return i
        kind, stop, clear = hit
        if self._negated(i):
            self.denied = stop
            if self.seen > self.period:  # "does not pan left but moves right"
                self.end = stop
            return stop
        return self._take(i, stop, kind) if clear or self._means_camera(i, stop) else i

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
        return (
            self.at(i) in vocab.CAMERAS
            and not {self.at(i - 1), self.at(i - 2)} & vocab.OWNERS
            and not (self.at(i - 2) == "with" and self.at(i - 1) in ("a", "an"))
        )

    def _before(self, i: int, skipped: Callable[[int], bool]) -> int:
        """The last word before i that is not skipped; -1 at the start of the prompt."""
        i -= 1
        while i >= 0 and skipped(i):
            i -= 1
        return i

    def _motion(self, i: int) -> tuple[str, int, bool] | None:
        """(kind, word after it, whether it can only be the camera's) of the motion that begins at word i."""
        verb = vocab.VERBS.get(self.at(i))
        if verb is None:
            return self._direction_first(i)
        k, named = self._after_verb(i)
        around = self.at(k) in ("around", "about") and "left" in verb.kinds and verb.base not in ("pan", "roll")
        kinds = vocab.ORBIT if around else verb.kinds
        if hit := self._direction(k, verb.base, verb.kinds):
            token = k == i + 1 and self.words[k].glued  # "push_in", "pull-out"
            return verb.kinds[hit[0]], hit[1], named or token or verb.sense == vocab.CLEAR
        if hit := self._far_direction(k, verb.base, kinds):
            return kinds[hit[0]], hit[1], named or verb.sense == vocab.CLEAR
        contradicted = vocab.DIRECTIONS.get(self.at(k)) in ("up", "down")
        return (verb.kinds[""], i + 1, named) if "" in verb.kinds and not contradicted else None

    def _after_verb(self, i: int) -> tuple[int, bool]:
        """Where the direction of the verb at word i may stand, and whether the camera is named: "pan the camera"."""
        k = i + 1
        article = self.at(k) in ("the", "our", "your")
        named = self.at(k + article) in (vocab.CAMERAS if article else vocab.CAMERAS | vocab.SHOTS) - {"we", "drone"}
        k += (article + 1) * named
        while True:
            if self.at(k) in ("the", "a") and self.at(k + 1) in ("way", "little", "bit", "full"):
                k += 2
            elif self._manner(k) or self.at(k) in vocab.EMPHASIS or self.at(k)[0].isdigit():
                k += 1
            else:
                return k, named

    def _direction(self, i: int, base: str, kinds: dict[str, str], again: bool = True) -> tuple[str, int] | None:
        """(direction, word after it) at word i: "left", "to the left", "from right to left", "back to the left"."""
        k = i + (self.at(i) == "from")
        k += self.at(k) == "the"
        if self.at(k) in vocab.ENDS and self.at(k + 1) == "to":  # from one end to the other
            k += 2 + (self.at(k + 2) == "the")
            if vocab.ENDS.get(self.at(k)) in kinds:
                return vocab.ENDS[self.at(k)], k + 1
        toward = self.at(i) in ("toward", "towards")
        k = i + (toward or self.at(i) in ("to", "on"))
        k += self.at(k) in ("the", "its")
        word = self.at(k)
        if word == "back" and again and (hit := self._direction(k + 1, base, kinds, again=False)):
            return hit
        direction = vocab.DIRECTIONS.get(word, "")
        if word in ("counter", "anti") and self.at(k + 1) == "clockwise":
            direction, k = "counter", k + 1
        if word in ("up", "down") and self._is_path(k + 1):
            direction = "in"
        if direction and direction in kinds and self._is_meant(k, base):
            return direction, k + 1 + (self.at(k + 1) == "side")
        return ("in", i + 1) if toward and "in" in kinds else None

    def _is_path(self, i: int) -> bool:
        """Whether "down" before word i is along a path: "down the long dark hall"."""
        if self.at(i) not in ("the", "a", "an", "this"):
            return False
        end = next((k for k in range(i + 1, i + 4) if self.at(k) in vocab.PATHS | {".", ","}), i)
        return self.at(end) in vocab.PATHS

    def _is_meant(self, i: int, base: str) -> bool:
        """Whether in, out or back at word i is a direction: not "in slow motion", "in the dark", "out of the door"."""
        word, after = self.at(i), self.at(i + 1)
        if word == "in":
            if after in ("slow", "real") and self.at(i + 2) in ("motion", "mo", "time"):
                return False
            return base in ("zoom", "push") or after in vocab.AFTER_IN or self._manner(i + 1)
        if word == "into":
            return after not in ("focus", "view", "frame")
        if word == "out":
            return after != "of" or base in ("zoom", "pull", "dolly")
        return not (word == "back" and (after, self.at(i + 2)) == ("and", "forth"))

    def _far_direction(self, i: int, base: str, kinds: dict[str, str]) -> tuple[str, int] | None:
        """The direction behind an object: "circles around the old tree to the right", "pans across the bay to ..."."""
        for k in range(i + 1, i + 7) if self.at(i) in vocab.ACROSS else ():
            word = self.at(k)
            if word in vocab.STOP or word.endswith("ing"):
                break
            strong = word in ("to", "toward", "towards", "from", "counter", "anti")
            strong = strong or word.endswith(("ward", "wards", "wise"))
            last = self.at(k + 1) in vocab.STOP | {"in", "at", "on", "over", "to"} or self._manner(k + 1)
            if strong or (word in ("left", "right") and last):
                hit = self._direction(k, base, kinds)
                if hit and hit[0] not in ("in", "out"):
                    return hit
        return ("in", i + 1) if self.at(i) == "through" and {"in", "left"} <= set(kinds) else None

    def _direction_first(self, i: int) -> tuple[str, int, bool] | None:
        """As `_motion`, of "a leftward pan", "left-to-right tracking shot", "a slow forward dolly"."""
        word, k = self.at(i), i + 1
        direction, strong = vocab.DIRECTIONS.get(word, ""), word.endswith(("ward", "wise"))
        if word in ("counter", "anti") and self.at(k) == "clockwise":
            direction, strong, k = "counter", True, k + 1
        elif word in vocab.ENDS and self.at(k) == "to" and self.at(k + 1) in vocab.ENDS:
            direction, strong, k = vocab.ENDS[self.at(k + 1)], True, k + 2
        if not direction:
            return None
        while self._manner(k) or self.at(k) == "camera":
            k += 1
        verb = vocab.VERBS.get(self.at(k))
        if verb is None or direction not in verb.kinds or self._motion(k):
            return None
        shot = self.at(k + 1) in vocab.SHOTS
        noun = not verb.inflected and verb.base in vocab.NOUNS | {"pan"} and (strong or self._manner(i - 1))
        return (verb.kinds[direction], k + 1 + shot, True) if shot or noun else None

    def _fixed(self, i: int) -> int:
        """The word after a phrase at word i that keeps the camera at rest; 0 where there is none."""
        word, stop = self.at(i), i + 1
        if word == "camera" and self.at(stop) in vocab.SHOTS | {"movements", "motions"}:
            return (i + 2) * bool({self.at(i - 1), self.at(i - 2)} & {"no", "without", "zero"})
        if word in ("move", "moves", "moving") and self._negated(i) and self._motion(i) is None:
            return stop * any(self.at(j) in vocab.CAMERAS for j in range(i - 5, i))
        steady = word == "steady" and self.at(i - 1) in ("hold", "holds", "stays", "remains")
        if (word not in vocab.AT_REST and not steady) or self._negated(i):
            return 0
        still = word == "still"
        if still and (self.at(stop) in vocab.VERBS or self.at(stop).endswith("ing")):  # "is still moving"
            return 0
        if word == "locked" and self.at(stop) in ("off", "down"):
            stop += 1
        alone = word in ("fixed", "static", "stationary") and {self.at(i - 1), self.at(stop)} <= {".", ","}
        if alone or (word, self.at(i + 1)) == ("locked", "off"):
            return stop
        for k in range(stop, stop + (1 if still else 3)):
            if self.at(k) in vocab.CAMERAS | {"frame", "framing"}:
                return k + 1
            if self.at(k) in vocab.PREPOSITIONS:
                break
        j = self._before(i, lambda m: self.at(m) in vocab.RESTING or self._manner(m))
        return stop * (self.at(j) in ("camera", "cam") and self._camera(j))

    def _means_camera(self, i: int, stop: int) -> bool:
        """Whether the verb at word i, whose phrase ends before `stop`, is about the camera."""
        verb = vocab.VERBS[self.at(i)]
        noun = not verb.inflected and verb.sense == vocab.TERM
        if self._is_subject(i) or (noun and self._has_adjective(i)):
            return True
        inward = self.at(stop - 1) in ("into", "toward", "towards", "through")
        to_object = self.at(stop) in vocab.ARTICLES and not inward
        if to_object or (verb.base == "pan" and self.at(stop) == "on"):  # "pulls out a sword"
            return False
        if self._goes_on(i) or (noun and verb.base in vocab.NOUNS and self.at(i - 1) in ("a", "an", "the")):
            return True
        start = self._before(i, lambda m: self.at(m) in vocab.ORDINALS or self._manner(m))
        return noun and self.at(start) in (".", ",")

    def _has_adjective(self, i: int) -> bool:
        """Whether the noun at word i is spoken of as a camera motion is: "a slow push in", "a 90 degree pan"."""
        return self._manner(i - 1) or self.at(i - 1) in ("degree", "degrees")

    def _is_subject(self, i: int) -> bool:
        """Whether the camera does what the verb at word i says."""
        return self._camera(self._before(i, lambda m: self._fill(m) or self.at(m) == ","))

    def _goes_on(self, i: int) -> bool:
        """Whether the verb at word i continues what the sentence has said of the camera."""
        if 0 <= self.end and self.period < self.end:
            j = self._before(i, lambda m: m >= self.end and (self._manner(m) or self.at(m) in vocab.JOINERS | {","}))
            if j < self.end:
                return True
        j = self._before(i, lambda m: self._fill(m) or self.at(m) == "it")
        links = {self.at(m) for m in range(max(j, 0), i)}
        if self.end > self.period and links & {"then", "before"}:
            return True
        if self.end > self.period and "and" in links and self.at(i).endswith("s"):
            # "glides towards the door and moves left", but not "past a man who stops and moves left".
            return not any(self.at(m) in vocab.RELATIVE for m in range(max(self.end, i - 12), j))
        # "The camera follows the runner and pans left": only verbs that a runner does not share.
        own = vocab.VERBS[self.at(i)].base in vocab.NOUNS | {"pan"}
        return own and bool(self.seen > self.period and links & {"and", "then", "before", "while", "it"})

    def _negated(self, i: int) -> bool:
        for j in (i - 1, i - 2, i - 3):
            word = self.at(j)
            if word in (".", ",", "but"):
                break
            if word in vocab.NEGATIONS or word.endswith("n't"):
                return self.at(j + 1) not in ("only", "just")
        between = {self.at(m) for m in range(self.denied, i)} if 0 <= i - self.denied <= 3 else set()
        return self.denied >= 0 and bool(between) and between <= {",", "or", "nor"}

    def _take(self, i: int, stop: int, kind: str) -> int:
        """Notes the motion at words i .. stop - 1, and others that its verb goes on to: "left, then right"."""
        if self.unknown and self.unknown[-1][1] >= i and self.at(i - 1) in vocab.SHOTS:  # "tracking shot moving left"
            self.unknown.pop()
        magnitude, end = self._magnitude(i, stop)
        for k in range(max(i - 2, self.end, self.period, 0), stop + 3):
            if self.at(k)[0].isdigit() and self.at(k + 1) in ("degree", "degrees"):
                self._note(k, k + 2)
        self.tokens.append(MotionToken(kind, magnitude))
        verb = vocab.VERBS.get(self.at(i))
        while verb is not None:
            k = end + (self.at(end) == ",")
            if self.at(k) not in ("then", "and"):
                break
            k += 1 + (self.at(k + 1) == "then")
            while self._manner(k):
                k += 1
            hit = self._direction(k, "", verb.kinds)
            if (
                hit is None
                or verb.kinds[hit[0]] == self.tokens[-1].kind
                or self.at(hit[1]) not in vocab.STOP | vocab.FILLERS | vocab.AFTER_IN | vocab.ACROSS
            ):
                break
            self.tokens.append(MotionToken(verb.kinds[hit[0]], magnitude))
            end = hit[1]
        self.end = end
        return end

    def _magnitude(self, i: int, stop: int) -> tuple[float, int]:
        """Magnitude of the motion at words i .. stop - 1, and the word after it and its adverb."""
        at_a = self.at(stop) == "at" and self.at(stop + 1) == "a"
        k = stop + 2 * at_a + (self.at(stop) == "a")
        k += self.at(k) == "very"
        if self._speed(k):
            return self._speed(k), k + 1
        for j in range(i, stop):
            if self._speed(j):
                return self._speed(j), stop
        j = i - 1
        passed = vocab.CAMERAS | {",", "degree", "degrees"}
        while j >= max(self.end, 0) and (self._fill(j) or self.at(j) in passed or self.at(j)[0].isdigit()):
            # Across a comma only from an adverb that stands alone or in a list: "Slowly, the camera", "a slow, steady".
            alone = self._manner(j - 1) and (self.at(j - 2) in (".", ",", "a") or self._manner(j + 1))
            if self.at(j) == "," and not alone:
                break
            if self._speed(j):
                return self._speed(j), stop
            j -= 1
        return 1.0, stop

    def _speed(self, i: int) -> float:
        """Magnitude that the word at i asks for; 0 where it asks for none."""
        word = self.at(i)
        if self.at(i + 1) in ("motion", "mo"):  # slow motion is the film's, not the camera's
            return 0.0
        return 0.5 if word in vocab.SLOW else 1.5 if word in vocab.FAST else 0.0

    def _report(self, i: int) -> None:
        """Notes word i and those after it where they say of the camera what is no motion of the taxonomy."""
        verb, first = vocab.VERBS.get(self.at(i)), i
        if verb is not None:
            _, named = self._after_verb(i)
            noun = verb.base in vocab.NOUNS | {"pan"} and not verb.inflected and self._has_adjective(i)
            if not (self._is_subject(i) or noun or (named and verb.sense != vocab.PLAIN)) or self._negated(i):
                return
        elif self.at(i) in ("camera", "cam") and self._camera(i):
            first = i + 1
            while self._fill(first):
                first += 1
            told = self.at(first - 1) in ("to", "will", "can", "should", "must") and self.at(first).isalpha()
            known = self.at(first) in vocab.NO_MOTION | vocab.RESTING | vocab.VERBS.keys()
            if known or not (told or self._is_verb(first)):
                return
        elif self.end > self.period and 0 < i - self.end < 6 and self._is_verb(i):  # "pans left, then swoops"
            between = {self.at(m) for m in range(self.end, i)}
            joined = between & {"then", "before"} and between <= vocab.JOINERS | {","}
            if not joined or self.at(i) in vocab.NO_MOTION:
                return
        elif not vocab.FOREIGN.search(self.at(i)):
            return
        last = first + 1
        if self.at(last) in vocab.BREAK:  # "The camera swoops, then rises": what follows is still the camera's
            self.end = last
        while last < first + 4 and self.at(last) not in vocab.BREAK:
            last += 1
        self._note(first, last)

    def _is_verb(self, i: int) -> bool:
        """Whether word i may be a verb in a form that follows the camera, and not one of those that are read."""
        word = self.at(i)
        known = word in vocab.VERBS or self._fill(i)
        return word.endswith(("s", "ing")) and len(word) > 3 and not known

    def _note(self, first: int, last: int) -> None:
        if self.unknown and self.unknown[-1][1] > first:
            first, last = self.unknown[-1][0], max(last, self.unknown.pop()[1])
        self.unknown.append((first, last))
