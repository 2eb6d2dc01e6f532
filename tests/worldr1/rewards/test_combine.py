"""The terms together: ordering under corruption, masks, phases, controls, independence of the batch."""

from dataclasses import replace

import pytest
import torch
from oracle_world import (
    Brightness,
    CoverageCritic,
    MeanDifference,
    Oracle,
    clips_of,
    half_way,
    jittered,
    path_of,
    prompt_batch,
)

from worldr1.config import AdvantageConfig, RewardConfig, TrainConfig
from worldr1.learn.advantage import group_advantage
from worldr1.microworld.captions import make_caption
from worldr1.rewards import combine
from worldr1.rewards.combine import RewardStack
from worldr1.rewards.controls import randomised

GROUP = 5
WANTED = ["push_in", "orbit_left", "pan_right"]
OTHER = ["pan_left", "orbit_right", "pull_out"]


@pytest.fixture(scope="module")
def world():
    """Three groups of truth, jittered, half-way, frozen and other scene, and an oracle that knows all of them."""
    paths = torch.stack([path_of(m) for m in WANTED])
    seeds = [11, 12, 13]
    kinds = [
        clips_of(WANTED, seeds=seeds),
        clips_of(WANTED, seeds=seeds, paths=jittered(paths, angle=0.01, shift=0.03)),
        clips_of(WANTED, seeds=seeds, paths=half_way(paths)),
        clips_of(WANTED, seeds=seeds, paths=paths[:, :1].repeat(1, 9, 1, 1)),
        clips_of(OTHER, content=9, seeds=[21, 22, 23]),
    ]
    video = torch.stack([clips.video for clips in kinds], dim=1).flatten(0, 1)  # [15, 9, 3, 32, 32]
    batch = prompt_batch([make_caption(m, 3) for m in WANTED], group_size=GROUP)
    return batch, video, Oracle(*kinds)


def stack_of(oracle: Oracle, **settings) -> RewardStack:
    return RewardStack(
        RewardConfig(**settings),
        seed=5,
        reconstructor=oracle,
        critic=CoverageCritic(),
        aesthetic=Brightness(),
        perceptual=MeanDifference(),
    )


def test_total_is_the_weighted_sum_and_falls_with_the_corruption(world):
    batch, video, oracle = world
    out = stack_of(oracle, weight_traj=2.0, weight_gen=0.5).score(batch, video)
    assert bool(out.valid.all()) and not out.reasons
    assert out.weights == {"traj": 2.0, "recon": 1.0, "meta": 1.0, "gen": 0.5}
    b = out.breakdown
    assert torch.allclose(out.reward, 2 * b["traj"] + b["recon"] + b["meta"] + 0.5 * b["gen"], atol=1e-6)
    for values in (b["traj"], out.reward):
        by_kind = values.reshape(3, GROUP)
        assert bool((by_kind[:, :-1] > by_kind[:, 1:]).all()), by_kind
    assert b["traj"].reshape(3, GROUP)[:, 0] == pytest.approx(torch.ones(3), abs=1e-3)
    assert float(b["traj"].reshape(3, GROUP)[:, 3:].max()) < 0.4


def test_the_score_does_not_depend_on_what_else_is_in_the_batch(world, monkeypatch):
    batch, video, oracle = world
    whole = stack_of(oracle).score(batch, video)
    monkeypatch.setattr(combine, "PIXELS_PER_CALL", 4 * 9 * 32 * 32)
    oracle.calls.clear()
    chunked = stack_of(oracle).score(batch, video)
    assert oracle.calls == [4, 4, 4, 3]
    assert torch.allclose(whole.reward, chunked.reward, atol=1e-5)
    last = replace(
        batch,
        prompts=batch.prompts[2:],
        tokens=batch.tokens[2:],
        viewmats=batch.viewmats[2:],
        sample_ids=batch.sample_ids[10:],
        group_ids=batch.group_ids[2:],
    )
    alone = stack_of(oracle).score(last, video[10:])
    for name in whole.breakdown:
        assert torch.allclose(whole.breakdown[name][10:], alone.breakdown[name], atol=1e-5), name


