"""World-R1 training, from the command line to the report. Run it any of these ways:

    torchrun worldr1/train.py                        # the embedded micro world, about 7 minutes on one core
    torchrun --nproc_per_node 2 worldr1/train.py     # more ranks, the same result; about 4.5 minutes on two
    python worldr1/train.py --preset wan2.1-1.3b --help
    python -m worldr1.train --resume

Ctrl-C finishes the stage (of a rollout: the micro-batch), saves the finished iterations and prints how to go on.
torchrun waits 30 s for that; where a stage takes longer start it as `torchrun --shutdown-timeout 600 ...`.
"""

if __name__ == "__main__":
    # Only what a script must do before anything else is imported. Its own folder comes first on sys.path and would let
    # `models` or `report` hide other packages; the folder above, which holds the package, takes its place. This file is
    # then imported again, as the module worldr1.train, once the command line has checked the settings.
    import sys
    from pathlib import Path

    if sys.path and Path(sys.path[0] or ".").resolve() == Path(__file__).resolve().parent:
        sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from worldr1.cli import main

    def start(config):
        from worldr1.train import train

        return train(config)

    sys.exit(main(start))

import time
import webbrowser
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from worldr1.camera.noise import initial_noise
from worldr1.config import TrainConfig
from worldr1.cost.budget import fit_micro_batch
from worldr1.cost.flops import describe
from worldr1.evaluation.clips import evaluation_settings
from worldr1.evaluation.evaluate import Evaluator, load_evaluator
from worldr1.evaluation.lookout import Lookout
from worldr1.evaluation.study import run_study
from worldr1.evaluation.validate import Validator
from worldr1.learn.advantage import group_advantage
from worldr1.learn.forward import forward_step, running_means
from worldr1.learn.selftest import run_self_tests, self_test_video
from worldr1.learn.update import (
    Learner,
    NonFiniteGuard,
    check_window,
    learning_rate,
    make_optimizer,
    policy_step,
    sample_gradients,
    update_alarms,
)
from worldr1.microworld.captions import read_labels
from worldr1.models.ema import Ema
from worldr1.models.text_cache import MAX_KEPT_PROMPTS, TextCache
from worldr1.models.wan import WanPolicy, load_policy
from worldr1.prompts.reading import reading_lines
from worldr1.prompts.sampler import is_dynamic, prompt_batch, rank_share, read_prompts
from worldr1.report import LivePage, write_report
from worldr1.rewards import build_rewards
from worldr1.rewards.base import Rewards
from worldr1.rewards.controls import settle
from worldr1.rewards.judging import Judging
from worldr1.rollout.sample import NEGATIVE_PROMPT, sample
from worldr1.rollout.schedule import rollout_sigmas, rollout_steps
from worldr1.run import checkpoint, distributed
from worldr1.run.metrics import MetricsWriter, Progress, Stopwatch, reward_metrics
from worldr1.run.runtime import (
    Stop,
    Stopped,
    opening_line,
    peak_memory_gib,
    prepare_output_dir,
    resume_command,
    set_threads,
    stop_on_signal,
)

COMPAT_NOTICE = (
    "schedule.compat: the official release's sampler. Its rollouts are deterministic, and scored by a Gaussian that "
    "never drew them: the gradient is biased. For comparison only."
)


class Outcome(NamedTuple):
    """How a run ended."""

    iterations: int  # done in all, over resumed parts
    interrupted: bool  # by Ctrl-C; saved
    report: Path | None


def train(config: TrainConfig, *, rewards: Rewards | None = None) -> Outcome:
    """Train, evaluate, report: the whole pipeline, in order.

    Args:
      config: Validated settings (config_checks.validate).
      rewards: Judges of your own, in place of those that config.reward names.
    Returns:
      Outcome.
    Raises:
      ValueError: a setting that only shows to be wrong with the files at hand: prompts, model folders, resume.
      RuntimeError: the environment: device, disk, judges that fail too often, gradients that stay NaN.
    """
    set_threads(config)
    world = distributed.init(config.device)
    with ExitStack() as held:  # the lock of the output folder
        held.callback(distributed.shutdown)
        return _train(config, world, rewards, held)


