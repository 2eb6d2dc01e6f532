"""Whose motion a phrase tells: the camera's, or another subject's: "bees zoom in", "a crane lifts a container"."""

from __future__ import annotations

from worldr1.camera import words as vocab
from worldr1.camera.phrases import Phrases


class Subjects(Phrases):
    """One prompt; what the reader has seen of it so far tells whom the next verb belongs to."""

    def __init__(self, prompt: str) -> None:
        super().__init__(prompt)
        self.end = -1  # word after the motion before, and its adverb; -1: none yet
        self.period = self.seen = -1  # the latest end of a sentence, the latest word for the camera
        self.leads = -1  # the latest camera that begins a clause
        self.before_period = -1  # the end of the sentence before

    def _means_camera(self, i: int, stop: int) -> bool:
        """Whether the verb at word i, whose phrase ends before `stop`, is about the camera."""
        verb = vocab.VERBS[self.at(i)]
        if self._is_subject(i):
            return True
        if verb.sense == vocab.CLEAR:
            return not self._is_anothers(i)
        noun = verb.sense == vocab.TERM and (not verb.inflected or self.at(i) == "tracking")
        if noun and self._is_noun(i, stop):
            return True
        inward = self.at(stop - 1) in ("into", "toward", "towards", "through")
        to_object = self.at(stop) in vocab.ARTICLES and not inward
        if to_object or (verb.base == "pan" and self.at(stop) == "on"):  # "pulls out a sword"
            return False
        if self._goes_on(i) or (noun and verb.base in vocab.NOUNS and self.at(i - 1) in ("a", "an", "the")):
            return True
        start = self._before(i, lambda m: self.at(m) in vocab.ORDINALS or self._manner(m))
        return noun and self.at(start) in (".", ",")

    def _is_anothers(self, i: int) -> bool:
        """Whether the verb at word i, which has no sense but the camera's, has a subject of the scene: "bees zoom"."""
        verb = vocab.VERBS[self.at(i)]
        j = self._before(i, lambda m: self._manner(m) or self.at(m) in vocab.AUXILIARIES)
        finite = verb.inflected and not self.at(i).endswith("ing")
        if self.at(j) in ("that", "which"):
            j -= 1
        elif self.at(j) == "and" and finite:  # "a car stops and zooms out"
            return max(self.seen, self.end) <= self.period
        word = self.at(j)
        if word in vocab.CAMERAS | vocab.SHOTS | vocab.PICTURES | vocab.NOT_SUBJECTS or not word[0].isalpha():
            return False
        if not verb.inflected:
            return self._is_plural(j)
        return not self._manner(j) and (finite or self.seen <= self.period)

    def _is_noun(self, i: int, stop: int) -> bool:
        """Whether the noun at word i, whose phrase ends before `stop`, is spoken of as a camera motion is."""
        base, after = vocab.VERBS[self.at(i)].base, self.at(stop)
        level, first = self._noun_phrase(i)
        phrase = {self.at(m) for m in range(first, i)}
        if base == "pan" and phrase & vocab.COOKWARE:
            return False
        if level == 2:
            return base in vocab.NOUNS | {"pan"} or after not in vocab.ARTICLES
        if level == 0 or after in vocab.ARTICLES:  # "a hard push in the back"
            return False
        if base in ("pan", "dolly"):  # "an old dolly left behind"
            sideways = vocab.DIRECTIONS.get(self.at(stop - 1)) in ("left", "right")
            return after in vocab.SPATIAL or not sideways
        return base in vocab.NOUNS

    def _is_subject(self, i: int) -> bool:
        """Whether the camera does what the verb at word i says."""
        if self._camera(self._before(i, lambda m: self._fill(m) or self.at(m) == ",")):
            return True
        j = self._before(i, self._fill)
        if self.at(j) == ",":  # behind an insertion: "the camera, mounted on a car, moves"
            k = next((m for m in range(j - 1, max(j - 16, -1), -1) if self.at(m) in (".", ",")), 0)
            opens = self.at(k + 1) in vocab.PARTED or self.at(k + 1).endswith(("ing", "ed"))
            # A past form is one more insertion: "a medium shot, focusing on her, tilted down".
            return self.at(k) == "," and self._camera(k - 1) and opens and not self.at(i).endswith("ed")
        if self.at(i).endswith("ing"):
            return False
        # behind a clause: "the camera that was static now pans"
        k = next((m for m in range(j, max(j - 12, -1), -1) if self.at(m) in vocab.RELATIVE | {"."}), 0)
        return self.at(k) in ("that", "which") and self._camera(k - 1)

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
        base = vocab.VERBS[self.at(i)].base
        own = base in vocab.NOUNS | {"pan"}
        if own and bool(self.seen > self.period and links & {"and", "then", "before", "while", "it"}):
            # "The camera follows the runner and pans left": only verbs that a runner does not share.
            return True
        if own and self._is_pronoun(i):
            return True
        return self._is_second(i, own=own)

    def _is_second(self, i: int, *, own: bool) -> bool:
        """Whether the verb at word i is the second of a sentence whose subject is the camera, "The camera lingers on a
        face, slowly pulling back", or begins a clause behind a shot: "Wide shot of a lake, pushing in"."""
        j = self._before(i, lambda m: self._manner(m) or self.at(m) in vocab.ORDINALS)
        follows = self.at(j) == "," and (self.at(i).endswith("ing") or "then" in {self.at(m) for m in range(j, i)})
        joined = follows or ("and" in {self.at(m) for m in range(max(j, 0), i)} and self.at(i).endswith("s"))
        if not joined or max(self.leads, self.seen) <= self.period:
            return False
        first = self.leads if self.leads > self.period else self.seen
        if i - first > 40 or any(self.at(m) in vocab.RELATIVE - {","} for m in range(first, j)):
            return False
        if own:
            return self.at(i).endswith("ing")
        k = self.leads + 1
        while self._manner(k):
            k += 1
        before = vocab.VERBS.get(self.at(k))
        moves = before is not None and bool(before.kinds) and vocab.VERBS[self.at(i)].sense != vocab.PLAIN
        return self.leads > self.period and (self.at(k) in vocab.OPENINGS or moves)

    def _is_pronoun(self, i: int) -> bool:
        """Whether the subject of the verb at word i is an "it" behind a sentence with a camera motion."""
        j = self._before(i, self._fill)
        first = self._before(j, lambda m: self.at(m) in vocab.ORDINALS)
        return self.at(j) == "it" and first == self.period and self.end > self.before_period

    def _is_joined(self, i: int) -> bool:
        """Whether word i goes on from a camera motion shortly before: "pans left, then swoops"."""
        if not (self.end > self.period and 0 < i - self.end < 6) or self.at(i) in vocab.NO_MOTION:
            return False
        between = {self.at(m) for m in range(self.end, i)}
        return bool(between & {"then", "before"}) and between <= vocab.JOINERS | {","}
