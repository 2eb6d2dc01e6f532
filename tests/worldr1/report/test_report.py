"""The page of a run: says what the files say, escapes what they say, and does with what is there."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from synthetic_run import make_run, write_study

from worldr1.report import write_report
from worldr1.report.__main__ import main
from worldr1.report.document import figure
from worldr1.report.load import load_run
from worldr1.report.plots import (
    Curve,
    _angles,
    _relative,
    path_errors,
    reward_curve,
    top_view,
    validation_curve,
    wilson,
)
from worldr1.report.run_page import choose_rows, outcome
from worldr1.report.sheets import encode_clip, encode_rows
from worldr1.run.video import write_video
from worldr1_kernels import trajectory_error


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run") / "micro")


@pytest.fixture(scope="module")
def html(run_dir: Path) -> str:
    return write_report(run_dir).read_text(encoding="utf-8")


def test_first_line_states_gain_error_and_gates(html: str) -> None:
    heading = re.search(r"<h1>(.*?)</h1>", html, re.S)[1]
    assert heading == (
        "Obedience to the camera rose: 0.583 to 0.906 (+0.323 ± 0.034, 9.5 s.e.) on 192 held-out samples; "
        "8 of 9 gates hold."
    )


def test_every_gate_has_its_verdict(html: str) -> None:
    table = html[html.index('<h2 id="gates"') : html.index('<h2 id="sheet"')]
    assert table.count("✓ passed") == 8 and table.count("✗ not passed") == 1
    assert "&gt;= 0.20 and &gt; 4 s.e." in table


def test_page_needs_nothing_outside_itself(html: str) -> None:
    assert len(html.encode()) < 4_000_000
    loaded = re.findall(r'(?:src|href|srcset|action)="([^"]*)"', html)
    assert {uri.split(",")[0][:9] for uri in loaded if not uri.startswith("#")} <= {"data:imag", "data:"}
    urls = set(re.findall(r"https?://[^\s\"'<]*", html))
    assert all(url.startswith("http://www.w3.org/") for url in urls)  # names of XML namespaces, never fetched
    assert "@import" not in html and re.search(r"url\((?!#)", html) is None


def test_no_id_is_used_twice(html: str) -> None:
    ids = re.findall(r'\sid="([^"]*)"', html)
    assert len(ids) > 5 and len(ids) == len(set(ids))


def test_all_parts_are_there(html: str, run_dir: Path) -> None:
    for part in ("gates", "sheet", "curves", "motions", "measures", "run"):
        assert f'<h2 id="{part}"' in html
    assert html.count('<canvas class="film') == 18 and html.count('class="strip') == 18
    assert html.index('class="film') < html.index('<h2 id="gates"')  # the videos come first
    assert html.count("<svg ") == 5 + 2 * 9 + 1  # total and four terms, path and errors for each sample, the bars
    assert "2.50 s an iteration" in html and "80 of 80" in html
    assert re.search(r'<tr class="changed"><td><code>seed</code></td><td><code>7</code> \(changed\)', html)


def test_same_files_give_the_same_page(run_dir: Path, html: str) -> None:
    assert write_report(run_dir).read_text(encoding="utf-8") == html


def test_hostile_words_stay_words(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", num_samples=2)
    evil = "</h3><script>alert(1)</script><img src=x onerror=alert(2)> $\\frac{ & \x00\x1b \u202e 'quote' \"q\""
    with np.load(run / "evaluation" / "samples.npz") as archive:
        arrays = dict(archive)
    arrays["prompts"] = np.array([evil, "Camera pan left."])
    np.savez(run / "evaluation" / "samples.npz", **arrays)
    write_study(run, per_motion={evil: {"num": 3, "before": 0.1, "after": 0.2}}, control="permuted")
    line = {"iteration": 0, "reward": 1.0, "terms": {evil: {"mean": 0.5, "stderr": 0.1}}}
    (run / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    (run / "environment.json").write_text(json.dumps({evil: evil}))
    html = write_report(run).read_text(encoding="utf-8")
    assert html.count("<script>") == 1 and "<img src=x" not in html and "onerror=alert(2)>" not in html
    assert "&lt;script&gt;alert(1)" in html
    assert "Control run, rewards shuffled inside each group" in html


def test_a_run_cut_short_still_has_a_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", num_samples=2)
    for name in ("evaluation/study.json", "evaluation/samples.npz", "environment.json", "timings.jsonl"):
        (run / name).unlink()
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join(lines[:12]) + '\n{"iteration": 12, "rew')  # power cut
    html = write_report(run).read_text(encoding="utf-8")
    assert "12 of 80 iterations are done: the run goes on, or was stopped." in html
    assert "metrics.jsonl: 1 damaged line(s) left out." in html
    assert "No before/after study: 12 iterations trained, and no gain is claimed." in html
    assert 'id="gates"' not in html and 'id="sheet"' not in html and html.count("<svg ") == 5


@pytest.mark.parametrize("name", ["config.json", "evaluation/study.json", "evaluation/samples.npz", "metrics.jsonl"])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe[", b"[1, 2]", b'{"gates": 3, "metrics": [], "per_motion": null}'])
def test_damaged_files_are_named_not_fatal(tmp_path: Path, name: str, content: bytes) -> None:
    run = make_run(tmp_path / "run", num_samples=1)
    (run / name).write_bytes(content)
    missing = load_run(run).missing
    if content.startswith(b"{"):  # an object, but of the wrong things: the page must cope
        assert "<h1>" in write_report(run).read_text(encoding="utf-8")
    if not (content.startswith(b"{") and name.endswith(("config.json", "study.json"))):
        assert any(Path(name).name in line for line in missing)


def test_a_line_written_twice_counts_once(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", num_samples=1)
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"iteration": 3, "reward": 99.0}) + "\n")
    rows = load_run(run).metrics
    assert [row["iteration"] for row in rows] == list(range(80)) and rows[3]["reward"] == 99.0


@pytest.mark.parametrize(
    ("gain", "stderr", "words"),
    [
        (0.3, 0.03, "rose"),
        (-0.3, 0.03, "fell"),
        (0.04, 0.03, "did not change beyond chance"),
        (0.0, 0.0, "did not change"),
    ],
)
def test_outcome_never_oversells(tmp_path: Path, gain: float, stderr: float, words: str) -> None:
    run = make_run(tmp_path / "run", num_samples=1)
    write_study(run, metrics={"obedience": {"before": 0.5, "after": 0.5 + gain, "gain": gain, "stderr": stderr}})
    assert f"the camera {words}" in outcome(load_run(run))[0]


def test_outcome_turns_green_only_when_every_gate_holds(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", num_samples=1)
    assert outcome(load_run(run))[1] == "mixed"
    gates = [{"name": "g", "label": "g", "value": 1.0, "threshold": ">= 0", "passed": True}]
    write_study(run, gates=gates)
    assert outcome(load_run(run))[1] == "good"
    write_study(run, gates=gates, control="permuted")
    assert outcome(load_run(run))[1] == "none"


def test_sheet_takes_the_first_of_each_motion() -> None:
    prompts = ["Camera pan left. A.", "Camera pan left. B.", "Camera push in. C.", "no camera", "Camera push in. D."]
    assert choose_rows(prompts, 4) == [0, 2, 3, 1]
    assert choose_rows(prompts, 2) == [0, 2]
    assert choose_rows([], 9) == []


def test_small_clips_are_exact() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (9, 3, 32, 32), dtype=np.uint8)
    clip = encode_clip(frames, fps=8)
    strip = np.asarray(_opened(clip.strip))  # [32, 9 * 32, 3]
    np.testing.assert_array_equal(strip, np.concatenate(list(frames.transpose(0, 2, 3, 1)), axis=1))
    film = np.asarray(_opened(clip.film))  # [2 * 32, 5 * 32, 3]: five in a row
    assert (clip.columns, clip.num_frames, clip.width, clip.height) == (5, 9, 32, 32) and film.shape == (64, 160, 3)
    for i in range(9):
        cell = film[i // 5 * 32 :, i % 5 * 32 :][:32, :32]
        np.testing.assert_array_equal(cell, frames[i].transpose(1, 2, 0))


def test_large_clips_are_thinned_and_keep_their_time() -> None:
    frames = np.zeros((81, 3, 96, 512), np.uint8)
    frames[:, 0] = np.linspace(0, 255, 81).astype(np.uint8)[:, None, None]
    clip = encode_clip(frames, fps=16)
    assert (clip.width, clip.height, clip.num_frames) == (256, 48, 25) and clip.seconds == 81 / 16
    film = np.asarray(_opened(clip.film)).astype(int)
    reds = [film[i // 5 * 48 + 24, i % 5 * 256 + 128, 0] for i in range(25)]
    assert reds[0] < 20 and reds[-1] > 235 and all(b > a for a, b in zip(reds, reds[1:], strict=False))


def test_rows_stop_at_the_budget() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (6, 5, 3, 32, 32), dtype=np.uint8)
    one = len(encode_clip(frames[0], fps=8))
    assert len(list(encode_rows(([clip] for clip in frames), fps=8, max_bytes=int(3.5 * one)))) == 3
    assert len(list(encode_rows(([clip, clip] for clip in frames), fps=8, max_bytes=int(3.5 * one)))) == 1
    assert len(list(encode_rows(([clip] for clip in frames), fps=8, max_bytes=1))) == 1
    with pytest.raises(
        ValueError, match=r"encode_clip: frames must be uint8 \[F, 3, H, W\], got uint8 \[5, 1, 32, 32\]"
    ):
        encode_clip(frames[0, :, :1], fps=8)


def test_wilson_interval_by_hand() -> None:
    low, high = wilson(0.5, 10)  # centre .5, half 1.96 / 1.38416 * sqrt(.025 + .009604)
    assert abs(low - 0.23659) < 1e-4 and abs(high - 0.76341) < 1e-4
    assert wilson(0.0, 5)[0] == 0.0 and wilson(1.0, 5)[1] == 1.0


def test_figures_take_colours_from_the_page_and_survive_gaps() -> None:
    n = 1000
    mean = np.sin(np.arange(n) / 50)
    mean[100:140] = np.nan
    svg = reward_curve(Curve("S & <b>", np.arange(n, dtype=float), mean, np.full(n, 0.1)), np.arange(n) % 100 > 90)
    assert re.search(r"#0\d0\d0\d", svg) is None and "var(--curve)" in svg and "var(--phase)" in svg
    assert 'aria-label="S &amp; &lt;b&gt; by' in svg and len(svg) < 60_000
    still = np.tile(np.eye(4), (9, 1, 1))
    assert "var(--asked)" in top_view([("requested", "#070707", still)], "at rest")
    assert "var(--asked)" in path_errors([("requested", "#070707", still)], "at rest")


def test_drawn_errors_are_those_of_the_kernel() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = 0.3 * torch.randn(2, 9, 6, generator=generator, dtype=torch.float64)
    skew = torch.zeros(2, 9, 4, 4, dtype=torch.float64)
    skew[..., 0, 1], skew[..., 0, 2], skew[..., 1, 2] = vectors[..., 0], vectors[..., 1], vectors[..., 2]
    viewmats = torch.linalg.matrix_exp(skew - skew.mT)
    viewmats[..., :3, 3] = vectors[..., 3:]
    error = trajectory_error(viewmats[:1], viewmats[1:], scale="none")
    (R_a, a), (R_b, b) = (_relative(v.numpy()) for v in viewmats)
    np.testing.assert_allclose(_angles(R_a, R_b), error.rotation[0], atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(a - b, axis=1), error.translation[0], atol=1e-12)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.1234, "0.123"),
        (27.63, "27.6"),
        (3, "3"),
        (None, ""),
        (-0.0, "0.000"),
        (float("nan"), "not finite"),
        (4e-5, "4.0e-05"),
    ],
)
def test_figures_as_text(value: object, text: str) -> None:
    assert figure(value) == text


def test_command_prints_the_page_or_one_line_of_error(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(run_dir)]) == 0
    assert capsys.readouterr().out.strip() == str(run_dir / "report.html")
    assert main([str(tmp_path / "nowhere")]) == 2
    assert "report: the folder must be the output_dir of a run or of an evaluation, got" in capsys.readouterr().err
    assert main([str(tmp_path)]) == 2
    assert "with none of them" in capsys.readouterr().err


def _opened(uri: str) -> Image.Image:
    kind, data = uri.split(",", 1)
    assert kind == "data:image/webp;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def validated(folder: Path, *, more: int = 0) -> Path:
    """A run that goes on: 30 of 80 iterations, validated after 10 and 20; a third validation is being written.

    The videos are longer by `more` bytes than they need to be.
    """
    run = make_run(folder, num_samples=2)
    for name in ("evaluation/study.json", "evaluation/samples.npz"):
        (run / name).unlink()
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join(lines[:30]) + "\n")
    rows = []
    for done, adapter in ((10, 1.1), (20, 1.35)):
        pair = {"base": 1.0, "adapter": adapter, "gain": adapter - 1.0, "stderr": 0.05, "num": 2}
        rows.append({
            "iteration": done - 1, "prompts": ["<b>pan</b> left", "push in"], "num": 2, "reward": pair,
            "terms": {"traj": pair},
        })  # fmt: skip
        sheet = run / "validation" / f"iteration_{done:06d}"
        sheet.mkdir(parents=True)
        for file in ("grid", "prompt_00", "prompt_01"):
            write_video(torch.full((5, 3, 16, 16), done / 40), sheet / f"{file}.mp4", fps=8)
            with (sheet / f"{file}.mp4").open("ab") as video:
                video.write((8 + more).to_bytes(4, "big") + b"free" + bytes(more))
    unfinished = run / "validation" / "iteration_000030"
    unfinished.mkdir()
    (unfinished / "prompt_00.mp4").write_bytes(b"whole, but the others are not yet there")
    (unfinished / ".unfinished_prompt_01.mp4").write_bytes(b"half")
    (run / "validation" / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


def test_a_running_run_shows_its_newest_whole_validation(tmp_path: Path) -> None:
    run = validated(tmp_path / "run")
    html = write_report(run).read_text(encoding="utf-8")
    heading = re.search(r"<h1>(.*?)</h1>", html, re.S)[1]
    assert heading == (
        "After 20 iterations: reward 1.000 to 1.350 (+0.350 ± 0.050) on 2 validation prompts; "
        "no before/after study yet."
    )
    assert "30 of 80 iterations are done: the run goes on, or was stopped." in html
    part = html[html.index('id="validation"') : html.index('id="curves"')]
    assert "newest clips after 20 iterations" in part and part.count("<svg ") == 2
    shown = re.search(r'<video [^>]*src="data:video/mp4;base64,([^"]*)"', part)[1]
    assert base64.b64decode(shown) == (run / "validation" / "iteration_000020" / "grid.mp4").read_bytes()
    assert re.findall(r'href="([^"#]*)"', part) == [
        f"validation/iteration_000020/{name}.mp4" for name in ("grid", "prompt_00", "prompt_01")
    ]
    assert "&lt;b&gt;pan&lt;/b&gt; left" in part and "media-src data:" in html


def test_a_large_sheet_is_linked(tmp_path: Path) -> None:
    html = write_report(validated(tmp_path / "run", more=1_000_000)).read_text(encoding="utf-8")
    assert "<video" not in html and 'href="validation/iteration_000020/grid.mp4"' in html
    assert len(html.encode()) < 1_000_000


def test_a_grid_that_cannot_be_played_is_told_and_an_older_one_shown(tmp_path: Path) -> None:
    run = validated(tmp_path / "run")
    folder = run / "validation"
    (folder / "iteration_000020" / "grid.mp4").write_bytes(b"half a film")
    (folder / "iteration_000020").rename(folder / "iteration_1000000")  # later than 999999, though not as text
    (folder / "iteration_000010_mine").mkdir()
    (folder / "iteration_000010_mine" / "grid.mp4").write_bytes(b"the user's own")
    html = write_report(run).read_text(encoding="utf-8")
    assert "The grid of iteration_1000000 cannot be played" in html and "newest clips after 10 iterations" in html
    shown = re.search(r'<video [^>]*src="data:video/mp4;base64,([^"]*)"', html)[1]
    assert base64.b64decode(shown) == (folder / "iteration_000010" / "grid.mp4").read_bytes()


def test_samples_with_flipped_bytes_are_a_sentence(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", num_samples=2)
    file = run / "evaluation" / "samples.npz"
    with np.load(file) as archive:
        arrays = dict(archive)
    np.savez_compressed(file, **arrays)  # as the study writes it
    raw = bytearray(file.read_bytes())
    for k in range(60, 400):
        raw[k] ^= 0xFF
    file.write_bytes(raw)
    html = write_report(run).read_text(encoding="utf-8")
    assert "evaluation/samples.npz cannot be read" in html and "the videos and trajectories are not shown" in html
    assert 'id="gates"' in html and 'id="sheet"' not in html


@pytest.mark.parametrize(
    ("name", "change", "part"),
    [
        ("config.json", {"evaluation": {"num_sheet_rows": float("inf")}}, "the videos are"),
        ("config.json", {"video": {"fps": 10**400}}, None),  # as if it said nothing
        ("evaluation/study.json", {"metrics": {"obedience": {"gain": 1e400, "before": 10**400}}}, None),
        ("environment.json", {"device": {"a": [1]}, "torch": None, "random_weights": 3}, None),
    ],
)
def test_numbers_that_no_one_meant_cost_their_part_alone(tmp_path: Path, name: str, change: dict, part: str) -> None:
    run = make_run(tmp_path / "run", num_samples=1)
    (run / name).write_text(json.dumps(json.loads((run / name).read_text()) | change))
    html = write_report(run).read_text(encoding="utf-8")
    assert 'id="curves"' in html and "<h1>" in html
    assert (f"{part} left out" in html) if part else ("left out" not in html)


@pytest.mark.parametrize("key", ["prompts", "requested", "obeyed_before", "before"])
@pytest.mark.parametrize("array", [np.array(3), np.array(["a"]), np.zeros((9, 9, 4, 4), complex), np.zeros((0, 4))])
def test_arrays_of_another_kind_leave_a_page(tmp_path: Path, key: str, array: np.ndarray) -> None:
    run = make_run(tmp_path / "run", num_samples=2)
    with np.load(run / "evaluation" / "samples.npz") as archive:
        arrays = dict(archive)
    np.savez(run / "evaluation" / "samples.npz", **(arrays | {key: array}))
    assert 'id="curves"' in write_report(run).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "text", ["", "{", '{"iteration": 3}', '{"iteration": 3, "terms": [], "reward": 1, "prompts": 2}']
)
def test_a_damaged_validation_is_not_fatal(tmp_path: Path, text: str) -> None:
    run = validated(tmp_path / "run")
    (run / "validation" / "validation.jsonl").write_text(text)
    html = write_report(run).read_text(encoding="utf-8")
    assert "No before/after study: 30 iterations trained" in html and 'id="validation"' in html


def test_the_validation_curve_draws_both_sides_and_the_error_of_the_difference() -> None:
    curve = Curve("traj", np.array([10.0, 20.0]), np.array([0.5, 0.8]), np.array([0.1, np.nan]))
    svg = validation_curve(curve, np.array([0.4, 0.4]))
    assert "var(--before)" in svg and "var(--after)" in svg and "iterations done" in svg
