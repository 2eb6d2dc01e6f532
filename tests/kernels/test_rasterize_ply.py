"""The .ply, plain and packed: as plyfile, gaussforge and gsplat write and read it."""

import math
from pathlib import Path

import numpy as np
import plyfile
import pytest
import torch

from tests.kernels.splat_scenes import assert_close, forge, rows, scene, with_value, write_rows
from worldr1_kernels.rasterize.io import Splats, degree, load_splats, save_splats


def gsplat_export(splats: Splats, form: str) -> bytes:
    exporter = pytest.importorskip("gsplat.exporter")
    fields = (splats.means, splats.scales.log(), splats.quats, splats.opacities.logit())
    return exporter.export_splats(*(f.clone() for f in fields), splats.colors[:, :1], splats.colors[:, 1:], format=form)


def test_gsplats_exporter_is_read(tmp_path: Path) -> None:
    splats = scene(40, 3)
    (tmp_path / "a.ply").write_bytes(gsplat_export(splats, "ply"))
    assert_close(load_splats(tmp_path / "a.ply"), splats)


def test_harmonics_of_packed_ply_end_at_4(tmp_path: Path) -> None:
    """Bytes 0 and 255 are -4 and 4 themselves, others the middle of 256 intervals: SuperSplat's rule."""
    splats = scene(2, 1)
    splats.colors[:, 1:] = torch.tensor([-5.0, 5.0, -3.98])
    (tmp_path / "a.ply").write_bytes(gsplat_export(splats, "ply_compressed"))
    assert load_splats(tmp_path / "a.ply").colors[:, 1:].unique().tolist() == [-4.0, 4.0]
    splats.colors[:, 1:] = torch.tensor([-3.96, 0.01, 3.96])
    (tmp_path / "a.ply").write_bytes(gsplat_export(splats, "ply_compressed"))
    assert load_splats(tmp_path / "a.ply").colors[0, 1].tolist() == [1.5 / 32 - 4, 0.5 / 32, 254.5 / 32 - 4]


def matched(got: Splats, splats: Splats) -> Splats:
    """`splats` in the order of `got`: each of them nearest to one."""
    nearest = torch.cdist(got.means, splats.means).argmin(1)
    assert len(nearest.unique()) == len(splats.means)
    return Splats(*(field[nearest] for field in splats))


@pytest.mark.parametrize("writer", ["gsplat", "gaussforge"])
@pytest.mark.parametrize("sh_degree", [0, 1, 3])
def test_packed_ply_comes_back_to_its_quantisation(writer: str, sh_degree: int, tmp_path: Path) -> None:
    """600 Gaussians in 3 chunks, as two others pack them: 10 bits at least of each chunk's extent."""
    splats = scene(600, sh_degree)
    save_splats(tmp_path / "a.ply", splats)
    plain = (tmp_path / "a.ply").read_bytes()
    content = gsplat_export(splats, "ply_compressed") if writer == "gsplat" else forge(plain, "ply", "compressed.ply")
    (tmp_path / "b.ply").write_bytes(content)
    got = load_splats(tmp_path / "b.ply")
    assert degree(got) == sh_degree and len(got.means) == 600
    wanted = matched(got, splats)
    assert float((got.means - wanted.means).abs().max()) <= 8 / 1023 / 2
    assert float((got.scales / wanted.scales).log().abs().max()) <= 0.5 / 1023
    assert float((got.opacities - wanted.opacities).abs().max()) <= 0.5 / 255 + 1e-6
    quats = wanted.quats / wanted.quats.norm(dim=1, keepdim=True)
    assert float(((got.quats * quats).sum(1).abs() - 1).abs().max()) < 1e-5
    assert float((got.colors[:, 0] - wanted.colors[:, 0]).abs().max()) <= 2 / 255 / 2 + 1e-5
    if sh_degree and writer == "gsplat":  # gaussforge 0.6 writes them colour by colour, which it does not read itself
        assert float((got.colors[:, 1:] - wanted.colors[:, 1:]).abs().max()) <= 4 / 256 + 1e-5
        (tmp_path / "c.ply").write_bytes(forge(content, "compressed.ply", "ply"))
        assert_close(got, load_splats(tmp_path / "c.ply"), opacities=1.1e-3)


