"""The sampler against hand-written loops and diffusers' scheduler, and its promises to the update."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from worldr1.camera.trajectory import build_trajectory
from worldr1.config import MICRO_CAMERA, ModelConfig, RolloutConfig, ScheduleConfig, TrainConfig, VideoConfig
from worldr1.datatypes import MotionToken, PromptBatch, Rollout
from worldr1.models.wan import WanPolicy, load_policy
from worldr1.rollout.sample import batch_rows, generate, reference_velocity, sample, window_rows, window_step
from worldr1.rollout.schedule import euler_sigmas
from worldr1_kernels.sde_step import sde_step

PROMPTS = ["the camera pans left on a green floor", "a red ball"]
SIGMAS = euler_sigmas(6, 2.0)
STEPS = (2, 3)


def make_config(folder: Path, **rollout) -> TrainConfig:
    settings = {"group_size": 4, "prompts_per_iteration": 2, "micro_batch": 8, **rollout}
    return TrainConfig(
        seed=11,
        model=ModelConfig(path=folder, lora_rank=4, adapter_sigma_min=0.0),
        video=VideoConfig(height=16, width=16, num_frames=9),
        schedule=ScheduleConfig(num_steps=6, shift=2.0),
        rollout=RolloutConfig(**settings),
    )


def make_batch(config: TrainConfig, first_id: int = 40) -> PromptBatch:
    viewmats = build_trajectory([MotionToken("pan_left")], 9, MICRO_CAMERA).float()
    n = len(PROMPTS) * config.rollout.group_size
    return PromptBatch(
        prompts=PROMPTS, group_size=config.rollout.group_size, tokens=[(MotionToken("pan_left"),)] * 2,
        viewmats=viewmats.expand(2, -1, -1, -1), sample_ids=torch.arange(first_id, first_id + n), dynamic=False,
        group_ids=torch.arange(first_id, first_id + n, config.rollout.group_size),
    )  # fmt: skip


def make_noise(n: int = 8) -> Tensor:
    return torch.randn(n, 4, 3, 4, 4, generator=torch.Generator().manual_seed(7))


@pytest.fixture(scope="module")
def policy(tiny_wan: Path) -> WanPolicy:
    """With an adapter that does something."""
    loaded = load_policy(make_config(tiny_wan).model, device="cpu")
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in loaded.adapter_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return loaded


def apart(rollout: Rollout, video: Tensor | Rollout) -> float:
    """Largest difference to a video in [0, 1], or to another rollout's, in levels of 255."""
    levels = video.video if isinstance(video, Rollout) else 255 * video
    return float((rollout.video.float() - levels.float()).abs().max())


def run(policy: WanPolicy, config: TrainConfig, noise: Tensor | None = None, steps=STEPS) -> Rollout:
    return sample(
        policy, make_batch(config), make_noise() if noise is None else noise, sigmas=SIGMAS, steps=steps, config=config
    )


@torch.no_grad()
def guided(
    policy: WanPolicy, x: Tensor, sigma: float, prompts: list[str], scale: float, adapter: bool = True
) -> Tensor:
    v = policy.velocity(x, sigma, policy.encode_prompts(prompts), adapter=adapter)
    if scale == 1.0:
        return v
    u = policy.velocity(x, sigma, policy.encode_prompts([""] * len(prompts)), adapter=adapter)
    return u + scale * (v - u)


@pytest.mark.parametrize("scale", [1.0, 4.0])
@pytest.mark.parametrize("adapter", [True, False])
def test_generate_is_the_euler_loop(policy: WanPolicy, scale: float, adapter: bool) -> None:
    x = make_noise(2)
    video = generate(policy, PROMPTS, x, sigmas=SIGMAS, guidance_scale=scale, adapter=adapter)
    for a, b in zip(SIGMAS, SIGMAS[1:], strict=False):
        x = x + (b - a) * guided(policy, x, a, PROMPTS, scale, adapter)
    assert video.shape == (2, 9, 3, 16, 16)
    assert (video - policy.decode(x)).abs().max() < 2e-5


