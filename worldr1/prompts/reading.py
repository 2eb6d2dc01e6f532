"""How the camera words of a whole prompt set were read: said at the start of a run, before hours go into it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from worldr1.camera.motion import read_camera

_NUM_EXAMPLES = 5


@dataclass(frozen=True)
class ReadingReport:
    """Counts over a prompt set; the first four add up to all prompts."""

    num_motion: int  # ask for a motion that was read
    num_rest: int  # ask for a camera at rest
    num_silent: int  # say nothing of how the camera moves
    num_unread: int  # say something, and nothing that was read, or rest and something that was not
    num_partly: int  # of those that ask for a motion: they also say something that was not read
    # An excerpt that was not read, and how many begin with its word; most frequent first.
    unread: tuple[tuple[str, int], ...]

    @property
    def num_prompts(self) -> int:
        return self.num_motion + self.num_rest + self.num_silent + self.num_unread

    def lines(self, name: str = "camera words") -> list[str]:
        """One to four lines for the start of a run; `name` begins the first, which has all counts."""
        counts = [
            f"{self.num_motion} of {self.num_prompts} prompts ask for a motion",
            f"{self.num_rest} for rest",
            f"{self.num_silent} say nothing of the camera's motion",
            f"{self.num_unread} were not understood",
        ]
        out = [f"{name}: " + ", ".join(counts)]
        if free := self.num_silent + self.num_unread:
            out.append(
                f"  S_traj is left out for {free} of them and their initial noise is plain: no camera is asked for"
            )
        if self.unread:
            examples = ", ".join(f'"{excerpt}" x{count}' for excerpt, count in self.unread[:_NUM_EXAMPLES])
            more = ", ..." if len(self.unread) > _NUM_EXAMPLES else ""
            out.append(f"  not understood, in {self.num_unread + self.num_partly} of them: {examples}{more}")
            out.append('  python -m worldr1.camera "PROMPT" shows how a prompt is read; docs/camera.md has the words')
        return out


def summarise_reading(prompts: Sequence[str]) -> ReadingReport:
    """Reads the camera words of every prompt and counts, in time proportional to the length of the set.

    Args:
      prompts: A prompt set; none is allowed.
    Returns:
      ReadingReport. Excerpts are counted by their first word, in lower case, and shown as they stood first.
    """
    kinds: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    shown: dict[str, str] = {}
    for prompt in prompts:
        tokens, unread, asked = read_camera(prompt)
        moves = any(token.kind != "fixed" for token in tokens)
        kinds["motion" if moves else "rest" if asked else "unread" if unread else "silent"] += 1
        kinds["partly"] += bool(moves and unread)
        for excerpt in unread:
            word = excerpt.split()[0].lower()
            counts[word] += 1
            shown.setdefault(word, " ".join(excerpt.split()))
    return ReadingReport(
        num_motion=kinds["motion"],
        num_rest=kinds["rest"],
        num_silent=kinds["silent"],
        num_unread=kinds["unread"],
        num_partly=kinds["partly"],
        unread=tuple((shown[word], count) for word, count in counts.most_common()),
    )


def limit_lines(prompts: Sequence[str], split: Callable[[str], tuple[str, str]]) -> list[str]:
    """At most two lines on prompts that a text encoder does not see whole: motions told there are asked for in vain.

    Args:
      prompts: A prompt set.
      split: Prompt -> (what the text encoder sees, the rest), as `WanPolicy.split_at_limit`.
    Returns:
      None where everything is seen.
    """
    parts = [part for part in map(split, prompts) if part[1]]
    lost = [rest for seen, rest in parts if read_camera(seen).tokens != read_camera(seen + rest).tokens]
    out = []
    if parts:
        out.append(f"text: {len(parts)} of {len(prompts)} prompts go on beyond the tokens that the text encoder takes")
    if lost:
        example = " ".join(lost[0].split())
        example = example if len(example) <= 60 else example[:57] + "..."
        out.append(f'  {len(lost)} of them name camera motions there, which the model never sees: "{example}"')
    return out


def reading_lines(
    prompts: Sequence[str], dynamic_prompts: Sequence[str], split: Callable[[str], tuple[str, str]] | None = None
) -> list[str]:
    """What a training run says of its prompt sets: lines of the main one, then one of the dynamic one if it has any;
    with `split`, those of `limit_lines` on both."""
    out = summarise_reading(prompts).lines()
    if dynamic_prompts:
        out.append(summarise_reading(dynamic_prompts).lines("camera words, dynamic prompts")[0])
    return out + (limit_lines([*prompts, *dynamic_prompts], split) if split is not None else [])
