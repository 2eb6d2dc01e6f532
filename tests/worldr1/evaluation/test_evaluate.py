"""The judgement of single clips: known clips give known figures."""

import math

import numpy as np
import pytest
import torch
from oracle_world import KNOWN_MOTIONS, KNOWN_PROMPTS

from worldr1.config import EMBEDDED
from worldr1.evaluation import reconstruction_measures
from worldr1.evaluation.evaluate import assess, load_evaluator
from worldr1.evaluation.reconstruction_measures import held_out_psnr
from worldr1.microworld.captions import read_labels


def test_rotation_and_translation_errors_of_a_known_camera(known_clips):
    truth, wrong, oracle = known_clips
    found = assess(wrong.video, read_labels(KNOWN_PROMPTS), truth.viewmats, evaluator=oracle)
    pan = KNOWN_MOTIONS.index("pan_left")  # recovered: pan_right; the angle between them grows to 2 x 28 degrees
    expected = np.mean([2 * 28 * t / 8 for t in range(1, 9)])
    assert float(found.rotation_deg[pan]) == pytest.approx(expected, abs=0.01)
    assert float(found.rot_err[pan]) == pytest.approx(math.radians(8 * expected), abs=1e-3)
    assert bool(found.trans_err[pan].isnan()) and bool(found.cam_mc[pan].isnan())
    push = KNOWN_MOTIONS.index("push_in")  # recovered: pull_out; centres t/8 and -t/8 after division by the largest
    assert float(found.trans_err[push]) == pytest.approx(sum(2 * t / 8 for t in range(1, 9)), abs=1e-3)
    assert float(found.path_ratio[push]) == pytest.approx(1.0, abs=1e-4)


def test_a_clip_that_is_not_finite_obeys_nothing_and_shows_nothing(known_clips):
    """Not even where the evaluator, which sees grey in its place, names by chance what was asked for."""
    truth, _, oracle = known_clips

    class Flatterer:
        def infer(self, video):
            return oracle.infer(truth.video)

        def classify(self, video):
            return oracle.classify(truth.video)

    video, labels = truth.video.clone(), read_labels(KNOWN_PROMPTS)
    video[3, 4, 0, 0, 0], video[7] = float("nan"), float("inf")
    found = assess(video, labels, truth.viewmats, evaluator=Flatterer())
    expected = [i not in (3, 7) for i in range(len(KNOWN_PROMPTS))]
    assert found.finite.tolist() == found.obeyed.tolist() == found.content.tolist() == expected


def test_held_out_psnr_prefers_the_truth_to_a_frozen_video_only_at_requested_poses(known_clips):
    truth = known_clips[0]
    K = truth.K.expand(len(KNOWN_PROMPTS), 9, 3, 3)
    moving = torch.tensor([m != "fixed" for m in KNOWN_MOTIONS])
    still, depth = truth.video[:, :1].repeat(1, 9, 1, 1, 1), truth.depth[:, :1].repeat(1, 9, 1, 1)
    real = held_out_psnr(truth.video, truth.depth, truth.viewmats, K)
    frozen = held_out_psnr(still, depth, truth.viewmats, K)
    assert float((real - frozen)[moving].min()) > 2.0
    own = held_out_psnr(still, depth, torch.eye(4).expand(len(KNOWN_PROMPTS), 9, 4, 4), K)
    assert float((own - frozen)[moving].min()) > 2.0  # frozen is consistent with itself
    constant = torch.full((1, 5, 3, 32, 32), 0.25)
    flat = held_out_psnr(constant, torch.full((1, 5, 32, 32), 4.0), torch.eye(4).expand(1, 5, 4, 4), K[:1, :5])
    assert flat.tolist() == pytest.approx([60.0])


def test_held_out_psnr_of_a_view_without_room_is_no_figure(monkeypatch):
    whole = reconstruction_measures.rasterize

    def short(*args, **options):
        out = whole(*args, **options)
        missing = out.meta["num_overflow"].clone()
        missing[0, 1] = 7
        return out._replace(meta=out.meta | {"num_overflow": missing})

    monkeypatch.setattr(reconstruction_measures, "rasterize", short)
    K = torch.tensor([[20.0, 0, 8], [0, 20, 8], [0, 0, 1]]).expand(1, 5, 3, 3)
    with pytest.raises(RuntimeError, match="evaluation: the rasterizer must have room"):
        held_out_psnr(torch.rand(1, 5, 3, 16, 16), torch.ones(1, 5, 16, 16), torch.eye(4).expand(1, 5, 4, 4), K)


def test_an_evaluator_comes_from_its_folder_and_another_folder_is_refused(tmp_path):
    device = torch.device("cpu")
    assert type(load_evaluator(EMBEDDED / "microeval", device=device)).__name__ == "MicroEvaluator"
    with pytest.raises(ValueError, match="must be MicroEvaluator, got 'MicroGeo'"):
        load_evaluator(EMBEDDED / "microgeo", device=device)
    with pytest.raises(ValueError, match="must hold config.json"):
        load_evaluator(tmp_path, device=device)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json must be JSON"):
        load_evaluator(tmp_path, device=device)


def test_an_evaluator_of_ones_own_by_its_dotted_name(tmp_path, monkeypatch):
    (tmp_path / "second_opinion.py").write_text("def open(*, device):\n    return ('second', str(device))\n")
    monkeypatch.syspath_prepend(tmp_path)
    cpu = torch.device("cpu")
    assert load_evaluator("second_opinion:open", device=cpu, labels=False) == ("second", "cpu")
    with pytest.raises(ValueError, match="cannot name motion and content; use --evaluation.no-labels"):
        load_evaluator("second_opinion:open", device=cpu)
