"""A batch judged part by part, as it is decoded, is the batch judged at once; where the judges are meanwhile."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from oracle_world import Brightness, CoverageCritic, MeanDifference, Oracle, clips_of, half_way, path_of, prompt_batch
from torch import Tensor

from worldr1.config import RewardConfig
from worldr1.datatypes import PromptBatch, Reconstruction
from worldr1.microworld.captions import make_caption
from worldr1.rewards.combine import RewardStack
from worldr1.rewards.judging import Judging

WANTED = ["push_in", "orbit_left", "pan_right"]


@pytest.fixture(scope="module")
def world() -> tuple[PromptBatch, Tensor, Oracle]:
    """Three groups of truth and half-way; the second prompt's camera was not read."""
    paths = torch.stack([path_of(m) for m in WANTED])
    kinds = [clips_of(WANTED, seeds=[11, 12, 13]), clips_of(WANTED, seeds=[11, 12, 13], paths=half_way(paths))]
    video = torch.stack([clips.video for clips in kinds], dim=1).flatten(0, 1)  # [6, 9, 3, 32, 32]
    batch = prompt_batch([make_caption(m, 3) for m in WANTED], group_size=2)
    batch = replace(batch, asked=torch.tensor([True, False, True]))
    return batch, video, Oracle(*kinds)


def stack_of(oracle: Oracle, **settings) -> RewardStack:
    return RewardStack(
        RewardConfig(**settings), seed=5, reconstructor=oracle, critic=CoverageCritic(), aesthetic=Brightness(),
        perceptual=MeanDifference(),
    )  # fmt: skip


@pytest.mark.parametrize("parts", [(6,), (1, 3, 2), (2, 2, 2), (1,) * 6])
@pytest.mark.parametrize("dynamic", [False, True])
def test_parts_are_the_whole(world, parts: tuple[int, ...], dynamic: bool) -> None:
    batch, video, oracle = world
    batch = replace(batch, dynamic=dynamic)
    finite = torch.tensor([True, True, True, False, True, True])
    stack = stack_of(oracle, weight_meta=0.5)
    whole = stack.judge(batch, video, finite=finite)
    judging, start = Judging(stack, batch), 0
    for n in parts:
        rows = slice(start, start + n)
        judging.add(rows, video[rows], finite[rows])
        start += n
    out = judging.finish()
    assert out.weights == whole.weights and out.reasons == whole.reasons == {3: "a latent of the rollout is not finite"}
    assert torch.equal(out.valid, whole.valid) and list(out.breakdown) == list(whole.breakdown)
    torch.testing.assert_close(out.reward, whole.reward, equal_nan=True, atol=1e-5, rtol=0)
    for name, values in whole.breakdown.items():
        torch.testing.assert_close(out.breakdown[name], values, equal_nan=True, atol=1e-5, rtol=0)
    if not dynamic:
        assert torch.equal(out.breakdown["traj"].isnan(), torch.tensor([False, False, True, True, False, False]))


def test_rows_out_of_order_or_missing_are_our_mistake(world) -> None:
    batch, video, oracle = world
    finite = torch.ones(6, dtype=torch.bool)
    judging = Judging(stack_of(oracle), batch)
    with pytest.raises(AssertionError, match="must follow row -1"):
        judging.add(slice(1, 2), video[1:2], finite[1:2])
    judging.add(slice(0, 2), video[:2], finite[:2])
    with pytest.raises(AssertionError, match="2 of 6 samples came"):
        judging.finish()


class Movable(Oracle):
    """Notes where it is told to be and when it is asked."""

    def __init__(self, oracle: Oracle) -> None:
        self.__dict__.update(oracle.__dict__)
        self.events: list[str] = []

    def to(self, device: torch.device) -> Movable:
        self.events.append(str(device))
        return self

    def infer(self, video: Tensor) -> Reconstruction:
        self.events.append("asked")
        return super().infer(video)


def test_offloaded_judges_come_once_when_the_rollout_is_over_and_go_again(world) -> None:
    batch, video, oracle = world
    judge = Movable(oracle)
    stack = stack_of(judge, offload=True)
    stack.device = torch.device("cpu", 0)  # the host under another name
    open_stages: list[str] = []

    @contextlib.contextmanager
    def during() -> Iterator[None]:
        open_stages.append("rewards")
        yield

    judging, finite = Judging(stack, batch, offload=True, during=during), torch.ones(6, dtype=torch.bool)
    for start in (0, 2, 4):
        judging.add(slice(start, start + 2), video[start : start + 2], finite[start : start + 2])
    assert judge.events == [] and open_stages == []
    out = judging.finish()
    assert judge.events == ["cpu:0", "asked", "asked", "asked", "cpu"] and len(open_stages) == 3
    assert torch.allclose(out.reward, stack_of(oracle).judge(batch, video).reward, atol=1e-5)
    judge.events.clear()
    stack.judge(batch, video)  # alone, as validation asks: in and out as well
    assert judge.events[0] == "cpu:0" and judge.events[-1] == "cpu" and judge.events.count("cpu:0") == 1


def test_offloaded_judges_go_also_when_one_fails(world) -> None:
    batch, video, oracle = world
    judge = Movable(oracle)
    stack = stack_of(judge, offload=True)
    stack.device = torch.device("cpu", 0)
    stack.perceptual = None  # our mistake: an assertion, which no mask hides
    with pytest.raises(AssertionError, match="no perceptual distance"):
        stack.judge(batch, video)
    assert judge.events[-1] == "cpu"
    stack.perceptual = MeanDifference()
    assert bool(stack.judge(batch, video).valid.all())
