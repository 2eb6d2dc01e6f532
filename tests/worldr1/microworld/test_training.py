"""The optimizer that the trainings of the micro world share."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import nn

from worldr1.microworld.training import Muon, cosine, load_state, save_state


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, 24, 3), nn.Flatten(), nn.Linear(24 * 16, 5)
    )


def _learn(network: nn.Module, optimizer: Muon, num_steps: int, *, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(num_steps):
        images = torch.randn(4, 3, 6, 6, generator=generator)
        optimizer.zero_grad()
        network(images).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_kernel_moves_as_torch_moves_its_matrix(memory_format: torch.memory_format) -> None:
    network = _network().to(memory_format=memory_format)
    kernel = network[2].weight
    matrix = nn.Parameter(kernel.detach().clone().flatten(1))  # [24, 16 x 9]
    expected = torch.optim.Muon([matrix], 1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    optimizer = Muon(network, learning_rate=1e-2, weight_decay=0.1)
    before = kernel.detach().clone()
    for seed in range(3):
        _learn(network, optimizer, 1, seed=seed)
        matrix.grad = kernel.grad.flatten(1)
        expected.step()
    assert (kernel.detach() - before).abs().mean() > 1e-3
    # The columns of the matrix stand in another order in memory, so its products in bfloat16 round otherwise.
    torch.testing.assert_close(kernel.detach().flatten(1), matrix.detach(), rtol=0, atol=5e-4)


def test_small_layers_and_vectors_are_left_to_adamw() -> None:
    network = _network()
    optimizer = Muon(network, learning_rate=1e-2, weight_decay=0.0)
    left = [p for part in optimizer._parts[1:] for group in part.param_groups for p in group["params"]]
    assert {id(p) for p in left} == {id(p) for p in network.parameters()} - {
        id(network[0].weight),
        id(network[2].weight),
    }


def test_within_names_the_part_that_muon_learns() -> None:
    network = _network()
    optimizer = Muon(network, within=network[2], learning_rate=1e-2, weight_decay=0.0)
    assert [p.shape for p in optimizer._parts[0].param_groups[0]["params"]] == [(24, 16 * 9)]
    untouched = deepcopy(network[0].weight)
    _learn(network, optimizer, 1)
    assert not torch.equal(network[0].weight, untouched)


def test_a_training_that_was_cut_goes_on_as_if_it_had_not(tmp_path: Path) -> None:
    whole, cut = _network(), _network()
    _learn(whole, straight := Muon(whole, learning_rate=1e-2, weight_decay=0.0), 2)
    _learn(whole, straight, 2, seed=1)
    first = Muon(cut, learning_rate=1e-2, weight_decay=0.0)
    _learn(cut, first, 2)
    save_state(tmp_path / "state.pt", 2, model=cut, optimizer=first, generator=torch.Generator().manual_seed(7))
    again, generator = _network(), torch.Generator()
    second = Muon(again, learning_rate=1e-2, weight_decay=0.0)
    assert load_state(tmp_path / "state.pt", model=again, optimizer=second, generator=generator) == 2
    assert torch.equal(generator.get_state(), torch.Generator().manual_seed(7).get_state())
    _learn(again, second, 2, seed=1)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_the_rate_warms_up_and_falls_to_zero() -> None:
    assert cosine(0, 100, warm_up=10) == pytest.approx(0.1)
    assert cosine(50, 100, warm_up=10) == pytest.approx(0.5)
    assert cosine(100, 100, warm_up=10) == pytest.approx(0.0, abs=1e-12)
