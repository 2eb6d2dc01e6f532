"""An evaluation's folder -> the layouts that WBench, VBench, WorldScore and scripts of MVCS read.

python -m worldr1.export --evaluation OUT --format all --output-dir DIR
python -m worldr1.export --evaluation OUT --format vbench --output-dir DIR --run-vbench VBENCH_ENV/bin/python
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from worldr1.cli import exit_code

FORMATS = ("wbench", "vbench", "worldscore", "mvcs")


@dataclass(frozen=True)
class ExportConfig:
    """Write the clips of an evaluation as benchmarks of the field read them."""

    evaluation: Path
    """The folder that `python -m worldr1.evaluate` wrote."""
    output_dir: Path
    """Gets a folder for each format, clips/ (requested and recovered cameras), scores.jsonl and export.json."""
    format: Literal["wbench", "vbench", "worldscore", "mvcs", "all"] = "all"
    """Which layout."""
    run_vbench: Path | None = None
    """The python of an environment with the package vbench: run its five dimensions, into EVALUATION/vbench.json."""
    vbench_device: str = "cuda"
    """Where VBench runs."""


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code: 0 done, 1 failed while running, 2 wrong settings."""
    import tyro

    config = tyro.cli(ExportConfig, args=None if argv is None else list(argv), prog="python -m worldr1.export")
    return exit_code(lambda: run(config))


def run(config: ExportConfig) -> dict[str, Any]:
    """Export, and say what was left out.

    Returns:
      What export.json holds.
    Raises:
      ValueError: no evaluation's folder, no clip that can be exported, a folder of something else, VBench asked for
        without its format.
      RuntimeError: VBench failed.
      OSError: a file cannot be written.
    """
    formats = FORMATS if config.format == "all" else (config.format,)
    if config.run_vbench is not None and "vbench" not in formats:
        raise ValueError(f"export: --run-vbench needs --format vbench or all, got {config.format}")
    if config.run_vbench is not None and not config.run_vbench.is_file():
        raise ValueError(
            f"export: --run-vbench must be the python of an environment with vbench, got {config.run_vbench}"
        )
    if config.output_dir.is_dir() and any(config.output_dir.iterdir()):
        _check_earlier(config)

    from worldr1.evaluation.exports import mvcs, vbench, wbench, worldscore
    from worldr1.evaluation.exports.source import EvaluatedClip, put_arrays, put_video, read_evaluation, without_frames
    from worldr1.run.files import write_json, write_text

    modules: dict[str, Any] = {"wbench": wbench, "vbench": vbench, "worldscore": worldscore, "mvcs": mvcs}
    source = read_evaluation(config.evaluation)
    folder = config.output_dir
    folder.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {
        "schema": 1, "evaluation": str(source.path.resolve()), "reconstructor": source.about.get("reconstructor"),
        "complete": bool(source.about.get("complete")), "formats": list(formats), "clips": 0, "left_out": [],
    }  # fmt: skip
    write_json(folder / "export.json", {**report, "finished": False})
    if not report["complete"]:
        print(f"{source.path}: the evaluation is not complete; {len(source.rows)} clips are there")
    not_run = {str(row.get("column")): str(row.get("reason")) for row in source.about.get("not_run") or ()}
    done: list[EvaluatedClip] = []
    lines: list[str] = []

    def leave_out(name: str, arm: str, what: str, reason: str) -> None:
        report["left_out"].append({"clip": name, "arm": arm, "format": what, "reason": reason})

    for clip in source.clips():
        if isinstance(clip, tuple):
            row, reason = clip
            leave_out(row["clip"], row["arm"], "all", reason)
            continue
        put_video(clip, folder / "clips" / clip.arm / f"{clip.name}.mp4")
        put_arrays(
            folder / "clips" / clip.arm / f"{clip.name}.npz",
            {name: array for name, array in clip.cameras.items() if name != "depth"},
        )
        lines.append(score_line(clip, not_run))
        for name in formats:
            for reason in modules[name].export(clip, folder / name):
                leave_out(clip.name, clip.arm, name, reason)
        done.append(without_frames(clip))
    if not done:
        first = report["left_out"][0]
        raise ValueError(f"export: {source.path} must hold a clip that can be read; {first['clip']}: {first['reason']}")
    for name in formats:
        modules[name].finish(folder / name, done)
    write_text(folder / "scores.jsonl", "".join(lines))
    report["clips"] = len(done)
    write_json(folder / "export.json", {**report, "finished": True})
    print(f"{len(done)} clips as {', '.join(formats)} in {folder}")
    if report["left_out"]:
        first, count = report["left_out"][0], len(report["left_out"])
        where = f"{first['arm']}/{first['clip']}, {first['format']}"
        print(f"{count} things left out, all in export.json; the first: {where}: {first['reason']}")
    if config.run_vbench is not None:
        arms = list(dict.fromkeys(clip.arm for clip in done))
        found = vbench.run(
            config.run_vbench, folder / "vbench", arms, device=config.vbench_device, output=source.path / "vbench.json"
        )
        if vbench.into_summary(source, found):
            print(f"VBench is in {source.path / 'summary.json'}; python -m worldr1.report {source.path} shows it")
        for arm in arms:
            print(f"VBench {arm}: average {100 * found['arms'][arm]['average']:.2f} %")
    return report


def _check_earlier(config: ExportConfig) -> None:
    """ValueError unless the folder, which is not empty, is an export of this evaluation."""
    from worldr1.run.files import read_json

    file = config.output_dir / "export.json"
    if not file.is_file():
        raise ValueError(f"export: {config.output_dir} must be empty, or an earlier export; choose another")
    earlier = read_json(file, "the export.json of an export").get("evaluation")
    if earlier != str(config.evaluation.resolve()):
        raise ValueError(f"export: {config.output_dir} must be an export of {config.evaluation}, got one of {earlier}")


def score_line(clip: Any, not_run: Mapping[str, str]) -> str:
    """What was measured of a clip, each term with whether it is valid and why not; `not_run`: column -> reason."""
    import json

    why = clip.reason or f"not defined for this clip ({clip.state})"
    scores = {
        name: {
            "value": value,
            "valid": value is not None,
            "reason": "" if value is not None else not_run.get(name, why),
        }
        for name, value in clip.measures.items()
    }
    about = {
        "clip": clip.name,
        "arm": clip.arm,
        "prompt": clip.prompt,
        "seed": clip.seed,
        "motions": list(clip.motions),
    }
    return json.dumps({**about, "state": clip.state, "scores": scores}) + "\n"


if __name__ == "__main__":
    sys.exit(main())