@pytest.mark.parametrize(("scale", "solver"), [(1.0, "euler"), (4.0, "multistep")])
def test_the_forward_estimator_samples_by_the_ode_alone(policy: WanPolicy, tiny_wan: Path, scale: float, solver: str):
    config = make_config(tiny_wan, guidance_scale=scale, solver=solver, micro_batch=4)
    config = replace(config, update=replace(config.update, estimator="forward"))
    out = run(policy, config, steps=())
    prompts = [p for p in PROMPTS for _ in range(4)]
    video = generate(policy, prompts, make_noise(), sigmas=SIGMAS, solver=solver, guidance_scale=scale, micro_batch=4)
    assert apart(out, video) <= 1 and out.steps == () and out.log_prob.shape == (8, 0) and out.samples.shape[0] == 0
    assert float((policy.decode(out.latents) - video).abs().max()) < 1e-5
    broken = make_noise()
    broken[3] = torch.nan
    out = run(policy, config, broken, steps=())
    assert out.finite.tolist() == [n != 3 for n in range(8)] and torch.isfinite(out.latents).all()
    with pytest.raises(ValueError, match=r"sample: steps must be \(\) with update.estimator forward"):
        run(policy, config)
    assert run(policy, make_config(tiny_wan)).latents is None


def test_generate_is_the_diffusers_euler_sampler(policy: WanPolicy, tiny_wan: Path, tmp_path: Path) -> None:
    """The whole pipeline: the saved adapter, diffusers' scheduler, guidance, decoding."""
    from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline

    pipe = WanPipeline.from_pretrained(tiny_wan, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    policy.save_lora(tmp_path)
    pipe.load_lora_weights(tmp_path, local_files_only=True)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=2.0)
    pipe.scheduler.set_timesteps(sigmas=[1 - i / 6 for i in range(6)])
    pipe.scheduler.set_timesteps = lambda *args, **kwargs: None  # the pipeline would ask for its own grid
    expected = pipe(
        prompt=PROMPTS, latents=make_noise(2), num_inference_steps=6, height=16, width=16, num_frames=9,
        guidance_scale=3.0, output_type="pt", max_sequence_length=16,
    ).frames  # fmt: skip
    video = generate(policy, PROMPTS, make_noise(2), sigmas=SIGMAS, guidance_scale=3.0)
    assert (video - expected).abs().max() < 2e-5
    base = generate(policy, PROMPTS, make_noise(2), sigmas=SIGMAS, guidance_scale=3.0, adapter=False)
    assert (base - expected).abs().max() > 1e-3


@pytest.mark.parametrize("scale", [1.0, 4.0])
@pytest.mark.parametrize("sde_type", ["flow", "linear", "dance", "cps"])
def test_sample_is_the_written_loop(policy: WanPolicy, tiny_wan: Path, scale: float, sde_type: str) -> None:
    config = make_config(tiny_wan, guidance_scale=scale)
    config = replace(config, schedule=replace(config.schedule, sde_type=sde_type))
    out = run(policy, config)
    prompts, ids = [PROMPTS[0]] * 4 + [PROMPTS[1]] * 4, torch.arange(40, 48)
    x = make_noise()
    for i, (a, b) in enumerate(zip(SIGMAS, SIGMAS[1:], strict=False)):
        v = guided(policy, x, a, prompts, scale)
        if i not in STEPS:
            x = x + (b - a) * v
            continue
        step = sde_step(
            v, x, a, b, seed=11, sample_ids=ids, step=i, sde_type=sde_type, noise_level=0.7, sigma_max=SIGMAS[1]
        )
        density = torch.distributions.Normal(step.prev_sample_mean, step.std[0]).log_prob(step.prev_sample)
        s = STEPS.index(i)
        assert (out.samples[s] - x).abs().max() < 2e-5 * x.abs().max()
        assert (out.prev_samples[s] - step.prev_sample).abs().max() < 2e-5 * x.abs().max()
        assert (out.log_prob[:, s] - density.flatten(1).mean(1)).abs().max() < 2e-5
        x = step.prev_sample
    assert apart(out, policy.decode(x)) < 0.5 + 255 * 5e-5
    assert bool(out.finite.all()) and out.steps == STEPS and out.sigmas == SIGMAS


