import contextlib
from dataclasses import replace

import pytest
import torch
from fakes import PROMPTS, FakePolicy, fake_config

from worldr1.config import ModelConfig, ScheduleConfig, UpdateConfig, VideoConfig
from worldr1.learn import selftest
from worldr1.learn.selftest import run_self_tests, self_test_video
from worldr1.models.ema import Ema
from worldr1.models.wan import load_policy
from worldr1.rollout.sample_gradients import SampleGradients


@pytest.mark.parametrize("sde_type", ["flow", "linear", "dance", "cps"])
def test_all_pass_and_the_policy_is_as_before(sde_type):
    policy = FakePolicy()
    before = policy.adapter_state()
    config = fake_config(schedule=ScheduleConfig(sde_type=sde_type))
    tests = {t.name: t for t in run_self_tests(policy, prompts=PROMPTS, config=config)}
    assert set(tests) == {"ranks_agree", "adapter_off_is_base", "ratio_is_one", "log_prob_is_density", "ema_moves"}
    assert tests["ratio_is_one"].deviation <= 1e-6 and tests["log_prob_is_density"].deviation <= 1e-5
    assert all(torch.equal(v, before[k]) for k, v in policy.adapter_state().items())


def test_all_pass_on_a_wan_model(tiny_wan):
    policy = load_policy(ModelConfig(path=tiny_wan, lora_rank=4), device="cpu")
    config = fake_config()
    tests = run_self_tests(policy, prompts=PROMPTS, config=config)
    assert max(t.deviation for t in tests if t.name == "ratio_is_one") <= 1e-6


def forward_config():
    return fake_config(update=UpdateConfig(estimator="forward"))


def test_the_forward_estimator_has_tests_of_its_own(tiny_wan):
    for policy in (FakePolicy(), load_policy(ModelConfig(path=tiny_wan, lora_rank=4), device="cpu")):
        before = policy.adapter_state()
        tests = {t.name: t.deviation for t in run_self_tests(policy, prompts=PROMPTS, config=forward_config())}
        assert tests.keys() == {
            "ranks_agree", "adapter_off_is_base", "sigma_of_each_sample", "old_is_the_sampler", "ema_moves"
        }  # fmt: skip
        assert tests["sigma_of_each_sample"] <= 1e-6 and tests["old_is_the_sampler"] == 0
        assert all(torch.equal(v, before[k]) for k, v in policy.adapter_state().items())


class OneSigmaForAll(FakePolicy):
    def velocity(self, sample, sigma, prompt_embeds, *, adapter=True, exact=True):
        sigma = float(sigma[0]) if isinstance(sigma, torch.Tensor) else sigma
        return super().velocity(sample, sigma, prompt_embeds, adapter=adapter)


def test_a_fault_of_the_forward_estimator_is_named(monkeypatch):
    with pytest.raises(RuntimeError, match="self-test sigma_of_each_sample: "):
        run_self_tests(OneSigmaForAll(), prompts=PROMPTS, config=forward_config())

    @contextlib.contextmanager
    def never_taken_back(params, values):
        with torch.no_grad():
            for p, value in zip(params, values, strict=True):
                p.copy_(value)
        yield

    for fault in (lambda params, values: contextlib.nullcontext(), never_taken_back):
        monkeypatch.setattr(selftest, "holding", fault)
        with pytest.raises(RuntimeError, match="self-test old_is_the_sampler: "):
            run_self_tests(FakePolicy(), prompts=PROMPTS, config=forward_config())


def test_a_large_video_is_cut_and_a_small_one_is_not():
    """The tests of a run at 81x480x832 take the time of 9x128x128; what the micro world is tested at stays."""
    policy = FakePolicy()
    micro, wan = VideoConfig(), VideoConfig(height=480, width=832, num_frames=81, fps=16)
    assert self_test_video(policy, micro) == micro
    assert self_test_video(policy, wan) == replace(wan, height=128, width=128, num_frames=9)

    class Seen(FakePolicy):
        sizes = set()

        def velocity(self, sample, *args, **kwargs):
            self.sizes.add(tuple(sample.shape[2:]))
            return super().velocity(sample, *args, **kwargs)

    tests = run_self_tests(Seen(), prompts=PROMPTS, config=fake_config(video=wan))
    assert Seen.sizes == {(3, 32, 32)} and len(tests) == 5  # of (21, 120, 208), which the run has

    class Particular(FakePolicy):
        def latent_shape(self, video):
            if video.num_frames != 81:
                raise ValueError("latent_shape: video.num_frames must be 81")
            return super().latent_shape(video)

    assert self_test_video(Particular(), wan) == wan


