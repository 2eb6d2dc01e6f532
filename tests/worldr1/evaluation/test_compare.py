"""The comparison before and after training: its measures, its gates, each failing alone, and its files."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from oracle_world import KNOWN_MOTIONS, KNOWN_PROMPTS, WRONG_MOTION, path_of

from worldr1.evaluation.compare import DEFINITIONS, compare, compare_clips, to_json, write_study
from worldr1.evaluation.evaluate import Assessment
from worldr1.evaluation.labels import Labels
from worldr1.microworld.captions import MOTIONS, make_caption, read_labels


def test_truth_after_wrong_motions_passes_every_gate(known_clips):
    truth, wrong, oracle = known_clips
    result = compare_clips(
        wrong.video, truth.video, KNOWN_PROMPTS, truth.viewmats, labels=read_labels(KNOWN_PROMPTS), evaluator=oracle
    )
    m = result.measures
    before = [float(motion not in WRONG_MOTION) for motion in KNOWN_MOTIONS]
    assert (m["obedience"].before, m["obedience"].after) == (pytest.approx(np.mean(before)), 1.0)
    gain = 1.0 - np.array(before)
    assert m["obedience"].gain == pytest.approx(gain.mean())
    assert m["obedience"].stderr == pytest.approx(gain.std(ddof=1) / math.sqrt(len(KNOWN_PROMPTS)))
    assert m["content"].after == 1.0 and m["broken"].after == 0.0 and m["broken"].num == 10
    assert m["rotation_deg"].after == pytest.approx(0.0, abs=0.05) and m["rotation_deg"].before > 5
    assert m["psnr_requested"].after == pytest.approx(m["psnr_own"].after, abs=0.05)
    assert m["psnr_requested"].after > 29 and m["psnr_requested"].before < 26
    assert m["trajectory_score"].after == pytest.approx(1.0, abs=1e-3)
    assert m["path_ratio"].num == 12  # prompts of fixed and pan have no path to compare with
    assert result.per_motion["push_in"].before == 0.0 and result.per_motion["pull_out"].before == 1.0
    # With 18 samples the gain is 3.7 standard errors, and the wrong motions show other parts of the room.
    open_gates = {"obedience_sigmas", "contrast", "psnr_own"}
    assert all(gate.passed for gate in result.gates if gate.name not in open_gates), result.gates


def test_a_clip_that_is_not_finite_counts_as_wrong(known_clips):
    truth, _, oracle = known_clips
    video = truth.video.clone()
    video[3, 2, 1, 4, 4] = float("nan")

    class Lenient:  # the oracle does not know the grey clip that stands for the broken one
        def infer(self, v):
            return oracle.infer(torch.where(self.grey(v), truth.video[3], v))

        def classify(self, v):
            return oracle.classify(torch.where(self.grey(v), truth.video[3], v))

        @staticmethod
        def grey(v):
            return (v == 0.5).flatten(1).all(1)[:, None, None, None, None]

    result = compare_clips(
        truth.video, video, KNOWN_PROMPTS, truth.viewmats, labels=read_labels(KNOWN_PROMPTS), evaluator=Lenient()
    )
    assert result.measures["obedience"].after == pytest.approx(17 / 18)
    assert result.measures["broken"].after == pytest.approx(1 / 18)
    assert to_json(result)["num_not_finite"] == {"before": 0, "after": 1}
    assert not result.passed


def synthetic(num: int = 180, **changes) -> tuple[Assessment, Assessment, list[str], Labels]:
    """A before and an after that pass every gate; `changes` replaces fields of the after."""
    index = torch.arange(num)
    ones = torch.ones(num)
    before = Assessment(
        finite=ones.bool(),
        obeyed=index % 2 == 0,
        content=ones.bool(),
        rotation_deg=7.0 * ones,
        rot_err=ones,
        trans_err=ones,
        cam_mc=ones,
        camera_error=ones,
        trajectory_score=0.5 * ones,
        path_ratio=ones,
        psnr_requested=20.0 + 0.1 * (index % 3),
        psnr_own=22.0 + 0.1 * (index % 3),
        contrast=0.17 * ones,
        frame_change=0.05 * ones,
        viewmats=torch.eye(4).expand(num, 9, 4, 4),
    )
    after = replace(
        before,
        obeyed=(index % 2 == 0) | (index % 10 < 6),
        psnr_requested=before.psnr_requested + 1.5,
        **{name: change(before, index) for name, change in changes.items()},
    )
    prompts = [make_caption(MOTIONS[i % 9], i % 16).text for i in range(num)]
    return before, after, prompts, read_labels(prompts)


def test_synthetic_success_passes():
    before, after, prompts, labels = synthetic()
    result = compare(before, after, prompts, labels)
    assert result.passed and len(result.gates) == 8, result.gates
    assert result.measures["obedience"].gain == pytest.approx(0.3)


@pytest.mark.parametrize(
    "gate, field, change",
    [
        ("content", "content", lambda b, i: i % 50 != 1),  # 4 wrong of 180, all in clips that were wrong before
        ("contrast", "contrast", lambda b, i: b.contrast - 0.006),
        ("psnr_own", "psnr_own", lambda b, i: b.psnr_own - 0.2 - 0.01 * (i % 2)),
    ],
)
def test_each_gate_fails_alone(gate: str, field: str, change):
    result = compare(*synthetic(**{field: change}))
    assert [g.name for g in result.gates if not g.passed] == [gate]


def test_gates_on_obedience():
    before, after, prompts, labels = synthetic()
    index = torch.arange(180)
    small = replace(after, obeyed=(index % 2 == 0) | (index % 20 < 5))  # gain .15
    assert [g.name for g in compare(before, small, prompts, labels).gates if not g.passed] == ["obedience_gain"]
    # 6 of 90 broken is more than 5 %; pull_out loses 4 of 20.
    broken = replace(after, obeyed=after.obeyed & ~((index % 2 == 0) & (index % 30 == 0)))
    assert "broken" in [g.name for g in compare(before, broken, prompts, labels).gates if not g.passed]
    motion = torch.tensor([i % 9 == 2 for i in range(180)])
    lost = replace(after, obeyed=torch.where(motion, before.obeyed & (index % 4 != 2), after.obeyed))
    result = compare(before, lost, prompts, labels)
    assert not {g.name: g.passed for g in result.gates}["per_motion"]
    assert result.per_motion["pull_out"].gain == pytest.approx(-0.25)
    few = compare(
        *[replace(x, **{k: v[:12] for k, v in x.__dict__.items()}) for x in (before, after)],
        prompts[:12],
        read_labels(prompts[:12]),
    )
    assert "obedience_sigmas" in [g.name for g in few.gates if not g.passed]


def test_a_control_must_neither_gain_nor_lose():
    before, after, prompts, labels = synthetic()
    gates = compare(before, after, prompts, labels, control="permuted").gates
    assert [(g.name, g.passed) for g in gates] == [("control", False), ("contrast", True), ("broken", True)]
    assert compare(before, before, prompts, labels, control="random").passed
    # What is gained on some is lost on others: the mean stays, the samples that were right do not.
    index = torch.arange(len(prompts))
    swapped = replace(before, obeyed=before.obeyed ^ (index % 9 == 0), contrast=before.contrast + 0.006)
    gates = compare(before, swapped, prompts, labels, control="permuted").gates
    assert [(g.name, g.passed) for g in gates] == [("control", True), ("contrast", False), ("broken", False)]
    assert to_json(compare(before, before, prompts, labels, control="random"))["control"] == "random"


def test_a_measure_that_is_not_a_number_passes_no_gate():
    result = compare(*synthetic(psnr_own=lambda b, i: torch.full_like(b.psnr_own, torch.nan)))
    assert [g.name for g in result.gates if not g.passed] == ["psnr_own"]
    assert to_json(result)["metrics"]["psnr_own"]["gain"] is None


def test_files(known_clips, tmp_path):
    truth, wrong, oracle = known_clips
    result = compare_clips(
        wrong.video, truth.video, KNOWN_PROMPTS, truth.viewmats, labels=read_labels(KNOWN_PROMPTS), evaluator=oracle
    )
    write_study(
        result, tmp_path, videos_before=wrong.video, videos_after=truth.video, viewmats_requested=truth.viewmats
    )
    folder = tmp_path / "evaluation"
    assert sorted(p.name for p in folder.iterdir()) == ["samples.npz", "study.json"]
    data = json.loads((folder / "study.json").read_text())
    assert data["metrics"]["obedience"]["gain"] == pytest.approx(result.measures["obedience"].gain)
    assert set(data["metrics"]) == set(DEFINITIONS) and data["num_samples"] == len(KNOWN_PROMPTS)
    assert [g["passed"] for g in data["gates"]] == [g.passed for g in result.gates]
    with np.load(folder / "samples.npz", allow_pickle=False) as arrays:
        assert arrays["prompts"].tolist() == KNOWN_PROMPTS
        assert arrays["after"].dtype == np.uint8 and arrays["after"].shape == (len(KNOWN_PROMPTS), 9, 3, 32, 32)
        assert np.abs(arrays["after"] / 255.0 - truth.video.numpy()).max() <= 0.5 / 255 + 1e-6
        assert np.allclose(arrays["requested"], np.stack([path_of(m).numpy() for m in KNOWN_MOTIONS]), atol=1e-6)
        assert np.array_equal(arrays["recovered_before"], wrong.viewmats.numpy())
        assert arrays["obeyed_after"].all() and arrays["obeyed_before"].sum() == 10


def test_sizes_that_do_not_fit_are_refused(known_clips):
    truth, _, oracle = known_clips
    with pytest.raises(ValueError, match="share a shape"):
        compare_clips(
            truth.video[:4],
            truth.video,
            KNOWN_PROMPTS,
            truth.viewmats,
            labels=read_labels(KNOWN_PROMPTS),
            evaluator=oracle,
        )
    with pytest.raises(ValueError, match="as many prompts as videos"):
        compare_clips(
            truth.video,
            truth.video,
            KNOWN_PROMPTS[:4],
            truth.viewmats,
            labels=read_labels(KNOWN_PROMPTS[:4]),
            evaluator=oracle,
        )
    with pytest.raises(ValueError, match="viewmats_requested must have shape"):
        compare_clips(
            truth.video,
            truth.video,
            KNOWN_PROMPTS,
            truth.viewmats[:, :5],
            labels=read_labels(KNOWN_PROMPTS),
            evaluator=oracle,
        )


class Reconstructs:
    """The oracle's geometry, and no names."""

    def __init__(self, oracle):
        self.infer = oracle.infer


