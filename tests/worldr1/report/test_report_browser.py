"""The pages in a real browser: headless Chromium shows them, is asked by keyboard, and reports no error."""

from __future__ import annotations

import base64
import io
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from synthetic_evaluation import make_evaluation
from synthetic_run import make_run

from worldr1.report import write_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path: the page is not opened in a browser")
PAGES = ("run", "evaluation")

# Contrast of every text that is shown with what lies behind it, by WCAG 2.2's formula: the texts below 4.5.
CONTRAST = """() => {
  const parse = (text) => {
    const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number);
    return text.includes("srgb") ? [255 * r, 255 * g, 255 * b, a] : [r, g, b, a];
  };
  const over = (top, under) => top.slice(0, 3).map((v, k) => v * top[3] + under[k] * (1 - top[3])).concat(1);
  const light = (c) => {
    const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = c.slice(0, 3).map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) layers.push(parse(getComputedStyle(e).backgroundColor));
    return layers.reverse().reduce((under, top) => over(top, under), [255, 255, 255, 1]);
  };
  const low = [];
  let seen = 0;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || element.closest("script, style") || !element.checkVisibility()) continue;
    const style = getComputedStyle(element), ground = behind(element);
    const ink = over(parse(element instanceof SVGElement ? style.fill : style.color), ground);
    const [a, b] = [light(ink), light(ground)].sort((x, y) => y - x);
    seen += 1;
    if ((a + 0.05) / (b + 0.05) < 4.5) low.push(walker.currentNode.data.trim() + " " + (a + 0.05) / (b + 0.05));
  }
  return { seen, low };
}"""

