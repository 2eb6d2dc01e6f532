"""The film of a scene: where the camera stands, what it says, and how it fails."""

import argparse
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.kernels.splat_scenes import rows, scene, write_rows
from worldr1_kernels.rasterize import view
from worldr1_kernels.rasterize.io import Splats, save_splats
from worldr1_kernels.testing import normal


@pytest.mark.parametrize("up", view.AXES)
def test_the_camera_goes_around_and_sees_the_middle(up: str) -> None:
    axis = torch.tensor(view.AXES[up])
    viewmats = view.turntable(num_frames=8, fov=0.8, up=view.AXES[up], elevation=0.3, zoom=2.0)
    rotation = viewmats[:, :3, :3]
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3).expand(8, 3, 3), rtol=0, atol=1e-6)
    assert bool((torch.linalg.det(rotation) > 0).all())
    distance = 0.5 / math.sin(0.4)  # of the middle, on the optical axis
    torch.testing.assert_close(viewmats[:, :3, 3], torch.tensor([0, 0, distance]).expand(8, 3), rtol=0, atol=1e-6)
    assert float((rotation[:, 1] @ axis).max()) < 0  # the picture's down is against up
    heights = -(rotation.mT @ viewmats[:, :3, 3:])[..., 0] @ axis
    torch.testing.assert_close(heights, torch.full((8,), distance * math.sin(0.3)), rtol=1e-4, atol=1e-5)
    steps = viewmats.roll(-1, 0) @ torch.linalg.inv(viewmats)
    torch.testing.assert_close(steps, steps[:1].expand_as(steps), rtol=0, atol=1e-4)  # one turn in equal parts


def ball(num: int = 300) -> Splats:
    """A hollow sphere of radius 1 around 0."""
    means = torch.nn.functional.normalize(normal((num, 3), 0), dim=1)
    colors = normal((num, 1, 3), 2).abs()
    return Splats(means, normal((num, 4), 1), torch.full((num, 3), 0.08), torch.full((num,), 0.8), colors)


@pytest.mark.parametrize("unit", [1.0, 1e-3, 1e-12, 1e10, 1e30])
def test_a_scene_of_any_unit_is_framed(unit: float) -> None:
    """In float32, whose squares end at 1e38: the same scene comes out, wherever it lies and however large it is."""
    splats = ball()
    expected = view.unit_scene(splats)
    reach = expected.means.norm(dim=1) + 0.08
    assert float((reach <= 1.0001 + 0.08).float().mean()) >= 0.9 and float(expected.means.abs().max()) < 1.2
    moved = splats._replace(means=(splats.means + 3) * unit, scales=splats.scales * unit, antialiased=True)
    got = view.unit_scene(moved)
    torch.testing.assert_close(got.means, expected.means, rtol=0, atol=1e-5)
    torch.testing.assert_close(got.scales, expected.scales, rtol=1e-4, atol=0)
    assert got.antialiased


def test_a_gaussian_at_the_end_of_the_world_does_not_move_the_scene() -> None:
    splats = ball()
    means = splats.means.clone()
    means[7] = torch.tensor([3e37, -1e36, 0.0])
    got, expected = view.unit_scene(splats._replace(means=means)), view.unit_scene(splats)
    rest = torch.arange(300) != 7
    assert float((got.means - expected.means)[rest].abs().max()) < 0.05
    alone = view.unit_scene(Splats(*(field[:1] for field in splats)))
    assert alone.means.tolist() == [[0.0, 0.0, 0.0]] and alone.scales.tolist() == [[1.0, 1.0, 1.0]]


def run(scene_path: Path, out: Path, *options: str, size: str = "64 48") -> int:
    width, height = size.split()
    command = [str(scene_path), "--out", str(out), "--frames", "2", "--width", width, "--height", height, *options]
    return view.main(command)


def brightness(path: Path) -> float:
    imageio = pytest.importorskip("imageio.v3")
    return float(imageio.imread(path).mean())