@pytest.mark.parametrize("order", ["<", ">"])
def test_packed_ply_by_hand(order: str, tmp_path: Path) -> None:
    """Two Gaussians of known words: the oldest form, without bounds of colours and without harmonics."""
    bounds = dict(min_x=-1, min_y=0, min_z=2, max_x=1, max_y=10, max_z=4)
    bounds |= dict(min_scale_x=-4, min_scale_y=-4, min_scale_z=-4, max_scale_x=0, max_scale_y=0, max_scale_z=-2)
    chunks = np.array([tuple(bounds.values())], [(name, order + "f4") for name in bounds])
    words = [f"packed_{name}" for name in ("position", "rotation", "scale", "color")]
    rows_ = [
        (2047 << 21 | 0 << 11 | 0, 0 << 30 | 1023 << 20 | 0 << 10 | 0, 0, 255 << 24 | 0 << 16 | 51 << 8 | 102),
        (0 << 21 | 1023 << 11 | 2047, 3 << 30, 2047 << 21 | 1023 << 11 | 2047, 255),
    ]
    table = np.array(rows_, [(name, order + "u4") for name in words])
    elements = [plyfile.PlyElement.describe(t, n) for t, n in ((chunks, "chunk"), (table, "vertex"))]
    plyfile.PlyData(elements, byte_order=order, comments=["SplatRenderMode: mip"]).write(str(tmp_path / "a.ply"))
    got = load_splats(tmp_path / "a.ply")
    h = 0.5**0.5
    assert got.antialiased and degree(got) == 0
    assert got.means.tolist() == [[1.0, 0.0, 2.0], [-1.0, 10.0, 4.0]]
    assert got.quats.tolist() == [pytest.approx([0.0, h, -h, -h]), pytest.approx([-h, -h, -h, 0.0])]
    assert got.scales.log().tolist() == [pytest.approx([-4.0, -4.0, -4.0]), pytest.approx([0.0, 0.0, -2.0], abs=1e-6)]
    assert got.opacities.tolist() == pytest.approx([0.4, 1.0])
    rgb = 0.5 + 0.28209479177387814 * got.colors[:, 0]
    assert rgb.tolist() == [pytest.approx([1.0, 0.0, 0.2], abs=1e-6), pytest.approx([0.0, 0.0, 0.0], abs=1e-6)]
    content = (tmp_path / "a.ply").read_bytes()
    for old, new, message in (
        (b"element chunk 1", b"element chunk 0", "a chunk for 256 vertices and a row of sh for each, got 0"),
        (b"property float min_y", b"property float min_q", "its element chunk have min_x"),
        (b"property uint packed_scale", b"property float packed_scale", "its packed vertices must be uint"),
        (b"element vertex 2", b"element vertex 3", "it ends in its element vertex, which should have 3 rows"),
    ):
        (tmp_path / "a.ply").write_bytes(content.replace(old, new))
        with pytest.raises(ValueError, match=message):
            load_splats(tmp_path / "a.ply")


@pytest.mark.parametrize(
    ("comments", "antialiased"),
    [
        ([], False),
        (["antialiased 1"], True),  # Postshot
        (["antialiased 0"], False),
        (["Exported from Brush", "  SPLATRENDERMODE:  MIP "], True),
        (["SplatRenderMode: default"], False),
        (["SplatRenderMode: mip", "antialiased 0"], False),  # the last of them
        (["This is not antialiased 1"], False),
    ],
)
def test_comments_that_name_a_mode(comments: list[str], antialiased: bool, tmp_path: Path) -> None:
    save_splats(tmp_path / "a.ply", scene(2))
    elements = [plyfile.PlyElement.describe(rows(tmp_path / "a.ply"), "vertex")]
    plyfile.PlyData(elements, comments=comments).write(str(tmp_path / "b.ply"))
    assert load_splats(tmp_path / "b.ply").antialiased == antialiased