# What a reader of screens is not told: pictures, canvases, drawings and controls without a name.
UNNAMED = """() => [
  ...[...document.images].filter((e) => !e.alt),
  ...[...document.querySelectorAll("canvas, svg, video")].filter((e) => !e.getAttribute("aria-label")),
  ...[...document.querySelectorAll("button, input, select, [tabindex]")].filter((e) =>
    !e.getAttribute("aria-label") && !e.getAttribute("aria-labelledby") && !e.labels?.length && !e.textContent.trim()),
].map((e) => e.outerHTML.slice(0, 80))"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    return {
        "run": write_report(make_run(folder / "micro")),
        "evaluation": write_report(make_evaluation(folder / "evaluation")),
    }


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--disable-dev-shm-usage", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield started
        started.close()


class Opened:
    """A page in the browser, what its console said and what it asked of the network."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        options.setdefault("viewport", {"width": 1200, "height": 900})
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.resolve().as_uri())
        self.until("[...document.images].every((image) => image.complete)")

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()

    def pixels(self, selector: str) -> np.ndarray:
        """A canvas as it is, [h, w, 3]."""
        uri = self.page.evaluate("(selector) => document.querySelector(selector).toDataURL()", selector)
        image = Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))
        return np.asarray(Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA")))[..., :3]

    def until(self, condition: str) -> None:
        """Wait for a condition; the page's policy forbids Playwright's own way."""
        deadline = time.monotonic() + 20
        while not self.page.evaluate(condition):
            assert time.monotonic() < deadline, f"never came true: {condition}"

    def settle(self) -> None:
        """Two frames of the screen: what was asked for is drawn."""
        self.page.evaluate("() => new Promise((f) => requestAnimationFrame(() => requestAnimationFrame(f)))")


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_is_quiet_asks_nothing_and_can_be_read(
    browser: Any, pages: dict[str, Path], name: str, scheme: str
) -> None:
    with Opened(browser, pages[name], color_scheme=scheme, reduced_motion="reduce") as opened:
        opened.page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
        found = opened.page.evaluate(CONTRAST)
        assert found["low"] == [] and found["seen"] > 100
        assert opened.page.evaluate(UNNAMED) == []
        assert opened.page.evaluate("[...document.images].filter((i) => !i.naturalWidth).length") == 0
        assert opened.page.locator(".controls").is_visible()  # the script ran: its hash in the policy is right
        assert opened.said == []
        assert [url for url in opened.asked if not url.startswith(("file:", "data:"))] == []


def test_what_is_wrong_would_be_noticed(browser: Any, pages: dict[str, Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    pale = (
        '<p style="color:#aaa">pale</p><img src="data:,"><canvas></canvas><img src="https://example.org/x.png" alt="x">'
    )
    html = pages["evaluation"].read_text(encoding="utf-8")
    broken.write_text(html.replace("</main>", f"{pale}</main><script>nope()</script>"))
    with Opened(browser, broken) as opened:
        assert any(line.startswith("pale") for line in opened.page.evaluate(CONTRAST)["low"])
        assert len(opened.page.evaluate(UNNAMED)) == 2
        assert any("Content Security Policy" in line for line in opened.said)


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("width", [380, 1200])
def test_nothing_sticks_out_sideways(browser: Any, pages: dict[str, Path], name: str, width: int) -> None:
    with Opened(browser, pages[name], viewport={"width": width, "height": 800}) as opened:
        opened.page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
        assert opened.page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
        boxes = opened.page.evaluate(
            "[...document.querySelectorAll('canvas, img.strip, svg')].map((e) => e.getBoundingClientRect().toJSON())"
        )
        assert len(boxes) > 20 and all(box["width"] > 20 and box["height"] > 6 for box in boxes)
        films = opened.page.evaluate(
            "[...document.querySelectorAll('canvas.film')].map((e) => e.getBoundingClientRect().toJSON())"
        )
        assert all(box["left"] >= 0 and box["right"] <= width for box in films)
        if width == 1200:
            assert {round(box["height"]) for box in films} == {192}  # twice the size of a thumbnail of 96


def test_videos_are_played_by_keyboard_and_in_step(browser: Any, pages: dict[str, Path]) -> None:
    with Opened(browser, pages["run"], reduced_motion="reduce") as opened:
        page, told = opened.page, lambda: opened.page.locator("#told").inner_text()
        assert told() == "1 / 9" and page.locator("#play").inner_text() == "Play"  # nothing moves unasked
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "player"
        first = opened.pixels("canvas.film").astype(int)
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")
        assert told() == "3 / 9" and page.locator("#scrub").input_value() == "2"
        assert np.abs(opened.pixels("canvas.film") - first).max() > 50
        page.keyboard.press("ArrowLeft")
        assert told() == "2 / 9"
        page.keyboard.press("Home")
        np.testing.assert_array_equal(opened.pixels("canvas.film"), first)
        page.keyboard.press("ArrowLeft")
        assert told() == "9 / 9"  # around
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "play"
        page.keyboard.press("Space")
        assert page.locator("#play").get_attribute("aria-pressed") == "true"
        opened.until("document.getElementById('told').textContent === '3 / 9'")
        page.keyboard.press("Space")
        assert page.locator("#play").get_attribute("aria-pressed") == "false"
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "scrub"
        page.keyboard.press("End")
        assert told() == "9 / 9"


def test_a_film_shows_the_frames_of_its_clip(browser: Any, pages: dict[str, Path]) -> None:
    with np.load(pages["run"].parent / "evaluation" / "samples.npz") as archive:
        before = archive["before"]
    with Opened(browser, pages["run"], reduced_motion="reduce") as opened:
        opened.page.focus("#player")
        for frame in range(7):  # the second row of the sheet begins with the sixth
            if frame:
                opened.page.keyboard.press("ArrowRight")
            np.testing.assert_array_equal(opened.pixels("canvas.film"), before[0, frame].transpose(1, 2, 0))


def test_videos_play_where_motion_is_welcome(browser: Any, pages: dict[str, Path]) -> None:
    with Opened(browser, pages["evaluation"], reduced_motion="no-preference") as opened:
        opened.until("document.getElementById('told').textContent === '4 / 9'")
        assert opened.page.locator("#play").inner_text() == "Pause"


@pytest.mark.parametrize("canvas", ["#paths", "#splats"])
def test_space_is_turned_by_keys_and_mouse(browser: Any, pages: dict[str, Path], canvas: str) -> None:
    with Opened(browser, pages["evaluation"], reduced_motion="reduce") as opened:
        page = opened.page
        page.focus(canvas)
        opened.settle()
        views = [opened.pixels(canvas).astype(int)]
        assert views[0].std() > 5  # something is drawn

        def turned() -> None:
            opened.settle()
            views.append(opened.pixels(canvas).astype(int))

        page.keyboard.press("ArrowLeft")
        turned()
        page.keyboard.press("ArrowUp")
        turned()
        page.keyboard.press("+")
        turned()
        box = page.locator(canvas).bounding_box()
        page.mouse.move(box["x"] + 50, box["y"] + 50)
        page.mouse.down()
        page.mouse.move(box["x"] + 120, box["y"] + 90)
        page.mouse.up()
        turned()
        for a, b in zip(views, views[1:], strict=False):
            assert (np.abs(a - b).max(-1) > 20).mean() > 0.001
        page.keyboard.press("0")
        turned()
        assert np.abs(views[-1] - views[0]).max() < 50  # edges: the browser may draw in software what it drew on a GPU
        page.select_option(f"{canvas}-clip", index=1)
        turned()
        assert (np.abs(views[-1] - views[0]).max(-1) > 50).mean() > 0.0005
        assert opened.said == []


def test_the_first_view_of_a_reconstruction_is_the_first_frame(browser: Any, pages: dict[str, Path]) -> None:
    """Its disc is where the first frame shows it: not mirrored, not upside down."""
    with Opened(browser, pages["evaluation"], reduced_motion="reduce") as opened:
        opened.page.focus("#splats")
        opened.settle()
        view = opened.pixels("#splats").astype(float)
        frame = opened.pixels("canvas.film").astype(float)
    height, width = view.shape[:2]
    square = view[:, (width - height) // 2 :][:, :height]  # the frame is square and fills the height
    for image, side in ((square, height), (frame, 32)):
        colourful = np.ptp(image, axis=-1) > 25
        y, x = (index.mean() / side for index in np.nonzero(colourful))
        assert abs(x - 6.5 / 32) < 0.08 and abs(y - 18.5 / 32) < 0.05


def test_without_webgl_a_sentence_stands_there(browser: Any, pages: dict[str, Path], tmp_path: Path) -> None:
    html = pages["evaluation"].read_text(encoding="utf-8")
    page = tmp_path / "page.html"
    page.write_text(html.replace('<meta http-equiv="Content-Security-Policy"', '<meta name="was"'), encoding="utf-8")
    context = browser.new_context()
    context.add_init_script(
        "const get = HTMLCanvasElement.prototype.getContext;"
        "HTMLCanvasElement.prototype.getContext = function (kind, options) {"
        "  return kind === 'webgl2' ? null : get.call(this, kind, options); };"
    )
    opened = context.new_page()
    said: list[str] = []
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.goto(page.as_uri())
    assert opened.get_by_text("This browser has no WebGL 2").is_visible() and not opened.locator("#splats").is_visible()
    assert opened.locator("#paths").is_visible() and said == []
    context.close()


def test_without_a_script_the_pictures_are_there(browser: Any, pages: dict[str, Path]) -> None:
    with Opened(browser, pages["run"], java_script_enabled=False) as opened:
        assert opened.page.locator("img.strip").first.is_visible()
        assert not opened.page.locator(".controls").is_visible()
