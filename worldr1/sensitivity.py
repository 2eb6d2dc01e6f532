"""Do the judges see what they should, before a run trusts them? True clips of rendered scenes against worse versions.

python -m worldr1.sensitivity --perceptual weights/lpips-alex --height 128 --width 128 --ways

Each corruption is ordered rightly by a term where the truth scores above it by more than two standard errors of the
paired difference. Judges are named as for training; without a reconstructor the true depth and poses are lifted.
"""

from __future__ import annotations

import json
import math
import sys
import typing
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from worldr1.cli import exit_code
from worldr1.config import RewardConfig

if typing.TYPE_CHECKING:
    from torch import Tensor

SIGMAS = 2.0
"""Standard errors by which the truth must lie above."""


@dataclass(frozen=True)
class SensitivityConfig:
    """Score true clips and worse versions of them by every term whose judge is given."""

    reconstructor: str = ""
    """Who lifts a video to 3D, as reward.reconstructor; empty: nobody, true depth and poses are lifted instead."""
    critic: str = ""
    """Who grades the novel view (S_meta), as reward.critic; empty: left out."""
    aesthetic: str = ""
    """Who rates frames (R_gen), as reward.aesthetic; empty: left out."""
    perceptual: str = ""
    """Distance of two images (S_recon), as reward.perceptual; empty: left out. One of a fixed size sees tiles."""
    num: int = 8
    """Clips of every version, one scene and motion each."""
    height: int = 32
    """Frame height in pixels, a multiple of 8."""
    width: int = 32
    """Frame width in pixels, a multiple of 8."""
    num_frames: int = 9
    """Frames of a clip."""
    detail: float = 0.0
    """Contrast of a texture down to the pixels, in each octave; the scenes have none of their own finer than 1/32 of
    the frame. About .1 in photographs."""
    splat_px: float = 0.3
    """Width of the Gaussians that true depth is lifted to, in pixels of their frame."""
    ways: bool = False
    """Also S_recon with all Gaussians, and on the frames whose Gaussians were left out."""
    screen_blur: float = RewardConfig().screen_blur
    """As reward.screen_blur."""
    first_scene: int = 0
    """Of the held-out scenes, which comes first: another number shows whether a finding holds on others."""
    only: tuple[str, ...] = ()
    """Kinds of faults to measure; all by default."""
    metric_paths: bool = False
    """As reward.metric_paths."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the judges run."""
    output_dir: Path = Path("runs/sensitivity")
    """Where sensitivity.json and sensitivity.png go."""


class Verdict(typing.NamedTuple):
    """Truth minus a version, paired over clips."""

    gap: float
    stderr: float

    @property
    def word(self) -> str:
        """right: the truth is above; WRONG: below; even: neither by SIGMAS standard errors."""
        if abs(self.gap) <= SIGMAS * self.stderr:
            return "even"
        return "right" if self.gap > 0 else "WRONG"


def verdict(truth: Tensor, version: Tensor) -> Verdict:
    """Of scores [N] of the same clips; clips without one of the two are left out, NaN where fewer than 2 are left."""
    difference = (truth - version).double()
    difference = difference[difference.isfinite()]
    if len(difference) < 2:
        return Verdict(math.nan, math.nan)
    return Verdict(float(difference.mean()), float(difference.std() / len(difference) ** 0.5))


def sensitivity(config: SensitivityConfig) -> dict[str, dict[str, Tensor]]:
    """Measure, write both files and print the table; returns version -> term -> scores [N].

    Raises:
      ValueError: a setting, or a judge that is not there or cannot judge these clips.
      OSError: the output cannot be written.
    """
    from worldr1.microworld.sensitivity import Settings, check_settings, measure_sensitivity
    from worldr1.run import distributed

    names = ("num", "height", "width", "num_frames", "detail", "splat_px", "ways", "first_scene", "only")
    settings = Settings(**{name: getattr(config, name) for name in names})
    judges = ("reconstructor", "critic", "aesthetic", "perceptual", "metric_paths", "screen_blur")
    rewards = RewardConfig(**{name: getattr(config, name) for name in judges})
    check_settings(rewards, settings)
    config.output_dir.mkdir(parents=True, exist_ok=True)
    scores = measure_sensitivity(rewards, settings, device=distributed.init(config.device).device, progress=_progress)
    _progress("")
    (config.output_dir / "sensitivity.json").write_text(json.dumps(as_json(config, scores), indent=1) + "\n")
    figure(scores).savefig(config.output_dir / "sensitivity.png", dpi=120)
    print(table(scores))
    print(f"written to {config.output_dir / 'sensitivity.json'} and sensitivity.png beside it")
    return scores


