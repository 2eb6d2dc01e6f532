"""Splat files: round trips, what a file says of its mode, and what is no such file."""

import copy
import gzip
import math
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import plyfile
import pytest
import torch

from tests.kernels.splat_scenes import forge, rows, scene, without, write_rows
from worldr1_kernels import rasterize
from worldr1_kernels.rasterize.io import Splats, degree, load_splats, save_splats
from worldr1_kernels.testing import gaussian_scene


@pytest.mark.parametrize("sh_degree", range(5))
@pytest.mark.parametrize("num", [0, 1, 37])
def test_ply_comes_back(num: int, sh_degree: int, tmp_path: Path) -> None:
    splats = scene(num, sh_degree)
    save_splats(tmp_path / "scene.ply", splats)
    got = load_splats(tmp_path / "scene.ply")
    assert degree(got) == sh_degree
    for name, a, b in zip(Splats._fields, got, splats, strict=True):
        assert a.dtype == torch.float32 and a.shape == b.shape
        if name in ("means", "quats", "colors"):  # kept as they are
            assert torch.equal(a, b), name
        torch.testing.assert_close(a, b, rtol=2e-6, atol=0)
    assert [p.name for p in tmp_path.iterdir()] == ["scene.ply"]


def test_what_is_no_splat_file_is_refused(tmp_path: Path) -> None:
    good = tmp_path / "good.ply"
    save_splats(good, scene(20))
    data, table = good.read_bytes(), rows(good)
    bad = tmp_path / "bad.ply"
    contents = {
        "empty": b"",
        "text": b"hello\n" * 9,
        "no lists": data.replace(b"property float y", b"property list uchar int y"),
        "no format": data.replace(b"binary_little", b"trinary_little"),
        "twice": data.replace(b"property float y", b"property float x"),
        "many": data.replace(b"element vertex 20", b"element vertex 20000000000"),
        "no properties": b"ply\nformat ascii 1.0\nelement vertex 999999999\nend_header\n",
        "binary": bytes(range(256)),
        "header": data[:60],
        "cut": data[:-1],
    }
    contents |= {"half": data[: len(data) // 2], "type": data.replace(b"property float y", b"property thing y")}
    contents["no vertex"] = data.replace(b"element vertex", b"element corner")
    contents["count"] = data.replace(b"element vertex 20", b"element vertex xx")
    for name, content in contents.items():
        bad.write_bytes(content)
        with pytest.raises(ValueError, match="load_splats: .*bad.ply must be a whole .ply of 3D Gaussians, but it"):
            load_splats(bad)
            pytest.fail(name)
    write_rows(bad, without(table, *(n for n in table.dtype.names if n[:2] in ("f_", "sc", "ro"))))
    with pytest.raises(
        ValueError, match="its vertices have no f_dc_0, f_dc_1, f_dc_2, scale_0, scale_1, scale_2, rot_0"
    ):
        load_splats(bad)
    write_rows(bad, without(table, "f_rest_3"))
    with pytest.raises(ValueError, match=r"a count of \[0, 9, 24, 45, 72\], got 23"):
        load_splats(bad)
    for path in (tmp_path / "scene.splat", tmp_path / "scene"):
        with pytest.raises(ValueError, match="path must end in .ply or .spz, got"):
            load_splats(path)
        with pytest.raises(ValueError, match="path must end in .ply or .spz, got"):
            save_splats(path, scene(2))
    with pytest.raises(FileNotFoundError):
        load_splats(tmp_path / "none.ply")


def test_rows_that_are_not_finite(tmp_path: Path) -> None:
    path = tmp_path / "scene.ply"
    splats = scene(6)
    save_splats(path, splats)
    table = rows(path).copy()
    table["x"][2], table["scale_1"][4], table["f_rest_7"][5] = np.nan, np.inf, -np.inf
    write_rows(path, table)
    with pytest.raises(
        ValueError, match="got 3 of 6 Gaussians that are not, the first in row 2; use drop_invalid=True"
    ):
        load_splats(path)
    with pytest.warns(UserWarning, match="left out 3 of 6 Gaussians that are not, the first in row 2"):
        assert torch.equal(load_splats(path, drop_invalid=True).means, splats.means[[0, 1, 3]])


def test_what_cannot_be_saved_is_refused_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = scene(4)
    nan = good.means.clone()
    nan[1, 1] = math.nan
    cases = [
        (good._replace(quats=good.quats[:3]), r"quats must have shape \[4, 4\], got \[3, 4\]"),
        (good._replace(colors=good.colors[:, :5]), r"K of \[1, 4, 9, 16, 25\], got \[4, 5, 3\]"),
        (good._replace(means=nan), "means must be finite, got 1 values"),
        (good._replace(scales=-good.scales), "scales must be > 0"),
        (good._replace(opacities=good.opacities + 1), r"opacities must be in \[0, 1\]"),
    ]
    for splats, message in cases:
        with pytest.raises(ValueError, match=f"save_splats: .*{message}"):
            save_splats(tmp_path / "scene.ply", splats)
    save_splats(tmp_path / "kept.ply", good)
    before = (tmp_path / "kept.ply").read_bytes()

    def broken(path: Path, content: bytes) -> None:
        with path.open("wb") as file:
            file.write(content[:9])
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", broken)
    with pytest.raises(OSError, match="disk full"):
        save_splats(tmp_path / "kept.ply", scene(3))
    assert (tmp_path / "kept.ply").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["kept.ply"]


def test_opaque_and_transparent_stay_finite(tmp_path: Path) -> None:
    splats = scene(2)._replace(opacities=torch.tensor([0.0, 1.0]))
    save_splats(tmp_path / "scene.ply", splats)
    assert load_splats(tmp_path / "scene.ply").opacities.tolist() == pytest.approx([0.0, 1.0], abs=2e-6)


@pytest.mark.parametrize("suffix", [".ply", ".spz"])
@pytest.mark.parametrize("antialiased", [False, True])
def test_the_mode_of_the_fit_is_kept(suffix: str, antialiased: bool, tmp_path: Path) -> None:
    splats = scene(30)._replace(antialiased=antialiased)
    for same in (copy.deepcopy(splats), pickle.loads(pickle.dumps(splats)), splats._replace(means=splats.means + 1)):
        assert isinstance(same, Splats) and same.antialiased == antialiased
    path = tmp_path / f"a{suffix}"
    save_splats(path, splats)
    got = load_splats(path)
    assert got.antialiased == antialiased
    assert got.rasterize_mode == ("antialiased" if antialiased else "classic")
    content = gzip.decompress(path.read_bytes()) if suffix == ".spz" else path.read_bytes()
    assert (
        content[14] == antialiased
        if suffix == ".spz"
        else (b"comment SplatRenderMode: mip\n" in content) == antialiased
    )
    if suffix == ".ply":  # nobody's parser stumbles over the comment
        assert plyfile.PlyData.read(str(path)).comments == ["SplatRenderMode: mip"] * antialiased
        assert len(load_splats(path).means) == 30 and len(forge(content, "ply", "spz")) > 100
    _, _, _, _, _, viewmats, Ks = gaussian_scene(1, 8, 8)
    arguments = (*got, viewmats, Ks, 8, 8)
    pictures = [rasterize(*arguments, sh_degree=2, rasterize_mode=m)[0] for m in (got.rasterize_mode, "classic")]
    assert torch.equal(*pictures) != antialiased


@pytest.mark.parametrize("function", [load_splats, lambda path: save_splats(path, scene(2))])
def test_folders_in_place_of_files(function: Callable[[Path], object], tmp_path: Path) -> None:
    (tmp_path / "a.ply").mkdir()
    with pytest.raises(OSError, match=r"a\.ply"):
        function(tmp_path / "a.ply")
    assert [p.name for p in tmp_path.iterdir()] == ["a.ply"]
