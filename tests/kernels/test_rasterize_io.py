"""Splat files: the layout as others write it, round trips, and what is no splat file."""

import argparse
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.lib.recfunctions
import pytest
import torch

from worldr1_kernels.rasterize import view
from worldr1_kernels.rasterize.io import Splats, degree, load_splats, save_splats
from worldr1_kernels.testing import generator, normal

plyfile = pytest.importorskip("plyfile")


def scene(num: int = 50, sh_degree: int = 2, seed: int = 0) -> Splats:
    means, quats = normal((num, 3), seed), normal((num, 4), seed + 1)
    scales = (0.05 * normal((num, 3), seed + 2)).exp() * 0.1
    opacities = torch.rand(num, generator=generator(seed + 3)).clamp(0.01, 0.99)
    return Splats(means, quats, scales, opacities, 0.3 * normal((num, (sh_degree + 1) ** 2, 3), seed + 4))


def rows(path: Path) -> np.ndarray:
    return plyfile.PlyData.read(str(path))["vertex"].data


def without(table: np.ndarray, *names: str) -> np.ndarray:
    return np.lib.recfunctions.drop_fields(table, names, usemask=False)


def write_rows(path: Path, table: np.ndarray, *, text: bool = False, order: str = "<") -> None:
    plyfile.PlyData([plyfile.PlyElement.describe(table, "vertex")], text=text, byte_order=order).write(str(path))


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


def test_ply_has_the_layout_that_others_read(tmp_path: Path) -> None:
    splats = scene(5, 1)
    save_splats(tmp_path / "scene.ply", splats)
    table = rows(tmp_path / "scene.ply")
    names = "x y z nx ny nz f_dc_0 f_dc_1 f_dc_2".split() + [f"f_rest_{i}" for i in range(9)]
    names += "opacity scale_0 scale_1 scale_2 rot_0 rot_1 rot_2 rot_3".split()
    assert list(table.dtype.names) == names and set(table.dtype[n].str for n in names) == {"<f4"}
    assert (tmp_path / "scene.ply").read_bytes().startswith(b"ply\nformat binary_little_endian 1.0\n")
    assert table["rot_0"].tolist() == splats.quats[:, 0].tolist()  # w first
    assert table["f_rest_4"].tolist() == splats.colors[:, 2, 1].tolist()  # three of red, then three of green
    np.testing.assert_allclose(np.exp(table["scale_2"]), splats.scales[:, 2], rtol=1e-6)
    np.testing.assert_allclose(1 / (1 + np.exp(-table["opacity"].astype(float))), splats.opacities, rtol=1e-6)