def test_without_labels_geometry_and_picture_stay_as_they_are(known_clips, tmp_path):
    truth, wrong, oracle = known_clips
    with_labels = compare_clips(
        wrong.video, truth.video, KNOWN_PROMPTS, truth.viewmats, labels=read_labels(KNOWN_PROMPTS), evaluator=oracle
    )
    prompts = [f"any words, {i}" for i in range(len(KNOWN_PROMPTS))]
    result = compare_clips(
        wrong.video, truth.video, prompts, truth.viewmats, labels=None, evaluator=Reconstructs(oracle)
    )
    named = {"obedience", "content", "broken", "broken_of_all"}
    assert set(result.measures) == set(DEFINITIONS) - named and result.per_motion == {}
    assert all(m == with_labels.measures[name] or math.isnan(m.stderr) for name, m in result.measures.items())
    kept = [g for g in with_labels.gates if g.name in ("psnr_requested", "psnr_own", "contrast")]
    assert result.gates == kept
    write_study(
        result, tmp_path, videos_before=wrong.video, videos_after=truth.video, viewmats_requested=truth.viewmats
    )
    with np.load(tmp_path / "evaluation" / "samples.npz", allow_pickle=False) as arrays:
        assert "obeyed_after" not in arrays and arrays["prompts"].tolist() == prompts
    control = compare(result.before, result.after, prompts, None, control="permuted")
    assert control.gates == [] and not control.passed  # nothing was measured that could pass
