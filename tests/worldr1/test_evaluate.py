"""python -m worldr1.evaluate: the folder it writes, going on, ranks, a model before and after, and wrong settings."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from oracle_world import MeanDifference
from thread_ranks import ThreadRanks

from worldr1 import evaluate as command
from worldr1.camera.pose_files import save_tum
from worldr1.config import EMBEDDED, ModelConfig, NoiseConfig, ScheduleConfig, TrainConfig, VideoConfig, to_json
from worldr1.evaluation import measures, motion_measures, protocol
from worldr1.evaluation.clip_files import read_prompt_file
from worldr1.evaluation.clip_sources import FileClips
from worldr1.evaluation.folder import EvaluationFolder
from worldr1.evaluation.measures import MEASURES, ClipMeasurer
from worldr1.evaluation.summary import summarise
from worldr1.microworld.captions import MOTIONS, make_caption
from worldr1.microworld.scene import render_clips, trajectory_of
from worldr1.models.wan import load_policy
from worldr1.rewards.judges.registry import load_judge
from worldr1.run.distributed import World
from worldr1.run.lock import hold
from worldr1.run.video import to_bytes

CPU = torch.device("cpu")
MICROGEO = str(EMBEDDED / "microgeo")
CAPTIONS = [make_caption(MOTIONS[i % 9], 3 + i // 9) for i in range(5)]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five clips, clip_0.npz ..., and prompts.jsonl beside them."""
    folder = tmp_path_factory.mktemp("clips")
    rendered = render_clips(CAPTIONS, range(2_000_000, 2_000_005))
    for i, video in enumerate(to_bytes(rendered.video)):
        np.savez(folder / f"clip_{i}.npz", video=video.movedim(1, -1).numpy())
    themes = ["city", "nature"]
    lines = [{"prompt": c.text, "theme": themes[i % 2], "seed": i} for i, c in enumerate(CAPTIONS)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture(autouse=True)
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where LPIPS was not fetched, whatever lies in this checkout."""
    monkeypatch.setattr(command, "LPIPS_FOLDER", Path("nothing-here"))


def arguments(clips: Path, out: Path, *more: str) -> list[str]:
    fixed = ["--videos", str(clips), "--prompts", str(clips / "prompts.jsonl"), "--output-dir", str(out)]
    return [*fixed, "--preset", "micro", "--reconstructor", MICROGEO, "--device", "cpu", *more]


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "clips.jsonl").read_text().splitlines()]


def read(folder: Path, name: str) -> dict:
    return json.loads((folder / name).read_text())


def the_files(folder: Path) -> dict[str, bytes]:
    """What must be the same, byte for byte: not the environment, which has the time."""
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    description = json.loads(found.pop("evaluation.json"))
    del description["environment"]
    found.pop("report.html", None)
    return found | {"evaluation.json": json.dumps(description).encode()}


def test_the_folder_holds_what_is_promised(clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert command.main(arguments(clips, out)) == 0
    said = capsys.readouterr()
    assert "psnr dB" in said.out and f"written to {out}" in said.out
    assert "push_in videos" in said.out and "city videos" in said.out
    assert "clip 1 of 5" in said.err
    assert {p.name for p in out.iterdir()} - {"report.html"} == {
        "evaluation.json", "clips.jsonl", "summary.json", "cameras",
    }  # fmt: skip
    about = read(out, "evaluation.json")
    assert (about["schema"], about["arms"], about["complete"]) == (1, ["videos"], True)
    assert (about["frames"], about["height"], about["width"], about["reconstructor"]) == (9, 32, 32, MICROGEO)
    missing = {row["column"]: row for row in about["not_run"]}
    assert missing.keys() == {"lpips", "lpips_self", "return_score"}
    assert "worldr1.lpips_weights" in missing["lpips"]["how"] and missing["return_score"]["how"] == ""
    rows = rows_of(out)
    assert [row["clip"] for row in rows] == [f"{i:04d}" for i in range(5)]
    for i, row in enumerate(rows):
        assert row["measures"].keys() == MEASURES.keys()
        assert (row["arm"], row["prompt"], row["seed"], row["state"]) == ("videos", CAPTIONS[i].text, i, "moving")
        assert row["motion"] == CAPTIONS[i].motion and row["motions"] == [f"{CAPTIONS[i].motion} x1"]
        assert row["file"] == str((clips / f"clip_{i}.npz").resolve())
        with np.load(out / "cameras" / "videos" / f"{i:04d}.npz") as cameras:
            np.testing.assert_allclose(
                np.linalg.inv(cameras["requested_cam_c2w"]), trajectory_of(CAPTIONS[i]), atol=1e-6
            )
            assert cameras["recovered_cam_c2w"].shape == (9, 4, 4) and cameras["K"].shape == (3, 3)
            assert cameras["depth"].dtype == np.float16 and cameras["depth"].shape == (9, 32, 32)
    summary = read(out, "summary.json")
    psnr = [row["measures"]["psnr"] for row in rows]
    assert summary["arms"]["videos"]["psnr"]["mean"] == pytest.approx(np.mean(psnr))
    assert summary["by_theme"]["city"]["videos"]["psnr"]["mean"] == pytest.approx(np.mean(psnr[::2]))
    assert summary["by_motion"]["push_in"]["videos"]["psnr"]["count"] == 1
    assert summary["arms"]["videos"]["lpips"] == {"mean": None, "low": None, "high": None, "count": 0, "num_prompts": 0}
    assert summary["measures"]["rot_err"]["unit"] == "rad" and "differences" not in summary


def evaluated(clips: Path, out: Path, *, world: World, measurer: ClipMeasurer | None = None) -> dict | None:
    """The loop alone, without the command."""
    prompts = read_prompt_file(clips / "prompts.jsonl")
    source = FileClips(clips, prompts, camera=TrainConfig().camera, cameras=None, fps=8.0)
    measurer = measurer or ClipMeasurer(
        load_judge(MICROGEO, role="reconstructor", device=CPU), perceptual=MeanDifference(), device=CPU
    )
    out.mkdir(exist_ok=True)
    return protocol.evaluate_clips(
        source, measurer, EvaluationFolder(out), description={"settings": {}, "environment": {}}, world=world
    )


ALONE = World(rank=0, size=1, local_rank=0, device=CPU)


class StopsAfter(ClipMeasurer):
    """Dies like an interrupted process."""

    def __init__(self, whole: int) -> None:
        judge = load_judge(MICROGEO, role="reconstructor", device=CPU)
        super().__init__(judge, perceptual=MeanDifference(), device=CPU)
        self.left = whole

    def measure(self, *args, **kwargs):
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        return super().measure(*args, **kwargs)


def test_interrupted_and_resumed_is_the_whole_one_and_so_are_two_ranks(clips: Path, tmp_path: Path) -> None:
    evaluated(clips, tmp_path / "whole", world=ALONE)
    expected = the_files(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        evaluated(clips, tmp_path / "cut", world=ALONE, measurer=StopsAfter(3))
    assert len(rows_of(tmp_path / "cut")) == 3 and not read(tmp_path / "cut", "evaluation.json")["complete"]
    with (tmp_path / "cut" / "clips.jsonl").open("a") as file:
        file.write('{"clip": "0003", "arm": "vid')  # cut within a line
    rest = StopsAfter(2)  # no clip is measured twice
    evaluated(clips, tmp_path / "cut", world=ALONE, measurer=rest)
    assert rest.left == 0 and the_files(tmp_path / "cut") == expected
    ranks = ThreadRanks(2)
    found = ranks.run(lambda: evaluated(clips, tmp_path / "two", world=World(ranks.rank(), 2, ranks.rank(), CPU)))
    assert the_files(tmp_path / "two") == expected and found[1] is None
    with pytest.raises(KeyboardInterrupt):  # begun by one rank, ended by two
        evaluated(clips, tmp_path / "mixed", world=ALONE, measurer=StopsAfter(2))
    ranks.run(lambda: evaluated(clips, tmp_path / "mixed", world=World(ranks.rank(), 2, ranks.rank(), CPU)))
    assert the_files(tmp_path / "mixed") == expected


def test_lines_that_are_not_the_beginning_are_measured_again(clips: Path, tmp_path: Path) -> None:
    evaluated(clips, tmp_path / "out", world=ALONE)
    expected, file = the_files(tmp_path / "out"), tmp_path / "out" / "clips.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    for damaged in (lines[:2] + ["nonsense\n"] + lines[3:], lines[:2] + lines[3:], [*lines, lines[0]]):
        file.write_text("".join(damaged))
        evaluated(clips, tmp_path / "out", world=ALONE)
        assert the_files(tmp_path / "out") == expected


def test_wrong_settings_are_told_by_one_rank(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("worldr1.cli.SECONDS_FOR_RANK_0", 0.0)
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        assert command.main(["--output-dir", str(tmp_path / "out")]) == 2
        assert ("give --videos" in capsys.readouterr().err) == (rank == "0")


def test_other_settings_are_refused_by_name(clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert command.main(arguments(clips, out)) == 0
    before = the_files(out)
    assert command.main(arguments(clips, out)) == 0 and the_files(out) == before
    capsys.readouterr()
    other = tmp_path / "other.jsonl"
    other.write_text((clips / "prompts.jsonl").read_text().replace("city", "town"))
    assert command.main([*arguments(clips, out), "--prompts", str(other)]) == 2
    assert "with prompts_sha256 = " in capsys.readouterr().err
    assert command.main(arguments(clips, out, "--side", "16")) == 2
    assert "with side = 256, and this one has 16" in capsys.readouterr().err
    assert command.main(arguments(clips, out, "--perceptual", str(EMBEDDED / "microperceptual"))) == 2
    assert "with perceptual = ''" in capsys.readouterr().err
    with hold(out):
        assert command.main(arguments(clips, out)) == 2
    assert "is in use by process" in capsys.readouterr().err
    theirs = tmp_path / "run"
    theirs.mkdir()
    (theirs / "report.html").write_text("theirs")
    assert command.main(arguments(clips, theirs)) == 2
    assert "got report.html and no evaluation.json" in capsys.readouterr().err
    assert the_files(out) == before and (theirs / "report.html").read_text() == "theirs"


def test_clips_that_cannot_be_judged_are_counted_and_do_not_stop(clips: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    good = np.load(clips / "clip_1.npz")["video"]
    large = np.load(clips / "clip_2.npz")["video"].repeat(2, 1).repeat(2, 2)
    np.savez(folder / "a.npz", video=good)
    (folder / "b.mp4").write_bytes(b"damaged")
    np.savez(folder / "c.npz", video=good[:1])
    np.savez(folder / "d.npz", video=np.zeros_like(good))
    np.savez(folder / "e.npz", video=large)  # of another size: MicroGeo refuses it
    (folder / "prompts.jsonl").write_text('{"prompt": "The camera pushes in."}\n' * 5)
    out = tmp_path / "out"
    assert command.main(arguments(folder, out)) == 0
    rows = rows_of(out)
    assert [row["state"] for row in rows] == ["moving"] + 4 * ["failed"]
    assert "b.mp4 must be a video file" in rows[1]["reason"]
    assert "3 frames or more, got 1" in rows[2]["reason"] and "one colour" in rows[3]["reason"]
    assert rows[4]["reason"].startswith("reconstructor: ") and rows[4]["measures"]["motion_magnitude"] > 0
    assert rows[1]["measures"] == dict.fromkeys(MEASURES) and rows[1]["height"] is None and rows[4]["height"] == 64
    about, summary = read(out, "evaluation.json"), read(out, "summary.json")
    assert about["frames"] is None and about["height"] is None
    assert summary["states"] == {"videos": {"moving": 1, "failed": 4}}
    assert len(summary["reasons"]["videos"]) == 4 and set(summary["reasons"]["videos"].values()) == {1}
    assert summary["arms"]["videos"]["psnr"]["count"] == 1 and summary["arms"]["videos"]["contrast"]["count"] == 3
    with np.load(out / "cameras" / "videos" / "0003.npz") as cameras:
        assert cameras.files == ["requested_cam_c2w"]
    assert not (out / "cameras" / "videos" / "0001.npz").exists()


def test_numbers_that_do_not_match(clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = (clips / "prompts.jsonl").read_text().splitlines(keepends=True)
    for text, why in (
        ("".join(lines[:4]), "clip_4.npz has no prompt"),
        ("".join([*lines, lines[0]]), "prompt 6 has no"),
    ):
        prompts = tmp_path / "p.jsonl"
        prompts.write_text(text)
        args = arguments(clips, tmp_path / "out")
        args[args.index("--prompts") + 1] = str(prompts)
        assert command.main(args) == 2
        assert why in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_paths_from_files_and_prompts_that_ask_for_nothing(clips: Path, tmp_path: Path) -> None:
    poses = tmp_path / "poses"
    poses.mkdir()
    for i, caption in enumerate(CAPTIONS):
        save_tum(poses / f"{i}.tum", trajectory_of(caption).double(), fps=8)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("A red ball on the floor.\n" * 5)
    args = arguments(clips, tmp_path / "words")
    args[args.index("--prompts") + 1] = str(prompts)
    assert command.main(args) == 0
    rows = rows_of(tmp_path / "words")
    assert all(row["measures"][name] is None for row in rows for name in measures.CAMERA_COLUMNS)
    assert rows[0]["motion"] == "none" and rows[0]["motions"] == [] and rows[0]["measures"]["psnr"] > 10
    reasons = {row["column"]: row["reason"] for row in read(tmp_path / "words", "evaluation.json")["not_run"]}
    assert reasons["rot_err"] == reasons["return_score"] == "no prompt asks for a camera"
    args[args.index("--output-dir") + 1] = str(tmp_path / "files")
    assert command.main([*args, "--cameras", str(poses)]) == 0
    by_file = rows_of(tmp_path / "files")
    assert command.main(arguments(clips, tmp_path / "asked")) == 0
    for row, own in zip(by_file, rows_of(tmp_path / "asked"), strict=True):
        assert row["motion"] == "file" and row["measures"]["path_ratio"] is None
        for name in ("rot_err", "trans_err", "camera_error"):
            assert row["measures"][name] == pytest.approx(own["measures"][name], abs=1e-4), name


def test_missing_packages_leave_their_columns_empty(clips: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(motion_measures.importlib.util, "find_spec", lambda name: None)
    assert command.main(arguments(clips, tmp_path / "out")) == 0
    missing = {row["column"]: row for row in read(tmp_path / "out", "evaluation.json")["not_run"]}
    for name in measures.FLOW_COLUMNS:
        assert missing[name]["how"] == 'pip install -e ".[evaluate]"'
        assert all(row["measures"][name] is None for row in rows_of(tmp_path / "out"))


@pytest.fixture()
def run_folder(tiny_wan: Path, tmp_path: Path) -> Path:
    """What a training run leaves: config.json and an adapter."""
    config = TrainConfig(
        model=ModelConfig(path=tiny_wan, lora_rank=4, lora_alpha=12),
        video=VideoConfig(height=32, width=32, num_frames=9, fps=5),
        schedule=ScheduleConfig(num_steps=4, window_range=(0, 2)),
        noise=NoiseConfig(mode="plain"),
    )
    config = replace(config, evaluation=replace(config.evaluation, num_steps=3))
    policy = load_policy(config.model, device="cpu")
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in policy.adapter_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    policy.save_lora(tmp_path / "run" / "adapter")
    (tmp_path / "run" / "config.json").write_text(json.dumps(to_json(config)))
    (tmp_path / "prompts.txt").write_text("The camera pans left.\nA ball rolls.\n")
    return tmp_path


def test_a_run_before_and_after_from_one_noise(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--run", str(run_folder / "run"), "--prompts", str(run_folder / "prompts.txt"), "--samples", "2"]
    args += ["--reconstructor", MICROGEO, "--device", "cpu", "--seed", "7"]
    out = run_folder / "out"
    assert command.main([*args, "--output-dir", str(out)]) == 0
    said = capsys.readouterr()
    assert "also gave the rewards of this run" in said.err and "difference" in said.out
    rows = rows_of(out)
    assert [(row["clip"], row["arm"]) for row in rows] == [(f"{i:04d}", a) for i in range(4) for a in ("base", "tuned")]
    assert [row["seed"] for row in rows[::2]] == [7, 8, 9, 10]
    assert [row["file"] for row in rows[:2]] == ["videos/base/0000.mp4", "videos/tuned/0000.mp4"]
    assert all((out / row["file"]).is_file() for row in rows)
    summary = read(out, "summary.json")
    gap = [rows[i + 1]["measures"]["contrast"] - rows[i]["measures"]["contrast"] for i in range(0, 8, 2)]
    assert summary["differences"]["contrast"]["mean"] == pytest.approx(np.mean(gap))
    assert summary["differences"]["contrast"]["num_prompts"] == 2 and max(map(abs, gap)) > 1e-4
    # The clip that `generate` makes of that prompt with that seed.
    from worldr1 import generate
    from worldr1.run.video import read_video

    video = run_folder / "made.mp4"
    flags = ["--prompt", "The camera pans left.", "--seed", "8", "--device", "cpu", "--num-steps", "3"]
    adapter = str(run_folder / "run" / "adapter")
    assert generate.main([*flags, "--adapter", adapter, "--output", str(video)]) == 0
    assert torch.equal(read_video(video)[0], read_video(out / "videos" / "tuned" / "0001.mp4")[0])
    assert not torch.equal(read_video(video)[0], read_video(out / "videos" / "base" / "0001.mp4")[0])
    before = the_files(out)
    (out / "clips.jsonl").write_text("".join((out / "clips.jsonl").read_text().splitlines(keepends=True)[:3]))
    assert command.main([*args, "--output-dir", str(out)]) == 0
    assert the_files(out) == before  # interrupted between the two arms of a clip
    assert command.main([*args, "--output-dir", str(out), "--num-steps", "2"]) == 2
    assert "num_steps = 3, and this one has 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        ([], "give --videos and --prompts, or --run, or --preset and --adapter"),
        (["--videos", "x"], "prompts must be a file of one prompt for each clip"),
        (["--preset", "micro"], "--preset needs --adapter"),
        (["--preset", "micr", "--adapter", "x"], "the nearest is 'micro'"),
        (["--preset", "micro", "--run", "x"], "give --run or --preset, got both"),
        (["--preset", "micro", "--adapter", "nowhere"], "adapter must be a folder such as RUN/adapter, got nowhere"),
        (["--preset", "wan2.1-1.3b", "--adapter", "x"], "it is not given; give --model"),
        (["--run", "nowhere"], "run must be the folder of a run"),
        (["--videos", "x", "--reconstructor", "nowhere"], "reconstructor must be a folder or module:name, got nowhere"),
        (["--videos", "x", "--perceptual", "nowhere"], "perceptual must be a folder or module:name, got nowhere"),
        (["--videos", "x", "--adapter", "y"], "--adapter makes clips and --videos brings them"),
        (["--preset", "micro", "--adapter", "x", "--cameras", "y"], "--cameras needs --videos"),
        (["--videos", "nowhere", "--prompts", str(TrainConfig().eval_prompts)], "nowhere must be a folder"),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused_before_anything_loads(flags, why, tmp_path, capsys) -> None:
    assert command.main([*flags, "--output-dir", str(tmp_path / "out")]) == 2
    assert why in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_summary_pairs_clips_and_leaves_out_what_one_arm_lacks() -> None:
    def row(clip: str, arm: str, value: float | None) -> dict:
        measures = dict.fromkeys(MEASURES) | {"psnr": value}
        fixed = {"motion": "none", "theme": None, "state": "moving", "reason": ""}
        return {"clip": clip, "arm": arm, "prompt": clip, "measures": measures, **fixed}

    rows = [row("0", "base", 20.0), row("0", "tuned", 23.0), row("1", "base", None), row("1", "tuned", 30.0),
            row("2", "base", 10.0), row("2", "tuned", 11.0)]  # fmt: skip
    found = summarise(rows, ["base", "tuned"])
    assert found["arms"]["base"]["psnr"]["mean"] == 15.0 and found["arms"]["tuned"]["psnr"]["count"] == 3
    assert (found["differences"]["psnr"]["mean"], found["differences"]["psnr"]["count"]) == (2.0, 2)
    assert found["by_theme"] == {} and list(found["by_motion"]) == ["none"]