def test_bad_videos_are_masked_with_a_reason_and_touch_no_other_sample(world):
    batch, video, oracle = world
    clean = stack_of(oracle).score(batch, video)
    broken = video.clone()
    broken[2, 4, 0, 0, 0] = float("nan")
    broken[6] = float("inf")
    broken[9] = torch.rand(9, 3, 32, 32, generator=torch.Generator().manual_seed(0))  # the reconstructor fails on it
    finite = torch.ones(15, dtype=torch.bool)
    finite[13] = False
    out = stack_of(oracle).score(batch, broken, finite=finite)
    assert out.valid.tolist() == [i not in (2, 6, 9, 13) for i in range(15)]
    assert out.reasons == {
        2: "the video is not finite",
        6: "the video is not finite",
        9: "RuntimeError: the oracle does not know this clip",
        13: "a latent of the rollout is not finite",
    }
    assert bool(out.reward[~out.valid].isnan().all())
    assert torch.allclose(out.reward[out.valid], clean.reward[out.valid], atol=1e-5)


def test_a_term_that_is_not_finite_or_not_answered_is_masked(world):
    batch, video, oracle = world

    class Nan:
        def score(self, frames, prompts):
            return torch.where(torch.arange(len(frames))[:, None] == 1, torch.nan, frames.mean((2, 3, 4)))

    stack = stack_of(oracle)
    stack.aesthetic = Nan()
    assert stack.score(batch, video).reasons == {1: "gen is not finite"}
    stack = stack_of(oracle)
    stack.critic = CoverageCritic(mass=0.1)
    with pytest.raises(RuntimeError, match=r"at most 50% .* got 15 of 15: 15 x meta is not finite"):
        stack.score(batch, video)


def test_too_many_failures_stop_the_run_and_are_counted(world):
    batch, video, oracle = world
    broken = video.clone()
    broken[:8] = float("nan")
    with pytest.raises(RuntimeError, match=r"got 8 of 15: 8 x the video is not finite"):
        stack_of(oracle).score(batch, broken)
    assert int(stack_of(oracle, max_invalid_fraction=0.6).score(batch, broken).valid.sum()) == 7


def test_mistakes_of_the_program_are_not_masked(world):
    batch, video, oracle = world

    class Wrong:
        def score(self, frames):
            return frames

    stack = stack_of(oracle)
    stack.aesthetic = Wrong()
    with pytest.raises(TypeError):
        stack.score(batch, video)


def test_dynamic_phase_is_the_aesthetic_term_alone(world):
    batch, video, oracle = world
    oracle.calls.clear()
    out = stack_of(oracle, weight_gen=0.25).score(replace(batch, dynamic=True), video)
    assert oracle.calls == [] and list(out.breakdown) == ["gen"] and out.weights == {"gen": 1.0}
    expected = (20 * video[:, :8].mean((1, 2, 3, 4)) - 5) / 10
    assert torch.allclose(out.reward, expected, atol=1e-5)


def test_dynamic_samples_of_a_mixed_batch_have_no_spatial_terms(world):
    batch, video, oracle = world
    dynamic = torch.arange(15) < GROUP
    main = stack_of(oracle, weight_gen=0.0).score(batch, video)
    oracle.calls.clear()
    out = stack_of(oracle, weight_gen=0.0).score(batch, video, dynamic=dynamic)
    assert oracle.calls == [10] and bool(out.valid.all())
    assert torch.allclose(out.reward[:5], out.breakdown["gen"][:5])
    assert torch.allclose(out.reward[5:], main.reward[5:], atol=1e-5)
    assert bool(out.breakdown["traj"][:5].isnan().all())


def test_a_prompt_whose_camera_was_not_read_has_no_camera_term(world):
    batch, video, oracle = world
    plain = stack_of(oracle, weight_traj=2.0, weight_gen=0.5).score(batch, video)
    oracle.calls.clear()
    asked = torch.tensor([True, False, True])
    out = stack_of(oracle, weight_traj=2.0, weight_gen=0.5).score(replace(batch, asked=asked), video)
    assert sorted(oracle.calls) == [5, 10], "each clip is lifted once"
    assert bool(out.valid.all()) and not out.reasons and out.weights == plain.weights
    rows = batch.repeat(asked)
    assert torch.equal(out.breakdown["traj"].isnan(), ~rows)
    assert torch.allclose(out.breakdown["traj"][rows], plain.breakdown["traj"][rows], atol=1e-5)
    for name in ("recon", "meta", "gen"):
        assert torch.allclose(out.breakdown[name], plain.breakdown[name], atol=1e-5), name
    b = out.breakdown
    assert torch.allclose(out.reward[rows], plain.reward[rows], atol=1e-5)
    assert torch.allclose(out.reward[~rows], (b["recon"] + b["meta"] + 0.5 * b["gen"])[~rows], atol=1e-6)
    moved = stack_of(oracle, control="permuted").score(replace(batch, asked=asked), video)
    assert torch.equal(moved.breakdown["traj"].isnan(), ~rows) and bool(moved.valid.all())
    with pytest.raises(ValueError, match=r"batch.asked must have shape \[3\], one value a prompt, got \[15\]"):
        stack_of(oracle).score(replace(batch, asked=rows), video)


