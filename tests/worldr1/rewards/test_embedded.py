"""The embedded judges, with the weights that ship, on clips of scenes that none of them has seen."""

from dataclasses import replace

import pytest
import torch
from oracle_world import clips_of, half_way, jittered, path_of, prompt_batch

from worldr1.config import TrainConfig
from worldr1.microworld.captions import MOTIONS, make_caption
from worldr1.rewards import build_rewards

MOVING = [m for m in MOTIONS if m != "fixed"]
OTHER = dict(zip(MOVING, MOVING[3:] + MOVING[:3], strict=True))
KINDS = ("truth", "jittered", "half-way", "frozen", "other scene")


@pytest.fixture(scope="module")
def scored():
    """Terms and total, averaged over the eight moving motions with three contents each, per kind of corruption."""
    contents = [0, 6, 13]
    paths = torch.stack([path_of(m) for m in MOVING])
    stack = build_rewards(TrainConfig(), device="cpu")
    rows: dict[str, list[torch.Tensor]] = {}
    for c in contents:
        seeds = [2_500_000 + 100 * c + i for i in range(len(MOVING))]
        made = {
            "truth": clips_of(MOVING, content=c, seeds=seeds),
            "jittered": clips_of(MOVING, content=c, seeds=seeds, paths=jittered(paths, angle=0.01, shift=0.04)),
            "half-way": clips_of(MOVING, content=c, seeds=seeds, paths=half_way(paths)),
            "frozen": clips_of(MOVING, content=c, seeds=seeds, paths=paths[:, :1].repeat(1, 9, 1, 1)),
            "other scene": clips_of([OTHER[m] for m in MOVING], content=15 - c, seeds=[s + 50 for s in seeds]),
        }
        video = torch.stack([made[k].video for k in KINDS], dim=1).flatten(0, 1)
        batch = prompt_batch([make_caption(m, c) for m in MOVING], group_size=len(KINDS), first_id=1000 * c)
        out = stack.score(batch, video)
        assert bool(out.valid.all()), out.reasons
        for name, values in {**out.breakdown, "total": out.reward}.items():
            rows.setdefault(name, []).append(values.reshape(len(MOVING), len(KINDS)))
    return {name: torch.cat(values).mean(0) for name, values in rows.items()}


@pytest.mark.parametrize("name", ["traj", "total"])
def test_truth_jittered_half_way_frozen_other(scored, name: str):
    score = scored[name]
    assert bool((score[:-1] > score[1:]).all()), dict(zip(KINDS, score.tolist(), strict=True))


def test_camera_term_has_its_known_levels(scored):
    truth, jitter, half, frozen, other = scored["traj"].tolist()
    assert truth > 0.85 and 0.6 < jitter and 0.4 < half < 0.85 and frozen < 0.4 and other < 0.2


def test_torn_videos_lose_the_terms_that_look_at_pictures():
    stack = build_rewards(TrainConfig(), device="cpu")
    clips = clips_of(MOVING, content=5)
    generator = torch.Generator().manual_seed(0)
    torn = clips.video.clone()
    for n in range(len(torn)):
        for t in range(9):  # each frame is cut into 8 x 8 blocks, half of which are put elsewhere
            blocks = torn[n, t].unfold(1, 8, 8).unfold(2, 8, 8).clone()  # [3, 4, 4, 8, 8]
            flat = blocks.reshape(3, 16, 8, 8)
            some = torch.randperm(16, generator=generator)[:8]
            flat[:, some] = flat[:, some.roll(1)]
            torn[n, t] = flat.reshape(3, 4, 4, 8, 8).permute(0, 1, 3, 2, 4).reshape(3, 32, 32)
    batch = prompt_batch([make_caption(m, 5) for m in MOVING], group_size=2)
    out = stack.score(batch, torch.stack([clips.video, torn], 1).flatten(0, 1))
    for name in ("recon", "meta", "gen"):
        whole, broken = out.breakdown[name].reshape(-1, 2).mean(0).tolist()
        assert whole > broken + 0.1, (name, whole, broken)


def test_scores_do_not_depend_on_the_batch():
    stack = build_rewards(TrainConfig(), device="cpu")
    clips = clips_of(MOVING[:4])
    batch = prompt_batch([make_caption(m, 3) for m in MOVING[:4]], group_size=1)
    whole = stack.score(batch, clips.video)
    for i in range(4):
        one = replace(
            batch,
            prompts=batch.prompts[i : i + 1],
            tokens=batch.tokens[i : i + 1],
            viewmats=batch.viewmats[i : i + 1],
            sample_ids=batch.sample_ids[i : i + 1],
            group_ids=batch.group_ids[i : i + 1],
        )
        assert torch.allclose(stack.score(one, clips.video[i : i + 1]).reward, whole.reward[i : i + 1], atol=2e-4)