def _train(config: TrainConfig, world: distributed.World, rewards: Rewards | None, held: ExitStack) -> Outcome:
    prompts = {False: read_prompts(config.prompts)}
    prompts[True] = read_prompts(config.dynamic_prompts) if config.phase.dynamic_iterations else []
    held_out = read_prompts(config.eval_prompts) if config.evaluation.num_samples or config.validate_every else []
    if config.evaluation.num_samples and config.evaluation.labels:
        try:
            read_labels(held_out)  # now, not after hours of training
        except ValueError as error:
            hint = "--evaluation.no-labels leaves obedience out, --evaluation.num-samples 0 the study"
            raise ValueError(f"{config.eval_prompts}: {error}; {hint}") from error
    check_window(config)
    start_from = prepare_output_dir(config, world, held)
    kernels = distributed.agree_on_kernels(world)

    rewards = rewards or build_rewards(config, device=world.device)  # before the policy: a wrong folder shows at once
    torch.manual_seed(config.seed)
    policy = load_policy(config.model, device=world.device, text_cache=_text_cache(config))
    for sized in (config, evaluation_settings(config)):
        policy.latent_shape(sized.video)  # sizes that the model cannot make are found here
    texts = _encode_prompts(policy, [*prompts[False], *prompts[True], *held_out])
    evaluator = (
        load_evaluator(config.evaluation.evaluator, device=world.device, labels=config.evaluation.labels)
        if config.evaluation.num_samples
        else None
    )
    params = policy.adapter_parameters()
    distributed.broadcast(params)
    learner = Learner(policy, make_optimizer(params, config.update), Ema(params, decay=config.update.ema_decay))
    means = running_means(policy, config)  # empty but with the forward estimator
    first = checkpoint.load(start_from, *learner, extra=means) if start_from else 0
    validator = None
    if config.validate_every:
        validator = Validator(policy, rewards, held_out, config=config, world=world)
    lookout = None
    if evaluator is not None and config.evaluation.labels:
        lookout = Lookout(policy, held_out, read_labels=read_labels, evaluator=evaluator, config=config, world=world)

    settings = config  # as they were given: what a resumed run is compared with
    if config.rollout.memory_budget_gib:
        own, _ = rank_share(config.rollout, world.size)
        config = fit_micro_batch(policy, prompts[False][0], config, num_samples=own)

    progress = Progress(max_iterations=config.max_iterations, enabled=world.is_main)
    writer = MetricsWriter(config.output_dir, first_iteration=first, enabled=world.is_main)
    try:
        progress.say(opening_line(config, world, first=first, num_params=sum(p.numel() for p in params)))
        progress.say(describe(config, world_size=world.size))
        progress.say(texts)
        if kernels:
            progress.say("kernels: " + ", ".join(f"{family} {backend}" for family, backend in kernels.items()))
        if world.is_main:
            progress.say("\n".join(reading_lines(prompts[False], prompts[True], policy.split_at_limit)))
        if config.rollout.memory_budget_gib:
            progress.say(f"micro-batch by rollout.memory_budget_gib: {config.rollout.micro_batch}")
        if config.schedule.compat:
            progress.say(COMPAT_NOTICE)
        if config.self_test and first < config.max_iterations:
            v = self_test_video(policy, config.video)
            with progress.stage("self-tests"):
                tests = run_self_tests(policy, prompts=prompts[False], config=config)
            found = ", ".join(f"{t.name} {t.deviation:.0e}" for t in tests)
            progress.say(f"self-tests passed, at {v.num_frames}x{v.height}x{v.width}: {found}")
        page = LivePage(config.output_dir, enabled=world.is_main, say=progress.say)
        done = _iterate(
            config, settings, world, learner, means, rewards, validator, lookout, prompts, first, writer, progress, page
        )
        if done < config.max_iterations:
            progress.say(f"stopped after {done} of {config.max_iterations} iterations, saved; go on with:")
            progress.say(f"  {resume_command()}")
            return Outcome(done, True, write_report(config.output_dir) if world.is_main else None)
        return Outcome(done, False, _finish(config, world, learner, evaluator, held_out, progress))
    finally:
        progress.close()
        writer.close()


