"""The terms together: which are asked in which phase, what they add up to, and which samples have no reward."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from worldr1.config import RewardConfig, TrainConfig
from worldr1.config_checks import JUDGE_ROLES, judges_asked
from worldr1.datatypes import PromptBatch, RewardOutput
from worldr1.rewards.aesthetic import aesthetic_term, frames_to_judge
from worldr1.rewards.base import (
    AestheticJudge,
    Critic,
    PerceptualDistance,
    Reconstructor,
    asking,
    score_rows,
    video_faults,
)
from worldr1.rewards.controls import settle
from worldr1.rewards.fidelity import fidelity_term
from worldr1.rewards.judges.registry import by_name, load_judge
from worldr1.rewards.meta_view import draw_offset, meta_camera, meta_view_term
from worldr1.rewards.reconstruct import MAX_GAUSSIANS_PER_PIXEL, render, thin
from worldr1.rewards.trajectory import median_depth, trajectory_term

PIXELS_PER_CALL = 1 << 19
"""Video pixels that go through the judges in one call: 56 clips of 9x32x32, one of 81x480x832. Bounds the memory."""

SPATIAL_TERMS = ("traj", "recon", "meta")
"""The terms that need the reconstruction; the dynamic phase asks none of them."""

ExtraTerm = Callable[[Tensor, list[str]], Tensor]
"""A term of a user's: videos [N, F, 3, H, W] float32 in [0, 1], N prompts -> score of each, [N]."""

ELSEWHERE = "--reward.device puts the judges on other devices"
"""What always helps a judge that has no room."""