@pytest.mark.parametrize("num_frames, height", [(13, 160), (9, 160), (13, 32)])
def test_a_fault_shows_at_the_small_size_of_a_large_video(num_frames, height):
    config = fake_config(video=VideoConfig(height=height, width=32, num_frames=num_frames))
    with pytest.raises(RuntimeError, match="self-test ratio_is_one: "):
        run_self_tests(RoundsWithoutGradient(), prompts=PROMPTS, config=config)


def deferred_config():
    return fake_config(update=UpdateConfig(updates_per_rollout=1, deferred=True, kl_beta=0.1))


def test_the_deferred_update_is_checked_against_two_passes(tiny_wan):
    policy = load_policy(ModelConfig(path=tiny_wan, lora_rank=4), device="cpu")
    tests = {t.name: t for t in run_self_tests(policy, prompts=PROMPTS, config=deferred_config())}
    assert tests["deferred_is_two_pass"].deviation <= 1e-5
    assert all(p.grad is None for p in policy.adapter_parameters())


def test_a_deferred_gradient_that_misses_a_part_is_named(tiny_wan, monkeypatch):
    true_write = SampleGradients.write

    def without_kl(self, advantage, mask, *, kl_beta, scale):
        true_write(self, advantage, mask, kl_beta=0.0, scale=scale)

    monkeypatch.setattr(SampleGradients, "write", without_kl)
    policy = load_policy(ModelConfig(path=tiny_wan, lora_rank=4), device="cpu")
    with pytest.raises(RuntimeError, match="self-test deferred_is_two_pass"):
        run_self_tests(policy, prompts=PROMPTS, config=deferred_config())


class ForgetsTheSwitch(FakePolicy):
    def velocity(self, sample, sigma, prompt_embeds, *, adapter=True, exact=True):
        return super().velocity(sample, sigma, prompt_embeds, adapter=True)


class RoundsWithoutGradient(FakePolicy):
    """Half precision in the rollout, full in training."""

    def velocity(self, sample, sigma, prompt_embeds, *, adapter=True, exact=True):
        out = super().velocity(sample, sigma, prompt_embeds, adapter=adapter)
        return out if torch.is_grad_enabled() else out.bfloat16().float()


class NeverAdapts(FakePolicy):
    def velocity(self, sample, sigma, prompt_embeds, *, adapter=True, exact=True):
        return super().velocity(sample, sigma, prompt_embeds, adapter=adapter) if not adapter else (
            super().velocity(sample, sigma, prompt_embeds, adapter=False) + 0 * self.bias.sum()
        )  # fmt: skip


@pytest.mark.parametrize(
    ("policy", "name"),
    [
        (ForgetsTheSwitch(), "adapter_off_is_base"),
        (NeverAdapts(), "adapter_off_is_base"),
        (RoundsWithoutGradient(), "ratio_is_one"),
    ],
    ids=["no-switch", "no-effect", "bf16-rollout"],
)
def test_a_fault_is_named(policy, name):
    before = policy.adapter_state()
    with pytest.raises(RuntimeError, match=f"self-test {name}: "):
        run_self_tests(policy, prompts=PROMPTS, config=fake_config())
    assert all(torch.equal(v, before[k]) for k, v in policy.adapter_state().items())


def test_a_wrong_density_is_named(monkeypatch):
    true_step = selftest.window_step

    def shifted(*args, **kwargs):
        out = true_step(*args, **kwargs)
        return out._replace(prev_sample_mean=out.prev_sample_mean + 0.1)

    monkeypatch.setattr(selftest, "window_step", shifted)
    with pytest.raises(RuntimeError, match="self-test log_prob_is_density"):
        run_self_tests(FakePolicy(), prompts=PROMPTS, config=fake_config())


def test_a_still_average_is_named(monkeypatch):
    monkeypatch.setattr(Ema, "step", lambda self: None)
    with pytest.raises(RuntimeError, match="self-test ema_moves: .*got inf"):
        run_self_tests(FakePolicy(), prompts=PROMPTS, config=fake_config())


@pytest.mark.parametrize("share", [False, True])
def test_an_odd_micro_batch(share):
    config = fake_config()
    rollout = replace(config.rollout, micro_batch=2, share_initial_noise=share, share_first_step=share)
    config = replace(config, rollout=rollout)
    assert len(run_self_tests(FakePolicy(), prompts=PROMPTS, config=config)) == 5