def test_a_clip_whose_camera_was_not_read_is_lifted_only_where_another_term_needs_it(world):
    batch, video, oracle = world
    stack = stack_of(oracle, weight_recon=0.0, weight_meta=0.0)
    oracle.calls.clear()
    out = stack.score(replace(batch, asked=torch.tensor([False, False, True])), video)
    assert oracle.calls == [5] and bool(out.valid.all())
    assert torch.allclose(out.reward[:10], out.breakdown["gen"][:10])


def test_a_term_of_weight_zero_is_not_asked(world):
    batch, video, oracle = world
    stack = RewardStack(
        RewardConfig(weight_traj=0, weight_recon=0, weight_meta=0),
        seed=0,
        reconstructor=None,
        critic=None,
        aesthetic=Brightness(),
        perceptual=None,
    )
    assert list(stack.score(batch, video).breakdown) == ["gen"]
    only = RewardStack(
        RewardConfig(weight_recon=0, weight_meta=0, weight_gen=0),
        seed=0,
        reconstructor=oracle,
        critic=None,
        aesthetic=None,
        perceptual=None,
    )
    assert list(only.score(batch, video).breakdown) == ["traj"]


def test_permuted_control_shuffles_whole_rows_inside_groups(world):
    batch, video, oracle = world
    video = video.clone()
    video[7] = float("nan")
    true = stack_of(oracle).score(batch, video)
    out = stack_of(oracle, control="permuted").score(batch, video)
    assert torch.equal(out.valid, true.valid) and out.reasons == true.reasons
    moved = 0
    for g in range(3):
        rows = torch.arange(g * GROUP, (g + 1) * GROUP)
        rows = rows[true.valid[rows]]
        was = torch.stack([true.reward, *true.breakdown.values()], 1)[rows]
        now = torch.stack([out.reward, *out.breakdown.values()], 1)[rows]
        assert torch.equal(was[was[:, 0].argsort()], now[now[:, 0].argsort()])
        moved += int((was[:, 0] != now[:, 0]).sum())
    assert moved >= 6
    again = stack_of(oracle, control="permuted").score(batch, video)
    assert torch.equal(again.reward.nan_to_num(), out.reward.nan_to_num())
    later = stack_of(oracle, control="permuted").score(replace(batch, sample_ids=batch.sample_ids + 1000), video)
    assert not torch.equal(later.breakdown["traj"].nan_to_num(), out.breakdown["traj"].nan_to_num())


def test_zero_control_leaves_no_advantage_to_any_valid_sample(world):
    batch, video, oracle = world
    video = video.clone()
    video[7] = float("nan")
    out = stack_of(oracle, control="zero").score(batch, video)
    assert out.breakdown.keys() == {"zero"} and not out.valid[7] and out.reward[7].isnan()
    assert out.reward[out.valid].tolist() == [0.0] * (batch.num_samples - 1)
    advantage = group_advantage(out, group_size=GROUP, config=AdvantageConfig())
    assert advantage.num_active == 0 and advantage.num_dropped_groups == 3


def test_random_control_is_standard_normal_and_keyed_by_sample(world):
    batch, video, oracle = world
    out = stack_of(oracle, control="random").score(batch, video)
    assert list(out.breakdown) == ["random"] and out.weights == {"random": 1.0}
    swapped = replace(batch, sample_ids=batch.sample_ids.flip(0))
    assert torch.equal(randomised(out, swapped, seed=5).reward, out.reward.flip(0))
    many = prompt_batch([make_caption("fixed", 0)], group_size=4000)
    blank = replace(out, reward=torch.zeros(4000), valid=torch.ones(4000, dtype=torch.bool))
    draws = randomised(blank, many, seed=0).reward
    assert abs(float(draws.mean())) < 0.06 and float(draws.std()) == pytest.approx(1.0, abs=0.05)


def test_shapes_that_do_not_fit_are_refused(world):
    batch, video, oracle = world
    with pytest.raises(ValueError, match=r"video must have shape \[15, 9, 3, H, W\]"):
        stack_of(oracle).score(batch, video[:10])
    with pytest.raises(ValueError, match=r"finite must have shape \[15\]"):
        stack_of(oracle).score(batch, video, finite=torch.ones(3, dtype=torch.bool))