@pytest.mark.parametrize("scale", [1.0, 4.0])
@pytest.mark.parametrize("micro_batch", [8, 4, 1])
def test_ratio_is_one_before_the_first_update(
    policy: WanPolicy, tiny_wan: Path, scale: float, micro_batch: int
) -> None:
    config = make_config(tiny_wan, guidance_scale=scale, micro_batch=micro_batch)
    out = run(policy, config)
    for index in range(len(STEPS)):
        for rows in batch_rows(8, micro_batch):
            scored = window_step(policy, out, index=index, rows=rows, config=config)
            assert scored.log_prob.requires_grad
            ratio = torch.exp(scored.log_prob - out.log_prob[rows, index])
            assert (ratio - 1).abs().max() <= 1e-6
            # The same kernels in the same shapes: not merely close.
            assert torch.equal(scored.log_prob, out.log_prob[rows, index])


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_kl_to_the_base_is_that_of_the_two_means(policy: WanPolicy, tiny_wan: Path, scale: float) -> None:
    config, rows = make_config(tiny_wan, guidance_scale=scale), slice(0, 8)
    out = run(policy, config)
    reference = reference_velocity(policy, out, index=1, rows=rows, config=config)
    scored = window_step(policy, out, index=1, rows=rows, config=config, velocity_ref=reference)
    base = window_step(policy, out, index=1, rows=rows, config=config, adapter=False)
    assert not reference.requires_grad and not base.log_prob.requires_grad
    difference = (scored.prev_sample_mean - base.prev_sample_mean).flatten(1)
    expected = difference.square().mean(1) / (2 * scored.std**2)
    assert torch.allclose(scored.kl, expected, rtol=2e-4) and scored.kl.min().item() > 0
    (scored.log_prob.sum() + scored.kl.sum()).backward()
    assert max(float(p.grad.abs().max()) for p in policy.adapter_parameters()) > 0
    policy.transformer.zero_grad()


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_steps_leave_the_densities_to_the_training_path(
    policy: WanPolicy, tiny_wan: Path, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module: compiler(module, backend=backend))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    config = make_config(tiny_wan, guidance_scale=4.0)
    compiled = load_policy(replace(config.model, compile=True), device="cpu")
    compiled.load_adapter_state(policy.adapter_state())
    fast, calls = compiled._inexact, []
    compiled._inexact = lambda **inputs: calls.append(inputs["timestep"][0].item() / 1000) or fast(**inputs)
    plain, out = run(policy, config), run(compiled, config)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
    assert calls == pytest.approx([s for i, s in enumerate(SIGMAS[:-1]) if i not in STEPS for _ in range(2)])
    assert apart(out, plain) <= 1
    for index in range(len(STEPS)):
        scored = window_step(compiled, out, index=index, rows=slice(0, 8), config=config)
        assert scored.log_prob.requires_grad and torch.equal(scored.log_prob, out.log_prob[:, index])


def test_merged_steps_leave_the_densities_to_the_training_path(policy: WanPolicy, tiny_wan: Path) -> None:
    """model.merge_lora in a bfloat16 base: the latents drift by its rounding, the ratio before the update stays 1."""
    config = make_config(tiny_wan, guidance_scale=4.0)
    outs = []
    for merge in (False, True):
        model = replace(config.model, dtype="bfloat16", merge_lora=merge)
        own = load_policy(model, device="cpu")
        own.load_adapter_state(policy.adapter_state())
        outs.append(run(own, config))
    plain, merged = outs
    drift = float((merged.samples[0] - plain.samples[0]).norm() / plain.samples[0].norm())
    assert 1e-5 < drift < 3e-2
    assert (merged.log_prob - plain.log_prob).abs().max() < 1e-3  # nats
    for index in range(len(STEPS)):
        scored = window_step(own, merged, index=index, rows=slice(0, 8), config=config)
        assert scored.log_prob.requires_grad and torch.equal(scored.log_prob, merged.log_prob[:, index])


