"""Prompt -> motion tokens: the camera words of a prompt, in order of appearance; docs/camera.md has the taxonomy.

Most camera verbs are also plain English ("he pulls out a sword", "a pan left on the stove"), so a phrase counts only
where the camera is meant: the camera is its subject or object, it is an order at the start of a clause, it continues an
earlier camera motion, it is a noun of the camera's ("a slow push in", "an epic pull out"), or its word has no other
sense and no other subject ("Zooming in", but not "bees zoom in"). What is said of the camera and is no motion of the
taxonomy is reported, never guessed.

    python -m worldr1.camera "The camera pushes in, then pans left"    # shows how a prompt is read
"""

from __future__ import annotations

from typing import NamedTuple

from worldr1.camera import words as vocab
from worldr1.camera.subjects import Subjects
from worldr1.datatypes import MotionToken

_MOST_TOLD = 16
"""Longest sequence of motions that is looked for once more: it bounds the time that a long list takes."""


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


class CameraReading(NamedTuple):
    """What a prompt asks of the camera, and whether that is enough to hold a video to it."""

    tokens: tuple[MotionToken, ...]  # as `parse_motion`
    unread: tuple[str, ...]  # excerpts that were not understood
    asked: bool


def read_camera(prompt: str) -> CameraReading:
    """`describe_motion`, and whether the prompt asks for a camera that we know.

    A prompt asks where a motion was read, whatever else was not: what it names is judged. It asks for rest where rest
    was read and nothing else was said of the camera: "static at first, then it swoops" is not rest. It does not ask
    where its only camera words were not read, nor where it has none: stillness must not be demanded of it.

    Args:
      prompt: Any text.
    Returns:
      CameraReading(tokens, unread, asked). Where a prompt did not ask, its path is a camera at rest and means nothing.
    Raises:
      TypeError: prompt is not a str.
    """
    tokens, unread = describe_motion(prompt)
    moves = any(token.kind != "fixed" for token in tokens)
    return CameraReading(tokens, unread, moves or (bool(tokens) and not unread))


