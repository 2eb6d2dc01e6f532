"""The whole loop at Wan2.1-1.3B's size: `python -m bench.wan_loop [--seconds 150] [--history DIR] [--smoke]`.

Random weights, 832x480x81, a group of 8; the text encoder and the judges are left out. First what every recipe is made
of (a forward pass, a training step, the noise, the decoder, the rewards' kernels), from which the seconds a sample of
each recipe follow by its counted passes; then faster forms of the transformer, each checked against the eager one and
with the drift of log_prob that it causes; last, where time is left, a whole iteration. A row is recorded as soon as it
is measured. `--smoke` runs all of it tiny, on any device.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import report
from bench.ceilings import matmul_case, rate
from bench.report import Case, print_table, record
from bench.timing import Timing, turns
from bench.wan_model import PROMPT, CompiledBlocks, RandomWan, Size, attention, build, captured, latent, size_of, within
from worldr1.camera.noise import initial_noise
from worldr1.config import Keep, TrainConfig
from worldr1.cost.flops import model_flops, passes_per_sample, recipes
from worldr1.learn.advantage import Advantage
from worldr1.learn.update import make_optimizer, policy_step, sample_gradients
from worldr1.models.ema import Ema
from worldr1.models.recompute import checkpoint_blocks
from worldr1.prompts.sampler import prompt_batch
from worldr1.rollout.sample import sample
from worldr1.rollout.schedule import rollout_sigmas
from worldr1.rollout.videos import ByteVideos, byte_videos
from worldr1_kernels import rasterize, trajectory_reward
from worldr1_kernels.sde_step import sde_step
from worldr1_kernels.testing import pixel_aligned_scene

FILE = "wan_loop"
OFFICIAL = "official release"
TRAINING = "training step, nothing kept"
MAX_RELATIVE_ERROR = 5e-2
"""Of a velocity or a gradient in bfloat16 against the eager one, by L2 norms."""


class OutOfTimeError(Exception):
    """The next row would not fit in what is left."""


class Loop:
    """The model, what was measured of it, and the time that is left."""

    def __init__(self, size: Size, device: str, *, seconds: float, keep: bool) -> None:
        self.size, self.device, self.keep = size, device, keep
        self.config: TrainConfig = size.config
        self.deadline = time.monotonic() + seconds
        self.on_gpu = device == "cuda"
        self.skipped: list[str] = []
        self.num_rows = 0
        self.ceiling = rate(matmul_case(device, size=8192 if self.on_gpu else 256))
        self.policy: RandomWan = build(size, device)
        self.sigmas = rollout_sigmas(self.config.schedule)
        self.step = (self.config.schedule.window_range[1] - self.config.schedule.window_size) // 2  # the mean window
        self.sample, self.prev_sample = (latent(self.policy, self.config.video, seed=seed) for seed in range(2))
        self.embeds = self.policy.encode_prompts([PROMPT])
        # MFU counts the model's own work, without what checkpointing recomputes.
        plain = replace(self.config.model, gradient_checkpointing=False)
        self.flops = model_flops(size.transformer, plain, self.config.video)
        self.shape = f"T{self.flops.num_tokens}-G{self.config.rollout.group_size}"
        self.stages: dict[str, Timing] = {}  # one call each; of forward and training steps the fastest form so far
        self.attention = "auto"

    @property
    def left(self) -> float:
        """Seconds."""
        return self.deadline - time.monotonic()

    def need(self, seconds: float) -> None:
        """Raises OutOfTimeError unless so many seconds are left."""
        if seconds > self.left:
            raise OutOfTimeError(f"needs about {seconds:.0f} s, {max(self.left, 0):.0f} left")

    def row(self, case: Case) -> None:
        """Prints a row and, when asked to, keeps it."""
        print_table([case])
        if case.notes:
            print(f"{'':12} {case.notes}", flush=True)
        self.num_rows += 1
        if self.keep:
            record([case], FILE)

    def peak(self, function: Callable[[], object]) -> str:
        """Runs `function` once; its peak memory in words."""
        if not self.on_gpu:
            function()
            return "peak memory not measured on a CPU"
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        function()
        torch.cuda.synchronize()
        return f"peak {torch.cuda.max_memory_allocated() / 1e9:.1f} GB"

    def rate_notes(self, timing: Timing, flops: int) -> str:
        """TFLOP/s and MFU of a timed pass."""
        achieved = 1e3 * flops / timing.decisive
        return f"{achieved / 1e12:.3g} TFLOP/s, MFU {achieved / self.ceiling:.1%} of {self.ceiling / 1e12:.3g} TFLOP/s"

    def timed(self, variants: dict[str, Callable[[], object]]) -> dict[str, Timing]:
        """Calls of a second or so, in turns; each was called once before."""
        return turns(variants, count=5, device=self.device)

    def velocity(self) -> Tensor:
        """One forward pass without a graph."""
        with torch.no_grad():
            return self.policy.velocity(self.sample, self.sigmas[self.step], self.embeds)

    def training_step(self) -> Tensor:
        """Forward with a graph, density of the step, backward; returns the adapter's gradient, [P]."""
        for parameter in self.policy.adapter_parameters():
            parameter.grad = None
        velocity = self.policy.velocity(self.sample, self.sigmas[self.step], self.embeds)
        self.log_prob(velocity).sum().backward()
        grads = [p.grad for p in self.policy.adapter_parameters() if p.grad is not None]
        return torch.cat([grad.flatten() for grad in grads])

    def log_prob(self, velocity: Tensor) -> Tensor:
        """The step's density at a drawn latent, [1]."""
        schedule = self.config.schedule
        return sde_step(
            velocity, self.sample, self.sigmas[self.step], self.sigmas[self.step + 1], prev_sample=self.prev_sample,
            sde_type=schedule.sde_type, noise_level=schedule.noise_level, sigma_max=self.sigmas[1],
        ).log_prob  # fmt: skip