def test_numbers_in_a_text_are_of_their_type(tmp_path: Path) -> None:
    """A packed .ply as text comes back; a word that is no whole number, or beyond 32 bits, is refused."""
    save_splats(tmp_path / "a.ply", scene(3, 1))
    packed = tmp_path / "b.ply"
    packed.write_bytes(forge((tmp_path / "a.ply").read_bytes(), "ply", "compressed.ply"))
    expected, data = load_splats(packed), plyfile.PlyData.read(str(packed))
    word = str(data["vertex"]["packed_scale"][1])
    data.text = True
    packed = tmp_path / "c.ply"  # plyfile has the other mapped
    data.write(str(packed))
    assert_close(load_splats(packed), expected)
    content = packed.read_text()
    assert content.count(word) == 1
    for bad in ("nan", "-1", "4294967296", "1.5"):
        packed.write_text(content.replace(word, bad))
        with pytest.raises(ValueError, match="its packed_scale must hold whole numbers from 0 to 4294967295"):
            load_splats(packed)


@pytest.mark.parametrize("end", ["\r\n", "\r"])
def test_headers_with_other_ends_of_lines(end: str, tmp_path: Path) -> None:
    save_splats(tmp_path / "a.ply", scene(3))
    head, data = (tmp_path / "a.ply").read_bytes().split(b"end_header\n")
    (tmp_path / "b.ply").write_bytes((head + b"end_header\n").replace(b"\n", end.encode()) + data)
    for a, b in zip(load_splats(tmp_path / "b.ply"), load_splats(tmp_path / "a.ply"), strict=True):
        assert torch.equal(a, b)


def test_elements_beside_the_vertices(tmp_path: Path) -> None:
    """Numbers before them are passed over, faces behind them are not looked at."""
    save_splats(tmp_path / "a.ply", scene(5))
    faces = np.empty(2, [("vertex_indices", "O")])
    faces["vertex_indices"] = [np.arange(3, dtype="i4"), np.arange(2, dtype="i4")]
    cameras = np.array([(1.0, 2), (3.0, 4)], [("f", "f8"), ("k", "u1")])
    parts = {"camera": cameras, "vertex": rows(tmp_path / "a.ply"), "face": faces}
    elements = [plyfile.PlyElement.describe(table, name) for name, table in parts.items()]
    for text in (False, True):
        plyfile.PlyData(elements, text=text).write(str(tmp_path / "b.ply"))
        assert_close(load_splats(tmp_path / "b.ply"), load_splats(tmp_path / "a.ply"))
    plyfile.PlyData(elements[::-1]).write(str(tmp_path / "b.ply"))
    with pytest.raises(ValueError, match="its element face holds lists, which are not read"):
        load_splats(tmp_path / "b.ply")


def test_ply_refuses_what_float32_does_not_hold(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="means must be finite, got 1 values that are not in float32"):
        save_splats(tmp_path / "a.ply", with_value("means", 1e39))
    save_splats(tmp_path / "a.ply", with_value("scales", 1e-300))  # its logarithm is kept; the number itself is 0
    assert float(rows(tmp_path / "a.ply")["scale_2"][4]) == pytest.approx(math.log(1e-300))
    table = rows(tmp_path / "a.ply")
    wide = table.astype([(name, "f8") for name in table.dtype.names])
    wide["x"][2] = 1e39
    write_rows(tmp_path / "b.ply", wide)
    with pytest.raises(ValueError, match="b.ply must hold finite values, got 1 of 6 Gaussians"):
        load_splats(tmp_path / "b.ply")


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
