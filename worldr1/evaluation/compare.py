"""Before against after: what a run gained, what it lost, which gates hold.

Every sample is a pair: the same prompt and the same initial noise, without and with the adapter. All standard errors
are those of the paired difference over samples.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from worldr1.evaluation.evaluate import Assessment, Classifier, Evaluator, assess
from worldr1.evaluation.labels import Labels
from worldr1.run.files import whole, write_json
from worldr1.run.video import to_bytes


class Gate(NamedTuple):
    """One condition that a run must meet: `value relation threshold`."""

    name: str
    label: str
    value: float
    relation: str
    threshold: float
    passed: bool


class Measure(NamedTuple):
    """One quantity before and after; gain and stderr are those of the paired difference, num is the pairs used."""

    before: float
    after: float
    gain: float
    stderr: float
    num: int
    unit: str = ""
    better: str = "up"  # "up", "down" or "same"


@dataclass(frozen=True)
class Study:
    """The outcome of a run."""

    control: str
    seconds: float
    measures: dict[str, Measure]
    per_motion: dict[str, Measure]
    gates: list[Gate]
    before: Assessment
    after: Assessment
    prompts: list[str] = field(repr=False)

    @property
    def passed(self) -> bool:
        """All gates hold, and there is one."""
        return bool(self.gates) and all(gate.passed for gate in self.gates)


DEFINITIONS = {
    "obedience": "share of clips whose motion class, by the evaluator, is the one the prompt asks for",
    "content": "share of clips whose colour, shape and floor are all those of the prompt",
    "rotation_deg": "mean angle between recovered and requested orientation over frames 1 .. F-1, degrees",
    "psnr_requested": "Gaussians from the evaluator's depth of the even frames, placed at the requested poses, seen "
    "from the requested poses of the odd frames, against the odd frames: PSNR per frame, averaged over frames, dB",
    "psnr_own": "the same with the poses that the evaluator recovers from the clip; a frozen video scores high",
    "contrast": "standard deviation of the luma of a frame, averaged over frames",
    "frame_change": "mean absolute difference of consecutive frames: falls when a video freezes",
    "trajectory_score": "S_traj computed from the evaluator's poses",
    "path_ratio": "recovered over requested path length, prompts whose camera travels",
    "rot_err": "sum over frames of the rotation geodesic, radians",
    "trans_err": "sum over frames of |t - t_requested|, each path over its largest |t|; prompts whose camera travels",
    "cam_mc": "sum over frames of |[R|t] - [R|t]_requested|_F, likewise",
    "camera_error": "WorldScore's: sqrt of mean rotation error in degrees times mean distance of the camera centres "
    "after the scale that makes it smallest, likewise",
    "broken": "of the clips right before (motion and content), the share that is wrong after",
    "broken_of_all": "the same count as a share of all clips",
}
_MEASURED = (
    "rotation_deg",
    "psnr_requested",
    "psnr_own",
    "trajectory_score",
    "path_ratio",
    "rot_err",
    "trans_err",
    "cam_mc",
    "camera_error",
    "contrast",
    "frame_change",
)
_UNITS = {"rotation_deg": "deg", "psnr_requested": "dB", "psnr_own": "dB", "rot_err": "rad"}
_BETTER = {
    "rotation_deg": "down",
    "rot_err": "down",
    "trans_err": "down",
    "cam_mc": "down",
    "camera_error": "down",
    "contrast": "same",
    "frame_change": "same",
    "path_ratio": "same",
}


def compare_clips(
    videos_before: Tensor,
    videos_after: Tensor,
    prompts: list[str],
    viewmats_requested: Tensor,
    *,
    labels: Labels | None,
    evaluator: Evaluator | Classifier,
    control: str = "none",
) -> Study:
    """Compare two sets of clips, paired by prompt and seed.

    A clip that is not finite counts as disobedient and as wrong in content, and as mid-grey in the picture measures.

    Args:
      videos_before: Without the adapter, shape [N, F, 3, H, W] in [0, 1].
      videos_after: With it, same shape.
      prompts: N texts, for the record.
      viewmats_requested: World-to-camera, shape [N, F, 4, 4].
      labels: What the N prompts ask for; None leaves out obedience, content, what follows from them, and their gates.
      evaluator: Independent of every judge of the reward; a Classifier where there are labels.
      control: RewardConfig.control of the run. The gates of a control are that nothing was gained and no picture lost.
    Returns:
      Study.
    Raises:
      ValueError: sizes that do not fit, or fewer than 2 pairs.
    """
    num = len(prompts)
    if videos_before.shape != videos_after.shape or videos_before.ndim != 5:
        raise ValueError(
            f"compare_clips: videos_before and videos_after must share a shape [N, F, 3, H, W], "
            f"got {list(videos_before.shape)} and {list(videos_after.shape)}"
        )
    num_labels = num if labels is None else len(labels)
    if num < 2 or videos_before.shape[0] != num or num_labels != num:
        raise ValueError(
            f"compare_clips: there must be as many prompts as videos and labels, 2 or more, got {num}, "
            f"{videos_before.shape[0]} and {num_labels}"
        )
    if tuple(viewmats_requested.shape) != (num, videos_before.shape[1], 4, 4):
        raise ValueError(
            f"compare_clips: viewmats_requested must have shape [{num}, {videos_before.shape[1]}, 4, 4], "
            f"got {list(viewmats_requested.shape)}"
        )
    start = time.perf_counter()
    before = assess(videos_before, labels, viewmats_requested, evaluator=evaluator)
    after = assess(videos_after, labels, viewmats_requested, evaluator=evaluator)
    return compare(before, after, prompts, labels, control=control, seconds=time.perf_counter() - start)


def compare(
    before: Assessment,
    after: Assessment,
    prompts: list[str],
    labels: Labels | None,
    *,
    control: str = "none",
    seconds: float = math.nan,
) -> Study:
    """The measures, the table by motion and the gates of two assessments of the same prompts."""
    measures: dict[str, Measure] = {}
    per_motion: dict[str, Measure] = {}
    broken: dict[str, Measure] = {}
    if labels is not None:
        assert before.obeyed is not None and before.content is not None, "labels, but nothing was named"
        assert after.obeyed is not None and after.content is not None, "labels, but nothing was named"
        measures["obedience"] = paired(before.obeyed, after.obeyed)
        measures["content"] = paired(before.content, after.content)
        right = before.obeyed & before.content
        count = (right & ~(after.obeyed & after.content)).sum().item()
        share, of_all = count / max(1, int(right.sum())), count / len(prompts)
        broken["broken"] = Measure(0.0, share, share, math.nan, int(right.sum()), better="down")
        broken["broken_of_all"] = Measure(0.0, of_all, of_all, math.nan, len(prompts), better="down")
        for k, motion in enumerate(labels.motions):
            rows = labels.motion == k
            if rows.any():
                per_motion[motion] = paired(before.obeyed[rows], after.obeyed[rows])
    for name in _MEASURED:
        pair = (before.__dict__[name], after.__dict__[name])
        measures[name] = paired(*pair, unit=_UNITS.get(name, ""), better=_BETTER.get(name, "up"))
    measures |= broken
    gates = _gates(measures, per_motion) if control == "none" else _control_gates(measures)
    return Study(control, seconds, measures, per_motion, gates, before, after, list(prompts))


def paired(before: Tensor, after: Tensor, *, unit: str = "", better: str = "up") -> Measure:
    """Means of [N] and [N], and the mean difference with its standard error, over the pairs that are finite."""
    both = torch.isfinite(before.double()) & torch.isfinite(after.double())
    b, a = before[both].double(), after[both].double()
    count = int(both.sum())
    if count == 0:
        return Measure(math.nan, math.nan, math.nan, math.nan, 0, unit, better)
    difference = a - b
    se = float(difference.std(correction=1)) / math.sqrt(count) if count > 1 else math.nan
    return Measure(float(b.mean()), float(a.mean()), float(difference.mean()), se, count, unit, better)


def _gate(name: str, label: str, value: float, relation: str, threshold: float) -> Gate:
    # A NaN passes no gate. The slack is that of rounding, far below any threshold.
    holds = {">=": value >= threshold - 1e-9, ">": value > threshold, "<=": value <= threshold + 1e-9}
    return Gate(name, label, value, relation, threshold, holds[relation])


def _gates(measures: dict[str, Measure], per_motion: dict[str, Measure]) -> list[Gate]:
    """The gates of a run; those whose measure is not there are left out, not failed."""
    own = measures["psnr_own"]
    requested, contrast = measures["psnr_requested"].gain, abs(measures["contrast"].gain)
    picture = [
        _gate("psnr_requested", "PSNR at requested poses, gain in dB", requested, ">=", 1.0),
        _gate("psnr_own", "PSNR at recovered poses, not down by more than its s.e., dB", own.gain, ">=", -own.stderr),
    ]
    still = _gate("contrast", "contrast, absolute change", contrast, "<=", 0.005)
    if "obedience" not in measures:
        return [*picture, still]
    gain, broken = measures["obedience"], measures["broken"].after
    # A gain without spread is one and the same in every sample: infinitely many standard errors.
    sigmas = gain.gain / gain.stderr if gain.stderr > 0 else math.copysign(math.inf, gain.gain) if gain.gain else 0.0
    worst = min(measure.gain for measure in per_motion.values())
    return [
        _gate("obedience_gain", "obedience gain", gain.gain, ">=", 0.20),
        _gate("obedience_sigmas", "obedience gain in standard errors", sigmas, ">", 4.0),
        *picture,
        _gate("content", "content accuracy lost", -measures["content"].gain, "<=", 0.01),
        still,
        _gate("broken", "of the samples that were right, share broken", broken, "<=", 0.05),
        _gate("per_motion", "worst change of one motion's obedience", worst, ">=", -0.10),
    ]


def _control_gates(measures: dict[str, Measure]) -> list[Gate]:
    if "obedience" not in measures:
        return []
    broken = measures["broken"].after
    return [
        _gate("control", "control: obedience gain, absolute", abs(measures["obedience"].gain), "<=", 0.05),
        _gate("contrast", "control: contrast, absolute change", abs(measures["contrast"].gain), "<=", 0.005),
        _gate("broken", "control: of the samples that were right, share broken", broken, "<=", 0.05),
    ]


def to_json(result: Study) -> dict:
    """The study as plain JSON types; a figure that is not finite is null."""

    def plain(value):
        return None if isinstance(value, float) and not math.isfinite(value) else value

    def fields(value) -> dict:
        return {name: plain(x) for name, x in value._asdict().items()}

    metrics = {name: fields(m) | {"definition": DEFINITIONS[name]} for name, m in result.measures.items()}
    gates = [
        fields(g) | {"threshold": f"{g.relation} {g.threshold:.3g}", "limit": plain(g.threshold)} for g in result.gates
    ]
    return {
        "schema": 1,
        "control": result.control,
        "num_samples": len(result.prompts),
        "num_not_finite": {"before": int((~result.before.finite).sum()), "after": int((~result.after.finite).sum())},
        "seconds": plain(result.seconds),
        "passed": result.passed,
        "gates": gates,
        "metrics": metrics,
        "per_motion": {name: fields(measure) for name, measure in result.per_motion.items()},
    }


def write_study(
    result: Study,
    output_dir: Path,
    *,
    videos_before: Tensor | np.ndarray,
    videos_after: Tensor | np.ndarray,
    viewmats_requested: Tensor,
) -> None:
    """Write output_dir/evaluation/study.json and samples.npz, each through a temporary file.

    samples.npz: before, after [N, F, 3, H, W] uint8; prompts [N]; requested, recovered_before, recovered_after
    [N, F, 4, 4] float32 world-to-camera; with labels obeyed_before, obeyed_after [N] bool. Videos that come as arrays
    are uint8 already and are copied piece by piece, so that they may be mapped from a file.
    """
    folder = Path(output_dir) / "evaluation"
    folder.mkdir(parents=True, exist_ok=True)

    def pixels(video: Tensor | np.ndarray) -> np.ndarray:
        return video if isinstance(video, np.ndarray) else to_bytes(video).numpy()

    arrays: dict[str, Any] = {
        "before": pixels(videos_before),
        "after": pixels(videos_after),
        "prompts": np.array(result.prompts),
        "requested": viewmats_requested.float().cpu().numpy(),
        "recovered_before": result.before.viewmats.float().numpy(),
        "recovered_after": result.after.viewmats.float().numpy(),
    }
    for name, found in (("obeyed_before", result.before.obeyed), ("obeyed_after", result.after.obeyed)):
        if found is not None:
            arrays[name] = found.numpy()
    with whole(folder / "samples.npz") as unfinished, unfinished.open("wb") as file:
        np.savez_compressed(file, **arrays)
    write_json(folder / "study.json", to_json(result))