def forward_row(loop: Loop) -> None:
    """One sample, one pass, no graph."""
    peak = loop.peak(loop.velocity)
    timing = loop.timed({"forward": loop.velocity})["forward"]
    loop.stages["forward"] = timing
    notes = f"{loop.rate_notes(timing, loop.flops.forward)}, {peak}"
    loop.row(Case("forward", loop.shape, "bfloat16", "eager", timing, notes=notes, num_flops=loop.flops.forward))


def training_row(loop: Loop, keep: Keep) -> None:
    """One sample, one window step: what the two-pass and the deferred update both run."""
    name = f"training step, {keep} kept"
    with skipping(loop, name):
        loop.need(30.0 * loop.stages["forward"].p50 / 1e3)
        checkpoint_blocks(loop.policy.transformer, keep=keep)
        try:
            peak = loop.peak(loop.training_step)
            loop.stages[name] = loop.timed({"step": loop.training_step})["step"]
        finally:
            checkpoint_blocks(loop.policy.transformer, keep="nothing")
        flops = loop.flops.forward + loop.flops.backward
        notes = f"{loop.rate_notes(loop.stages[name], flops)} without recomputed work, {peak}"
        loop.row(Case(name, loop.shape, "bfloat16", "eager", loop.stages[name], notes=notes, num_flops=flops))


def stage_rows(loop: Loop) -> None:
    """Noise of the group, decoder, rewards' kernels."""
    config, device = loop.config, loop.device
    batch = prompt_batch([PROMPT], config=config, iteration=0, dynamic=False, rank=0, world_size=1)
    batch = replace(batch, viewmats=batch.viewmats.to(device))
    shape = loop.policy.latent_shape(config.video)
    width, height = config.video.width, config.video.height
    scene = pixel_aligned_scene(1, width, height, num_views=loop.size.num_views, sh_degree=0, device=device)
    path = batch.repeat(batch.viewmats)
    depth = torch.ones(len(path), device=device)

    def render() -> object:
        return rasterize(*scene, width, height, sh_degree=0, render_mode="RGB+D", backend="native")

    def decode() -> object:
        videos = ByteVideos(1)
        for made in byte_videos(loop.policy, loop.sample):
            videos.keep(*made)
        return videos.video

    works: dict[str, tuple[str, Callable[[], object]]] = {
        "noise": ("float32", lambda: initial_noise(batch, shape, config=config)),
        "decode": ("float32", decode),
        "rewards, render": ("float32", render),
        "rewards, S_traj": ("float32", lambda: trajectory_reward(path, path, median_depth=depth)),
    }
    notes = {
        "noise": "of the whole group, the plan cached",
        "decode": "one video, to bytes on the host",
        "rewards, render": f"one video's scene of {len(scene.means)} Gaussians in {loop.size.num_views} views",
        "rewards, S_traj": "of the whole group",
    }
    for name, (dtype, work) in works.items():
        with skipping(loop, name):
            loop.need(1.0)
            started = _now(loop.on_gpu)
            peak = loop.peak(work)
            loop.need(5.0 * (_now(loop.on_gpu) - started))
            loop.stages[name] = loop.timed({name: work})[name]
            loop.row(Case(name, loop.shape, dtype, "auto", loop.stages[name], notes=f"{notes[name]}, {peak}"))


