"""Two gloo ranks against one, in real processes."""

from __future__ import annotations

import os
import socket
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from worldr1.config import NoiseConfig, RewardConfig, RolloutConfig, ScheduleConfig, UpdateConfig
from worldr1.learn.forward import running_means
from worldr1.learn.selftest import run_self_tests
from worldr1.learn.update import policy_step
from worldr1.microworld.captions import make_caption
from worldr1.rewards import RewardStack
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
    jobs = (
        collectives, three_iterations, three_forward_iterations, one_prompt_of_eight, different_adapters,
        one_rank_masked, a_fault_on_one_rank, invalid_rewards, kernels,
    )  # fmt: skip
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
        "total": distributed.total(torch.tensor([1.0 + rank, 4.0])),
        "objects": distributed.gather_objects({"rank": rank}),
        "grads": [p.grad for p in params],
        "params": [p.detach() for p in params],
        "world_size": distributed.world_size(),
    }


def kernels() -> list:
    """What is agreed on for CPUs, and for two kinds of device of which the second rank's has wrong kernels."""
    from worldr1_kernels.verify import gate

    world = distributed.World(distributed.rank(), 2, 0, torch.device("cpu"))
    agreed = [distributed.agree_on_kernels(world)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gate._dispatch, "VERIFIED_DEVICES", ("cpu",))
        patch.setattr(gate, "load", lambda spec, device: gate.Target(device))
        patch.setattr(gate.Target, "kind", lambda self: {"device": f"Fake {world.rank}"})
        patch.setattr(gate.Target, "identity", lambda self: self.kind())
        patch.setattr(gate.Target, "backends", lambda self, family: {"native": None})
        patch.setattr(gate, "_ask", lambda target, family, _: "wrong" if world.rank and family == "se3" else "")
        agreed.append(distributed.agree_on_kernels(world))
    return agreed


def three_forward_iterations() -> dict:
    from fakes import fake_config, fake_iteration, fake_learner

    config = fake_config(max_iterations=3, update=UpdateConfig(estimator="forward", learning_rate=1e-2))
    learner = fake_learner(config)
    means = running_means(learner.policy, config)
    for i in range(3):
        fake_iteration(learner, config, iteration=i, means=means)
    return learner.policy.adapter_state() | means


def three_iterations(**changes) -> dict:
    from fakes import fake_config, fake_iteration, fake_learner

    # Micro-batches of one group, so that both splits make the same transformer calls.
    config = fake_config(max_iterations=3, **changes)
    learner = fake_learner(config)
    distributed.broadcast(learner.ema.params)
    figures = [fake_iteration(learner, config, iteration=i) for i in range(3)]
    return {"state": learner.policy.adapter_state(), "figures": figures}


def one_prompt_of_eight() -> dict:
    """Half of the group on each of two ranks, in one pass of each where its samples are still alike."""
    rollout = RolloutConfig(
        group_size=8, prompts_per_iteration=1, micro_batch=4, share_initial_noise=True, share_first_step=True
    )  # fmt: skip
    return three_iterations(rollout=rollout, noise=NoiseConfig(), schedule=ScheduleConfig(window_size=2))


def different_adapters() -> str:
    from fakes import PROMPTS, FakePolicy, fake_config

    try:
        run_self_tests(FakePolicy(seed=distributed.rank()), prompts=PROMPTS, config=fake_config())
    except RuntimeError as error:
        return str(error)
    return "passed"


def one_rank_masked() -> dict:
    """The update of 16 samples of which only the first 4 are kept: none of the second rank's."""
    from fakes import fake_config, fake_learner, fake_rollout

    config = fake_config(
        schedule=ScheduleConfig(window_size=2),
        rollout=RolloutConfig(group_size=4, prompts_per_iteration=4, micro_batch=4),
    )
    learner = fake_learner(config)
    _, rollout, advantage = fake_rollout(learner, config)
    mask = torch.zeros(len(advantage.mask), dtype=torch.bool)
    mask[:4] = distributed.rank() == 0
    advantage = replace(advantage, mask=mask, num_active=4)
    calls, velocity = [], learner.policy.velocity
    learner.policy.velocity = lambda x, *args, **options: calls.append(len(x)) or velocity(x, *args, **options)
    figures = policy_step(*learner, rollout, advantage, config=config, lr=1e-2)
    return {"calls": calls, "state": learner.policy.adapter_state(), "figures": figures}


def a_fault_on_one_rank() -> str:
    from fakes import PROMPTS, FakePolicy, fake_config

    policy = FakePolicy()
    if distributed.rank() == 1:  # half precision in the rollout, full in training
        velocity = policy.velocity

        def rounded(*args, **options):
            out = velocity(*args, **options)
            return out if torch.is_grad_enabled() else out.bfloat16().float()

        policy.velocity = rounded
    try:
        run_self_tests(policy, prompts=PROMPTS, config=fake_config())
    except RuntimeError as error:
        return str(error)
    return "passed"


