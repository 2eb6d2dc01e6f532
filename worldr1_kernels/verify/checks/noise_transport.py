"""Noise along a flow: every kind of motion, whole and reduced, many samples and one."""

import torch
from torch import Tensor

from worldr1_kernels.noise_transport import TransportPlan, plan_transport
from worldr1_kernels.noise_transport.plan import TENSORS
from worldr1_kernels.testing import normal
from worldr1_kernels.verify.target import Check
from worldr1_kernels.verify.trial import Body, Trial, same_bits, two_errors

SEED = 2**62 + 5  # both halves of the key
NAMES = ("noise",)


def flow_of(frames: int, height: int, width: int, amount: float, shift: float) -> Tensor:
    """A zoom by `amount` a frame beside a shift: copies, expansions, merges and fresh pixels."""
    y, x = torch.meshgrid(torch.arange(height) - height / 2, torch.arange(width) - width / 2, indexing="ij")
    return (amount * torch.stack([x, y]).double() + shift).expand(frames - 1, -1, -1, -1)


def plan_of(frames: int, height: int, width: int, amount: float, shift: float, capture: int) -> TransportPlan:
    return plan_transport(flow_of(frames, height, width, amount, shift), capture=capture)


def transport(plan: TransportPlan, capture: int, reduce: int) -> Body:
    """The whole batch, keyed by the ids that come with it."""

    def body(function, noise: Tensor, ids: Tensor) -> list[Tensor]:  # type: ignore[no-untyped-def]
        there = plan.to(noise.device)
        return [function(noise, there, seed=SEED, sample_ids=ids, capture=capture, reduce=reduce)]

    return body


def ids(batch: int) -> Tensor:
    return torch.arange(2**32 - batch, 2**32)


def plans(trial: Trial) -> None:
    """Where a plan is made on the device: that of the CPU, bit for bit."""
    for frames, height, width, amount, shift in (
        (1, 3, 4, 0.0, 0.0), (3, 1, 1, 0.0, 2.0), (5, 7, 9, 0.2, 0.6), (4, 33, 65, 0.0, 0.0), (4, 241, 417, -0.25, 0.6),
        (4, 241, 417, 0.2, 3.0),
    ):  # fmt: skip
        for dtype, dither in ((torch.float64, False), (torch.float32, True)):

            def body(function, flow: Tensor) -> list[Tensor]:  # type: ignore[no-untyped-def]
                plan = function(flow, capture=2, dither=dither)  # noqa: B023
                return [*plan.tensors(), torch.tensor([plan.num_slots, plan.stride])]

            flow = flow_of(frames, height, width, amount, shift).to(dtype)
            label = f"F{frames}-H{height}-W{width} {dtype}, zoom {amount}, shift {shift}"
            names = [*TENSORS, "num_slots and stride"]
            trial.compare(label, "plan_transport", body, flow, names=names, rules=[same_bits], in_float64=False)


def moves(trial: Trial) -> None:
    for amount, shift in ((0.2, 0.6), (-0.25, 0.6), (0.0, 3.0)):
        for height, width, batch, channels, reduce in ((1, 1, 1, 1, 1), (7, 9, 3, 5, 1), (48, 80, 2, 16, 8)):
            plan = plan_of(5, height, width, amount, shift, capture=2)
            label = f"B{batch}-C{channels}-H{height}-W{width}-reduce{reduce}, zoom {amount}"
            body, noise = transport(plan, 4, reduce), normal((batch, channels, height, width), 1)
            trial.compare(label, "noise_transport", body, noise, ids(batch), names=NAMES, rules=[two_errors()])


def many_blocks(trial: Trial) -> None:
    plan = plan_of(4, 241, 417, -0.05, 0.5, capture=1)
    noise = normal((2, 5, 241, 417), 2)
    trial.compare(
        "B2-C5-H241-W417", "noise_transport", transport(plan, 1, 1), noise, ids(2), names=NAMES, rules=[two_errors()]
    )


def copies(trial: Trial) -> None:
    plan = plan_transport(torch.zeros(2, 2, 33, 65))
    noise = normal((2, 3, 33, 65), 3)
    trial.compare("H33-W65", "noise_transport", transport(plan, 1, 1), noise, ids(2), names=NAMES, rules=[same_bits])


def alone(trial: Trial) -> None:
    """A sample does not depend on its batch."""
    plan = plan_of(3, 17, 31, 0.1, 0.6, capture=1)
    whole = transport(plan, 1, 1)

    def body(function, noise: Tensor, ids: Tensor) -> list[Tensor]:  # type: ignore[no-untyped-def]
        (together,), (row,) = whole(function, noise, ids), whole(function, noise[1:2], ids[1:2])
        return [together[1:2] - row]

    trial.compare(
        "B3-C6-H17-W31",
        "noise_transport",
        body,
        normal((3, 6, 17, 31), 4),
        ids(3),
        names=["difference"],
        rules=[same_bits],
    )


def empty(trial: Trial) -> None:
    plan = plan_of(3, 7, 9, 0.1, 0.6, capture=1)
    noise = torch.zeros(0, 2, 7, 9)
    trial.compare("B0", "noise_transport", transport(plan, 1, 1), noise, ids(0), names=NAMES, rules=[two_errors()])


CHECKS = (
    Check("plans", plans),
    Check("moves", moves),
    Check("many blocks", many_blocks),
    Check("copies", copies),
    Check("a sample alone", alone),
    Check("no sample", empty, is_empty=True),
)