def _text_cache(config: TrainConfig) -> TextCache | None:
    folder = config.output_dir.parent / "text_cache"  # beside the runs, which share it
    return TextCache(folder, model=config.model.path, dtype=config.model.dtype) if config.text_cache else None


def _encode_prompts(policy: WanPolicy, prompts: list[str]) -> str:
    """Encode the prompts of the run before the judges need the memory, if they can all be kept; says what was done."""
    asked, start = list(dict.fromkeys([*prompts, NEGATIVE_PROMPT])), time.perf_counter()
    if len(asked) > MAX_KEPT_PROMPTS:
        return f"text: {len(asked):,} prompts, more than the {MAX_KEPT_PROMPTS:,} kept; an iteration encodes its own"
    num = policy.keep_prompts(asked)
    seconds = time.perf_counter() - start
    return f"text: {num} of {len(asked)} prompts encoded in {seconds:.1f} s, the others were kept; text encoder freed"


def _iterate(
    config: TrainConfig,
    settings: TrainConfig,
    world: distributed.World,
    learner: Learner,
    means: dict[str, torch.Tensor],
    rewards: Rewards,
    validator: Validator | None,
    lookout: Lookout | None,
    prompts: dict[bool, list[str]],
    first: int,
    writer: MetricsWriter,
    progress: Progress,
    page: LivePage,
) -> int:
    """The loop; returns the iterations done, fewer than asked for after Ctrl-C.

    It may be left between stages, never within an update: what is then saved is the state after the last finished
    iteration, and a resumed run does the unfinished one again, with the same draws.
    """
    sigmas = rollout_sigmas(config.schedule)
    latent_shape = learner.policy.latent_shape(config.video)
    guard, clock = NonFiniteGuard(), checkpoint.Clock(config.checkpoint_minutes)
    iteration, saved = first, first or None

    def save() -> None:
        if world.is_main:
            checkpoint.save(config.output_dir, *learner, iteration=iteration, config=settings, extra=means)
        distributed.barrier()
        clock.saved()

    page.refresh()
    with stop_on_signal(progress) as stop:
        try:
            while True:
                _validate(validator, iteration, config, learner, stop, writer, progress, page)
                _look(lookout, iteration, learner, stop, progress, page)
                if iteration == config.max_iterations:
                    break
                watch = Stopwatch(nvtx=config.nvtx)
                dynamic = is_dynamic(iteration, config.phase)
                steps = rollout_steps(config, iteration=iteration)
                lr = learning_rate(iteration, max_iterations=config.max_iterations, config=config.update)

                batch = prompt_batch(
                    prompts[dynamic], config=config, iteration=iteration, dynamic=dynamic,
                    rank=world.rank, world_size=world.size,
                )  # fmt: skip
                batch = replace(batch, viewmats=batch.viewmats.to(learner.policy.device))  # where noise is moved
                with watch.stage("noise"), progress.stage("noise"):
                    noise = initial_noise(batch, latent_shape, config=config)  # [N, C, f, h, w]
                judging = Judging(rewards, batch, offload=config.reward.offload, during=partial(watch.stage, "rewards"))
                with watch.stage("rollout"), progress.stage("rollout and rewards"):
                    gradients = sample_gradients(learner.ema.params, batch, config) if config.update.deferred else None
                    rollout = sample(
                        learner.policy, batch, noise, sigmas=sigmas, steps=steps, config=config, gradients=gradients,
                        between=stop.check, take=judging.add,
                    )  # fmt: skip
                stop.check()
                with watch.stage("rewards"), progress.stage("rewards"):
                    scores = settle(judging.finish(), batch, config=config.reward, seed=config.seed)
                stop.check()
                advantage = group_advantage(scores, group_size=config.rollout.group_size, config=config.advantage)
                with watch.stage("update"), progress.stage("update"):
                    if config.update.estimator == "forward":
                        update = forward_step(*learner, batch, rollout, advantage, means=means, config=config, lr=lr)
                    else:
                        update = policy_step(*learner, rollout, advantage, config=config, lr=lr, gradients=gradients)

                metrics = {
                    "iteration": iteration, "phase": "dynamic" if dynamic else "main", "learning_rate": lr,
                    "window": list(steps), **reward_metrics(scores), **advantage.metrics(), **update,
                    "alarms": [*advantage.alarms, *update_alarms(update)],
                }  # fmt: skip
                iteration += 1
                writer.write(metrics)
                guard.check(metrics)
                if clock.due() or iteration % config.checkpoint_every == 0 or iteration == config.max_iterations:
                    with watch.stage("checkpoint"), progress.stage("checkpoint"):
                        save()
                    saved = iteration
                    page.refresh()
                seconds = watch.finish()
                writer.write_seconds(metrics["iteration"], seconds)
                progress.iteration(metrics, seconds["total"])
                stop.check()
        except Stopped:
            if saved != iteration:
                save()
    return iteration