def test_a_rollout_is_a_function_of_seed_and_sample_ids(policy: WanPolicy, tiny_wan: Path) -> None:
    config = make_config(tiny_wan)
    first = run(policy, config)
    torch.manual_seed(99)
    again = run(policy, config)
    assert torch.equal(first.video, again.video) and torch.equal(first.log_prob, again.log_prob)
    split = run(policy, make_config(tiny_wan, micro_batch=2))
    assert (split.prev_samples - first.prev_samples).abs().max() < 1e-4
    other = sample(policy, make_batch(config, 80), make_noise(), sigmas=SIGMAS, steps=STEPS, config=config)
    assert torch.allclose(other.samples[0], first.samples[0])  # the ODE before the window knows no sample id
    assert (other.prev_samples[0] - first.prev_samples[0]).abs().mean() > 0.1
    reseeded = run(policy, replace(config, seed=12))
    assert (reseeded.prev_samples[0] - first.prev_samples[0]).abs().mean() > 0.1


@pytest.mark.parametrize("steps", [(0, 1), (2, 3), (4,)])
def test_branching_a_shared_prefix_changes_nothing(policy: WanPolicy, tiny_wan: Path, steps: tuple[int, ...]) -> None:
    noise = make_noise(2).repeat_interleave(4, dim=0)
    calls = []
    velocity = policy.velocity

    def counted(x: Tensor, *args, **kwargs) -> Tensor:
        calls.append(len(x))
        return velocity(x, *args, **kwargs)

    policy.velocity = counted  # type: ignore[method-assign]
    try:
        plain = run(policy, make_config(tiny_wan), noise, steps)
        plain_calls = calls.copy()
        calls.clear()
        shared = run(policy, make_config(tiny_wan, share_initial_noise=True), noise, steps)
    finally:
        policy.velocity = velocity  # type: ignore[method-assign]
    assert plain_calls == [8] * 6
    assert calls == [2] * steps[0] + [8] * (6 - steps[0])  # the prefix costs 1 / G
    assert apart(plain, shared) <= 1
    assert (plain.prev_samples - shared.prev_samples).abs().max() < 1e-4
    assert torch.allclose(plain.log_prob, shared.log_prob, atol=1e-5)
    within = shared.prev_samples[0].unflatten(0, (2, 4))
    assert float(within.std(1).mean()) > 0.05  # branched: the draws of a group differ