class _Reader(Subjects):
    """One prompt; positions are indices of its words."""

    def __init__(self, prompt: str) -> None:
        super().__init__(prompt)
        self.tokens: list[MotionToken] = []
        self.origins: list[tuple[int, bool]] = []  # of each token: start of its sentence, whether "then" links it
        self.unknown: list[tuple[int, int]] = []  # first word, word after the last

    def read(self) -> MotionReading:
        i = 0
        while i < len(self.words):
            i = max(self._step(i), i + 1)
        moving = self._told_once()
        excerpts = [self.prompt[self.words[a].start : self.words[b - 1].stop] for a, b in sorted(self.unknown)]
        return MotionReading(tuple(moving or self.tokens[:1]), tuple(excerpts))

    def _step(self, i: int) -> int:
        """Reads what begins at word i; returns the word after it, or i where nothing does."""
        if self.at(i) == ".":
            subject = self._after(self.period + 1, lambda m: self.at(m) in vocab.ORDINALS | {","})
            about_it = self.is_topic and self.at(subject) == "it"
            self.is_topic = max(self.end, self.leads) > self.period or about_it
            self.period = i
        if self._camera(i):
            self.seen = i
            first = self._before(i, lambda m: self._manner(m) or self.at(m) in ("the", "a", "our", "drone", "static"))
            if self.at(first) in vocab.CLAUSE_STARTS:
                self.leads = i
        elif self.at(i) == "close" and self.at(i + 1) == "up":
            self.seen = i
        for size in range(min(3, len(self.words) - i), 0, -1):
            words = "".join(("-" if w.glued else " ") + w.text for w in self.words[i : i + size])[1:]
            if words in vocab.TECHNIQUES and not self._negated(i):
                self._note(i, i + size)
                return i + size
        if stop := self._fixed(i):
            self._add("fixed", 1.0, i)
            self.end = stop
            return stop
        hit = self._motion(i)
        if hit is None:
            self._report(i)
            return i
        kind, stop, named = hit
        if self._negated(i):
            self._deny(i, stop)
            if self.seen > self.period:  # "does not pan left but moves right"
                self.end = stop
            return stop
        if named or self._means_camera(i, stop):
            return self._take(i, stop, kind)
        if self._is_doubtful(i, stop):
            self._note(i, stop)
        return i

    def _add(self, kind: str, magnitude: float, i: int) -> None:
        """Adds the motion that is told at word i."""
        linked = any(self.at(m) in vocab.AGAIN for m in range(max(self.period + 1, self.end, i - 12), i + 3))
        self.tokens.append(MotionToken(kind, magnitude))
        self.origins.append((self.period, linked))

    def _told_once(self) -> list[MotionToken]:
        """The motions, without sentences that tell the ones before again: "... pans left. Wide shot, panning left."."""
        out: list[MotionToken] = []
        start = 0
        while start < len(self.tokens):
            stop = start
            while stop < len(self.tokens) and self.origins[stop][0] == self.origins[start][0]:
                stop += 1
            own = [t for t in self.tokens[start:stop] if t.kind != "fixed"]
            again = (
                0 if self.origins[start][1] else min(len(own), _MOST_TOLD)
            )  # so many of its motions end the list already
            while again and [t.kind for t in out[-again:]] != [t.kind for t in own[:again]]:
                again -= 1
            for k in range(again):
                if out[k - again].magnitude == 1.0:
                    out[k - again] = own[k]
            out += own[again:]
            start = stop
        return out

    def _take(self, i: int, stop: int, kind: str) -> int:
        """Notes the motion at words i .. stop - 1, and others that its verb goes on to: "left, then right"."""
        if self.unknown and self.unknown[-1][1] >= i and self.at(i - 1) in vocab.SHOTS:  # "tracking shot moving left"
            self.unknown.pop()
        if self.unknown and self.unknown[-1][0] == self.leads + 2 and self.at(self.leads + 1) == ",":
            inserted = vocab.VERBS.get(self.at(self.leads + 2))  # "the camera, gliding like a ghost, moves forward"
            if inserted is not None and inserted.kinds:
                self.unknown.pop()
        magnitude, end = self._magnitude(i, stop)
        if kind in ("move_left", "move_right") and self._is_orbit_before(i):
            kind = kind.replace("move", "orbit")
            self.unknown.pop()
        if self.unknown and self.unknown[-1][1] > i and self.at(self.unknown[-1][0] + 1) in ("a", "an", "the"):
            self.unknown.pop()  # "executes a smooth pull out"
        if self._is_restated(i, kind):
            if self.tokens[-1].magnitude == 1.0:
                self.tokens[-1] = MotionToken(self.tokens[-1].kind, magnitude)
            self.end = end
            return end
        for k in range(max(i - 2, self.end, self.period, 0), stop + 3):
            if self.at(k)[0].isdigit() and self.at(k + 1) in ("degree", "degrees"):
                self._note(k, k + 2)
        self._add(kind, magnitude, i)
        verb = vocab.VERBS.get(self.at(i))
        while verb is not None:
            k = end + (self.at(end) == ",")
            linked = self.at(k) in ("then", "and")
            k += linked + (linked and self.at(k + 1) == "then")
            if k == end:
                break
            while self._manner(k):
                k += 1
            hit = self._direction(k, "", verb.kinds)
            if (
                hit is None
                or verb.kinds[hit[0]] == self.tokens[-1].kind
                or self.at(hit[1]) not in (vocab.STOP | vocab.FILLERS | vocab.AFTER_IN | vocab.ACROSS | vocab.AGAIN)
                or not (linked or self.at(hit[1]) in (",", ".", "and", "then"))  # a list, "left, right, up"
            ):
                break
            self._add(verb.kinds[hit[0]], magnitude, i)
            end = hit[1]
        self.end = end
        return end

    def _is_orbit_before(self, i: int) -> bool:
        """Whether the motion at word i tells the side of an orbit: "circles the vase, moving from left to right"."""
        if self.at(i) != "moving" or not self.unknown or self.unknown[-1][0] <= self.period:
            return False
        verb = vocab.VERBS.get(self.at(self.unknown[-1][0]))
        return verb is not None and verb.kinds is vocab.ORBIT

    def _is_restated(self, i: int, kind: str) -> bool:
        """Whether the motion at word i was told in its sentence already, "pushes in on a doll, moving closer", or is
        what a tilt shows: "tilts up a tower. The view rises"."""
        seen = self.at(self._before(i, self._fill)) in vocab.VIEWS
        if seen and self.tokens and self.tokens[-1].kind == kind.replace("move", "tilt"):
            return True
        if self.end <= self.period or not self.tokens or self.tokens[-1].kind != kind:
            return False
        if any(self.at(m) in vocab.AGAIN for m in range(max(self.end, i - 12), i)):
            return False
        return self.at(i).endswith("ing") or self.seen >= self.end

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
        noun = not vocab.VERBS[self.at(i)].inflected if self.at(i) in vocab.VERBS else False
        for j in range(max(self._noun_phrase(i)[1], self.end), i) if noun else ():  # "a slow, cinematic push in"
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
            if self._negated(i) or (self.at(i).endswith("ing") and self.at(i + 1) in vocab.VERBS):  # "a sweeping pan"
                return
            orbits = self.end > self.period and bool(self.tokens) and self.tokens[-1].kind.startswith("orbit")
            if orbits and "clockwise" in {self.at(m) for m in range(i + 1, i + 5)}:  # its sense, which was read
                return
            _, named = self._after_verb(i)
            if named and i == self.end:  # "a rising crane shot"
                return
            noun = self._is_own(i) and not verb.inflected and self._noun_phrase(i)[0] == 2
            noun = noun and verb.base not in ("push", "pull")  # "a gentle push" may be given to anything
            named = named and (verb.sense != vocab.PLAIN or self.at(i + 1) == "the")
            is_ing, in_context = self.at(i).endswith("ing"), self.seen > self.period
            if named and is_ing and self.at(i + 1) in ("motion", "movement", "movements") and not in_context:
                return  # "stirs it in a swirling motion"
            clear = verb.sense == vocab.CLEAR and is_ing and in_context
            second = (verb.sense != vocab.PLAIN or not is_ing) and self._is_second(i, own=False)
            ours = self._is_subject(i) or self._is_joined(i) or self._is_pronoun(i) or second
            if not (ours or noun or named or (clear and not self._is_anothers(i))):
                return
        elif self.at(i) in ("camera", "cam") and self._camera(i):
            first = i + 1
            while self._fill(first):
                first += 1
            told = self.at(first - 1) in ("to", "will", "can", "should", "must") and self.at(first).isalpha()
            known = (
                self.at(first)
                in vocab.NO_MOTION
                | vocab.RESTING
                | vocab.AT_REST
                | vocab.STOPPING
                | vocab.NEGATIONS
                | vocab.VERBS.keys()
            )
            if known or not (told or self._is_verb(first)):
                return
        elif not (self._is_joined(i) and self._is_verb(i)) and not vocab.FOREIGN.search(self.at(i)):
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
