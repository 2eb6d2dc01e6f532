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
        self.is_topic = False  # whether the sentence before is about the camera

    def _means_camera(self, i: int, stop: int) -> bool:
        """Whether the verb at word i, whose phrase ends before `stop`, is about the camera."""
        verb = vocab.VERBS[self.at(i)]
        if self._is_subject(i):
            return True
        if verb.sense == vocab.CLEAR:
            return not self._is_anothers(i)
        if stop == i + 2 and self.words[i + 1].glued and self._is_thing(stop):  # "a pull-out sofa"
            return False
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
        if (
            noun
            and self.at(start) in (".", ",")
            and not (self._is_parted(start) and self._is_plural(self._comma_before(start) - 1))
        ):
            # "Open on a lamp, then pull back" is an order, "Cats hum, then pull back" is none.
            orders = self.at(start) == "." or self.at(self.period + 1) in vocab.ORDERS or self.seen > self.period
            return (orders or self.at(i - 1) != "then") and (verb.base not in vocab.OBJECTS or self._goes_over(stop))
        moves = self._participle(i, stop)
        return moves == "camera" or (moves == "nobody" and self._is_own(i))

    def _is_anothers(self, i: int) -> bool:
        """Whether the verb at word i, which has no sense but the camera's, has a subject of the scene: "bees zoom"."""
        if self._continues(i):
            return False
        verb = vocab.VERBS[self.at(i)]
        j = self._before(i, lambda m: self._manner(m) or self.at(m) in vocab.AUXILIARIES)
        is_ing = self.at(i).endswith("ing")
        finite = verb.inflected and not is_ing
        between = {self.at(m) for m in range(j + 1, i)}
        helped = bool(between & vocab.HELPERS)  # "a bee can zoom", "is zooming"
        word, in_context = self.at(j), self.seen > self.period
        last = max(self.seen, self.end)
        if word == "and" and any(self._is_plural(m) for m in (j - 2, j - 3)):  # "bees hum and zoom in"
            return last <= self._comma_before(j) or self._has_clause(last, j)
        if self._is_apart(i):  # "a car stops and zooms out"
            if any(self.at(m) == "," and self.at(m + 1) in vocab.DETERMINERS for m in range(max(last, j - 40), j)):
                return True
            return last <= self.period or self._has_clause(last, j)
        if word == "it":
            return not in_context and self.period >= 0 and not (self.is_topic and self.end >= 0)
        clause = next((m for m in range(j, j - 8, -1) if self.at(m) in ("that", "which", "who", ",", ".")), -1)
        if self.at(clause) not in (",", ".") and (clause == j or not is_ing):
            j, helped = clause - 1, True  # "bees that were resting now zoom"
        elif self._is_parted(j):
            j = self._comma_before(j) - 1
        elif "to" in between and not in_context:
            helped = True  # "asks the guard to zoom in"
        word = self.at(j)
        if "to" in between and word == "." and not in_context:
            return True  # "To zoom in, the guard ..."
        if self._camera(j) or word in vocab.SHOTS | vocab.PICTURES | vocab.NOT_SUBJECTS or not word[0].isalpha():
            return False
        if not verb.inflected:
            return helped or self._is_plural(j) or not self._noun_phrase(i)[0] or self._is_caused(i)
        shows = self.leads > self.period and self.at(self.leads + 1) != "of"  # "the camera captures a bee zooming in"
        return not self._manner(j) and (finite or helped or shows or not in_context)

    def _is_caused(self, i: int) -> bool:
        """Whether the plain verb at word i is what something else is let or seen to do: "let the knight orbit left"."""
        first = next((m for m in range(i - 1, max(i - 9, -1), -1) if self.at(m) in vocab.CAUSES | {".", ","}), 0)
        return self.at(first) in vocab.CAUSES and not any(self._camera(m) for m in range(first, i))

    def _is_apart(self, i: int) -> bool:
        """Whether the verb at word i is finite and stands behind "and", "then" or a comma: its subject is off."""
        verb = vocab.VERBS[self.at(i)]
        j = self._before(i, lambda m: self._manner(m) or self.at(m) in vocab.AUXILIARIES | vocab.ORDINALS)
        joined = self.at(j) == "," or bool({self.at(m) for m in range(j + 1, i)} & {"and", "then"})
        return verb.inflected and not self.at(i).endswith("ing") and joined and self.at(j) != "."

    def _is_noun(self, i: int, stop: int) -> bool:
        """Whether the noun at word i, whose phrase ends before `stop`, is spoken of as a camera motion is."""
        base, after = vocab.VERBS[self.at(i)].base, self.at(stop)
        level, first = self._noun_phrase(i)
        phrase = {self.at(m) for m in range(first, i)}
        if base == "pan" and phrase & vocab.COOKWARE:
            return False
        article = after in vocab.ARTICLES or after == "the"
        if level == 2 and base in vocab.NOUNS | {"pan"}:
            return not article or base not in ("push", "pull")
        if level == 0 or article or (level == 1 and self._is_caused(i)):  # "a hard push in the back"
            return False
        if base in vocab.NOUNS - vocab.OBJECTS:
            return True
        return (level == 2 or self._is_own(i)) and self._goes_over(stop)

    def _is_parted(self, i: int) -> bool:
        """Whether the comma at word i ends an insertion: "soldiers, lit from behind, push forward"."""
        k = self._comma_before(i)
        opens = self.at(k + 1).endswith(("ed", "ing")) or self.at(k + 1) in vocab.PARTED
        return self.at(i) == "," and self.at(k) == "," and opens

    def _comma_before(self, i: int) -> int:
        """The last comma or end of a sentence within 16 words before i; 0 where there is none."""
        return next((m for m in range(i - 1, max(i - 17, -1), -1) if self.at(m) in (".", ",")), 0)

    def _has_clause(self, first: int, stop: int) -> bool:
        """Whether words first .. stop - 1, or the last 40 of them, open a clause whose subject is not the camera: "as a
        knight", ", and a wave"."""
        for m in range(max(first, stop - 40), stop):
            if self.at(m) in vocab.RELATIVE - {","}:
                return True
            if (self.at(m), self.at(m + 1)) == (",", "and") and self.at(m + 2) in vocab.DETERMINERS | vocab.PEOPLE:
                return True
        return False

    def _goes_over(self, stop: int) -> bool:
        """Whether a direction that ends before `stop` is no past tense: "an old dolly left behind", "truck left"."""
        side = vocab.DIRECTIONS.get(self.at(stop - 1))
        while self._manner(stop) or self.at(stop) in vocab.AGAIN:
            stop += 1
        return side not in ("left", "right") or self.at(stop) in vocab.SPATIAL

    def _is_doubtful(self, i: int, stop: int) -> bool:
        """Whether the phrase at word i, which is not taken for the camera's, may be: "a sombre crane up over a city",
        "It moves left" behind a sentence about the camera, "Gliding forward through fog", "A hill, zooms in"."""
        verb = vocab.VERBS[self.at(i)]
        thing = verb.base in vocab.OBJECTS and not verb.inflected and self._noun_phrase(i)[0] and self._goes_over(stop)
        apart = verb.sense == vocab.CLEAR and self._is_apart(i) and not self._has_clause(max(self.period, i - 24), i)
        ing = verb.sense == vocab.TERM and self._participle(i, stop) == "nobody"
        then = verb.sense == vocab.TERM and not verb.inflected and self.at(i - 1) == "then"
        return bool(thing) or self._is_pronoun(i) or apart or ing or then

    def _participle(self, i: int, stop: int) -> str:
        """Who moves in a participle that begins a sentence, "Pulling back from a nest": the subject of the clause
        behind it, "camera" or "another"; "nobody" where none follows; "" if the verb at word i is none."""
        start = self._before(i, lambda m: self._manner(m) or self.at(m) in vocab.ORDINALS)
        if not self.at(i).endswith("ing") or self.at(start) != ".":
            return ""
        k = next((m for m in range(stop, stop + 24) if self.at(m) in (",", ".")), stop) + 1
        while self._manner(k) or self.at(k) in ("the", "a", "an", "our"):
            k += 1
        if self.at(k - 1) == ".":
            return "nobody"
        if self._camera(k):
            return "camera"
        end = next((m for m in range(k, k + 6) if self.at(m) in (",", ".")), k + 6)
        finite = any(self.at(m).endswith("s") and not self.at(m).endswith(("ss", "'s")) for m in range(k, end))
        return "another" if finite else "nobody"

    def _is_own(self, i: int) -> bool:
        """Whether the verb at word i is seldom said of anything but a camera."""
        return vocab.VERBS[self.at(i)].base in vocab.NOUNS | {"pan"}

    def _is_subject(self, i: int) -> bool:
        """Whether the camera does what the verb at word i says."""
        j = self._before(i, lambda m: self._fill(m) or self.at(m) == ",")
        if self._camera(j) or (self.at(j) in vocab.FILMED and self._is_own(i)):
            return True
        j = self._before(i, self._fill)
        if self.at(j) == ",":  # behind an insertion: "the camera, mounted on a car, moves"
            k = self._comma_before(j)
            # A past form is one more insertion: "a medium shot, focusing on her, tilted down".
            return self.at(k) == "," and k == self.leads + 1 and not self.at(i).endswith("ed")
        if self.at(i).endswith("ing"):
            return False
        # behind a clause: "the camera that was static now pans"
        k = next((m for m in range(j, max(j - 12, -1), -1) if self.at(m) in vocab.RELATIVE | {"."}), 0)
        return self.at(k) in ("that", "which") and self._camera(k - 1)

    def _continues(self, i: int) -> bool:
        """Whether nothing but links stands between the verb at word i and the motion before it in its sentence."""
        j = self._before(i, lambda m: m >= self.end and (self._manner(m) or self.at(m) in vocab.JOINERS | {","}))
        return self.period < self.end and j < self.end

    def _goes_on(self, i: int) -> bool:
        """Whether the verb at word i continues what the sentence has said of the camera."""
        if self._continues(i):
            return True
        j = self._before(i, lambda m: self._fill(m) or self.at(m) == "it")
        links = {self.at(m) for m in range(max(j, 0), i)}
        if self.end > self.period and links & {"then", "before"}:
            return True
        if self.end > self.period and "and" in links and self.at(i).endswith("s"):
            # "glides towards the door and moves left", but not "past a man who stops and moves left".
            first = max(self.end, i - 12)
            return not self._has_clause(first, j) and "," not in {self.at(m) for m in range(first, j)}
        own = self._is_own(i)
        if own and self.seen > self.period and links & {"and", "then", "before", "while", "it"}:
            # "The camera follows the runner and pans left": only verbs that a runner does not share.
            first = max(self.seen, i - 12)
            if not self._has_clause(first, j) and "," not in {self.at(m) for m in range(first, j)}:
                return True
        if self._is_pronoun(i) and (own or (links & vocab.ORDINALS and vocab.VERBS[self.at(i)].sense == vocab.TERM)):
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
        # "As the camera rests, a truck stops and turns left"
        is_minor = self.at(
            self._before(first, lambda m: self._manner(m) or self.at(m) in ("the", "a"))
        ) in vocab.RELATIVE - {","}
        if i - first > 40 or is_minor or self._has_clause(first, j):
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
        """Whether the subject of the verb at word i is an "it" behind a sentence about the camera."""
        j = self._before(i, self._fill)
        first = self._before(j, lambda m: self.at(m) in vocab.ORDINALS | {","})
        return self.at(j) == "it" and first == self.period and self.is_topic

    def _is_joined(self, i: int) -> bool:
        """Whether word i goes on from a camera motion shortly before: "pans left, then swoops"."""
        if not (self.end > self.period and 0 < i - self.end < 6) or self.at(i) in vocab.NO_MOTION:
            return False
        between = {self.at(m) for m in range(self.end, i)}
        return bool(between & {"then", "before"}) and between <= vocab.JOINERS | {","}
