"""The official release's sampler, kept for comparison: what it does, and what is wrong with it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from mixture import Mixture, MixturePolicy, plane_batch

from worldr1.cli import parse
from worldr1.config import ModelConfig, RolloutConfig, ScheduleConfig, TrainConfig, UpdateConfig
from worldr1.config_checks import validate
from worldr1.presets import PRESETS, preset
from worldr1.rollout.sample import generate, sample, window_step
from worldr1.rollout.schedule import rollout_sigmas, sde_window

MIXTURE = Mixture(weights=(0.6, 0.4), means=((-1.0, 0.5), (1.0, 1.2)), stds=(0.4, 0.5))


def run(compat: bool):
    schedule = ScheduleConfig(
        num_steps=10, shift=3.0, sde_type="linear", window_size=5, window_range=(0, 5), compat=compat
    )
    config = TrainConfig(
        model=ModelConfig(adapter_sigma_min=0.0), schedule=schedule,
        rollout=RolloutConfig(group_size=2, micro_batch=8, allow_small_group=True),
    )  # fmt: skip
    sigmas, steps = rollout_sigmas(schedule), sde_window(schedule, seed=0, iteration=3)
    policy = MixturePolicy(MIXTURE, sigmas)
    noise = torch.randn(8, 2, 1, 1, 1, generator=torch.Generator().manual_seed(1))
    return policy, noise, config, sample(policy, plane_batch(4, 2), noise, sigmas=sigmas, steps=steps, config=config)


def test_its_rollout_is_deterministic_and_scored_all_the_same() -> None:
    policy, noise, config, rollout = run(compat=True)
    assert rollout.steps == (0, 1, 2, 3, 4) and rollout.sigmas[0] < 1.0
    end = policy.x0()
    generate(policy, [""] * 8, noise, sigmas=rollout.sigmas, solver="unipc")  # no noise was ever drawn
    assert torch.equal(end, policy.x0())
    assert torch.equal(rollout.samples[1:], rollout.prev_samples[:-1])
    for s in range(5):
        scored = window_step(policy, rollout, index=s, rows=slice(0, 8), config=config)
        assert torch.equal(scored.log_prob, rollout.log_prob[:, s])
        # A draw would lie one standard deviation from the mean (rms); what is scored here lies much nearer.
        z = (rollout.prev_samples[s] - scored.prev_sample_mean) / scored.std[0]
        assert float(z.square().mean().sqrt()) < 0.7
    policy, _, config, drawn = run(compat=False)
    scored = window_step(policy, drawn, index=2, rows=slice(0, 8), config=config)
    assert 0.7 < float(((drawn.prev_samples[2] - scored.prev_sample_mean) / scored.std[0]).square().mean().sqrt()) < 1.5


def test_the_preset_holds_the_releases_figures_and_only_its_name_gives_it(capsys: pytest.CaptureFixture[str]) -> None:
    config = preset("compat")
    s, r, u = config.schedule, config.rollout, config.update
    assert (s.compat, s.num_steps, s.window_size, s.window_range) == (True, 50, 24, (0, 24))
    assert (r.group_size, u.kl_beta, u.learning_rate, u.updates_per_rollout) == (2, 5.8, 1e-4, 1)
    assert [name for name in PRESETS if preset(name).schedule.compat] == ["compat"]
    assert not parse([]).schedule.compat and parse(["--preset", "compat"]).schedule.compat
    assert parse(["--preset", "compat", "--seed", "3"]).schedule == s
    with pytest.raises(SystemExit):
        parse(["--help"])
    shown = capsys.readouterr().out
    assert "--schedule.num-steps" in shown and "--schedule.compat" not in shown
    for flag in ("--schedule.compat", "--schedule.compat=True"):
        with pytest.raises(SystemExit):
            parse([flag])
    assert sde_window(s, seed=0, iteration=0) == sde_window(s, seed=5, iteration=77) == tuple(range(24))


def test_what_does_not_go_with_it_is_refused() -> None:
    base = TrainConfig()
    compat = replace(base.schedule, compat=True)
    for changes in (
        {"rollout": RolloutConfig(solver="multistep")},
        {"rollout": RolloutConfig(share_initial_noise=True)},
    ):
        with pytest.raises(ValueError, match="schedule.compat brings its own solver"):
            validate(replace(base, schedule=compat, **changes))
    with pytest.raises(ValueError, match="update.deferred must be off"):
        update = UpdateConfig(deferred=True, updates_per_rollout=1)
        validate(replace(base, schedule=compat, rollout=RolloutConfig(), update=update))
