"""Two gloo ranks score their samples: what is invalid is counted together, and all stop or none."""

from __future__ import annotations

import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from worldr1.config import RewardConfig
from worldr1.datatypes import PromptBatch
from worldr1.rewards.combine import RewardStack
from worldr1.run import distributed

BAD = {"five of sixteen": (5, 0), "eight of sixteen": (8, 0), "nine of sixteen": (5, 4)}
"""Case -> samples that are not finite on each of two ranks of 8."""


class Brightness:
    """Mean of each frame."""

    def score(self, frames, prompts):
        return frames.mean((2, 3, 4))


def score_eight(bad: int) -> dict:
    """What one rank gets for 8 samples, the first `bad` of them broken: its valid mask, or the error."""
    stack = RewardStack(
        replace(RewardConfig(), weight_traj=0.0, weight_recon=0.0, weight_meta=0.0, max_invalid_fraction=0.5),
        seed=0, reconstructor=None, critic=None, aesthetic=Brightness(), perceptual=None,
    )  # fmt: skip
    batch = PromptBatch(["a"], 8, [()], torch.eye(4).repeat(1, 3, 1, 1), torch.arange(8), False, torch.tensor([0]))
    video = torch.rand(8, 3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    video[:bad, 1] = torch.nan if distributed.rank() == 0 else torch.inf
    finite = torch.arange(8) >= (bad if distributed.rank() == 1 else 0)
    try:
        out = stack.score(batch, video, finite=finite)
    except RuntimeError as error:
        return {"error": str(error)}
    return {"valid": out.valid.tolist(), "reasons": out.reasons}


def _worker(rank: int, port: int, folder: str) -> None:
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    torch.set_num_threads(1)
    distributed.init("cpu")
    torch.save({name: score_eight(bad[rank]) for name, bad in BAD.items()}, Path(folder) / f"{rank}.pt")
    distributed.shutdown()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """Case -> result, on each of two ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(_worker, args=(port, str(folder)), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_alone_five_of_eight_are_too_many():
    assert "got 5 of 8: 5 x the video is not finite" in score_eight(5)["error"]


def test_one_rank_with_more_than_its_half_does_not_stop_the_run(two_ranks):
    mine, other = (rank["five of sixteen"] for rank in two_ranks)
    assert mine == {"valid": [False] * 5 + [True] * 3, "reasons": dict.fromkeys(range(5), "the video is not finite")}
    assert other == {"valid": [True] * 8, "reasons": {}}
    assert two_ranks[0]["eight of sixteen"]["valid"] == [False] * 8  # exactly the limit is not more than it


def test_too_many_of_all_ranks_stop_every_rank_with_the_reasons_of_all(two_ranks):
    for rank in two_ranks:
        assert rank["nine of sixteen"]["error"].endswith(
            "got 9 of 16: 5 x the video is not finite; 4 x a latent of the rollout is not finite"
        )