def motion_of(videos: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    """A term of a user's: mean change from frame to frame."""
    assert len(prompts) == len(videos)
    return (videos[:, 1:] - videos[:, :-1]).abs().mean((1, 2, 3, 4))


def test_a_term_of_the_users_joins_the_sum_outside_the_dynamic_phase(world):
    batch, video, oracle = world
    plain = stack_of(oracle).score(batch, video)
    stack = stack_of(oracle)
    stack.extra = {"motion_of": (motion_of, 3.0)}
    out = stack.score(batch, video)
    assert out.weights == {**plain.weights, "motion_of": 3.0}
    expected = motion_of(video, [""] * 15)
    assert torch.allclose(out.breakdown["motion_of"], expected, atol=1e-6)
    assert torch.allclose(out.reward, plain.reward + 3.0 * expected, atol=1e-5)
    dynamic = torch.arange(15) < GROUP
    mixed = stack.judge(batch, video, dynamic=dynamic)
    assert torch.equal(mixed.breakdown["motion_of"].isnan(), dynamic) and bool(mixed.valid.all())
    assert torch.allclose(mixed.reward[:GROUP], mixed.breakdown["gen"][:GROUP])
    assert "motion_of" not in stack.judge(replace(batch, dynamic=True), video).breakdown


def test_a_term_of_the_users_that_answers_amiss_is_a_reason(world):
    batch, video, oracle = world
    stack = stack_of(oracle)
    stack.extra = {"one": (lambda videos, prompts: videos.mean(), 1.0)}
    out = stack.judge(batch, video)
    assert not out.valid.any()
    assert set(out.reasons.values()) == {"ValueError: reward.extra: one must return one score a video, shape [N]"}


def test_terms_by_name(tmp_path, monkeypatch):
    (tmp_path / "my_terms.py").write_text("def calm(videos, prompts):\n    return -videos.std((1, 2, 3, 4))\n")
    monkeypatch.syspath_prepend(tmp_path)
    config = TrainConfig()

    def build(*extra):
        return combine.build_rewards(replace(config, reward=replace(config.reward, extra=extra)), device="cpu")

    stack = build("my_terms:calm=0.5")
    video = torch.rand(2, 9, 3, 32, 32)
    batch = prompt_batch([make_caption("push_in", 3)], group_size=2)
    out = stack.judge(batch, video)
    assert torch.allclose(out.breakdown["calm"], -video.std((1, 2, 3, 4))) and out.weights["calm"] == 0.5
    with pytest.raises(ValueError, match="my_terms has no storm"):
        build("my_terms:storm=1")
    with pytest.raises(ValueError, match="no module nowhere"):
        build("nowhere:calm=1")
    with pytest.raises(ValueError, match="must differ from each other and from ours, got calm"):
        build("my_terms:calm=1", "my_terms:calm=2")


def test_a_judge_without_room_says_whose_and_what_helps(world):
    batch, video, oracle = world

    class Full:
        def infer(self, video):
            raise torch.OutOfMemoryError("CUDA out of memory")

    stack = stack_of(oracle)
    stack.reconstructor = Full()
    with pytest.raises(torch.OutOfMemoryError, match="out of memory in the reconstructor: a lower --reward.recon"):
        stack.judge(batch, video)


def test_the_screen_blur_is_the_settings(world, monkeypatch):
    batch, video, oracle = world
    seen, real = [], combine.render
    monkeypatch.setattr(
        combine, "render", lambda *args, eps2d, **rest: seen.append(eps2d) or real(*args, eps2d=eps2d, **rest)
    )
    wide, narrow = (stack_of(oracle, screen_blur=blur).judge(batch, video) for blur in (0.3, 0.01))
    assert seen == [0.3, 0.01] and float(narrow.breakdown["recon"][0]) > float(wide.breakdown["recon"][0])
    assert torch.equal(narrow.breakdown["traj"], wide.breakdown["traj"])


def test_devices_of_the_judges(monkeypatch):
    place = combine.judges_device
    assert place("", torch.device("cpu")) == place("cpu", torch.device("cuda", 3)) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert place("cuda:4", torch.device("cuda", 2)) == torch.device("cuda", 6)
    monkeypatch.setenv("LOCAL_RANK", "5")
    with pytest.raises(ValueError, match="got cuda:4, which is cuda:9 for this rank, and 8 devices"):
        place("cuda:4", torch.device("cuda", 5))
