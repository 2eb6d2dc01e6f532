"""Phrases that name a camera motion or a camera at rest, whoever's they are: "pans to the left", "tripod shot"."""

from __future__ import annotations

from worldr1.camera import words as vocab
from worldr1.camera.prompt_text import PromptText


class Phrases(PromptText):
    """Which motion the words from one on name; whether the camera is meant, `motion.py` decides."""

    def __init__(self, prompt: str) -> None:
        super().__init__(prompt)
        self.denied = -1  # word after the negated motion before
        self.denied_verb, self.is_instead = "", False  # its verb; whether "instead of" denied it

    def _motion(self, i: int) -> tuple[str, int, bool] | None:
        """(kind, word after it, whether the camera is named in it) of the motion that begins at word i."""
        verb = vocab.VERBS.get(self.at(i))
        if verb is None:
            return self._direction_first(i)
        k, named = self._after_verb(i)
        apart = next((m for m in range(k + 1, k + 5) if self.at(m) in (",", ".", "then", "and")), k + 5)
        circles = self.at(k) == "in" and any(self.at(m) in vocab.CIRCLES for m in (k + 3, k + 4) if m < apart)
        clockwise = vocab.DIRECTIONS.get(self.at(k)) in ("clockwise", "counter") and self.at(k + 1) == "around"
        circles = circles or clockwise  # "rotates clockwise around the vase"
        around = circles or self.at(k) in ("around", "about")
        around = around and "left" in verb.kinds and verb.base not in ("pan", "roll")
        kinds = vocab.ORBIT if around else verb.kinds
        if hit := self._direction(k, verb.base, kinds if circles else verb.kinds):
            # "push_in", "pull-out", but not "a pull-out sofa"
            token = k == i + 1 and self.words[k].glued and not self._is_thing(hit[1])
            return (kinds if circles else verb.kinds)[hit[0]], hit[1], named or token
        if hit := self._far_direction(k, verb.base, kinds):
            return kinds[hit[0]], hit[1], named
        if kinds is vocab.ORBIT and (kind := self._clockwise(i)):
            return kind, k, named
        contradicted = vocab.DIRECTIONS.get(self.at(k)) in ("up", "down")
        return (verb.kinds[""], i + 1, named) if "" in verb.kinds and not contradicted else None

    def _after_verb(self, i: int) -> tuple[int, bool]:
        """Where the direction of the verb at word i may stand, and whether the camera is named: "pan the camera"."""
        k = i + 1
        article = self.at(k) in ("the", "our", "your")
        between = not article and self.at(k) in vocab.BEFORE_SHOTS and self.at(k + 1) in vocab.CAMERAS | vocab.SHOTS
        k += between  # "a sweeping drone shot"
        named = self.at(k + article) in vocab.TURNED or (not article and self.at(k) in vocab.SHOTS - {"move"})
        k += (article + 1) * named
        while True:
            if self.at(k) in ("the", "a") and self.at(k + 1) in ("way", "little", "bit", "full"):
                k += 2
            elif self._manner(k) or self.at(k) in vocab.EMPHASIS or self.at(k)[0].isdigit():
                k += 1
            else:
                return k, named

    def _is_thing(self, i: int) -> bool:
        """Whether word i may be a noun that the words before it describe."""
        known = (
            vocab.SHOTS | vocab.CAMERAS | vocab.PICTURES | vocab.STOP | vocab.SPATIAL | vocab.AFTER_IN | vocab.FILLERS
        )
        return self.at(i).isalpha() and self.at(i) not in known | vocab.NO_MOTION and not self._manner(i)

    def _clockwise(self, i: int) -> str:
        """The orbit whose sense is told elsewhere in the sentence of the verb at word i: "in a clockwise direction, the
        camera orbits", "orbits, in a clockwise direction, a fountain"; "" where none is."""
        places = []
        for k in range(i + 1, i + 16):
            if self.at(k) in vocab.RELATIVE - {","} | {".", "and"}:
                break
            places.append(k)
        first = next((k for k in range(i - 1, i - 13, -1) if self.at(k) == "."), i) + 1
        while first < i and (self._manner(first) or self.at(first) in ("in", "a", "moving")):
            first += 1  # before the verb only where the sentence begins so
        for k in [*places, first]:
            if self.at(k) == "clockwise":
                return vocab.ORBIT["counter" if self.at(k - 1) in ("counter", "anti") else "clockwise"]
            if vocab.DIRECTIONS.get(self.at(k)) == "counter":
                return vocab.ORBIT["counter"]
            if k == first and self.at(k) in ("counter", "anti") and self.at(k + 1) == "clockwise":
                return vocab.ORBIT["counter"]
        return ""

    def _direction(self, i: int, base: str, kinds: dict[str, str], again: bool = True) -> tuple[str, int] | None:
        """(direction, word after it) at word i: "left", "to the left", "from right to left", "back to the left"."""
        if self.at(i) == "in" and self.at(i + 1) in ("a", "an", "the"):  # "in a clockwise direction"
            k = i + 2 + (self.at(i + 2) in ("counter", "anti"))
            direction = "counter" if k > i + 2 else vocab.DIRECTIONS.get(self.at(k), "")
            if direction in kinds and self.at(k + 1) in vocab.WAYS:
                return direction, k + 2
        k = i + (self.at(i) == "from")
        if k > i:  # "from the lamp on the left to the window on the right"
            end = next((m for m in range(k, k + 14) if self.at(m) in (".", ",")), k + 14)
            sides = [m for m in range(k, end) if self.at(m) in vocab.ENDS and self.at(m - 2) in ("on", "at")]
            if len(sides) == 2 and vocab.ENDS[self.at(sides[1])] in kinds:
                return vocab.ENDS[self.at(sides[1])], sides[1] + 1
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
            told = after in vocab.AFTER_IN | vocab.SHOTS or self._manner(i + 1)
            return base in ("zoom", "push") or told
        if word == "into":
            return after not in ("focus", "view", "frame")
        if word == "out":
            return after != "of" or base in ("zoom", "pull", "dolly", "back")
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
        ahead = self.at(i) == "through" and (base == "push" or {"in", "left"} <= set(kinds))
        ahead = ahead or (self.at(i) == "over" and base in ("fly", "soar"))
        return ("in", i + 1) if ahead else None

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

    def _is_plural(self, i: int) -> bool:
        """Whether word i looks like a subject in the plural: "bees", "people"."""
        word = self.at(i)
        return (
            word in vocab.PEOPLE
            or word.endswith("men")
            or (word.endswith("s") and not word.endswith(("ss", "ous", "'s", "is", "us")))
        )

    def _noun_phrase(self, i: int) -> tuple[int, int]:
        """(how far the words before the noun at word i tell of a camera: 2 by an adjective of its motions, 1 by any,
        0 not at all; first word of the phrase): "a slow, cinematic push in"."""
        level, k = 0, i - 1
        if self.at(k).endswith("ly") and self._manner(k) and self.at(k - 1) not in vocab.NP_STARTS:
            return 0, i  # "soldiers slowly pull back"
        while k >= i - 10:
            word = self.at(k)
            if self._manner(k) or word in vocab.CAMERA_ADJECTIVES:
                level = 2
            elif word == "," and k < i - 1 and self._is_listed(k):
                pass
            elif word in vocab.NP_STARTS:
                return level, k + 1
            elif word[0].isdigit():
                pass
            elif not word.isalpha() or word in vocab.NOT_ADJECTIVES or self._is_plural(k):
                return 0, i
            else:
                level = max(level, 1)
            k -= 1
        return 0, i

    def _is_listed(self, i: int) -> bool:
        """Whether the comma at word i is one of a list of adjectives: it begins with an article, "a slow, steady"."""
        k = self._before(i, lambda m: m > i - 5 and (self.at(m) == "," or self._is_adjective(m)))
        return self.at(k) in ("a", "an", "the", "another")

    def _is_adjective(self, i: int) -> bool:
        word = self.at(i)
        known = word in vocab.NP_STARTS | vocab.NOT_ADJECTIVES | vocab.CAMERAS | vocab.SHOTS
        return word.isalpha() and not known and not self._is_plural(i)

    def _fixed(self, i: int) -> int:
        """The word after a phrase at word i that keeps the camera at rest; 0 where there is none."""
        word, stop = self.at(i), i + 1
        if word == "camera" and self.at(stop) in vocab.SHOTS | {"movements", "motions"}:
            if self.at(i + 2) == "," and self.at(i + 3) in ("none", "no"):  # "Camera movement: none"
                return i + 4
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
            if self.at(k) in vocab.CAMERAS | {"frame", "framing", "closeup"}:
                return k + 1
            if self.at(k) == "close" and self.at(k + 1) == "up":
                return k + 2
            if self.at(k) in vocab.PREPOSITIONS:
                break
        j = self._before(i, lambda m: self.at(m) in vocab.RESTING or self._manner(m))
        filmed = word == "tripod" and self.at(j) in ("shot", "filmed", "recorded")
        filmed = filmed or (
            self.at(j) in ("shot", "frame", "framing") and j < i - 1 and not still
        )  # "the frame is static"
        return stop * (filmed or (self.at(j) in ("camera", "cam") and self._camera(j)))

    def _negated(self, i: int) -> bool:
        for j in (i - 1, i - 2, i - 3):
            word = self.at(j)
            if word in (".", ",", "but"):
                break
            if word in ("instead", "rather") and self.at(j + 1) not in ("of", "than"):
                continue  # "instead, it pans right"
            if word in vocab.NEGATIONS or word.endswith("n't"):
                return self.at(j + 1) not in ("only", "just")
        between = {self.at(m) for m in range(self.denied, i)} if 0 <= i - self.denied <= 3 else set()
        if between == {","} and (self.is_instead or self.at(i).endswith("ing") != self.denied_verb.endswith("ing")):
            return False  # "Instead of zooming in, pan left": a list goes on in one form of the verb
        return self.denied >= 0 and bool(between) and between <= {",", "or", "nor"}

    def _deny(self, i: int, stop: int) -> None:
        """Notes that the motion at words i .. stop - 1 is negated; a list of them may follow."""
        if not 0 <= i - self.denied <= 3:
            self.is_instead = bool({self.at(i - 1), self.at(i - 2), self.at(i - 3)} & {"instead", "rather"})
        self.denied, self.denied_verb = stop, self.at(i)