def as_json(config: SensitivityConfig, scores: dict[str, dict[str, Tensor]]) -> dict[str, Any]:
    """Settings, and of each version and term the scores, their mean, and the gap to the truth."""
    rows: dict[str, Any] = {}
    for name, own in scores.items():
        rows[name] = {}
        for term, score in own.items():
            found = verdict(scores["truth"][term], score)
            values = [x if math.isfinite(x) else None for x in score.tolist()]
            rows[name][term] = {"scores": values, "mean": _plain(score.nanmean().item())}
            if name != "truth":
                gap = {"gap": _plain(found.gap), "stderr": _plain(found.stderr), "verdict": found.word}
                rows[name][term] |= gap
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(config).items()}
    return {"settings": settings, "sigmas": SIGMAS, "versions": rows}


def table(scores: dict[str, dict[str, Tensor]]) -> str:
    """The truth's mean of each term; of every version the gap to it, its standard error and the verdict."""
    terms = list(scores["truth"])
    lines = ["| version | " + " | ".join(terms) + " |", "|" + "---|" * (len(terms) + 1)]
    lines.append("| truth | " + " | ".join(f"{scores['truth'][t].nanmean():.3f}" for t in terms) + " |")
    wrong: dict[str, list[str]] = {term: [] for term in terms}
    for name, own in scores.items():
        if name == "truth":
            continue
        cells = []
        for term in terms:
            v = verdict(scores["truth"][term], own[term])
            cells.append(f"{0.0 - v.gap:+.3f} +- {v.stderr:.3f} {v.word}")
            if v.word != "right":
                wrong[term].append(name if v.word == "WRONG" else f"{name} (even)")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", f"Above the truth by more than {SIGMAS:g} standard errors, or even with it:"]
    return "\n".join([*lines, *(f"  {term}: {', '.join(names) or 'none'}" for term, names in wrong.items())])


def figure(scores: dict[str, dict[str, Tensor]]) -> Any:
    """One panel a term: mean and standard error over the levels of each graded fault, from the truth on."""
    import re

    from matplotlib.figure import Figure

    terms = list(scores["truth"])
    graded: dict[str, list[str]] = {}
    for name in scores:
        if found := re.fullmatch(r"(.+) ([\d.]+)", name):
            graded.setdefault(found[1], []).append(name)
    plot = Figure(figsize=(4.2 * len(terms), 3.6), layout="constrained")
    for axes, term in zip(plot.subplots(1, len(terms), squeeze=False)[0], terms, strict=True):
        for kind, names in graded.items():
            values = [scores[n][term] for n in ("truth", *names)]
            means = [float(v.nanmean()) for v in values]
            errors = [float(v.std() / len(v) ** 0.5) for v in values]
            axes.errorbar(range(len(values)), means, errors, marker="o", markersize=3, capsize=2, label=kind)
        for name in (n for n in ("frozen", "other scene each frame") if n in scores):
            axes.axhline(float(scores[name][term].nanmean()), color="grey", linestyle=":" if name == "frozen" else "--")
            axes.text(0.02, float(scores[name][term].nanmean()), name, fontsize=7, va="bottom", color="grey")
        axes.set(title=term, xlabel="level (0: truth)")
        axes.xaxis.get_major_locator().set_params(integer=True)
    plot.axes[0].set_ylabel("score")
    if graded:
        plot.axes[-1].legend(fontsize=7)
    return plot


def _plain(x: float) -> float | None:
    return x if math.isfinite(x) else None


def _progress(line: str) -> None:
    """On a terminal one line that changes."""
    if sys.stderr.isatty():
        print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code: 0 done, 1 failed while running, 2 wrong settings."""
    import tyro

    prog = "python -m worldr1.sensitivity"
    config = tyro.cli(SensitivityConfig, args=None if argv is None else list(argv), prog=prog, description=__doc__)
    return exit_code(lambda: sensitivity(config))


if __name__ == "__main__":
    sys.exit(main())
