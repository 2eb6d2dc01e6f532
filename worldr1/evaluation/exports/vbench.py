"""VBench: a folder of prompt-index.mp4 for custom input, its prompt file, and its full-info JSON; and a run of it.

    ARM/videos/A red ball-0.mp4      the prompt, what no file name can hold replaced, cut to 120 bytes
    ARM/prompts.json                 file name -> prompt: evaluate.py --prompt_file
    ARM/full_info.json               prompt_en, dimension, video_list: what evaluate makes of them

The package pins libraries that the trainer cannot have, so it runs in an environment of its own.

Source: Huang et al. 2024, VBench, arXiv 2311.17982; github.com/Vchitect/VBench, evaluate.py, vbench/__init__.py.
"""

from __future__ import annotations

import collections
import json
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from worldr1.evaluation.exports.source import EvaluatedClip, Evaluation, put_video
from worldr1.evaluation.intervals import clustered_mean
from worldr1.run.files import read_json, reading, write_json, write_text
from worldr1.run.metrics import plain

DIMENSIONS = (
    "subject_consistency", "background_consistency", "motion_smoothness", "aesthetic_quality", "imaging_quality",
)  # fmt: skip
"""The five whose plain mean is `average`."""
BESIDE = ("dynamic_degree",)
"""Not in the mean: it says whether the others were earned by standing still."""
_LONGEST_NAME = 120  # bytes of UTF-8
_LAST_LINES = 5
_RUNNER = Path(__file__).with_name("vbench_runner.py")


def export(clip: EvaluatedClip, folder: Path) -> list[str]:
    """Write one clip; its name becomes known in `finish`."""
    put_video(clip, folder / clip.arm / "videos" / f"{clip.name}.mp4")
    return []


def finish(folder: Path, clips: Sequence[EvaluatedClip]) -> None:
    """Give the clips of each arm their names, and write what says which prompt is whose."""
    for arm in dict.fromkeys(clip.arm for clip in clips):
        own = [clip for clip in clips if clip.arm == arm]
        names = file_names([clip.prompt for clip in own])
        videos = folder / arm / "videos"
        for old in set(videos.glob("*.mp4")) - {videos / f"{clip.name}.mp4" for clip in own}:
            old.unlink()  # of an earlier export
        for clip, name in zip(own, names, strict=True):
            (videos / f"{clip.name}.mp4").rename(videos / name)
        info = [
            {
                "prompt_en": clip.prompt,
                "dimension": [*DIMENSIONS, *BESIDE],
                "video_list": [str((videos / name).resolve())],
            }
            for clip, name in zip(own, names, strict=True)
        ]
        write_json(folder / arm / "prompts.json", dict(zip(names, [clip.prompt for clip in own], strict=True)))
        write_text(folder / arm / "full_info.json", json.dumps(info, indent=1) + "\n")
        write_json(folder / arm / "clips.json", dict(zip(names, [clip.name for clip in own], strict=True)))


def file_names(prompts: Sequence[str]) -> list[str]:
    """prompt-index.mp4 of each, all different; the index counts the clips of one prompt."""
    counts: collections.Counter[str] = collections.Counter()
    out = []
    for prompt in prompts:
        stem = re.sub(r"[^\w .,;'()!&-]", "_", prompt).encode()[:_LONGEST_NAME].decode(errors="ignore").strip() or "_"
        out.append(f"{stem}-{counts[stem.lower()]}.mp4")
        counts[stem.lower()] += 1  # some file systems know no upper case
    return out


