"""One page: templates, style, script and data put together; how numbers are told."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from worldr1.report.load import number
from worldr1.run.files import told

_TEMPLATES = Path(__file__).parent / "templates"
_SCRIPTS = ("player.js", "orbit.js", "paths.js", "splats.js")


def document(template: str, *, scenes: dict[str, Any], refresh_s: int = 0, **parts: Any) -> str:
    """A page as text. Every string that comes from a file is escaped by the template engine.

    Args:
      template: Name of a file in templates/.
      scenes: What the script draws: `paths` and `splats` (see orbit.py), as JSON inside the page.
      refresh_s: The page loads itself again after so many seconds; 0: never.
      parts: The variables of the template.
    """
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES, encoding="utf-8"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"figure": figure, "interval": interval}
    script = "\n".join((_TEMPLATES / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    data = json.dumps(scenes, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c").replace(">", "\\u003e")
    return environment.get_template(template).render(
        style=Markup((_TEMPLATES / "style.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=Markup(base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()),
        scenes=Markup(data),
        refresh_s=refresh_s,
        **parts,
    )


def part(missing: list[str], what: str, make: Callable[[], Any], otherwise: Any) -> Any:
    """A part of the page. The numbers of a damaged file may be anything that JSON or an array can hold: what cannot be
    made of them costs its own part, and a line in `missing`."""
    try:
        return make()
    except Exception as error:
        missing.append(f"The files hold what cannot be shown ({told(error)}): {what} left out.")
        return otherwise


def figure(value: Any) -> str:
    """A measured number as text: three significant places or three decimals; an empty string where there is none."""
    if isinstance(value, bool) or value is None:
        return "" if value is None else str(value)
    if isinstance(value, int):
        return str(value)
    if not isinstance(value, float):
        return str(value)
    if not math.isfinite(value):
        return "not finite"
    if value and abs(value) < 0.001:
        return f"{value:.1e}"
    text = f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
    return text.removeprefix("-") if value == 0 else text


def interval(value: dict[str, Any]) -> str:
    """An interval as text, "[low, high]"; an empty string where an end is missing."""
    low, high = number(value.get("low")), number(value.get("high"))
    return f"[{figure(low)}, {figure(high)}]" if math.isfinite(low) and math.isfinite(high) else ""