def invalid_rewards() -> dict:
    """Judging 4 clips a rank, of which the second rank's are broken: 3, then 4, with a limit of 2 in 5."""
    from oracle_world import Brightness, prompt_batch

    config = RewardConfig(max_invalid_fraction=0.4)
    stack = RewardStack(
        config, seed=0, reconstructor=None, critic=None, aesthetic=Brightness(), perceptual=None
    )  # fmt: skip
    batch = prompt_batch([make_caption("fixed", 0)], group_size=4, dynamic=True)
    out = {}
    for broken in (3, 4):
        video = torch.full((4, 9, 3, 8, 8), 0.5)
        video[: broken * distributed.rank()] = torch.nan
        try:
            out[broken] = str(int(stack.score(batch, video).valid.sum()))
        except RuntimeError as error:
            out[broken] = str(error)
    return out


def test_collectives(two_ranks):
    for got in (r["collectives"] for r in two_ranks):
        assert got["gathered"].tolist() == [0.0, 1.0, 10.0, 1.0] and got["bools"].tolist() == [True, False]
        assert got["total"].tolist() == [3.0, 8.0]
        assert got["any"] == [True, False] and got["objects"] == [{"rank": 0}, {"rank": 1}]
        assert got["grads"][0].unique().tolist() == [1.5] and got["grads"][1].unique().tolist() == [4.0]
        assert got["params"][0].unique().tolist() == [0.0] and got["world_size"] == 2


def test_the_ranks_take_the_same_kernels(two_ranks):
    agreed = dict.fromkeys(("noise_transport", "sde_step", "se3", "rasterize"), "native") | {"se3": "reference"}
    assert [r["kernels"] for r in two_ranks] == [[{}, agreed]] * 2


@pytest.mark.parametrize("job", [three_iterations, one_prompt_of_eight], ids=["groups", "half-groups"])
def test_two_ranks_train_as_one(two_ranks, job):
    one = job()
    two = [r[job.__name__] for r in two_ranks]
    for name, value in one["state"].items():
        assert torch.equal(two[0]["state"][name], two[1]["state"][name])
        assert torch.allclose(two[0]["state"][name], value, atol=1e-6), name
        assert value.abs().max() > 1e-3
    for mine, theirs in zip(one["figures"], two[0]["figures"], strict=True):
        assert mine.keys() == theirs.keys()
        for key in ("reward", "ratio_mean", "clip_fraction", "kl", "grad_norm"):
            assert theirs[key] == pytest.approx(mine[key], rel=1e-4, abs=1e-8), key


def test_two_ranks_train_as_one_by_the_forward_estimator(two_ranks):
    one, two = three_forward_iterations(), [r["three_forward_iterations"] for r in two_ranks]
    for name, value in one.items():
        assert torch.equal(two[0][name], two[1][name]) and torch.allclose(two[0][name], value, atol=1e-5), name
        assert value.abs().max() > 1e-3


def test_ranks_that_differ_stop_on_every_rank(two_ranks):
    for text in (r["different_adapters"] for r in two_ranks):
        assert "self-test ranks_agree" in text and "got 1" in text


def test_ranks_call_the_model_equally_often_even_where_one_has_nothing_to_learn(two_ranks):
    """Only a micro-batch that no rank needs is left out; an idle one adds nothing."""
    one, two = one_rank_masked(), [r["one_rank_masked"] for r in two_ranks]
    # Two steps, each with the reference and two updates of the first micro-batch of four samples.
    assert one["calls"] == two[0]["calls"] == two[1]["calls"] == [4] * 6
    for name, value in one["state"].items():
        assert torch.equal(two[0]["state"][name], two[1]["state"][name])
        assert torch.allclose(two[0]["state"][name], value, atol=1e-6) and value.abs().max() > 1e-3
    for key in ("clip_fraction", "kl", "grad_norm", "ratio_max_deviation"):
        assert two[1]["figures"][key] == pytest.approx(one["figures"][key], rel=1e-4, abs=1e-8), key


def test_a_self_test_that_fails_on_one_rank_stops_all(two_ranks):
    for text in (r["a_fault_on_one_rank"] for r in two_ranks):
        assert "self-test ratio_is_one" in text


def test_the_share_of_invalid_rewards_is_that_of_all_ranks(two_ranks):
    """3 of 8 go on, though 3 of 4 of one rank; 4 of 8 stop both."""
    assert [r["invalid_rewards"][3] for r in two_ranks] == ["4", "1"]
    for text in (r["invalid_rewards"][4] for r in two_ranks):
        assert "got 4 of 8: 4 x the video is not finite" in text


def test_one_rank_needs_no_process_group():
    world = distributed.init("cpu")
    assert (world.rank, world.size) == (0, 1) and not torch.distributed.is_initialized()
    x = torch.tensor([1.0, 2.0])
    assert distributed.gather(x) is x and distributed.any_rank(True) and distributed.gather_objects(3) == [3]


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_cuda_by_name_without_a_device():
    with pytest.raises(RuntimeError, match="use --device cpu"):
        distributed.init("cuda")
