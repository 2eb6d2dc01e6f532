"""The page in a real browser: headless Chromium shows every picture and reports no error."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from synthetic_run import make_run

from worldr1.report import write_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path: the page is not opened in a browser")

# Runs in a copy of the page, without the policy that would refuse it: what the page's own script must not need. It
# waits for nothing: the browser's virtual time would run out before a busy machine had decoded the pictures.
PROBE = """
addEventListener("load", () => {
  const images = [...document.images];
  const shown = (e) => e.getBoundingClientRect().width > 20 && e.getBoundingClientRect().height > 20;
  const button = document.getElementById("pause");
  button.click();
  const stills = document.querySelectorAll("canvas.still").length;
  button.click();
  const ink = getComputedStyle(document.querySelector("svg text")).fill;
  document.body.dataset.probe = JSON.stringify({
    images: images.length,
    loaded: images.filter((image) => image.naturalWidth > 0).length,
    shown: images.filter(shown).length,
    svgs: document.querySelectorAll("svg").length,
    svgs_shown: [...document.querySelectorAll("svg")].filter(shown).length,
    stills: stills,
    stills_left: document.querySelectorAll("canvas.still").length,
    overflow: document.documentElement.scrollWidth - innerWidth,
    unnamed: images.filter((image) => !image.alt).length,
    text_fill: ink,
    requests: performance.getEntriesByType("resource").filter((r) => !r.name.startsWith("data:")).length,
  });
});
"""


def chromium(page: Path, profile: Path, *, width: int = 1200) -> tuple[str, str]:
    """Document after load, and what the browser's console said."""
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        "--disable-background-networking", "--disable-sync", "--disable-extensions", "--enable-logging=stderr",
        f"--user-data-dir={profile}", f"--window-size={width},900", "--virtual-time-budget=8000", "--dump-dom",
        page.resolve().as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    console = "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)
    return done.stdout, console


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(make_run(tmp_path_factory.mktemp("run") / "micro"))


def test_page_opens_without_a_word_on_the_console(page: Path, tmp_path: Path) -> None:
    dom, console = chromium(page, tmp_path / "profile")
    assert console == ""
    button = re.search(r'<button id="pause"[^>]*>', dom)[0]
    assert "hidden" not in button  # the page's own script ran: its hash in the policy is right


def test_a_broken_page_would_be_noticed(page: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    broken.write_text(page.read_text(encoding="utf-8").replace("</main>", "</main><script>nope()</script>"))
    assert "Content Security Policy" in chromium(broken, tmp_path / "profile")[1]


@pytest.mark.parametrize("width", [500, 1200])
def test_every_picture_is_shown(page: Path, tmp_path: Path, width: int) -> None:
    html = re.sub(r"<meta http-equiv=[^>]*>", "", page.read_text(encoding="utf-8"))
    probed = tmp_path / "probed.html"
    probed.write_text(html.replace("</body>", f"<script>{PROBE}</script></body>"), encoding="utf-8")
    for attempt in range(3):  # a starved browser may print the document before its load event
        dom, console = chromium(probed, tmp_path / f"profile{attempt}", width=width)
        assert console == ""
        found = re.search(r'data-probe="([^"]*)"', dom)
        if found:
            break
    assert found, "the page never finished loading"
    probe = json.loads(found[1].replace("&quot;", '"'))
    assert probe == {
        "images": 36, "loaded": 36, "shown": 36, "unnamed": 0,
        "svgs": 24, "svgs_shown": 24, "stills": 18, "stills_left": 0,
        "overflow": probe["overflow"], "text_fill": probe["text_fill"], "requests": 0,
    }  # fmt: skip
    assert probe["overflow"] <= 0  # nothing sticks out sideways, on a phone either
    assert probe["text_fill"] in (
        "rgb(91, 96, 105)",
        "rgb(163, 168, 177)",
    )  # --muted, light or dark: variables reach SVG