def run(python: Path, folder: Path, arms: Sequence[str], *, device: str, output: Path) -> dict[str, Any]:
    """Run VBench on every arm of an export by the interpreter of its environment, and write its figures.

    Args:
      python: Interpreter of an environment with the package `vbench`.
      folder: Of the export.
      arms: Its arms.
      device: As torch names it; VBench is made for `cuda`.
      output: Gets `arms`: arm -> dimension -> mean, and per clip; `average` is the mean of the five. Shares of 1.
    Returns:
      What was written.
    Raises:
      ValueError: no such interpreter.
      RuntimeError: it failed: its last lines.
    """
    if not python.is_file():
        raise ValueError(f"export: --run-vbench must be the python of an environment with vbench, got {python}")
    found: dict[str, Any] = {}
    for arm in arms:
        result = folder / arm / "vbench_result.json"
        result.unlink(missing_ok=True)
        own = folder / arm
        command = [str(python), str(_RUNNER), str(own / "videos"), str(own / "prompts.json"), str(own / "results")]
        try:
            done = subprocess.run(
                [*command, str(result), device, *DIMENSIONS, *BESIDE], text=True, errors="replace",
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
            )  # fmt: skip
        except OSError as error:
            raise ValueError(f"export: {python} cannot be run: {error.strerror}") from error
        last = "\n".join(line for line in done.stdout.splitlines() if line.strip()).splitlines()[-_LAST_LINES:]
        if done.returncode or not result.is_file():
            raise RuntimeError(
                f"export: VBench of {python} ended with {done.returncode}, its last lines:\n  " + "\n  ".join(last)
            )
        found[arm] = figures(result, read_json(own / "clips.json", "the names of an export's clips"))
    report = {"schema": 1, "python": str(python), "dimensions": list(DIMENSIONS), "arms": found}
    write_json(output, report)
    return report


def figures(result: Path, clips: dict[str, str]) -> dict[str, Any]:
    """What VBench wrote of an arm: dimension -> {mean, clips: clip -> share}, and `average`.

    Raises:
      ValueError: a dimension is missing, or is no list of a mean and results by file.
    """
    out: dict[str, Any] = {}
    written = read_json(result, "the results of VBench")
    with reading(result, "the results of VBench"):
        for name in (*DIMENSIONS, *BESIDE):
            mean, rows = written[name][:2]
            scale = 0.01 if name == "imaging_quality" else 1.0  # its rows are in per cent, its mean is not
            own = {clips[Path(r["video_path"]).name]: scale * float(r["video_results"]) for r in rows}
            if set(own) != set(clips.values()):
                raise ValueError(f"{name} of {len(own)} clips, of {len(clips)}")
            out[name] = {"mean": float(mean), "clips": own}
        out["average"] = sum(out[name]["mean"] for name in DIMENSIONS) / len(DIMENSIONS)
    return out


def into_summary(evaluation: Evaluation, report: dict[str, Any]) -> bool:
    """Add VBench's figures, in per cent, to summary.json of an evaluation, and with it to its page.

    Means over clips with intervals as the other measures have them; `worldr1.evaluate`, run again, leaves them out.

    Returns:
      Whether there is a summary.json.
    """
    path = evaluation.path / "summary.json"
    if not path.is_file():
        return False
    summary = read_json(path, "the summary of an evaluation")
    names = (*DIMENSIONS, *BESIDE, "average")
    with reading(path, "the summary of an evaluation"):
        for name in names:
            said = "the plain mean of " + ", ".join(DIMENSIONS) if name == "average" else f"VBench's {name}"
            summary["measures"][f"vbench_{name}"] = {"unit": "%", "better": "same" if name in BESIDE else "up",
                                                     "definition": f"{said}, arXiv 2311.17982"}  # fmt: skip
        prompts = {row["clip"]: row["prompt"] for row in evaluation.rows}
        values = {arm: {name: _of_clips(found, name) for name in names} for arm, found in report["arms"].items()}
        for arm, own in values.items():
            for name, of in own.items():
                summary["arms"][arm][f"vbench_{name}"] = clustered_mean(list(of.values()), [prompts[c] for c in of])
        if "differences" in summary and len(values) == 2:
            before, after = values.values()
            for name in names:
                both = [clip for clip in before[name] if clip in after[name]]
                gains = [after[name][clip] - before[name][clip] for clip in both]
                summary["differences"][f"vbench_{name}"] = clustered_mean(gains, [prompts[clip] for clip in both])
    write_json(path, plain(summary))
    return True


def _of_clips(found: dict[str, Any], name: str) -> dict[str, float]:
    """Clip -> per cent."""
    if name != "average":
        return {clip: 100 * value for clip, value in found[name]["clips"].items()}
    rows = [found[dimension]["clips"] for dimension in DIMENSIONS]
    return {clip: 100 * sum(row[clip] for row in rows) / len(rows) for clip in rows[0]}