@pytest.mark.parametrize("text, order", [(True, "<"), (False, ">")], ids=["ascii", "big-endian"])
def test_other_forms_of_ply_are_read(text: bool, order: str, tmp_path: Path) -> None:
    save_splats(tmp_path / "a.ply", scene(7))
    table = rows(tmp_path / "a.ply")
    shuffled = np.zeros(
        7, [("extra", "u1")] + [(n, "f8") for n in reversed(table.dtype.names) if n not in ("nx", "ny")]
    )
    for name in table.dtype.names:
        if name in shuffled.dtype.names:
            shuffled[name] = table[name]
    write_rows(tmp_path / "b.ply", shuffled, text=text, order=order)
    for a, b in zip(load_splats(tmp_path / "b.ply"), load_splats(tmp_path / "a.ply"), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("sh_degree", range(4))
def test_spz_comes_back_to_its_quantisation(sh_degree: int, tmp_path: Path) -> None:
    pytest.importorskip("gaussforge")
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


def test_what_is_no_splat_file_is_refused(tmp_path: Path) -> None:
    good = tmp_path / "good.ply"
    save_splats(good, scene(20))
    data, table = good.read_bytes(), rows(good)
    bad = tmp_path / "bad.ply"
    contents = {
        "empty": b"",
        "text": b"hello\n" * 9,
        "binary": bytes(range(256)),
        "header": data[:60],
        "cut": data[:-1],
    }
    contents |= {"half": data[: len(data) // 2], "type": data.replace(b"property float y", b"property thing y")}
    contents["no vertex"] = data.replace(b"element vertex", b"element corner")
    contents["count"] = data.replace(b"element vertex 20", b"element vertex xx")
    for name, content in contents.items():
        bad.write_bytes(content)
        with pytest.raises(ValueError, match="load_splats: .*bad.ply must be a whole .ply with an element vertex"):
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


def test_a_broken_spz_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("gaussforge")
    save_splats(tmp_path / "good.spz", scene(20))
    data = (tmp_path / "good.spz").read_bytes()
    for content in (b"", b"hello", data[:20], data[: len(data) // 2]):
        (tmp_path / "bad.spz").write_bytes(content)
        with pytest.raises(ValueError, match="load_splats: .*bad.spz must be a whole .spz"):
            load_splats(tmp_path / "bad.spz")


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


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_splats(tmp_path / "scene.ply", scene(2))
    monkeypatch.setitem(sys.modules, "plyfile", None)
    with pytest.raises(RuntimeError, match=r'plyfile must be installed: pip install "worldr1\[splats\]"'):
        load_splats(tmp_path / "scene.ply")


@pytest.mark.parametrize("up", view.AXES)
def test_the_camera_goes_around_and_sees_the_middle(up: str) -> None:
    splats = scene(200)
    axis = torch.tensor(view.AXES[up])
    viewmats = view.turntable(splats, num_frames=8, fov=0.8, up=view.AXES[up], elevation=0.3, zoom=1.0)
    rotation = viewmats[:, :3, :3]
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3).expand(8, 3, 3), rtol=0, atol=1e-6)
    assert bool((torch.linalg.det(rotation) > 0).all())
    middle = (splats.means * splats.opacities[:, None]).sum(0) / splats.opacities.sum()
    seen = (rotation @ middle + viewmats[:, :3, 3]).double()
    assert float(seen[:, :2].abs().max()) < 1e-5  # on the optical axis
    assert float(seen[:, 2].std()) < 1e-5 and float(seen[0, 2]) > 1
    assert float((rotation[:, 1] @ axis).max()) < 0  # the picture's down is against up
    heights = -(rotation.mT @ viewmats[:, :3, 3:])[..., 0] @ axis - middle @ axis
    torch.testing.assert_close(heights.double(), seen[:, 2] * math.sin(0.3), rtol=1e-4, atol=1e-5)
    steps = viewmats.roll(-1, 0) @ torch.linalg.inv(viewmats)
    torch.testing.assert_close(steps, steps[:1].expand_as(steps), rtol=0, atol=1e-4)  # one turn in equal parts


def test_the_film_shows_the_scene(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A red ball left of a green one as the first camera sees it: half a turn later they have changed sides."""
    imageio = pytest.importorskip("imageio.v2")
    colors = torch.tensor([[[1.7, -1.7, -1.7]], [[-1.7, 1.7, -1.7]]])
    means, quats = torch.tensor([[-1.0, 0, 0], [1.0, 0, 0]]), torch.tensor([[1.0, 0, 0, 0]] * 2)
    splats = Splats(means, quats, torch.full((2, 3), 0.3), torch.full((2,), 0.95), colors)
    save_splats(tmp_path / "balls.ply", splats)
    for name in ("turn.gif", "turn.mp4"):
        out = tmp_path / name
        command = [str(tmp_path / "balls.ply"), "--out", str(out), "--frames", "4", "--width", "64", "--height", "48"]
        assert view.main([*command, "--background", "0", "0", "1", "--elevation", "0"]) == 0
        film = [np.asarray(f)[..., :3].astype(int) for f in imageio.get_reader(str(out))]
        assert len(film) == 4 and film[0].shape == (48, 64, 3)
        for frame, left in ((film[0], 0), (film[2], 1)):
            assert frame[24, 2, 2] > 200 and frame[24, 2, :2].max() < 60  # background
            weight = [frame[..., c].sum(0) @ np.arange(64) / frame[..., c].sum() for c in (0, 1)]
            assert weight[left] < 26 and weight[1 - left] > 38
    said = capsys.readouterr()
    assert "balls.ply: 2 Gaussians, picture 4 of 4" in said.err and "4 pictures of 64 x 48" in said.out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["balls.ply", "turn.gif", "turn.mp4"]


@pytest.mark.parametrize(
    "options, match",
    [
        (["--out", "turn.avi"], "--out must end in .mp4 or .gif"),
        (["--out", "nowhere/turn.mp4"], "--out must lie in a folder that exists"),
        (["--width", "63"], "--width and --height must be even for .mp4, got 63 x 480"),
        (["--frames", "0"], "--frames and --fps must be >= 1"),
        (["--fov", "180"], "--fov must be between 0 and 180"),
        (["--elevation", "90"], "--elevation must be between -90 and 90"),
        (["--zoom", "nan"], "--zoom must be > 0"),
        (["--background", "0", "0", "2"], r"--background must be in \[0, 1\]"),
    ],
)
def test_options_that_cannot_be(
    options: list[str], match: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert view.main([str(tmp_path / "none.ply"), *options]) == 2
    assert capsys.readouterr().err.startswith("\nview: ")
    with pytest.raises(ValueError, match=match):
        view.film(_parsed([str(tmp_path / "none.ply"), *options]))


def _parsed(arguments: list[str]) -> argparse.Namespace:
    return view._arguments().parse_args(arguments)


def test_scenes_without_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_splats(tmp_path / "empty.ply", scene(0))
    (tmp_path / "text.ply").write_text("hello")
    for name, message in (
        ("empty", "must hold at least one Gaussian"), ("text", "must be a whole .ply"), ("none", "No such file"),
    ):  # fmt: skip
        assert view.main([str(tmp_path / f"{name}.ply"), "--out", str(tmp_path / "turn.mp4")]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "turn.mp4").exists()


def test_help_names_every_option() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "worldr1_kernels.rasterize.view", "--help"], capture_output=True, text=True, check=True
    )
    for action in view._arguments()._actions:
        assert action.help and (action.option_strings or [action.dest])[-1] in done.stdout
    assert "default: 120" in done.stdout
