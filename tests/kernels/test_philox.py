"""Philox4x32-10 against the published known answers, and the normals drawn from it."""

import math

import pytest
import torch

from worldr1_kernels.philox import check_sample_ids, check_seed, philox4x32, philox_normal


def _words(*values: int) -> list[torch.Tensor]:
    return [torch.tensor([v, v], dtype=torch.int64) for v in values]


# Random123, tests/kat_vectors, "philox4x32 10": counter, key, expected words.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS, ids=["zeros", "ones", "pi"])
def test_known_answers(counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]) -> None:
    words = philox4x32(*_words(*counter), seed=key[0] + (key[1] << 32))
    assert [int(w[1]) for w in words] == list(expected)


def _philox_by_hand(counter: list[int], seed: int) -> list[int]:
    """The generator in Python integers, word by word as it is published."""
    c, key = list(counter), [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(10):
        low, high = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [(high >> 32) ^ c[1] ^ key[0], high & 0xFFFFFFFF, (low >> 32) ^ c[3] ^ key[1], low & 0xFFFFFFFF]
        key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def test_broadcast_counters_equal_the_generator_in_integers() -> None:
    rows = torch.tensor([0, 5, 2**31, 2**32 - 1])[:, None]
    columns = torch.tensor([0, 1, 77])[None]
    zero = torch.zeros(1, 1, dtype=torch.int64)
    seed = 2**62 + 12345
    words = philox4x32(columns, zero + 3, rows, zero + 9, seed=seed)
    for i in range(4):
        for j in range(3):
            expected = _philox_by_hand([int(columns[0, j]), 3, int(rows[i, 0]), 9], seed)
            assert [int(w[i, j]) for w in words] == expected


def test_normal_follows_its_definition() -> None:
    counter = [torch.arange(7), torch.full((7,), 2), torch.full((7,), 3), torch.full((7,), 4)]
    words = [w.tolist() for w in philox4x32(*counter, seed=11)]
    got = philox_normal(*counter, seed=11, dtype=torch.float64)
    for i in range(7):
        u = [(words[k][i] >> 9) * 2.0**-23 + 2.0**-24 for k in range(4)]
        for j in (0, 1):
            radius, angle = math.sqrt(-2 * math.log(u[2 * j])), 2 * math.pi * (u[2 * j + 1] - 0.5)
            assert float(got[i, 2 * j]) == pytest.approx(radius * math.cos(angle), abs=1e-13)
            assert float(got[i, 2 * j + 1]) == pytest.approx(radius * math.sin(angle), abs=1e-13)


def test_float32_and_float64_are_the_same_draw() -> None:
    counter = [torch.arange(50_000), *(torch.zeros(1, dtype=torch.int64) for _ in range(3))]
    narrow, wide = (philox_normal(*counter, seed=5, dtype=d) for d in (torch.float32, torch.float64))
    assert float((narrow.double() - wide).abs().max()) < 2e-6


def test_moments_and_independence() -> None:
    counter = [torch.arange(250_000), *(torch.zeros(1, dtype=torch.int64) for _ in range(3))]
    z = philox_normal(*counter, seed=1, dtype=torch.float64)
    flat = z.flatten()
    n = flat.numel()
    assert abs(float(flat.mean())) < 4.5 / math.sqrt(n)
    assert abs(float(flat.var()) - 1) < 4.5 * math.sqrt(2 / n)
    assert abs(float((flat**4).mean()) - 3) < 4.5 * math.sqrt(96 / n)
    other = philox_normal(*counter, seed=2, dtype=torch.float64).flatten()
    for a, b in ((flat[1:], flat[:-1]), (flat, other)):
        assert abs(float((a * b).mean())) < 4.5 / math.sqrt(n)
    correlation = z.T @ z / len(z) - torch.eye(4, dtype=torch.float64)
    assert float(correlation.abs().max()) < 5 * math.sqrt(2 / len(z))
    # Distribution function at a few points: a wrong angle or radius law keeps the moments but not these.
    for point, probability in ((-2.0, 0.0227501), (-1.0, 0.1586553), (0.5, 0.6914625)):
        assert abs(float((flat < point).double().mean()) - probability) < 4.5 * 0.5 / math.sqrt(n)


def test_bad_seeds_and_ids() -> None:
    with pytest.raises(ValueError, match=r"op: seed must be in \[0, 2\*\*63\), got -1"):
        check_seed("op", -1)
    with pytest.raises(TypeError, match="op: seed must be an int, got float"):
        check_seed("op", 1.0)  # type: ignore[arg-type]
    cpu = torch.device("cpu")
    assert check_sample_ids("op", None, 3, cpu).tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match=r"sample_ids must have shape \[3\], got \[2\]"):
        check_sample_ids("op", torch.arange(2), 3, cpu)
    with pytest.raises(ValueError, match=r"in \[0, 2\*\*32\), got -1\.\.1"):
        check_sample_ids("op", torch.tensor([-1, 0, 1]), 3, cpu)
    with pytest.raises(TypeError, match="sample_ids must be an integer tensor"):
        check_sample_ids("op", torch.zeros(3), 3, cpu)
