"""The .spz: as gaussforge writes and reads it, every version, ranges, and what is none."""

import gzip
import math
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.kernels.splat_scenes import assert_close, forge, scene, with_value
from worldr1_kernels.rasterize.io import degree, load_splats, save_splats


@pytest.mark.parametrize("sh_degree", range(4))
def test_spz_comes_back_to_its_quantisation(sh_degree: int, tmp_path: Path) -> None:
    splats = scene(40, sh_degree)
    save_splats(tmp_path / "scene.spz", splats)
    got = load_splats(tmp_path / "scene.spz")
    assert degree(got) == sh_degree and len(got.means) == 40
    assert float((got.means - splats.means).abs().max()) <= 1 / 4096
    assert float((got.scales.log() - splats.scales.log()).abs().max()) <= 1 / 32 + 1e-6
    assert float((got.opacities - splats.opacities).abs().max()) <= 1 / 255
    aligned = torch.nn.functional.cosine_similarity(got.quats, splats.quats).abs()
    assert float(aligned.min()) > 0.9999
    assert float((got.colors[:, 0] - splats.colors[:, 0]).abs().max()) < 0.02
    assert float((got.colors - splats.colors).abs().max()) <= 1 / 8
    with pytest.raises(
        ValueError, match=r"colors must have shape \[2, K, 3\] with K of \[1, 4, 9, 16\], got \[2, 25, 3\]"
    ):
        save_splats(tmp_path / "deep.spz", scene(2, 4))


