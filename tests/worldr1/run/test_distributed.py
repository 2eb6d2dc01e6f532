"""Two gloo ranks against one, in real processes."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from worldr1.run import distributed


def _worker(rank: int, size: int, port: int, folder: str) -> None:
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    sys.path.insert(0, str(Path(__file__).parents[1]))  # fakes
    torch.set_num_threads(1)
    world = distributed.init("cpu")
    assert (world.rank, world.size, world.is_main) == (rank, size, rank == 0)
    jobs = (collectives, three_iterations, different_adapters)
    torch.save({job.__name__: job() for job in jobs}, Path(folder) / f"{rank}.pt")
    distributed.shutdown()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What each job returns on each of two ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(_worker, args=(2, port, str(folder)), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def collectives() -> dict:
    rank = distributed.rank()
    params = [torch.nn.Parameter(torch.full((2, 2), float(rank))), torch.nn.Parameter(torch.ones(3))]
    params[0].grad = torch.full((2, 2), 1.0 + rank)  # params[1] has no gradient on rank 0
    if rank == 1:
        params[1].grad = torch.full((3,), 8.0)
    distributed.average_gradients(params)
    distributed.broadcast(params)
    distributed.barrier()
    return {
        "gathered": distributed.gather(torch.tensor([10.0 * rank, 1.0])),
        "bools": distributed.gather(torch.tensor([rank == 0])),
        "any": [distributed.any_rank(rank == 1), distributed.any_rank(False)],
        "objects": distributed.gather_objects({"rank": rank}),
        "grads": [p.grad for p in params],
        "params": [p.detach() for p in params],
        "world_size": distributed.world_size(),
    }


def three_iterations() -> dict:
    from fakes import fake_config, fake_iteration, fake_learner

    # Micro-batches of one group, so that both splits make the same transformer calls.
    config = fake_config(max_iterations=3)
    learner = fake_learner(config)
    distributed.broadcast(learner.ema.params)
    figures = [fake_iteration(learner, config, iteration=i) for i in range(3)]
    return {"state": learner.policy.adapter_state(), "figures": figures}


def different_adapters() -> str:
    from fakes import PROMPTS, FakePolicy, fake_config

    from worldr1.learn.selftest import run_self_tests

    try:
        run_self_tests(FakePolicy(seed=distributed.rank()), prompts=PROMPTS, config=fake_config())
    except RuntimeError as error:
        return str(error)
    return "passed"


def test_collectives(two_ranks):
    for got in (r["collectives"] for r in two_ranks):
        assert got["gathered"].tolist() == [0.0, 1.0, 10.0, 1.0] and got["bools"].tolist() == [True, False]
        assert got["any"] == [True, False] and got["objects"] == [{"rank": 0}, {"rank": 1}]
        assert got["grads"][0].unique().tolist() == [1.5] and got["grads"][1].unique().tolist() == [4.0]
        assert got["params"][0].unique().tolist() == [0.0] and got["world_size"] == 2


def test_two_ranks_train_as_one(two_ranks):
    one = three_iterations()
    two = [r["three_iterations"] for r in two_ranks]
    for name, value in one["state"].items():
        assert torch.equal(two[0]["state"][name], two[1]["state"][name])
        assert torch.allclose(two[0]["state"][name], value, atol=1e-6), name
        assert value.abs().max() > 1e-3
    for mine, theirs in zip(one["figures"], two[0]["figures"], strict=True):
        assert mine.keys() == theirs.keys()
        for key in ("reward", "ratio_mean", "clip_fraction", "kl", "grad_norm"):
            assert theirs[key] == pytest.approx(mine[key], rel=1e-4, abs=1e-8), key


def test_ranks_that_differ_stop_on_every_rank(two_ranks):
    for text in (r["different_adapters"] for r in two_ranks):
        assert "self-test ranks_agree" in text and "got 1" in text


def test_one_rank_needs_no_process_group():
    world = distributed.init("cpu")
    assert (world.rank, world.size) == (0, 1) and not torch.distributed.is_initialized()
    x = torch.tensor([1.0, 2.0])
    assert distributed.gather(x) is x and distributed.any_rank(True) and distributed.gather_objects(3) == [3]


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_cuda_by_name_without_a_device():
    with pytest.raises(RuntimeError, match="use --device cpu"):
        distributed.init("cuda")