def _validate(
    validator: Validator | None,
    iteration: int,
    config: TrainConfig,
    learner: Learner,
    stop: Stop,
    writer: MetricsWriter,
    progress: Progress,
    page: LivePage,
) -> None:
    """Show the averaged adapter after `iteration` iterations, where that is due and was not done before a resume."""
    if validator is None or iteration == 0 or iteration % config.validate_every:
        return
    if distributed.gather_objects("validation" in writer.newest())[0]:
        return
    with progress.stage("validation"), learner.ema.applied():
        figures = validator.run(iteration, between=stop.check, say=progress.say)
    writer.amend(validation=figures)
    m = figures["reward"]
    progress.say(
        f"validation after {iteration}: reward {m['base']:.3f} -> {m['adapter']:.3f} ({m['gain']:+.3f} +- "
        f"{m['stderr']:.3f}), {validator.folder / f'iteration_{iteration:06d}'}"
    )
    page.refresh(due=True)


def _look(
    lookout: Lookout | None, iteration: int, learner: Learner, stop: Stop, progress: Progress, page: LivePage
) -> None:
    """Measure the averaged adapter's obedience on held-out prompts, where that is due."""
    if lookout is None or not lookout.due(iteration):
        return
    with progress.stage("obedience"), learner.ema.applied():
        try:
            share, stderr = lookout.look(iteration, between=stop.check)
        except OSError as error:  # a full disk
            progress.say(str(error))
            return
    progress.say(f"obedience after {iteration}: {share:.3f} +- {stderr:.3f} on held-out prompts")
    page.refresh()


def _finish(
    config: TrainConfig,
    world: distributed.World,
    learner: Learner,
    evaluator: Evaluator | None,
    held_out: list[str],
    progress: Progress,
) -> Path | None:
    """Export of the averaged adapter, the before/after study on held-out prompts, the report."""
    policy, _, ema = learner
    start = time.perf_counter()
    with ema.applied():
        if world.is_main:
            policy.save_lora(config.output_dir / "adapter")
        if evaluator is not None:
            with progress.stage("evaluation"):
                run_study(
                    policy, held_out, read_labels=read_labels if config.evaluation.labels else None,
                    evaluator=evaluator, config=config, world=world, folder=config.output_dir,
                )  # fmt: skip
    progress.close()
    if not world.is_main:
        return None
    page = write_report(config.output_dir)
    progress.say(f"evaluation and report {time.perf_counter() - start:.0f} s, peak memory {peak_memory_gib():.1f} GiB")
    progress.say(f"adapter: {config.output_dir / 'adapter'}\nreport:  {page}")
    if config.open_report:
        webbrowser.open(page.resolve().as_uri())
    return page
