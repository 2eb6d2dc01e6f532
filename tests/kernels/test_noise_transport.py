"""Noise transport against its definition in Python loops, exact identities, and the statistics it promises."""

import math
from typing import Any

import pytest
import torch

from worldr1_kernels.noise_transport import noise_transport, plan_transport
from worldr1_kernels.noise_transport.ops import noise_transport_op
from worldr1_kernels.noise_transport.plan import Slots, TransportPlan, advance, normalized, tree_sum
from worldr1_kernels.noise_transport.reference import pixel_normals
from worldr1_kernels.testing import check_compiles, check_op, noncontiguous, normal

F64 = torch.float64
BACKENDS = ["reference", "native"]


def affine_flow(
    frames: int, height: int, width: int, *, zoom: float = 0.0, turn: float = 0.0, dx: float = 0.0, dy: float = 0.0
) -> torch.Tensor:
    """A camera-like flow about the centre, the same in all fields, [F-1, 2, H, W] float64."""
    y, x = torch.meshgrid(torch.arange(height, dtype=F64), torch.arange(width, dtype=F64), indexing="ij")
    x, y = x - (width - 1) / 2, y - (height - 1) / 2
    field = torch.stack([zoom * x - turn * y + dx, zoom * y + turn * x + dy])
    return field.expand(frames - 1, 2, height, width).clone()


FLOWS = {
    "zoom_in": dict(zoom=0.21),
    "zoom_out": dict(zoom=-0.27),
    "pan": dict(dx=1.7, zoom=0.02),
    "roll": dict(turn=0.3),
    "mixed": dict(zoom=0.15, turn=-0.2, dx=-2.3, dy=1.2),
}


def random_flow(frames: int, height: int, width: int, seed: int, size: float = 2.0) -> torch.Tensor:
    return size * normal((frames - 1, 2, height, width), seed, dtype=F64)


def flow_of(case: str, frames: int, height: int, width: int) -> torch.Tensor:
    if case == "random":
        return random_flow(frames, height, width, 5)
    return affine_flow(frames, height, width, **FLOWS[case])


