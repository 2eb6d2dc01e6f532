"""The page of a run that goes on, and the curve of obedience while it trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from synthetic_run import make_run

from worldr1.report import LivePage, write_report
from worldr1.report import live as live_module
from worldr1.report.plots import obedience_curve


def watched(run: Path) -> Path:
    rows = [
        {"iteration": i - 1, "obedience": {"mean": m, "stderr": 0.07, "num": 48}} for i, m in ((16, 0.5), (32, 0.7))
    ]
    (run / "validation").mkdir(exist_ok=True)
    (run / "validation" / "obedience.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


def test_the_curve_of_obedience_stands_among_the_videos(tmp_path: Path) -> None:
    html = write_report(watched(make_run(tmp_path / "run", num_samples=2))).read_text(encoding="utf-8")
    assert html.index('class="film') < html.index('id="held-out"') < html.index('<h2 id="gates"')
    assert "Obedience on held-out prompts by iterations done" in html and "num-looks" not in html
    without = write_report(make_run(tmp_path / "without", num_samples=2)).read_text(encoding="utf-8")
    assert "--evaluation.num-looks" in without and 'id="held-out"' not in without


def test_the_curve_has_the_study_at_its_ends() -> None:
    marks = [obedience_curve([(40.0, 0.6, 0.07)], ends).count("<use ") for ends in ([], [(0.0, 0.5), (80.0, 0.9)])]
    assert marks[1] > marks[0] and "var(--after)" in obedience_curve([(40.0, 0.6, float("nan"))], [])


def test_a_run_that_goes_on_says_what_it_saw_last(tmp_path: Path) -> None:
    run = watched(make_run(tmp_path / "run", num_samples=1))
    for name in ("evaluation/study.json", "evaluation/samples.npz"):
        (run / name).unlink()
    html = write_report(run, live=True).read_text(encoding="utf-8")
    assert (
        "After 32 iterations: obedience to the camera 0.700 ± 0.070 on 48 held-out samples; no before/after study yet."
        in html
    )
    assert '<meta http-equiv="refresh" content="30">' in html and "loads itself again every 30 s" in html
    assert 'http-equiv="refresh"' not in write_report(run).read_text(encoding="utf-8")


def test_pages_of_a_live_run_cost_a_bounded_share_of_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, cost, written = [100.0], 2.0, []

    def slow(folder: Path, *, live: bool) -> None:
        assert live
        written.append(now[0])
        now[0] += cost

    monkeypatch.setattr(live_module, "write_report", slow)
    monkeypatch.setattr(live_module.time, "perf_counter", lambda: now[0])
    page = LivePage(tmp_path, enabled=True, say=pytest.fail)
    start = now[0]
    while now[0] < start + 1000:
        page.refresh()
        now[0] += 1.0
    assert 9 <= len(written) <= 11 and len(written) * cost / (now[0] - start) <= 0.022
    assert page.refresh(due=True)  # a validation's
    assert not LivePage(tmp_path, enabled=False, say=pytest.fail).refresh(due=True)  # another rank's


def test_a_live_page_that_cannot_be_written_is_told_and_stops_nothing(tmp_path: Path) -> None:
    said: list[str] = []
    assert LivePage(tmp_path / "nowhere", enabled=True, say=said.append).refresh()
    assert len(said) == 1 and "report: the folder must be" in said[0]


def test_an_older_page_stays_whole_until_the_new_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run", num_samples=1)
    before = write_report(run).read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    said: list[str] = []
    LivePage(run, enabled=True, say=said.append).refresh()
    assert (run / "report.html").read_bytes() == before and "must be writable" in said[0]
    assert not list(run.glob(".unfinished*"))