class RewardStack:
    """Scores the videos of a batch: weight_traj S_traj + weight_recon S_recon + weight_meta S_meta + weight_gen R_gen.

    A judge may be None where its term has weight 0. The judges are on `device`; None: wherever the videos are. With
    config.offload they are brought there for each call and taken back to the host.

    Args:
      extra: Name -> (term, weight), added to the sum outside the dynamic phase.
    """

    def __init__(
        self,
        config: RewardConfig,
        *,
        seed: int,
        reconstructor: Reconstructor | None,
        critic: Critic | None,
        aesthetic: AestheticJudge | None,
        perceptual: PerceptualDistance | None,
        extra: Mapping[str, tuple[ExtraTerm, float]] | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.config = config
        self.device = device
        self.seed = seed
        self.reconstructor = reconstructor
        self.critic = critic
        self.aesthetic = aesthetic
        self.perceptual = perceptual
        self.extra = dict(extra or {})
        self._at_hand = False

    @contextmanager
    def at_hand(self) -> Iterator[None]:
        """Keep the judges on their device until it is left (config.offload); may be nested."""
        if self._at_hand or not self.config.offload:
            yield
            return
        self._at_hand = True
        try:
            self._move(self.device)
            yield
        finally:
            self._at_hand = False
            self._move(torch.device("cpu"))

    def _move(self, device: torch.device | None) -> None:
        assert device is not None, "config.offload needs the device of the judges"
        for judge in (self.reconstructor, self.critic, self.aesthetic, self.perceptual):
            move = getattr(judge, "to", None)  # a judge on a server has none
            if move is not None:
                move(device)

    def score(
        self, batch: PromptBatch, video: Tensor, *, finite: Tensor | None = None, dynamic: Tensor | None = None
    ) -> RewardOutput:
        """`judge`, then `controls.settle`. Every rank must call this."""
        return settle(
            self.judge(batch, video, finite=finite, dynamic=dynamic), batch, config=self.config, seed=self.seed
        )

    @torch.no_grad()
    def judge(
        self, batch: PromptBatch, video: Tensor, *, finite: Tensor | None = None, dynamic: Tensor | None = None
    ) -> RewardOutput:
        """The reward of every sample of this rank, each term beside it.

        The score of a sample depends on its own video, its own prompt and (seed, first sample id of its group), not on
        what else is in the batch. In the dynamic phase the reward of a sample is R_gen alone, with weight 1.
        Where batch.asked is False no camera is known that S_traj could be measured against: it is NaN, and the reward
        is the weighted sum of the other terms.

        Args:
          batch: This rank's samples.
          video: Shape [N, F, 3, H, W], floating point in [0, 1] or uint8 in 0 ... 255, on any device. It goes to the
            judges PIXELS_PER_CALL pixels at a time, one clip at least; only such a chunk is ever copied or converted.
          finite: From the rollout, shape [N] bool: False marks a sample whose latents were not finite.
          dynamic: Overrides batch.dynamic sample by sample, shape [N] bool. In a batch of both kinds the spatial terms
            of its dynamic samples are NaN.
        Returns:
          RewardOutput(reward [N], NaN where invalid; valid [N]; breakdown: "traj", "recon", "meta", "gen" -> [N], only
          those with a weight > 0 in this phase; weights; reasons). float32, on the device of the judges.
        Raises:
          ValueError: a shape that does not fit the batch.
        """
        num = batch.num_samples
        frames = batch.viewmats.shape[1]
        if video.ndim != 5 or tuple(video.shape[:3]) != (num, frames, 3):
            raise ValueError(
                f"RewardStack.score: video must have shape [{num}, {frames}, 3, H, W] like the batch, "
                f"got {list(video.shape)}"
            )
        if not (video.is_floating_point() or video.dtype == torch.uint8):
            raise ValueError(f"RewardStack.score: video must be floating point or uint8, got {video.dtype}")
        for name, mask in (("finite", finite), ("dynamic", dynamic)):
            if mask is not None and tuple(mask.shape) != (num,):
                raise ValueError(f"RewardStack.score: {name} must have shape [{num}], got {list(mask.shape)}")
        if batch.asked is not None and tuple(batch.asked.shape) != (len(batch.prompts),):
            raise ValueError(
                f"RewardStack.score: batch.asked must have shape [{len(batch.prompts)}], one value a prompt, "
                f"got {list(batch.asked.shape)}"
            )
        mask = torch.full((num,), batch.dynamic) if dynamic is None else dynamic.cpu()
        asked = torch.ones(num, dtype=torch.bool) if batch.asked is None else batch.repeat(batch.asked.cpu())
        weights = self._weights(mask)
        nan = torch.full((num,), torch.nan, device=self.device or video.device)
        values = {name: nan.clone() for name in weights}
        reasons = video_faults(video, finite)

        offsets = self._offsets(batch)
        with self.at_hand():
            for with_traj in (True, False):
                names = {name for name in SPATIAL_TERMS if name in weights and (with_traj or name != "traj")}
                rows = [i for i in range(num) if i not in reasons and not mask[i] and bool(asked[i]) == with_traj]
                for chunk in self._chunks(rows, video) if names else ():
                    term = partial(self._spatial, batch, video, names=names, offsets=offsets)
                    score_rows(term, chunk, values=values, reasons=reasons)
            if "gen" in weights:
                rows = [i for i in range(num) if i not in reasons]
                for chunk in self._chunks(rows, video):
                    score_rows(partial(self._gen, batch, video), chunk, values=values, reasons=reasons)
            rows = [i for i in range(num) if i not in reasons and not mask[i]]
            for chunk in self._chunks(rows, video) if self.extra else ():
                score_rows(partial(self._extra, batch, video), chunk, values=values, reasons=reasons)
        return self._combine(batch, values, weights=weights, dynamic=mask, asked=asked, reasons=reasons)

    def _weights(self, dynamic: Tensor) -> dict[str, float]:
        """The terms to compute and their weights outside the dynamic phase."""
        c = self.config
        if bool(dynamic.all()):
            return {"gen": 1.0}
        weights = {"traj": c.weight_traj, "recon": c.weight_recon, "meta": c.weight_meta, "gen": c.weight_gen}
        weights |= {name: weight for name, (_, weight) in self.extra.items()}
        return {name: w for name, w in weights.items() if w > 0 or (name == "gen" and bool(dynamic.any()))}

    def _chunks(self, rows: list[int], video: Tensor) -> Iterator[list[int]]:
        _, frames, _, height, width = video.shape
        size = max(1, PIXELS_PER_CALL // (frames * height * width))
        for start in range(0, len(rows), size):
            yield rows[start : start + size]

    def _clips(self, video: Tensor, rows: list[int], frames: list[int]) -> Tensor:
        """These frames of these videos, [n, k, 3, H, W] float32 in [0, 1], where the judges are."""
        # Of views: one copy, in the video's own dtype.
        chosen = torch.stack([video[i, t] for i in rows for t in frames])
        clips = chosen.to(self.device or video.device).unflatten(0, (len(rows), len(frames)))
        return clips.float().div_(255.0) if clips.dtype == torch.uint8 else clips.float()

    def _offsets(self, batch: PromptBatch) -> tuple[Tensor, Tensor]:
        """Azimuth and elevation of the novel camera, [N] each, equal inside a group."""
        offsets = torch.tensor([draw_offset(self.seed, key) for key in batch.group_ids.tolist()])  # [P, 2]
        azimuth, elevation = batch.repeat(offsets).unbind(1)
        return azimuth, elevation

    def _spatial(
        self, batch: PromptBatch, video: Tensor, rows: list[int], *, names: set[str], offsets: tuple[Tensor, Tensor]
    ) -> dict[str, Tensor]:
        """Those of S_traj, S_recon, S_meta in `names`, of `rows`: one reconstruction, one call of the rasterizer."""
        assert self.reconstructor is not None, "a spatial term has a weight but there is no reconstructor"
        clips = self._clips(video, rows, list(range(video.shape[1])))  # [n, F, 3, H, W]
        height, width = clips.shape[-2:]
        prompts = [batch.prompts[i // batch.group_size] for i in rows]
        with asking("reconstructor", f"a lower --reward.reconstructor-size needs less, {ELSEWHERE}"):
            scenes = self.reconstructor.infer(clips)
        scores: dict[str, Tensor] = {}
        if "traj" in names:
            scores["traj"] = trajectory_term(
                scenes, batch.repeat(batch.viewmats)[rows], metric=self.config.metric_paths
            )
        cameras, lenses = [], []
        if "recon" in names:
            cameras, lenses = [scenes.viewmats], [scenes.Ks]
        if "meta" in names:
            device = scenes.viewmats.device
            azimuth, elevation = offsets
            novel = meta_camera(
                scenes.viewmats,
                median_depth=median_depth(scenes),
                azimuth=azimuth[rows].to(device),
                elevation=elevation[rows].to(device),
            )  # [n, 4, 4]
            cameras.append(novel[:, None])
            lenses.append(scenes.Ks[:, :1])
        if cameras:
            room = int(MAX_GAUSSIANS_PER_PIXEL * height * width)
            gaussians = thin(scenes.gaussians, max_gaussians=room, num_frames=clips.shape[1])
            pictures = render(
                gaussians, torch.cat(cameras, 1), torch.cat(lenses, 1), height=height, width=width,
                eps2d=self.config.screen_blur,
            )  # fmt: skip
            if "recon" in names:
                assert self.perceptual is not None, "weight_recon > 0 but there is no perceptual distance"
                with asking("perceptual distance", ELSEWHERE):
                    scores["recon"] = fidelity_term(pictures[:, : clips.shape[1]], clips, self.perceptual)
            if "meta" in names:
                assert self.critic is not None, "weight_meta > 0 but there is no critic"
                with asking("critic", f"a smaller one or a server needs less here, {ELSEWHERE}"):
                    scores["meta"] = meta_view_term(pictures[:, -1], prompts, self.critic)
        return scores

    def _gen(self, batch: PromptBatch, video: Tensor, rows: list[int]) -> dict[str, Tensor]:
        assert self.aesthetic is not None, "R_gen is asked for but there is no aesthetic judge"
        prompts = [batch.prompts[i // batch.group_size] for i in rows]
        c = self.config
        frames = frames_to_judge(video.shape[1], k=c.num_aesthetic_frames, which=c.aesthetic_frames)
        with asking("aesthetic judge", f"a lower --reward.num-aesthetic-frames needs less, {ELSEWHERE}"):
            return {"gen": aesthetic_term(self._clips(video, rows, frames), prompts, self.aesthetic)}

    def _extra(self, batch: PromptBatch, video: Tensor, rows: list[int]) -> dict[str, Tensor]:
        prompts = [batch.prompts[i // batch.group_size] for i in rows]
        clips = self._clips(video, rows, list(range(video.shape[1])))
        scores = {name: torch.as_tensor(term(clips, prompts)) for name, (term, _) in self.extra.items()}
        for name, score in scores.items():
            if score.shape != (len(rows),):
                raise ValueError(f"reward.extra: {name} must return one score a video, shape [N]")
        return scores

    def _combine(
        self,
        batch: PromptBatch,
        values: dict[str, Tensor],
        *,
        weights: dict[str, float],
        dynamic: Tensor,
        asked: Tensor,
        reasons: dict[int, str],
    ) -> RewardOutput:
        num = batch.num_samples
        device = next(iter(values.values())).device
        dynamic, asked = dynamic.to(device), asked.to(device)
        valid = torch.ones(num, dtype=torch.bool, device=device)
        valid[list(reasons)] = False
        total = torch.zeros(num, device=device)
        for name, weight in weights.items():
            if name == "gen":
                total = total + torch.where(dynamic, values[name], weight * values[name])
            else:
                absent = dynamic | ~asked if name == "traj" else dynamic
                total = total + torch.where(absent, torch.zeros_like(total), weight * values[name])
        nan = torch.full_like(total, torch.nan)
        return RewardOutput(
            reward=torch.where(valid, total, nan),
            valid=valid,
            breakdown={name: torch.where(valid, value, nan) for name, value in values.items()},
            weights=weights,
            reasons=dict(sorted(reasons.items())),
        )


def build_rewards(config: TrainConfig, *, device: torch.device | str) -> RewardStack:
    """Open the judges that this run needs; a judge whose term has no weight in any phase is not loaded.

    Args:
      config: The run's settings.
      device: Where the policy runs, and the judges where reward.device is empty.
    Returns:
      RewardStack.
    Raises:
      ValueError: a folder that does not hold the judge it should.
    """
    reward = config.reward
    where = judges_device(reward.device, torch.device(device))
    loaded_on = torch.device("cpu") if reward.offload else where
    judges: dict[str, Any] = dict.fromkeys(JUDGE_ROLES)
    for role in judges_asked(config):
        judges[role] = load_judge(getattr(reward, role), role=role, device=loaded_on, config=reward)
    extra: dict[str, tuple[ExtraTerm, float]] = {}
    for term in reward.extra:
        source, _, weight = term.partition("=")
        name = source.rpartition(":")[2]
        if name in (*SPATIAL_TERMS, "gen", *extra):
            raise ValueError(f"reward.extra: the names of terms must differ from each other and from ours, got {name}")
        extra[name] = by_name(source), float(weight)
    return RewardStack(reward, seed=config.seed, device=where, extra=extra, **judges)


def judges_device(setting: str, policy: torch.device) -> torch.device:
    """reward.device, read: the ranks of a machine take the devices from cuda:K on, one each."""
    if not setting.startswith("cuda"):
        return torch.device(setting) if setting else policy
    index = int(setting.removeprefix("cuda:")) + int(os.environ.get("LOCAL_RANK", "0"))
    if index >= torch.cuda.device_count():
        raise ValueError(
            f"reward.device must be a device of this machine, got {setting}, which is cuda:{index} for this rank, and "
            f"{torch.cuda.device_count()} devices"
        )
    return torch.device("cuda", index)