def by_hand(noise: torch.Tensor, flow: torch.Tensor, seed: int, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The definition of README.md, pixel by pixel: all frames [B, C, F, H, W] and densities [F, H, W]."""
    batch, channels, height, width = noise.shape
    pixels = height * width

    def z(pixel: int, frame: int, is_target: bool) -> torch.Tensor:
        key, kind = torch.tensor([pixel]), torch.tensor([is_target])
        return pixel_normals(
            key, kind, frame=frame, sample_ids=ids, num_channels=channels, seed=seed, dtype=noise.dtype
        )[0]

    q = [noise.flatten(2)[..., s] for s in range(pixels)]
    w = [1.0] * pixels
    frames, densities = [noise], [torch.ones(height, width, dtype=F64)]
    for f, field in enumerate(flow, start=1):
        shift = torch.round(field).flatten(1).long().tolist()

        def at(p: int, sign: int, shift: list[list[int]] = shift) -> int | None:
            x, y = p % width + sign * shift[0][p], p // width + sign * shift[1][p]
            return y * width + x if 0 <= x < width and 0 <= y < height else None

        hits: dict[int, list[int]] = {}
        for s in range(pixels):
            if (t := at(s, 1)) is not None:
                hits.setdefault(t, []).append(s)
        readers: dict[int, list[int]] = {}
        for t in range(pixels):
            if t not in hits and (s_read := at(t, -1)) is not None:
                readers.setdefault(s_read, []).append(t)
        forward_value: dict[int, torch.Tensor] = {}
        target_value: dict[int, torch.Tensor] = {}
        n = {}
        for s in range(pixels):
            draws = [] if at(s, 1) is None else [z(s, f, False)]
            draws += [z(t, f, True) for t in readers.get(s, [])]
            n[s] = len(draws)
            values = [q[s]] if n[s] == 1 else [q[s] / math.sqrt(n[s]) + d - sum(draws) / n[s] for d in draws]
            if at(s, 1) is not None:
                forward_value[s] = values.pop(0)
            target_value.update(zip(readers.get(s, []), values, strict=True))
        q_next, w_next = [], []
        for t in range(pixels):
            if t in hits:
                weights = [w[s] / n[s] for s in hits[t]]
                norm = math.sqrt(sum(v * v for v in weights))
                total = sum(v / norm * forward_value[s] for v, s in zip(weights, hits[t], strict=True))
                q_next.append(forward_value[hits[t][0]] if len(weights) == 1 else total)
                w_next.append(sum(weights))
            elif t in target_value:
                s_read = at(t, -1)
                assert s_read is not None
                q_next.append(target_value[t])
                w_next.append(w[s_read] / n[s_read])
            else:
                q_next.append(z(t, f, True))
                w_next.append(1.0)
        mean = sum(w_next) / pixels
        q, w = q_next, [(v / mean + 1e-5) ** 0.9999 for v in w_next]
        frames.append(torch.stack(q, -1).view_as(noise))
        densities.append(torch.tensor(w, dtype=F64).view(height, width))
    return torch.stack(frames, 2), torch.stack(densities)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("case", [*FLOWS, "random"])
def test_equals_the_definition_in_loops(case: str, dtype: torch.dtype, backend: Any) -> None:
    height, width, frames = 7, 9, 4
    flow = flow_of(case, frames, height, width)
    noise, ids = normal((2, 5, height, width), 1, dtype=dtype), torch.tensor([11, 3])
    expected, density = by_hand(noise, flow, 9, ids)
    plan = plan_transport(flow, backend=backend)
    got = noise_transport(noise, plan, seed=9, sample_ids=ids, backend=backend)
    assert got.shape == (2, 5, frames, height, width) and got.dtype == dtype
    tolerance = 3e-6 if dtype == torch.float32 else 1e-12
    assert float((got - expected).abs().max()) < tolerance
    torch.testing.assert_close(plan.density, density, rtol=1e-12, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_identity_is_bit_equal(backend: Any) -> None:
    noise = normal((2, 3, 8, 6), 2)
    got = noise_transport(noise, torch.zeros(4, 2, 8, 6), seed=0, backend=backend)
    assert torch.equal(got, noise[:, :, None].expand(-1, -1, 5, -1, -1))
    almost = noise_transport(noise, torch.full((4, 2, 8, 6), 0.4999), seed=0, backend=backend)
    assert torch.equal(almost, got)


def fresh_at(plan: TransportPlan, frame: int) -> torch.Tensor:
    """Pixels that are new at a frame."""
    return plan.fresh_pixel[plan.offsets[frame - 1, 0] : plan.offsets[frame, 0]].long()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("dx", "dy"), [(3, 0), (0, -2), (-1, 4), (20, 0)])
def test_integer_translation_is_a_copy_plus_the_fresh_strip(dx: int, dy: int, backend: Any) -> None:
    height, width = 11, 9
    flow = torch.tensor([float(dx), float(dy)]).view(1, 2, 1, 1).expand(1, 2, height, width)
    noise = normal((3, 4, height, width), 3)
    plan = plan_transport(flow, backend=backend)
    moved = noise_transport(noise, plan, seed=1, backend=backend)[:, :, 1]
    kept = max(0, width - abs(dx)) * max(0, height - abs(dy))
    fresh = fresh_at(plan, 1)
    assert len(fresh) == height * width - kept
    assert len(plan.member_slot) == len(plan.merge_slot) == 0
    for y in range(height):
        for x in range(width):
            if 0 <= x - dx < width and 0 <= y - dy < height:
                assert torch.equal(moved[..., y, x], noise[..., y - dy, x - dx])
    z = pixel_normals(
        fresh, torch.ones_like(fresh, dtype=torch.bool), frame=1, sample_ids=torch.arange(3), num_channels=4,
        seed=1, dtype=torch.float32,
    )  # fmt: skip
    torch.testing.assert_close(moved.flatten(2)[..., fresh], z.permute(1, 2, 0), rtol=0, atol=1e-6)


def test_rounding_is_half_to_even() -> None:
    noise = normal((1, 1, 1, 8), 4)
    for value, step in ((0.5, 0), (1.5, 2), (2.5, 2), (-0.5, 0), (-1.5, -2)):
        flow = torch.zeros(1, 2, 1, 8)
        flow[0, 0] = value
        moved = noise_transport(noise, flow, seed=0)[0, 0, 1, 0]
        assert torch.equal(moved[max(0, step) : 8 + min(0, step)], noise[0, 0, 0, max(0, -step) : 8 - max(0, step)])


def test_group_sums_and_density_are_conserved() -> None:
    height, width = 24, 20
    flow = affine_flow(2, height, width, zoom=0.4)
    noise = normal((2, 4, height, width), 5, dtype=F64)
    plan = plan_transport(flow)
    got = noise_transport(noise, plan, seed=3)[:, :, 1].flatten(2)
    assert len(plan.member_slot) > 200 and len(plan.merge_slot) == 0
    target = torch.full((plan.num_slots,), -1)
    target[plan.slots[1].long()] = torch.arange(height * width)  # every pixel has a slot of its own
    size = plan.group_start.diff()
    source = plan.group_slot.repeat_interleave(size).long()  # slots of the first frame are its pixels
    before, sums = noise.flatten(2), torch.zeros(2, 4, height * width, dtype=F64)
    sums.index_add_(2, source, got[..., target[plan.member_slot.long()]])
    expected = before[..., plan.group_slot.long()] * size.double().sqrt()
    torch.testing.assert_close(sums[..., plan.group_slot.long()], expected, rtol=0, atol=1e-12)

    for seed in range(3):
        density = torch.rand(height * width, generator=torch.Generator().manual_seed(seed), dtype=F64) + 0.1
        shift = torch.round(random_flow(2, height, width, seed, size=3.0)[0]).long().flatten(1)
        held = torch.arange(height * width, dtype=torch.int32)
        lists, raw = advance(shift, density, Slots(held, held[:0], len(held)), width)
        x, y = torch.arange(height * width) % width, torch.arange(height * width) // width
        to = [(x + s * shift[0], y + s * shift[1]) for s in (1, -1)]
        inside = [(a >= 0) & (a < width) & (b >= 0) & (b < height) for a, b in to]
        reached = torch.zeros(height * width, dtype=torch.bool)
        reached[(to[0][1] * width + to[0][0])[inside[0]]] = True
        kept = inside[0].clone()
        reads = inside[1] & ~reached
        kept[(to[1][1] * width + to[1][0])[reads]] = True
        assert float(raw.sum()) == pytest.approx(float(density[kept].sum()) + len(lists["fresh_pixel"]), abs=1e-10)


def test_normalised_density_and_tree_sum() -> None:
    values = torch.rand(1000, generator=torch.Generator().manual_seed(0), dtype=F64) + 0.5
    assert float(tree_sum(values)) == pytest.approx(float(values.sum()), rel=1e-14)
    expected = (values / values.mean() + 1e-5) ** 0.9999
    torch.testing.assert_close(normalized(values), expected, rtol=1e-15, atol=0)
    wide = torch.logspace(-9, 9, 1001, dtype=F64)
    expected = (wide / wide.mean() + 1e-5) ** 0.9999
    torch.testing.assert_close(normalized(wide), expected, rtol=1e-15, atol=0)


@pytest.mark.parametrize("case", [*FLOWS, "random"])
def test_covariance_is_the_identity(case: str) -> None:
    """The strongest single check: all pairs of pixels after four flows, over 40,000 trials. Off the diagonal, means of
    products of independent normals have standard deviation 1 / sqrt(T)."""
    height, width, frames = 12, 11, 5
    flow = flow_of(case, frames, height, width)
    noise = normal((10_000, 4, height, width), 6)
    last = noise_transport(noise, flow, seed=4, capture=frames - 1)[:, :, -1].flatten(2).flatten(0, 1).double()
    trials, pixels = last.shape
    assert float(last.mean(0).abs().max()) < 5.0 / math.sqrt(trials)
    covariance = last.T @ last / trials
    variance = covariance.diagonal()
    assert float((variance - 1).abs().max()) < 5.0 * math.sqrt(2 / trials)
    off = covariance[~torch.eye(pixels, dtype=torch.bool)] * math.sqrt(trials)
    assert float(off.square().mean().sqrt()) == pytest.approx(1.0, abs=0.02)
    assert float(off.abs().max()) < 5.5
    # Channels and samples stay independent of each other.
    across = last.view(10_000, 4, pixels)
    assert abs(float((across[:, 0] * across[:, 1]).mean())) < 5.0 / math.sqrt(10_000 * pixels)
    assert abs(float((across[1:, 0] * across[:-1, 0]).mean())) < 5.0 / math.sqrt(10_000 * pixels)


@pytest.mark.parametrize("case", FLOWS)
def test_one_large_frame_is_white(case: str) -> None:
    """Size of a real warp: 128 x 128 after 8 fields, 12 channels; reduced to 8 x 8 the variance is still one."""
    scale = {"zoom": 0.2, "turn": 0.2, "dx": 3.0, "dy": 3.0}
    flow = affine_flow(9, 128, 128, **{k: v * scale[k] for k, v in FLOWS[case].items()})
    noise = normal((2, 12, 128, 128), 8)
    plan = plan_transport(flow)
    last = noise_transport(noise, plan, seed=5, capture=8)[:, :, 1].double()
    n = last.numel()
    assert abs(float(last.mean())) < 4.5 / math.sqrt(n)
    assert abs(float(last.std()) - 1) < 4.5 / math.sqrt(2 * n)
    assert abs(float(last.pow(4).mean()) - 3) < 4.5 * math.sqrt(96 / n)
    for a, b in ((last[..., 1:], last[..., :-1]), (last[..., 1:, :], last[..., :-1, :])):
        assert abs(float((a * b).mean())) < 4.5 / math.sqrt(a.numel())
    small = noise_transport(noise, plan, seed=5, capture=4, reduce=16)
    assert small.shape == (2, 12, 3, 8, 8)
    assert abs(float(small.double().var()) - 1) < 4.5 * math.sqrt(2 / small.numel())
    blocks = last.view(2, 12, 8, 16, 8, 16).sum((3, 5)) / 16
    assert float((small[:, :, 2] - blocks).abs().max()) < 1e-5


def test_fresh_noise_differs_between_frames_and_seeds() -> None:
    away = torch.full((3, 2, 16, 16), 100.0)  # all pixels leave and nothing can be read: every frame is new
    noise = normal((1, 4, 16, 16), 9)
    a, b = (noise_transport(noise, away, seed=s)[0].transpose(0, 1).flatten(1) for s in (0, 1))
    correlation = torch.corrcoef(torch.cat([a, b[1:]])) - torch.eye(7)
    assert float(correlation.abs().max()) < 4.5 / 32


def test_capture_is_a_subset_of_all_frames() -> None:
    flow, noise = affine_flow(10, 8, 12, zoom=0.2), normal((2, 3, 8, 12), 10)
    everything = noise_transport(noise, flow, seed=6)
    for stride in (1, 2, 4, 9, 20):
        assert torch.equal(noise_transport(noise, flow, seed=6, capture=stride), everything[:, :, ::stride])


def test_draw_does_not_depend_on_the_batch_split() -> None:
    flow, noise = affine_flow(4, 24, 20, zoom=0.3, turn=0.2, dx=1.2), normal((5, 5, 24, 20), 11)
    plan, ids = plan_transport(flow), torch.tensor([9, 2, 2**32 - 1, 0, 7])
    whole = noise_transport(noise, plan, seed=7, sample_ids=ids, reduce=4)
    assert torch.equal(whole, noise_transport(noise, flow, seed=7, sample_ids=ids, reduce=4))
    for rows in ([0], [1, 2], [3, 4], [4, 0, 2]):
        part = noise_transport(noise[rows], plan, seed=7, sample_ids=ids[rows], reduce=4)
        assert torch.equal(part, whole[rows])
    wide = noise_transport(noise.double(), plan, seed=7, sample_ids=ids, reduce=4)
    assert wide.dtype == F64
    assert float((wide - whole).abs().max()) < 1e-5


@pytest.mark.parametrize("shape", [(1, 1, 1, 8), (1, 1, 6, 5), (2, 3, 6, 5)])
def test_input_is_not_written(shape: tuple[int, ...]) -> None:
    """With one sample and one channel the pixel-major layout is a view of the input; a buffer swap once wrote to it."""
    noise = normal(shape, 19)
    kept = noise.clone()
    noise_transport(noise, random_flow(6, *shape[2:], 20), seed=0)
    assert torch.equal(noise, kept)


def test_odd_shapes_one_frame_and_empty_batch() -> None:
    for height, width, channels in ((1, 1, 1), (1, 7, 3), (5, 3, 2)):
        noise = normal((2, channels, height, width), 13)
        got = noise_transport(noise, random_flow(4, height, width, 14), seed=0)
        assert got.shape == (2, channels, 4, height, width) and bool(torch.isfinite(got).all())
    noise = normal((2, 3, 4, 6), 15)
    assert torch.equal(noise_transport(noise, torch.zeros(0, 2, 4, 6), seed=0, capture=4), noise[:, :, None])
    assert noise_transport(noise[:0], random_flow(3, 4, 6, 16), seed=0).shape == (0, 3, 3, 4, 6)
    flow = random_flow(3, 4, 6, 16)
    strided = noise_transport(noncontiguous(noise), noncontiguous(flow), seed=0)
    assert torch.equal(strided, noise_transport(noise, flow, seed=0))
    huge = torch.full((1, 2, 4, 6), 1e30)
    for backend in BACKENDS:
        assert len(plan_transport(huge, backend=backend).fresh_pixel) == 24
    assert noise_transport(noise[:, :0], flow, seed=0).shape == (2, 0, 3, 4, 6)


def test_bad_input() -> None:
    noise, flow = normal((2, 3, 4, 6), 17), torch.zeros(3, 2, 4, 6)
    nan = flow.clone()
    nan[0, 0, 0, 0] = float("nan")
    good: dict[str, Any] = {"noise": noise, "plan_or_flow": flow, "seed": 0}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"plan_or_flow": nan}, r"plan_transport: flow\[0\] must be finite"),
        ({"plan_or_flow": flow / 0.0}, r"plan_transport: flow\[0\] must be finite"),
        ({"plan_or_flow": flow[0]}, r"flow must have shape \[F-1, 2, H, W\], got \[2, 4, 6\]"),
        ({"plan_or_flow": flow[..., :5]}, r"flow must have shape .* with W = 6, got \[3, 2, 4, 5\]"),
        ({"plan_or_flow": plan_transport(flow[..., :5])}, "noise must have the size of the plan, 4 x 5"),
        ({"noise": noise[0]}, r"noise must have shape \[B, C, H, W\], got \[3, 4, 6\]"),
        ({"seed": -1}, r"seed must be in \[0, 2\*\*63\), got -1"),
        ({"sample_ids": torch.arange(3)}, r"sample_ids must have shape \[2\], got \[3\]"),
        ({"capture": 0}, "capture must be an int >= 1 or all, got 0"),
        ({"reduce": 0}, "reduce must be an int >= 1, got 0"),
        ({"plan_or_flow": plan_transport(flow, capture=2), "capture": 3}, "capture must be a multiple .*, 2, got 3"),
        ({"plan_or_flow": plan_transport(flow, capture=2)}, "capture must be a multiple of the plan's, 2, got all"),
        ({"reduce": 4}, r"reduce must divide H and W, got reduce 4 for \[2, 3, 4, 6\]"),
        ({"noise": noise.clone().requires_grad_()}, "noise must not require a gradient"),
    ]
    for change, message in cases:
        with pytest.raises(ValueError, match=message):
            noise_transport(**{**good, **change})
    for dtype in (torch.bfloat16, torch.float16):
        with pytest.raises(TypeError, match=f"noise must have dtype float32, float64, got {str(dtype)[6:]}"):
            noise_transport(noise.to(dtype), flow, seed=0)
    with pytest.raises(TypeError, match="flow must have dtype float32, float64, got int64"):
        plan_transport(flow.long())
    with pytest.raises(RuntimeError, match="backend 'triton' is not available: triton needs"):
        noise_transport(noise, flow, seed=0, backend="triton")


def test_plan_flow_and_noise_on_two_devices() -> None:
    noise, flow = normal((1, 1, 4, 6), 0), torch.zeros(2, 2, 4, 6)
    plan = plan_transport(flow)
    for there, here, message in (
        (plan.to("meta"), noise, "plan must be on cpu like noise, got meta: use plan.to"),
        (plan, noise.to("meta"), "plan must be on meta like noise, got cpu: use plan.to"),
        (flow.to("meta"), noise, "flow must be on cpu like noise, got meta"),
        (flow, noise.to("meta"), "flow must be on meta like noise, got cpu"),
    ):
        with pytest.raises(ValueError, match=message):
            noise_transport(here, there, seed=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_op_passes_opcheck_and_compiles(backend: Any) -> None:
    noise, plan = normal((2, 3, 8, 6), 18), plan_transport(affine_flow(4, 8, 6, zoom=0.3, dx=1.2))
    arguments = (noise, plan.tensors(), torch.arange(2), plan.num_slots, plan.stride, 3, 1, 2, backend)
    check_op(noise_transport_op, arguments)
    check_compiles(lambda n: noise_transport(n, plan, seed=3, capture=2, reduce=2, backend=backend) * 2.0, (noise,))
