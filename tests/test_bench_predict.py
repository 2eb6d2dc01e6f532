"""The model of the kernels' times on a GPU: its laws, its counts against what is known otherwise, its page."""

import re
from dataclasses import replace

import pytest

from bench import plan, predict
from bench.predict import H200, Kernel, Op, Work
from bench.static_sm90 import Kernel as Compiled

WORK = Work(832 * 480, 1_996_800, 1_940_764, 3_041_357, 4_330_703.0, 0.73)


class Anything(dict):
    """Every kernel, as if compiled to 100 instructions with a loop of 40."""

    def __missing__(self, name: str) -> Compiled:
        return Compiled("x.cu", name, 256, 32, 0, 0, 0, 100, {}, 40)


def test_a_kernel_takes_what_bounds_it():
    assert Kernel("copy", 0, 0, 4.3e9).seconds(H200) == pytest.approx(1e-3 + 1.2e-6)
    # 528 schedulers, .7 instructions a cycle of 1.9 GHz.
    busy = Kernel("busy", 1e6, 702.24, 0)
    assert busy.times(H200)["issue"] == pytest.approx(1e-3) and busy.bound(H200) == "issue"
    alone = Kernel("alone", 1, 1.9e6, 0, launches=2, wait=1.0)
    assert alone.times(H200)["chain"] == pytest.approx(6e-3) and alone.bound(H200) == "waiting"
    assert alone.seconds(H200) == pytest.approx(1.0 + 6e-3 + 2.4e-6)


def test_times_follow_their_sizes():
    """Twice the samples, Gaussians or visits: never less, and near twice where the fixed parts are small."""
    static = Anything()
    for form in ("draw", "score", "backward"):
        one, many = (predict.sde(static, n)[form][-1].times(H200) for n in (64, 128))
        assert all(many[name] == pytest.approx(2 * one[name]) for name in ("bytes", "issue"))
    one, many = (predict.noise(batch, H200)[0].seconds(H200) for batch in (8, 16))
    assert 1.8 < many / one < 2.0
    doubled = replace(
        WORK, gaussians=2 * WORK.gaussians, seen=2 * WORK.seen, pairs=2 * WORK.pairs, visits=2 * WORK.visits
    )
    for kernels, more in (
        (predict.forward(WORK, static, H200), predict.forward(doubled, static, H200)),
        (predict.backward(WORK, static), predict.backward(doubled, static)),
    ):
        assert [k.name for k in kernels] == [k.name for k in more]
        assert all(a.seconds(H200) <= b.seconds(H200) for a, b in zip(kernels, more, strict=True))


def test_every_kernel_is_one_of_the_sources():
    sources = "".join(path.read_text() for path in (plan.ROOT / "csrc" / "cuda").glob("*.cu"))
    for op in predict.ops(WORK, Anything(), H200):
        for kernel in op.kernels:
            name = re.sub(r"<.*>", "", kernel.name)
            made = name.replace("reward_", "name##_")  # by a macro of se3.cu
            assert f"{made}(" in sources or "CUB" in name or name == "memset", kernel.name


def test_the_work_of_a_small_scene():
    """One frame of one Gaussian a pixel, 64x48: bounds that hold by construction."""
    work = predict.count_work(1, 64, 48)
    assert (work.pixels, work.gaussians) == (64 * 48, 64 * 48) and 0.9 * work.gaussians < work.seen <= work.gaussians
    assert work.seen <= work.pairs < 3 * work.seen and 0 < work.share <= 1
    assert work.visits <= 8 * work.pairs


def test_the_page_says_what_is_missed_and_what_is_assumed():
    slow = Op("slow", [Kernel("replay_kernel", 1, 1, 4.3e9)], 2e-3, "peer", 3.0, "nothing")
    fast = Op("fast", [Kernel("replay_kernel", 1, 1, 4.3e8)], 2e-3, "peer", 3.0, "nothing")
    text = predict.page([slow, fast], WORK, H200)
    assert re.search(r"\| slow .* \*\*missed\*\* \|", text) and re.search(r"\| fast .* reached \|", text)
    assert "No GPU has run this code" in text and "copy 4.3e+12" in text and "1,940,764 seen" in text
    assert all(len(line) < 300 for line in text.splitlines())
