"""The page of an evaluation: says what the files say, and does with what is there."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic_evaluation import SIDE, make_evaluation, write_about

from worldr1.report import load_evaluation as load_module
from worldr1.report import write_report
from worldr1.report.__main__ import main
from worldr1.report.evaluation_page import MAX_SHOWN, choose_clips, outcome, verdict
from worldr1.report.load_evaluation import load_evaluation
from worldr1.report.orbit import path, splats


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_evaluation(tmp_path_factory.mktemp("evaluation") / "out")


@pytest.fixture(scope="module")
def html(folder: Path) -> str:
    return write_report(folder).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_evaluation(tmp_path_factory.mktemp("evaluation") / "out", num=2)


def scenes(html: str) -> dict[str, Any]:
    return json.loads(re.search(r'id="scenes">(.*?)</script>', html, re.S)[1])


def test_one_sentence_says_what_happened(html: str) -> None:
    assert re.search(r"<h1>(.*?)</h1>", html, re.S)[1] == (
        "Tuned against base on 6 clips of 6 prompts: better in 1 of 2 measures, worse in 1, undecided in 0; "
        "PSNR 22.5 to 22.5 dB, RotErr 1.500 to 1.500 rad, motion magnitude 0.800 to 0.800 %; "
        "1 of 12 videos could not be judged."
    )


def test_one_arm_has_intervals_and_no_verdicts(tmp_path: Path) -> None:
    one = make_evaluation(tmp_path / "out", arms=["videos"])
    write_about(one, arms=["videos"])
    html = write_report(one).read_text(encoding="utf-8")
    assert (
        "6 clips of 6 prompts: PSNR 22.5 dB [22.0, 23.0], RotErr 1.500 rad [1.000, 2.000], "
        "motion magnitude 0.800 % [0.300, 1.300]; 1 of 6 videos could not be judged." in html
    )
    assert "verdict" not in html[html.index('id="measures"') : html.index('id="not-run"')]
    assert html.count('<canvas class="film') == 6 and "one noise" not in html


@pytest.mark.parametrize(
    ("low", "high", "better", "word"),
    [
        (0.1, 0.3, "up", "better"), (0.1, 0.3, "down", "worse"), (-0.3, -0.1, "down", "better"),
        (0.1, 0.3, "same", "changed"),
        (-0.3, -0.1, "up", "worse"), (-0.1, 0.3, "up", "open"), (0.0, 0.3, "up", "open"), (-0.1, 0.3, "same", ""),
        (None, 0.3, "up", ""),
    ],
)  # fmt: skip
def test_a_verdict_needs_an_interval_without_zero(low: float, high: float, better: str, word: str) -> None:
    assert verdict({"low": low, "high": high}, better) == word


def test_all_parts_are_there(html: str) -> None:
    for name in ("measures", "not-run", "in-space", "by-motion", "by-theme", "sheet", "clips", "run"):
        assert f'<h2 id="{name}"' in html, name
    assert html.count('<canvas class="film') == 12 and html.count('class="strip') == 12
    assert "its weights are not there" in html and "<code>make lpips</code>" in html
    assert "Without a figure: LPIPS." in html
    table = html[html.index('<h2 id="measures"') : html.index('<h2 id="not-run"')]
    assert table.count("✓ better") == 1 and table.count("✗ worse") == 1 and table.count("changed") == 1
    assert "[1.500, 2.500]" in table and "what lpips is" not in table
    assert html.count("too few tracks") == 2  # beside the clip and in the table
    ids = re.findall(r'\sid="([^"]*)"', html)
    assert len(ids) == len(set(ids))
    assert {u[:9] for u in re.findall(r'(?:src|href)="([^"]*)"', html)} == {"data:imag", "data:,"}


def test_what_is_drawn_in_space(html: str) -> None:
    found = scenes(html)
    assert len(found["paths"]) == 6 and len(found["splats"]) == 8 - 1  # four clips, of which one arm failed
    first = found["paths"][0]
    assert [(p["name"], p["colour"]) for p in first["paths"]] == [
        ("requested", "asked"), ("base", "before"), ("tuned", "after"),
    ]  # fmt: skip
    longest = [max(np.linalg.norm(p["centres"], axis=1)) for p in first["paths"]]
    np.testing.assert_allclose(longest, 1.0, atol=1e-3)  # each by its own
    assert first["paths"][0]["centres"][-1][2] > 0.99  # push in: forward
    unasked = next(s for s in found["paths"] if s["name"].startswith("0003"))
    assert [p["name"] for p in unasked["paths"]] == ["base", "tuned"]
    assert not any(splat["clip"] == "0002" and "tuned" in splat["name"] for splat in found["splats"])


def test_a_path_is_relative_to_its_first_camera() -> None:
    turn = np.array([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]])  # looks along world +x
    poses = np.tile(np.eye(4), (3, 1, 1))
    poses[:, :3, :3], poses[:, :3, 3] = turn, [[5, 1, 2], [6, 1, 2], [7, 1, 2]]  # moves along its own axis
    found = path(poses, unit=False)
    np.testing.assert_allclose(found["centres"], [[0, 0, 0], [0, 0, 1], [0, 0, 2]], atol=1e-4)
    np.testing.assert_allclose(found["looks"], [[0, 0, 1]] * 3, atol=1e-3)
    np.testing.assert_allclose(path(poses, unit=True)["centres"][-1], [0, 0, 1], atol=1e-4)
    poses[2, :3, :3] = turn @ turn  # and turns right
    np.testing.assert_allclose(path(poses, unit=False)["looks"][-1], [1, 0, 0], atol=1e-3)
    poses[1, 0, 3] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        path(poses, unit=True)


def test_splats_are_where_depth_and_cameras_put_them() -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (3, 3, 6, 8), dtype=np.uint8)
    depth = rng.uniform(1, 2, (3, 6, 8))
    K = np.array([[10.0, 0, 4], [0, 10, 3], [0, 0, 1]])
    cam_c2w = np.tile(np.eye(4), (3, 1, 1))
    cam_c2w[:, :3, 3] = [[5, 0, 0], [6, 0, 0], [7, 0, 0]]
    found = splats(frames, depth, cam_c2w, K)
    raw = base64.b64decode(found["data"])
    n = found["num"]
    assert n == 3 * 48 and len(raw) == 10 * n
    place = np.frombuffer(raw[: 6 * n], "<u2").reshape(n, 3) / 65535 * found["size"] + found["low"]
    colour = np.frombuffer(raw[6 * n : 9 * n], np.uint8).reshape(n, 3)
    for k, (f, i, j) in {0: (0, 0, 0), 48 + 8 * 2 + 5: (1, 2, 5), 143: (2, 5, 7)}.items():
        z = depth[f, i, j]
        want = [(j + 0.5 - 4) / 10 * z + f, (i + 0.5 - 3) / 10 * z, z]
        np.testing.assert_allclose(place[k], want, atol=1e-3)
        np.testing.assert_array_equal(colour[k], frames[f, :, i, j])
    assert found["focal"] == pytest.approx(10 / 6, rel=1e-4) and found["distance"] == pytest.approx(
        np.median(depth[0]), rel=1e-4
    )


def test_splats_stay_few_and_leave_out_what_is_far() -> None:
    frames = np.zeros((3, 3, 48, 64), np.uint8)
    depth = np.ones((81, 192, 256))
    depth[:, :20] = 1e4
    depth[:, 20:22] = np.nan
    K = np.array([[200.0, 0, 128], [0, 200, 96], [0, 0, 1]])
    found = splats(frames, depth, np.tile(np.eye(4), (81, 1, 1)), K)
    assert 8_000 < found["num"] <= 16_000 and found["size"][2] < 1e-3
    with pytest.raises(ValueError, match="without a point"):
        splats(frames, np.zeros((81, 4, 4)), np.tile(np.eye(4), (81, 1, 1)), K)


def test_two_hundred_clips_stay_below_ten_megabytes(tmp_path: Path) -> None:
    many = make_evaluation(tmp_path / "out", num=200)
    html = write_report(many).read_text(encoding="utf-8")
    assert len(html.encode()) < 10_000_000
    assert f"Shown: {MAX_SHOWN} of 200 clips" in html and "400 of 400 videos" in html
    chosen = choose_clips(load_evaluation(many))
    assert chosen == [f"{i:04d}" for i in range(MAX_SHOWN)]  # of four motions in turn
    assert len(scenes(html)["paths"]) == MAX_SHOWN


def test_shown_are_the_first_of_each_motion_then_the_second(tmp_path: Path) -> None:
    motions = ["b", "b", "b", "a", "b", "a"]
    lines = [{"clip": str(i), "arm": "videos", "motion": motion} for i, motion in enumerate(motions)]
    (tmp_path / "clips.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert choose_clips(load_evaluation(tmp_path)) == ["0", "3", "1", "5", "2", "4"]


def test_an_evaluation_that_goes_on_has_a_page(tmp_path: Path) -> None:
    on = make_evaluation(tmp_path / "out")
    (on / "summary.json").unlink()
    write_about(on, complete=False)
    lines = (on / "clips.jsonl").read_text().splitlines(keepends=True)
    (on / "clips.jsonl").write_text("".join(lines[:5]) + lines[5][:40])
    html = write_report(on).read_text(encoding="utf-8")
    assert "Unfinished: tuned against base on 3 clips of 3 prompts; 0" not in html
    assert "Unfinished: tuned against base on 3 clips" in html and "clips.jsonl: 1 damaged line(s) left out." in html
    assert "No summary.json: the means and intervals are not shown." in html and html.count('<canvas class="film') == 5
    (on / "clips.jsonl").write_text("")
    assert "Unfinished: no clip has been measured." in write_report(on).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["evaluation.json", "summary.json", "clips.jsonl"])
@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe[", b"[1, 2]", b'{"arms": 3, "measures": [], "clip": "1", "arm": "x"}']
)
def test_damaged_files_leave_a_page(small: Path, tmp_path: Path, name: str, content: bytes) -> None:
    copy = _linked(small, tmp_path / "out")
    (copy / name).write_bytes(content)
    html = write_report(copy).read_text(encoding="utf-8")
    assert "<h1>" in html and "The files hold what cannot be shown" not in html
    if not content.startswith(b"{"):
        assert name in html


def test_nulls_and_other_kinds_cost_their_own_cell(small: Path, tmp_path: Path) -> None:
    copy = _linked(small, tmp_path / "out")
    summary = json.loads((copy / "summary.json").read_text())
    summary["arms"]["base"] = None
    summary["differences"]["psnr"] = {"mean": "much", "low": 10**400, "high": None}
    summary["by_motion"] = {"push_in": 3, "pan_left": {"base": {"psnr": {"mean": None, "count": None}}}}
    (copy / "summary.json").write_text(json.dumps(summary))
    lines = [json.loads(line) for line in (copy / "clips.jsonl").read_text().splitlines()]
    lines[0] |= {"prompt": None, "measures": {"psnr": "high"}, "file": None, "motion": 3, "state": None}
    lines[1] |= {"file": "videos/nowhere.mp4", "measures": None}
    (copy / "clips.jsonl").write_text("\n".join(map(json.dumps, lines)))
    html = write_report(copy).read_text(encoding="utf-8")
    assert "Not shown: no video is named" in html and "nowhere.mp4" in html
    assert (
        '<h2 id="measures"' in html
        and '<h2 id="by-theme"' in html
        and "The files hold what cannot be shown" not in html
    )


def test_damaged_videos_and_cameras_cost_themselves(small: Path, tmp_path: Path) -> None:
    copy = _linked(small, tmp_path / "out")
    for file, content in (("videos/base/0000.mp4", b"half"), ("cameras/tuned/0000.npz", b"PK\x03\x04")):
        (copy / file).unlink()
        (copy / file).write_bytes(content)
    (copy / "cameras/base/0001.npz").unlink()
    np.savez(copy / "cameras/base/0001.npz", recovered_cam_c2w=np.zeros(3), depth=np.full((9, 4, 4), np.nan))
    html = write_report(copy).read_text(encoding="utf-8")
    assert "must be a video file" in html and html.count('<canvas class="film') == 3
    names = {splat["name"] for splat in scenes(html)["splats"]}
    assert "0000, base" not in names and "0001, base" not in names and "0001, tuned" in names


def test_a_camera_that_only_turns_has_a_path_and_no_reconstruction(small: Path, tmp_path: Path) -> None:
    copy = _linked(small, tmp_path / "out")
    lines = [json.loads(line) for line in _lines(copy)]
    lines[0]["state"] = "turning"
    (copy / "clips.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = scenes(write_report(copy).read_text(encoding="utf-8"))
    assert [splat["name"] for splat in found["splats"]] == ["0000, tuned", "0001, base", "0001, tuned"]
    assert [len(scene["paths"]) for scene in found["paths"]] == [3, 3]


def test_the_command_takes_an_evaluation(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(small)]) == 0
    assert capsys.readouterr().out.strip() == str(small / "report.html")
    assert "worldr1 evaluation" in (small / "report.html").read_text(encoding="utf-8")


def test_hostile_words_stay_words(small: Path, tmp_path: Path) -> None:
    copy = _linked(small, tmp_path / "out")
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)> \x00 \u202e 'q' \"q\""
    lines = [json.loads(line) | {"prompt": evil, "reason": evil, "state": evil} for line in _lines(copy)]
    (copy / "clips.jsonl").write_text("\n".join(map(json.dumps, lines)))
    write_about(copy, not_run=[{"column": evil, "reason": evil, "how": evil}], settings={evil: evil})
    html = write_report(copy).read_text(encoding="utf-8")
    assert html.count("<script>") == 1 and html.count("</script>") == 2
    assert "<img src=x" not in html and "onerror=alert(2)>" not in html


PUBLISHED = {
    "measures": {
        "psnr": {"label": "PSNR", "unit": "dB", "measure": "psnr"},
        "vbench": {"label": "VBench", "unit": "%", "measure": "vbench"},
        "rot_err": {"label": "RotErr", "unit": "rad", "measure": "rot_err"},
    },
    "tables": [
        {
            "title": "Of 81",
            "source": "an article",
            "frames": 81,
            "rows": [{"name": "A <b>", "psnr": 27.63, "vbench": 85.2}],
        },
        {"title": "Of nine", "note": "a note", "frames": 9, "rows": [{"name": "B", "rot_err": 1.21, "psnr": None}, 3]},
    ],
}


def test_published_figures_stand_beside_ours_with_a_warning(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_module, "PUBLISHED", tmp_path / "published.json")
    assert 'id="published"' not in write_report(small).read_text(encoding="utf-8")
    (tmp_path / "published.json").write_text(json.dumps(PUBLISHED))
    html = write_report(small).read_text(encoding="utf-8")
    part = html[html.index('<h2 id="published"') : html.index('<h2 id="sheet"')]
    assert "by another reconstructor" in part and "are not comparable" in part and "Source: an article" in part
    first, second = part[part.index("Of 81") : part.index("Of nine")], part[part.index("<h3>Of nine") :]
    assert re.findall(r"<td[^>]*>(.*?)</td>", first) == ["A &lt;b&gt;", "27.63", "85.2"]
    assert re.findall(r"<td[^>]*>(.*?)</td>", second) == [
        "B", "", "1.21",
        "this evaluation, base, 9 frames, by classical", "22.5", "1.500",
        "this evaluation, tuned, 9 frames, by classical", "22.5", "1.500",
    ]  # fmt: skip
    (tmp_path / "published.json").write_text('{"tables": [3, {"rows": 7}], "measures": []}')
    assert "<h1>" in write_report(small).read_text(encoding="utf-8")


def test_the_users_own_arrays_are_shown(small: Path, tmp_path: Path) -> None:
    copy = _linked(small, tmp_path / "out")
    np.savez(tmp_path / "mine.npz", video=np.full((5, SIDE, SIDE, 3), 77, np.uint8))
    lines = _lines(copy)
    (copy / "clips.jsonl").write_text(json.dumps(json.loads(lines[0]) | {"file": str(tmp_path / "mine.npz")}) + "\n")
    html = write_report(copy).read_text(encoding="utf-8")
    assert html.count('<canvas class="film') == 1 and 'data-frames="5"' in html


def test_the_outcome_counts_what_failed(small: Path, tmp_path: Path) -> None:
    copy = _linked(small, tmp_path / "out")
    lines = [json.loads(line) | {"state": "failed", "measures": {}} for line in _lines(copy)]
    (copy / "clips.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert "4 of 4 videos could not be judged." in outcome(load_evaluation(copy))


def _lines(folder: Path) -> list[str]:
    return (folder / "clips.jsonl").read_text().splitlines()


def _linked(folder: Path, target: Path) -> Path:
    """A copy whose videos and cameras are links."""
    for file in folder.rglob("*"):
        if file.is_file() and file.name != "report.html":
            to = target / file.relative_to(folder)
            to.parent.mkdir(parents=True, exist_ok=True)
            if file.suffix in (".json", ".jsonl"):
                to.write_bytes(file.read_bytes())
            else:
                to.hardlink_to(file)
    return target