def test_a_broken_spz_is_refused(tmp_path: Path) -> None:
    save_splats(tmp_path / "good.spz", scene(20))
    data = (tmp_path / "good.spz").read_bytes()
    body = gzip.decompress(data)

    def header(**changes: int) -> bytes:
        parts = dict(magic=0x5053474E, version=3, num=20, degree=2, bits=12, flags=0, reserved=0) | changes
        return gzip.compress(struct.pack("<IIIBBBB", *parts.values()) + body[16:])

    contents = [b"", b"hello", data[:20], data[: len(data) // 2], data[:-1], gzip.compress(body[:-1]), body]
    contents += [gzip.compress(body + b"x"), gzip.compress(body[:9]), data[:30] + b"\xff\xff" + data[32:]]
    contents += [header(magic=7), header(version=5), header(version=4), header(degree=3), header(degree=9)]
    contents += [header(num=21), header(num=10**9), header(num=19)]
    for content in contents:
        (tmp_path / "bad.spz").write_bytes(content)
        with pytest.raises(ValueError, match="load_splats: .*bad.spz must be a whole .spz, but it"):
            load_splats(tmp_path / "bad.spz")


@pytest.mark.parametrize("sh_degree", range(4))
def test_spz_is_what_gaussforge_writes(sh_degree: int, tmp_path: Path) -> None:
    """Byte for byte behind gzip, but for roundings of exact halves; and it reads ours as we do."""
    splats = scene(300, sh_degree)
    save_splats(tmp_path / "a.ply", splats)
    save_splats(tmp_path / "a.spz", splats)
    ours = np.frombuffer(gzip.decompress((tmp_path / "a.spz").read_bytes()), np.uint8)
    theirs = np.frombuffer(gzip.decompress(forge((tmp_path / "a.ply").read_bytes(), "ply", "spz")), np.uint8)
    assert len(ours) == len(theirs) and int((ours != theirs).sum()) <= 2
    (tmp_path / "b.ply").write_bytes(forge((tmp_path / "a.spz").read_bytes(), "spz", "ply"))
    assert_close(load_splats(tmp_path / "a.spz"), load_splats(tmp_path / "b.ply"))


@pytest.mark.parametrize("version", [2, 3, 4])
def test_every_version_of_spz_is_read(
    version: int, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_splats(tmp_path / "a.ply", scene(50, 3))
    content = forge((tmp_path / "a.ply").read_bytes(), "ply", "spz", spz_version=version)
    (tmp_path / "b.ply").write_bytes(forge(content, "spz", "ply"))
    (tmp_path / "a.spz").write_bytes(content)
    capfd.readouterr()
    # A byte a component (version 2) leaves w, near 0, with few digits.
    assert_close(load_splats(tmp_path / "a.spz"), load_splats(tmp_path / "b.ply"), quats=1e-4)
    assert capfd.readouterr() == ("", "")  # gaussforge prints on the standard output of its process
    if version == 4:
        flagged = content[:14] + b"\1" + content[15:]
        (tmp_path / "a.spz").write_bytes(flagged)
        assert load_splats(tmp_path / "a.spz").antialiased
        (tmp_path / "a.spz").write_bytes(content[:-20])
        with pytest.raises(ValueError, match="a.spz must be a whole .spz, but gaussforge cannot read it"):
            load_splats(tmp_path / "a.spz")
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(RuntimeError, match=r'a.spz cannot be read: .*pip install "worldr1\[splats\]"'):
            load_splats(tmp_path / "a.spz")


def test_the_first_version_of_spz_has_halves(tmp_path: Path) -> None:
    """By hand: one Gaussian; positions in float16, x y z of the quaternion in bytes."""
    head = struct.pack("<IIIBBBB", 0x5053474E, 1, 1, 0, 12, 0, 0)
    body = np.array([1.5, -2.0, 1000.0], "<f2").tobytes() + bytes([51, 0, 255, 128, 160, 176, 192, 255, 128, 128])
    (tmp_path / "a.spz").write_bytes(gzip.compress(head + body))
    got = load_splats(tmp_path / "a.spz")
    assert got.means.tolist() == [[1.5, -2.0, 1000.0]]
    assert got.opacities.tolist() == pytest.approx([0.2])
    assert got.colors.flatten().tolist() == pytest.approx([-10 / 3, 10 / 3, 0.013072], abs=1e-5)
    assert got.scales.tolist() == [pytest.approx([1.0, math.e, math.e**2])]
    assert got.quats.tolist() == [pytest.approx([0.0, 1.0, 0.0039, 0.0039], abs=1e-3)]


@pytest.mark.parametrize(
    ("name", "inside", "outside", "tolerance", "message"),
    [
        ("means", 2047.999, 2048.0, 1 / 4096, r"means must be in \[-2048, 2048\] for an .spz, got 2048 in row 4"),
        ("means", -2048.0, -2500.0, 1 / 4096, r"got -2500 in row 4 \(1 of 18 values\); move or scale the scene"),
        ("scales", 4.5e-5, 4.3e-5, 0.04, r"scales must be in \[4.40\d*e-05, 391.\d*\]"),
        ("scales", 380.0, 400.0, 0.04, "got 400 in row 4 .*; use clip=True, or write a .ply"),
        ("colors", 1.0, 1.01, 1 / 16, r"colors of degree 1 and more must be in \[-1, 1\]"),
        ("colors", -1.0, -1.01, 1 / 16, "got -1.01 in row 4"),
    ],
)
def test_spz_keeps_a_value_or_refuses_it(
    name: str, inside: float, outside: float, tolerance: float, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.spz"
    save_splats(path, with_value(name, inside))
    got = float(getattr(load_splats(path), name).view(6, -1)[4, -1])
    assert abs(got - inside) <= tolerance * (abs(inside) if name == "scales" else 1)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=f"save_splats: .*{message}"):
        save_splats(path, with_value(name, outside))
    assert path.read_bytes() == before
    if name == "means":
        with pytest.raises(ValueError, match="means must be in"):
            save_splats(path, with_value(name, outside), clip=True)
        return
    with pytest.warns(UserWarning, match=r"1 of \d+ values\); clipped"):
        save_splats(path, with_value(name, outside), clip=True)
    got = float(getattr(load_splats(path), name).view(6, -1)[4, -1])
    assert abs(got - outside) <= 2 * tolerance * (abs(outside) if name == "scales" else 1)


def test_spz_refuses_what_it_would_lose(tmp_path: Path) -> None:
    colors = torch.zeros(3, 1, 3)
    colors[1, 0, 2] = 3.4
    plain = scene(3, 0)
    with pytest.raises(ValueError, match=r"colors of degree 0 must be in \[-3.33333, 3.33333\] .*got 3.4 in row 1"):
        save_splats(tmp_path / "a.spz", plain._replace(colors=colors))
    with pytest.raises(ValueError, match="quats must not be zero for an .spz"):
        save_splats(tmp_path / "a.spz", plain._replace(quats=torch.zeros(3, 4)))
    with pytest.raises(ValueError, match="half of the Gaussians, got a median of 0.0002; scale the scene up"):
        save_splats(tmp_path / "a.spz", plain._replace(scales=torch.full((3, 3), 2e-4)))
    assert list(tmp_path.iterdir()) == []
    save_splats(tmp_path / "a.spz", scene(0))
    assert len(load_splats(tmp_path / "a.spz").means) == 0