def test_the_film_does_not_depend_on_the_unit(tmp_path: Path) -> None:
    found = []
    for unit in (1.0, 1e-3, 1e10):
        splats = ball()
        save_splats(tmp_path / "a.ply", splats._replace(means=splats.means * unit, scales=splats.scales * unit))
        assert run(tmp_path / "a.ply", tmp_path / "a.gif") == 0
        found.append(brightness(tmp_path / "a.gif"))
    assert found[0] > 20 and found == pytest.approx([found[0]] * 3, abs=0.5)


def test_what_the_film_leaves_out_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    splats = scene(50)
    splats.means[:3] = torch.tensor([1e3, 0, 0])
    splats.quats[5] = 0
    save_splats(tmp_path / "a.ply", splats)
    table = rows(tmp_path / "a.ply").copy()
    table["x"][7] = np.nan
    write_rows(tmp_path / "a.ply", table)
    assert run(tmp_path / "a.ply", tmp_path / "a.gif", "--drop-invalid") == 0
    said = capsys.readouterr().err
    assert "left out 1 of 50 Gaussians that are not, the first in row 7" in said
    assert "left out 1 of 49 Gaussians that have a zero quaternion or are not finite" in said
    assert "3 of 49 Gaussians (6.12 %) are centred outside every picture" in said
    save_splats(tmp_path / "a.ply", ball())
    assert run(tmp_path / "a.ply", tmp_path / "a.gif") == 0
    assert "view:" not in capsys.readouterr().err