def variant_rows(loop: Loop) -> None:
    """Other forms of the two passes: attention kernels, a CUDA graph, torch.compile of the blocks."""

    def compare(name: str, run: Callable[[], Tensor], flops: int, backend: str, base: Callable[[], Tensor]) -> None:
        expected, got = base().clone(), run()
        error = float((got.float() - expected.float()).norm() / expected.float().norm())
        if not error < MAX_RELATIVE_ERROR:
            raise RuntimeError(f"its result is off by {error:.1e} of the eager one")
        note = f", off by {error:.1e}"
        if name == "forward":
            drift = float((loop.log_prob(got) - loop.log_prob(expected)).abs())
            note += f", log_prob by {drift:.1e} nats"
        timings = loop.timed({backend: run, "eager": base})
        own = timings.pop(backend)
        notes = loop.rate_notes(own, flops) + note
        loop.row(Case(name, loop.shape, "bfloat16", backend, own, timings, notes, num_flops=flops))
        if own.decisive < loop.stages[name].decisive:
            loop.stages[name] = own

    def attending(kernel: str) -> Callable[[], Tensor]:
        return lambda: within(attention(kernel), loop.velocity)

    training = loop.flops.forward + loop.flops.backward
    for kernel in ("cudnn", "flash") if loop.on_gpu else ("auto",):
        with skipping(loop, f"attention {kernel}"):
            loop.need(15.0 * loop.stages["forward"].p50 / 1e3)
            best = loop.stages["forward"].decisive
            compare("forward", attending(kernel), loop.flops.forward, kernel, loop.velocity)
            if loop.stages["forward"].decisive < best:
                loop.attention = kernel
    with skipping(loop, "CUDA graph"):
        loop.need(15.0 * loop.stages["forward"].p50 / 1e3)
        compare("forward", captured(loop.velocity, loop.device), loop.flops.forward, "CUDA graph", loop.velocity)
    with skipping(loop, "torch.compile"):
        loop.need(60.0 if loop.on_gpu else 1.0)
        blocks = CompiledBlocks(loop.policy)
        for name, run, flops in (
            ("forward", loop.velocity, loop.flops.forward),
            (TRAINING, loop.training_step, training),
        ):
            if name not in loop.stages:
                continue
            base = loop.stages[name].p50 / 1e3
            loop.need(20.0 * base + (20.0 if loop.on_gpu else 0.0))

            def compiled(run: Callable[[], Tensor] = run) -> Tensor:
                return within(attention(loop.attention), lambda: within(blocks.on(), run))

            compare(name, compiled, flops, f"compile, {loop.attention}", run)


def cost(recipe: TrainConfig, stages: dict[str, Timing]) -> float | None:
    """Milliseconds of one training sample: counted passes times measured ones, and the other stages alike for all
    recipes; None where the recipe's kind of training step was not measured."""
    step = stages.get(f"training step, {recipe.model.checkpoint_keep} kept")
    if step is None:
        return None
    passes, forward = passes_per_sample(recipe), stages["forward"].decisive
    shared = sum(stages[name].decisive for name in ("noise", "rewards, S_traj") if name in stages)
    own = sum(stages[name].decisive for name in ("decode", "rewards, render") if name in stages)
    transformer = passes.forwards * forward + passes.backward * (step.decisive - forward)
    return transformer + own + shared / recipe.rollout.group_size


def recipe_rows(loop: Loop, backend: str) -> None:
    """Time of a sample by recipe, the official release's as the peer of all: added up, not measured as a whole."""
    times = {name: cost(recipe, loop.stages) for name, recipe in recipes().items()}
    timings = {name: Timing(ms, ms, ms, ms, 0, loop.on_gpu) for name, ms in times.items() if ms is not None}
    for name, timing in timings.items():
        notes = f"counted passes times measured ones: {3.6e6 / timing.p50:.1f} samples an hour of this device"
        peers = {OFFICIAL: timings[OFFICIAL]} if name != OFFICIAL and OFFICIAL in timings else {}
        loop.row(Case(f"sample, {name}", loop.shape, "bfloat16", backend, timing, peers, notes))


def iteration_row(loop: Loop) -> None:
    """One group as train.py runs it, by the recipe that costs least: noise, rollout, decoder, update."""
    costs = {name: ms for name, recipe in recipes().items() if (ms := cost(recipe, loop.stages)) is not None}
    if not costs:
        raise RuntimeError("no training step was measured")
    name = min(costs, key=lambda key: costs[key])
    recipe, group = recipes()[name], loop.config.rollout.group_size
    loop.need(1.3 * group * costs[name] / 1e3)
    checkpoint_blocks(loop.policy.transformer, keep=recipe.model.checkpoint_keep)
    config = replace(
        loop.config, update=recipe.update,
        rollout=replace(recipe.rollout, group_size=group, prompts_per_iteration=1),
    )  # fmt: skip
    stages: dict[str, float] = {}
    with attention(loop.attention):
        peak = loop.peak(lambda: _iteration(loop, config, stages))
    passes, total = passes_per_sample(config), 1e3 * sum(stages.values())
    flops = group * (passes.forwards * loop.flops.forward + passes.backward * loop.flops.backward)
    mfu = flops / (stages["rollout"] + stages["update"]) / loop.ceiling
    seconds = ", ".join(f"{stage} {value:.3g} s" for stage, value in stages.items())
    notes = f"{name}: {seconds}; rollout and update at MFU {mfu:.1%}; {peak}; once, attention {loop.attention}"
    timing = Timing(total, total, total, total, 1, loop.on_gpu)
    loop.row(Case("iteration", loop.shape, "bfloat16", "eager", timing, notes=notes))