@pytest.mark.parametrize(("scale", "steps"), [(1.0, (2, 3)), (4.0, (0,))])
@pytest.mark.parametrize("micro_batch", [1, 2], ids=["a-group-a-call", "both-in-one"])
def test_one_pass_serves_a_group_at_the_first_stochastic_step(
    policy: WanPolicy, tiny_wan: Path, scale: float, steps: tuple[int, ...], micro_batch: int
) -> None:
    """Same draws and densities as with a pass for each sample; and what the update computes is what was stored."""
    noise = make_noise(2).repeat_interleave(4, dim=0)
    settings = {"share_initial_noise": True, "guidance_scale": scale, "solver": "multistep"}
    plain = run(policy, make_config(tiny_wan, **settings), noise, steps)
    calls = []
    hook = policy.transformer.register_forward_hook(
        lambda module, args, kwargs, out: calls.append(len(kwargs["hidden_states"])), with_kwargs=True
    )
    config = make_config(tiny_wan, **settings, share_first_step=True, micro_batch=micro_batch)
    try:
        merged = run(policy, config, noise, steps)
        per_pass = 1 if scale == 1.0 else 2
        assert calls == [micro_batch] * per_pass * ((2 * (steps[0] + 1) + 8 * (5 - steps[0])) // micro_batch)
        for index in range(len(steps)):
            for rows in window_rows(merged, index, config):
                assert rows.stop - rows.start == micro_batch * (4 if index == 0 else 1)
                calls.clear()
                scored = window_step(policy, merged, index=index, rows=rows, config=config)
                assert calls == [micro_batch] * per_pass
                assert torch.equal(scored.log_prob, merged.log_prob[rows, index])
    finally:
        hook.remove()
    assert apart(plain, merged) <= 1
    for name in ("samples", "prev_samples"):
        assert (getattr(plain, name) - getattr(merged, name)).abs().max() < 1e-4
    assert torch.allclose(plain.log_prob, merged.log_prob, atol=1e-5)


def test_a_shared_prefix_needs_shared_noise(policy: WanPolicy, tiny_wan: Path) -> None:
    with pytest.raises(ValueError, match="same inside each group"):
        run(policy, make_config(tiny_wan, share_initial_noise=True))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("share", [False, True])
def test_a_latent_that_is_not_finite_is_masked_and_alone(
    policy: WanPolicy, tiny_wan: Path, bad: float, share: bool
) -> None:
    config = make_config(tiny_wan, share_initial_noise=share)
    noise = make_noise(2).repeat_interleave(4, dim=0) if share else make_noise()
    clean = run(policy, config, noise)
    noise[4 if share else 5 :][: 4 if share else 1, 0, 0, 0, 0] = bad
    out = run(policy, config, noise)
    struck = [4, 5, 6, 7] if share else [5]
    kept = [i for i in range(8) if i not in struck]
    assert out.finite.tolist() == [i in kept for i in range(8)]
    for name in ("samples", "prev_samples", "log_prob"):
        assert bool(torch.isfinite(getattr(out, name)).all())
    assert torch.equal(out.video[kept], clean.video[kept])
    assert torch.equal(out.log_prob[kept], clean.log_prob[kept])


def test_latents_and_densities_are_float32_under_a_bfloat16_base(tiny_wan: Path) -> None:
    config = make_config(tiny_wan)
    config = replace(config, model=replace(config.model, dtype="bfloat16"))
    half = load_policy(config.model, device="cpu")
    out = run(half, config)
    assert {out.samples.dtype, out.prev_samples.dtype, out.log_prob.dtype} == {torch.float32}
    scored = window_step(half, out, index=0, rows=slice(0, 8), config=config)
    assert torch.equal(scored.log_prob, out.log_prob[:, 0])


def test_adapter_below_its_range_samples_like_the_base(tiny_wan: Path, policy: WanPolicy) -> None:
    state = policy.adapter_state()
    high = load_policy(replace(policy.model, adapter_sigma_min=2 / 3), device="cpu")
    high.load_adapter_state(state)
    x = make_noise(2)
    video = generate(high, PROMPTS, x, sigmas=SIGMAS)
    for a, b in zip(SIGMAS, SIGMAS[1:], strict=False):
        x = x + (b - a) * guided(policy, x, a, PROMPTS, 1.0, adapter=a >= 2 / 3)
    assert (video - policy.decode(x)).abs().max() < 2e-5


def test_bad_arguments_are_named(policy: WanPolicy, tiny_wan: Path) -> None:
    config = make_config(tiny_wan)
    for steps in ((), (3, 2), (2, 2), (5,), (-1,)):
        with pytest.raises(ValueError, match="sample: steps"):
            run(policy, config, steps=steps)
    with pytest.raises(ValueError, match="adapter must act at every stochastic step"):
        run(policy, replace(config, model=replace(config.model, adapter_sigma_min=0.7)))
    with pytest.raises(ValueError, match="sample: noise"):
        run(policy, config, make_noise(7))
    with pytest.raises(ValueError, match="generate: noise"):
        generate(policy, PROMPTS, make_noise(3), sigmas=SIGMAS)
    with pytest.raises(ValueError, match="generate: sigmas"):
        generate(policy, PROMPTS, make_noise(2), sigmas=SIGMAS[::-1])
    for grid in (SIGMAS[:-1], (1.2, *SIGMAS[1:]), (1.0, 0.5, 0.5, 0.0), (1.0,)):  # must end at 0, fall, start <= 1
        with pytest.raises(ValueError, match="sigmas must fall from at most 1 to 0"):
            sample(policy, make_batch(config), make_noise(), sigmas=grid, steps=STEPS, config=config)
    with pytest.raises(ValueError, match="sample: steps must rise within"):  # a window longer than the schedule
        run(policy, config, steps=tuple(range(9)))
