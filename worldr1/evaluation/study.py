"""The before/after study: held-out prompts sampled without and with the adapter, from the same noise."""

from __future__ import annotations

from pathlib import Path

from worldr1.camera.noise import initial_noise
from worldr1.config import TrainConfig
from worldr1.evaluation.compare import Study, compare_clips, write_study
from worldr1.evaluation.evaluate import Evaluator
from worldr1.evaluation.labels import LabelReader
from worldr1.models.base import VideoPolicy
from worldr1.prompts.sampler import held_out_batch
from worldr1.rollout.sample import generate
from worldr1.rollout.schedule import evaluation_sigmas
from worldr1.run import distributed


def run_study(
    policy: VideoPolicy,
    held_out: list[str],
    *,
    read_labels: LabelReader,
    evaluator: Evaluator,
    config: TrainConfig,
    world: distributed.World,
    folder: Path,
) -> Study | None:
    """Sample held-out prompts without and with the adapter, spread over the ranks; judge and write on rank 0.

    Every rank must call this.

    Args:
      policy: The model with the adapter to judge.
      held_out: Prompts.
      read_labels: What they ask for, in the evaluator's classes.
      evaluator: Independent of every reward.
      config: seed, evaluation, video, camera, noise, schedule and rollout are read, and the control's name.
      world: This rank among all.
      folder: Gets evaluation/study.json and evaluation/samples.npz.
    Returns:
      Study on rank 0, None on the others.
    """
    batch = held_out_batch(held_out, config=config, rank=world.rank, world_size=world.size)
    noise = initial_noise(batch, policy.latent_shape(config.video), config=config)
    solver, num_steps = config.evaluation.solver, config.evaluation.num_steps or config.schedule.num_steps
    sigmas = evaluation_sigmas(solver, num_steps, config.schedule.shift)
    before, after = (
        distributed.gather(
            generate(
                policy, batch.prompts, noise, sigmas=sigmas, solver=solver,
                guidance_scale=config.rollout.guidance_scale, adapter=adapter, micro_batch=config.rollout.micro_batch,
            )
        )[: config.evaluation.num_samples]  # [n, F, 3, H, W]
        for adapter in (False, True)
    )  # fmt: skip
    if not world.is_main:
        return None
    # All ranks' prompts again, without their padding.
    whole = held_out_batch(held_out, config=config, rank=0, world_size=1)
    result = compare_clips(
        before, after, whole.prompts, whole.viewmats, labels=read_labels(whole.prompts), evaluator=evaluator,
        control=config.reward.control,
    )  # fmt: skip
    write_study(result, folder, videos_before=before, videos_after=after, viewmats_requested=whole.viewmats)
    return result