def _iteration(loop: Loop, config: TrainConfig, stages: dict[str, float]) -> None:
    """Adds the seconds of each stage to `stages`."""
    policy, group = loop.policy, config.rollout.group_size
    params = policy.adapter_parameters()
    optimizer, ema = make_optimizer(params, config.update), Ema(params, decay=config.update.ema_decay)
    batch = prompt_batch([PROMPT], config=config, iteration=0, dynamic=False, rank=0, world_size=1)
    batch = replace(batch, viewmats=batch.viewmats.to(loop.device))
    steps = tuple(range(loop.step, loop.step + config.schedule.window_size))
    decode = policy.decode

    def clocked(name: str, function: Callable[[], Any]) -> Any:
        started = _now(loop.on_gpu)
        out = function()
        stages[name] = stages.get(name, 0.0) + _now(loop.on_gpu) - started
        return out

    noise = clocked("noise", lambda: initial_noise(batch, policy.latent_shape(config.video), config=config))
    gradients = sample_gradients(params, batch, config) if config.update.deferred else None

    policy.decode = lambda latents: clocked("decode", lambda: decode(latents))  # type: ignore[method-assign]
    try:
        rollout = clocked("rollout", lambda: sample(
            policy, batch, noise, sigmas=loop.sigmas, steps=steps, config=config, gradients=gradients
        ))  # fmt: skip
    finally:
        policy.decode = decode  # type: ignore[method-assign]
    stages["rollout"] -= stages["decode"]
    advantage = Advantage(
        advantage=torch.linspace(-1, 1, group), mask=torch.ones(group, dtype=torch.bool), num_active=group,
        group_std=torch.ones(1, dtype=torch.float64), num_dropped_groups=0, alarms=(), mean_size=0.5,
    )  # fmt: skip
    metrics = clocked("update", lambda: policy_step(
        policy, optimizer, ema, rollout, advantage, config=config, lr=1e-4, gradients=gradients
    ))  # fmt: skip
    if metrics["num_updates"] != config.update.updates_per_rollout:
        raise RuntimeError(f"of {config.update.updates_per_rollout} updates {metrics['num_updates']} were made")


def _now(on_gpu: bool) -> float:
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter()


@contextlib.contextmanager
def skipping(loop: Loop, name: str) -> Any:
    """A row that lacks time, memory or support is named with its reason; the next one runs."""
    try:
        yield
    except (OutOfTimeError, RuntimeError, NotImplementedError, ImportError) as error:  # RuntimeError: also no memory
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        loop.skipped.append(f"{name} ({first[:120]})")
        print(f"{name}: skipped, {first}", flush=True)
        if loop.on_gpu:
            torch.cuda.empty_cache()


def run(loop: Loop) -> None:
    """All rows, most valuable first."""
    forward_row(loop)
    training_row(loop, "nothing")
    stage_rows(loop)
    recipe_rows(loop, "eager")
    variant_rows(loop)
    for keep in dict.fromkeys(recipe.model.checkpoint_keep for recipe in recipes().values()):
        if keep != "nothing":
            training_row(loop, keep)
    recipe_rows(loop, "fastest forms")
    with skipping(loop, "iteration"):
        iteration_row(loop)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.wan_loop", description=__doc__)
    parser.add_argument("--seconds", type=float, default=150.0, help="rows that would not fit any more are skipped")
    parser.add_argument("--history", type=Path, help="folder to append the figures to; default: they are not kept")
    parser.add_argument("--smoke", action="store_true", help="everything tiny")
    options = parser.parse_args(arguments)
    if options.history is not None:
        report.HISTORY = options.history
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not options.smoke:
        parser.error("the full size needs a GPU; --smoke runs it tiny")
    loop = Loop(size_of(smoke=options.smoke), device, seconds=options.seconds, keep=options.history is not None)
    run(loop)
    print(f"{loop.num_rows} rows at {loop.shape}" + (f"; skipped: {', '.join(loop.skipped)}" if loop.skipped else ""))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
