"""Damaged splat files: a scene of finite numbers, or ValueError or OSError with the path; never much memory or time.

WORLDR1_FUZZ_CASES=10000 python -m pytest -m slow -s tests/kernels/test_rasterize_fuzz.py
"""

import gzip
import os
import random
import resource
import struct
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import plyfile
import pytest

from tests.kernels.splat_scenes import forge, rows, scene
from worldr1_kernels.rasterize.io import load_splats, save_splats

CASES = int(os.environ.get("WORLDR1_FUZZ_CASES", "500"))
SEED = int(os.environ.get("WORLDR1_FUZZ_SEED", "0"))
SECONDS, BYTES = 5.0, 1 << 28  # of one case; address space beyond what the process has

pytestmark = pytest.mark.slow


def originals(folder: Path) -> dict[str, bytes]:
    """A file of every form, some tens of kilobytes at most."""
    splats = scene(300, 1)
    save_splats(folder / "a.ply", splats._replace(antialiased=True))
    save_splats(folder / "b.ply", scene(20, 3))
    save_splats(folder / "a.spz", splats)
    plain = (folder / "a.ply").read_bytes()
    out = {"plain.ply": plain, "packed.ply": forge(plain, "ply", "compressed.ply")}
    for name, text, order in (("ascii.ply", True, "<"), ("big.ply", False, ">")):
        elements = [plyfile.PlyElement.describe(rows(folder / "b.ply"), "vertex")]
        plyfile.PlyData(elements, text=text, byte_order=order).write(str(folder / name))
        out[name] = (folder / name).read_bytes()
    out |= {f"{v}.spz": forge(plain, "ply", "spz", spz_version=v) for v in (2, 3)}
    return out | {"own.spz": (folder / "a.spz").read_bytes()}


def flip(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice([1, 1, 2, 8, 64])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def flip_early(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice([1, 2, 4])):
        data[rng.randrange(min(len(data), 900))] = rng.randrange(256)


def cut(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def swap(data: bytearray, rng: random.Random) -> None:
    size = rng.randrange(1, max(2, len(data) // 4))
    a, b = (rng.randrange(len(data)) for _ in range(2))
    data[a : a + size], data[b : b + size] = data[b : b + size], data[a : a + size]


def insert(data: bytearray, rng: random.Random) -> None:
    place = rng.randrange(len(data))
    data[place:place] = rng.choice([rng.randbytes(rng.randrange(1, 200)), bytes(50), b"\xff" * 50, b"\n", b" 9"])


def promise(data: bytearray, rng: random.Random) -> None:
    """Another number in the header, of rows or of whatever else is counted there."""
    if data.startswith(b"NGSP"):
        data[8:12] = struct.pack("<I", rng.choice([0, 1, 299, 301, 10**6, 10**9, 2**32 - 1]))
        return
    text = bytes(data[:4000])
    words = [word for word in text.split() if word.isdigit()]
    if words:
        new = rng.choice([b"0", b"1", b"257", b"1000000000", b"-1", b"99999999999999999999", b"1e9", b"nan"])
        data[:4000] = text.replace(rng.choice(words), new, 1)


def lines(data: bytearray, rng: random.Random) -> None:
    """Lines of the header in another order, twice or gone."""
    parts = bytes(data).split(b"\n")
    a, b = (rng.randrange(min(len(parts), 60)) for _ in range(2))
    parts[a : a + 1] = rng.choice([[], [parts[a], parts[a]], [parts[b]]])
    data[:] = b"\n".join(parts)


DAMAGE: tuple[Callable[[bytearray, random.Random], None], ...] = (flip, flip_early, cut, swap, insert, promise, lines)


def damaged(original: bytes, rng: random.Random) -> bytes:
    """One to three kinds of damage; of a gzip stream to itself, or to what is in it."""
    inside = original.startswith(b"\x1f\x8b") and rng.random() < 0.7
    data = bytearray(gzip.decompress(original) if inside else original)
    for _ in range(rng.choice([1, 1, 2, 3])):
        if data:
            rng.choice(DAMAGE)(data, rng)
    return gzip.compress(bytes(data), 1) if inside else bytes(data)


def load(path: Path, case: str) -> str:
    """What becomes of a file: "loaded" or the name of the error."""
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            splats = load_splats(path)
        except (ValueError, OSError) as error:
            assert str(path) in str(error), (case, error)
            return type(error).__name__
        finally:
            assert time.perf_counter() - start < SECONDS, case
    for field in splats:
        assert bool(field.isfinite().all()), case
    assert len({len(field) for field in splats}) == 1, case
    return "loaded"


@pytest.fixture
def little_memory() -> Iterator[None]:
    """A limit on the address space, so that memory which is asked for and never touched counts too."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + BYTES, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def test_damaged_files(tmp_path: Path, little_memory: None) -> None:
    with pytest.raises(MemoryError):
        bytearray(2 * BYTES)
    print(f"\nWORLDR1_FUZZ_SEED={SEED} WORLDR1_FUZZ_CASES={CASES}")
    files, found = originals(tmp_path), Counter[str]()
    for i in range(CASES):
        name = list(files)[i % len(files)]
        path = tmp_path / f"case_{name}"
        path.write_bytes(damaged(files[name], random.Random(f"{SEED} {i}")))
        found[f"{name} {load(path, f'WORLDR1_FUZZ_SEED={SEED}, case {i}, {name}')}"] += 1
    print(*sorted(found.items()), sep="\n")
    for name in files:  # the damage is neither nothing nor always fatal
        assert found[f"{name} loaded"] and found[f"{name} ValueError"], name


def test_damaged_files_of_version_4(tmp_path: Path) -> None:
    """Each is read by a process of its own: fewer of them."""
    save_splats(tmp_path / "a.ply", scene(300, 1))
    original = forge((tmp_path / "a.ply").read_bytes(), "ply", "spz", spz_version=4)
    (tmp_path / "a.spz").write_bytes(original)
    assert load(tmp_path / "a.spz", "whole") == "loaded"
    print(f"\nWORLDR1_FUZZ_SEED={SEED}")
    found = Counter[str]()
    for i in range(CASES // 50):
        (tmp_path / "case.spz").write_bytes(damaged(original, random.Random(f"{SEED} four {i}")))
        found[load(tmp_path / "case.spz", f"WORLDR1_FUZZ_SEED={SEED}, case {i} of version 4")] += 1
    print(*sorted(found.items()), sep="\n")
    assert found["ValueError"] > 0