def test_a_film_of_nothing_is_an_error_and_of_one_colour_a_remark(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_splats(tmp_path / "a.ply", ball()._replace(opacities=torch.full((300,), 0.003)))  # below 1/255
    assert run(tmp_path / "a.ply", tmp_path / "a.gif") == 2
    assert "the film must show a Gaussian, but no picture has one" in capsys.readouterr().err
    assert not (tmp_path / "a.gif").exists()
    black = ball()._replace(colors=torch.full((300, 1, 3), -3.0))
    save_splats(tmp_path / "a.ply", black)
    assert run(tmp_path / "a.ply", tmp_path / "a.gif") == 0
    assert "a.ply: every picture is of one colour" in capsys.readouterr().err
    assert run(tmp_path / "a.ply", tmp_path / "a.gif", "--background", "1", "1", "1") == 0
    assert "of one colour" not in capsys.readouterr().err


def test_the_mode_of_the_file_is_shown(tmp_path: Path) -> None:
    """Without the compensation of the mode it was fitted in, a cloud of specks is much too bright."""
    specks = ball()._replace(scales=torch.full((300, 3), 1e-3))
    found = []
    for antialiased in (False, True):
        save_splats(tmp_path / "a.ply", specks._replace(antialiased=antialiased))
        assert run(tmp_path / "a.ply", tmp_path / "a.gif") == 0
        found.append(brightness(tmp_path / "a.gif"))
    assert 0 < found[1] < found[0] / 5


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


def one_line(text: str) -> str:
    """What is said beside the progress."""
    lines = [line for line in re.split("[\r\n]", text) if line and ", picture " not in line]
    assert len(lines) == 1 and "Traceback" not in text, text
    return lines[0]


def test_scenes_without_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every one ends in one line and 2."""
    save_splats(tmp_path / "empty.ply", scene(0))
    save_splats(tmp_path / "good.ply", scene(20))
    save_splats(tmp_path / "good.spz", scene(20))
    save_splats(tmp_path / "clear.ply", scene(20)._replace(opacities=torch.zeros(20)))
    table = rows(tmp_path / "good.ply").copy()
    table["opacity"][3] = np.nan
    write_rows(tmp_path / "nan.ply", table)
    table["opacity"] = np.nan
    write_rows(tmp_path / "nans.ply", table)
    (tmp_path / "text.ply").write_text("hello")
    (tmp_path / "random.ply").write_bytes(np.random.default_rng(0).bytes(5000))
    (tmp_path / "random.spz").write_bytes(np.random.default_rng(1).bytes(5000))
    for suffix in (".ply", ".spz"):
        (tmp_path / f"cut{suffix}").write_bytes((tmp_path / f"good{suffix}").read_bytes()[:-9])
    (tmp_path / "folder.ply").mkdir()
    before = sorted(tmp_path.iterdir())
    for name, message in {
        "empty.ply": "must hold at least one Gaussian that is not transparent",
        "nan.ply": "must hold finite values, got 1 of 20 Gaussians that are not, the first in row 3",
        "text.ply": "text.ply must be a whole .ply of 3D Gaussians, but it does not begin with",
        "random.ply": "random.ply must be a whole .ply",
        "random.spz": "random.spz must be a whole .spz",
        "cut.ply": "cut.ply must be a whole .ply",
        "cut.spz": "cut.spz must be a whole .spz",
        "folder.ply": "Is a directory",
        "none.ply": "No such file",
        "scene.obj": "path must end in .ply or .spz",
    }.items():
        assert run(tmp_path / name, tmp_path / "turn.mp4") == 2, name
        assert message in one_line(capsys.readouterr().err), name
    assert run(tmp_path / "nans.ply", tmp_path / "turn.mp4", "--drop-invalid") == 2
    assert "must hold at least one Gaussian" in capsys.readouterr().err
    assert run(tmp_path / "clear.ply", tmp_path / "turn.gif") == 2  # opacities of 1e-6
    assert "no picture has one" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "error",
    [PermissionError("Permission denied"), MemoryError(), torch.OutOfMemoryError("CUDA out of memory.\nTried to"),
     ImportError("no ffmpeg")],
)  # fmt: skip
def test_what_else_can_fail_ends_in_one_line(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    save_splats(tmp_path / "a.ply", ball())
    monkeypatch.setattr(view, "rasterize", fail)
    for name in ("a.gif", "a.mp4"):
        assert run(tmp_path / "a.ply", tmp_path / name) == 2
        said = one_line(capsys.readouterr().err)
        assert said == f"view: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
    assert [p.name for p in tmp_path.iterdir()] == ["a.ply"]


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cuda", "--device cuda needs a CUDA device, torch sees 0; use --device cpu"),
        ("cuda:3", "--device cuda:3 needs a CUDA device, torch sees 0; use --device cpu"),
        ("meta", "--device must be cpu, cuda or cuda:N, got meta"),
        ("cuda:x", "--device must be cpu, cuda or cuda:N, got cuda:x"),
        ("", "--device must be cpu, cuda or cuda:N, got"),
    ],
)
def test_devices_that_are_not_there(
    device: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    save_splats(tmp_path / "a.ply", ball())
    assert run(tmp_path / "a.ply", tmp_path / "a.mp4", "--device", device) == 2
    assert one_line(capsys.readouterr().err) == f"view: {message}"


def test_pairs_that_found_no_room_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The CUDA kernels make such a view NaN and say so in meta alone."""
    whole = view.rasterize

    def short(*args: Any, **options: Any) -> Any:
        out = whole(*args, **options)
        return out._replace(meta=out.meta | {"num_overflow": torch.tensor([5])})

    monkeypatch.setattr(view, "rasterize", short)
    save_splats(tmp_path / "a.ply", ball())
    assert run(tmp_path / "a.ply", tmp_path / "a.gif") == 2
    assert "no room for 5 (tile, Gaussian) pairs" in one_line(capsys.readouterr().err)


@pytest.mark.parametrize("suffix", ["gif", "mp4"])
def test_a_full_disk_leaves_no_half_film(suffix: str, tmp_path: Path) -> None:
    """A limit on the size of a file stands for the disk; ffmpeg is under it too."""
    save_splats(tmp_path / "a.ply", ball())
    command = f"ulimit -f 4; {sys.executable} -m worldr1_kernels.rasterize.view a.ply --width 160 --height 120"
    done = subprocess.run(
        ["bash", "-c", f"{command} --frames 20 --out a.{suffix}"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stdout == ""
    assert "File too large" in one_line(done.stderr) or "is the disk full?" in one_line(done.stderr)
    assert [p.name for p in tmp_path.iterdir()] == ["a.ply"]


def test_help_names_every_option() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "worldr1_kernels.rasterize.view", "--help"], capture_output=True, text=True, check=True
    )
    for action in view._arguments()._actions:
        assert action.help and (action.option_strings or [action.dest])[-1] in done.stdout
    assert "default: 120" in done.stdout
