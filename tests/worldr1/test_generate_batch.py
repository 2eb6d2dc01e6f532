"""A seed gives one video wherever it is made; batches, camera files, and going on after an interruption."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_generate import PROMPT, read, run_folder  # noqa: F401  a fixture

from worldr1 import generate as command
from worldr1.camera.noise import initial_noise
from worldr1.camera.pose_files import load_poses, save_realestate, save_tum
from worldr1.camera.trajectory import build_trajectory, intrinsics, save_trajectory
from worldr1.config import CameraConfig, to_json
from worldr1.datatypes import MotionToken
from worldr1.evaluation.clips import evaluation_settings, sample_clips
from worldr1.evaluation.validate import FIRST_ID, Validator
from worldr1.models.wan import load_adapted_policy
from worldr1.prompts.sampler import HELD_OUT_IDS, held_out_batch, prompt_batch
from worldr1.run import distributed
from worldr1.run.saved_config import read_run_config

PROMPTS = ["The camera pans left. A red ball.", "A box, nothing of cameras.", "The camera pushes in. A ball."]


@pytest.fixture()
def moving_run(run_folder: Path) -> Path:  # noqa: F811
    """The run with transported noise, an evaluation of its own size, solver and steps, guidance, and a seed."""
    file = run_folder / "config.json"
    config = read_run_config(file)
    config = replace(
        config, seed=11, noise=replace(config.noise, mode="transport"), output_dir=run_folder,
        evaluation=replace(config.evaluation, solver="unipc", num_steps=3, num_frames=9, num_samples=3),
        rollout=replace(config.rollout, guidance_scale=2.0, micro_batch=1),
    )  # fmt: skip
    file.write_text(json.dumps(to_json(config)))
    return run_folder


def made(run: Path, prompt: str, **flags: int) -> torch.Tensor:
    """What `generate` makes of a prompt with the run's adapter, before it becomes a file."""
    config = command.GenerateConfig(prompt=(prompt,), adapter=run / "adapter", **flags)
    settings = command.resolve(config)
    clip = command.clips_of(command.requests_of(config), config, settings)[0]
    policy = load_adapted_policy(settings.model.path, run / "adapter")
    return command.make_clip(policy, clip, settings, adapter=True)


class NoJudge:
    """Keeps the clip that it is shown."""

    def judge(self, batch, video, *, finite=None):
        self.video = video
        raise StopIteration


def test_a_clip_of_validation_is_made_again_to_the_bit(moving_run: Path) -> None:
    """By its seed and sample id: size, solver, steps, guidance and noise are those of the run's evaluation."""
    from worldr1.run.video import to_bytes

    config = read_run_config(moving_run / "config.json")
    judge = NoJudge()
    policy = load_adapted_policy(config.model.path, moving_run / "adapter")
    world = distributed.World(0, 1, 0, torch.device("cpu"))
    validator = Validator(policy, judge, PROMPTS, config=config, world=world)  # type: ignore[arg-type]
    for i, prompt in enumerate(validator.prompts):
        with pytest.raises(StopIteration):
            validator._scored(i, adapter=True)
        got = made(moving_run, prompt, sample_id=FIRST_ID + i)
        assert got.shape == (9, 3, 16, 24)
        assert torch.equal(to_bytes(got), judge.video[0])


def test_a_clip_of_the_study_is_made_again(moving_run: Path) -> None:
    """To the bit where the study samples one by one, else but for the order of sums in a larger batch."""
    config = evaluation_settings(read_run_config(moving_run / "config.json"))
    batch = held_out_batch(PROMPTS, config=config, rank=0, world_size=1)
    policy = load_adapted_policy(config.model.path, moving_run / "adapter")
    noise = initial_noise(batch, policy.latent_shape(config.video), config=config)
    alone = sample_clips(policy, batch, noise, slice(0, 3), config=config, adapter=True)
    together = replace(config, rollout=replace(config.rollout, micro_batch=3))
    joined = sample_clips(policy, batch, noise, slice(0, 3), config=together, adapter=True)
    for i, prompt in enumerate(batch.prompts):
        got = made(moving_run, prompt, sample_id=HELD_OUT_IDS + i)
        assert torch.equal(got, alone[i])
        torch.testing.assert_close(got, joined[i], rtol=0, atol=1e-5)


def test_a_clip_of_an_evaluation_is_made_again_to_the_bit(moving_run: Path) -> None:
    from worldr1.evaluation.clip_files import Prompt
    from worldr1.evaluation.clip_sources import GeneratedClips
    from worldr1.run.video import to_bytes

    config = evaluation_settings(read_run_config(moving_run / "config.json"))
    policy = load_adapted_policy(config.model.path, moving_run / "adapter")
    clips = GeneratedClips(policy, [Prompt(PROMPTS[1], seed=1), Prompt(PROMPTS[0], seed=3)], config=config)
    shown = clips.show(1, "tuned").video
    assert shown is not None and torch.equal(shown, to_bytes(made(moving_run, PROMPTS[0], seed=3)))


def test_the_noise_of_a_training_sample_is_that_of_its_sample_id(moving_run: Path) -> None:
    """With a group's shared draw, that of its first sample."""
    config = read_run_config(moving_run / "config.json")
    config = replace(config, video=replace(config.video, num_frames=9))
    shape = (4, 3, 4, 6)
    for shared in (False, True):
        training = replace(config, rollout=replace(config.rollout, share_initial_noise=shared))
        batch = prompt_batch(PROMPTS, config=training, iteration=2, dynamic=False, rank=0, world_size=1)
        noise = initial_noise(batch, shape, config=training)
        ids = batch.group_ids.repeat_interleave(batch.group_size) if shared else batch.sample_ids
        for i in (0, 1, len(noise) - 1):
            prompt = batch.prompts[i // batch.group_size]
            clip = command.Clip(prompt, config.seed, int(ids[i]), "", None, None)
            again = initial_noise(command.batch_of(clip, config), shape, config=config)
            assert torch.equal(again[0], noise[i])


def test_a_video_depends_on_nothing_beside_it(moving_run: Path) -> None:
    """Not on its place; the seed, the sample id, the prompt and the negative prompt each matter."""
    base = made(moving_run, PROMPTS[0], seed=3)
    config = command.GenerateConfig(prompt=(PROMPTS[2], PROMPTS[0]), adapter=moving_run / "adapter", seed=3)
    settings = command.resolve(config)
    clips = command.clips_of(command.requests_of(config), config, settings)
    policy = load_adapted_policy(settings.model.path, moving_run / "adapter")
    assert torch.equal(command.make_clip(policy, clips[1], settings, adapter=True), base)
    for other in (
        clips[1]._replace(seed=4), clips[1]._replace(sample_id=1), clips[1]._replace(negative_prompt="blurred"),
        clips[0],
    ):  # fmt: skip
        assert (command.make_clip(policy, other, settings, adapter=True) - base).abs().max() > 1e-3


def test_a_camera_file_moves_the_noise_as_its_words_do(moving_run: Path, tmp_path: Path) -> None:
    """All three formats, at the frames of the video; a prompt without camera words is moved, too."""
    config = read_run_config(moving_run / "config.json")
    path = build_trajectory([MotionToken("pan_left")], 9, config.camera)
    K = intrinsics(16, 24, config.camera)
    save_trajectory(tmp_path / "p.json", path, tokens=[], camera=config.camera)
    save_realestate(tmp_path / "p.txt", path, K=K, height=16, width=24, fps=4)
    save_tum(tmp_path / "p.tum", path, fps=4)
    words = made(moving_run, PROMPTS[0])
    for name in ("p.json", "p.txt", "p.tum"):
        got = made(moving_run, PROMPTS[0], camera=str(tmp_path / name))  # type: ignore[arg-type]
        assert (got - words).abs().max() < 1e-4  # the same path but for its last digits
    silent = made(moving_run, PROMPTS[1])
    assert (made(moving_run, PROMPTS[1], camera=str(tmp_path / "p.json")) - silent).abs().max() > 1e-3  # type: ignore[arg-type]


def test_resampling_keeps_ends_and_halves_steps(tmp_path: Path) -> None:
    camera = CameraConfig()
    path = build_trajectory([MotionToken("orbit_left")], 9, camera)
    save_tum(tmp_path / "p.tum", path, fps=4)
    from worldr1.camera.pose_files import resampled

    poses = load_poses(tmp_path / "p.tum")
    torch.testing.assert_close(resampled(poses, 9), path, rtol=0, atol=1e-8)
    finer = resampled(poses, 17)
    torch.testing.assert_close(finer[::2], path, rtol=0, atol=1e-8)
    between, ends = torch.linalg.inv(finer[1]), torch.linalg.inv(path[:2])
    torch.testing.assert_close(between[:3, 3], ends[:, :3, 3].mean(0), rtol=0, atol=1e-8)
    # Half the way by its rotation: the two halves are one motion.
    torch.testing.assert_close(
        between[:3, :3] @ ends[0, :3, :3].T, ends[1, :3, :3] @ between[:3, :3].T, rtol=0, atol=1e-8
    )
    # A path that begins elsewhere is told from its first camera.
    moved = poses._replace(viewmats=poses.viewmats @ torch.linalg.inv(poses.viewmats[4]))
    torch.testing.assert_close(resampled(moved, 9), path, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="must rise"):
        resampled(poses._replace(seconds=poses.seconds.flip(0)), 9)


def test_a_bad_camera_file_is_refused_by_name(moving_run: Path, tmp_path: Path, capsys) -> None:
    bent = tmp_path / "bent.txt"
    save_realestate(
        bent, build_trajectory([MotionToken("pan_left")], 5, CameraConfig()), K=intrinsics(16, 24, CameraConfig()),
        height=16, width=24, fps=4,
    )  # fmt: skip
    lines = bent.read_text().splitlines()
    numbers = lines[2].split()
    numbers[7] = "1.5"  # no rotation any more
    bent.write_text("\n".join([*lines[:2], " ".join(numbers), *lines[3:]]))
    through = tmp_path / "through.tum"
    through.write_text("0 0 0 0 0 0 0 1\n1 0 0 1e6 0 0 0 1\n")
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    for file, why in ((bent, "rigid"), (through, "passes the plane"), (empty, "poses")):
        assert command.main(["--prompt", "a", "--adapter", str(moving_run / "adapter"), "--camera", str(file)]) == 2
        said = capsys.readouterr().err
        assert file.name in said and why in said


def arguments(run: Path, tmp_path: Path) -> list[str]:
    file = tmp_path / "prompts.jsonl"
    rows = [{"prompt": PROMPTS[0], "seed": 5}, {"prompt": PROMPTS[1]}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = ["--prompts", str(file), "--adapter", str(run / "adapter"), "--num-per-prompt", "2", "--device", "cpu"]
    return [*out, "--output-dir", str(tmp_path / "batch"), "--upscale", "1"]


def test_a_batch_goes_on_where_it_stopped(moving_run: Path, tmp_path: Path, capsys) -> None:
    args, folder = arguments(moving_run, tmp_path), tmp_path / "batch"
    assert command.main(args) == 0
    lines = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    assert [line["file"] for line in lines] == ["0000.mp4", "0001.mp4", "0002.mp4", "0003.mp4"]
    assert [(line["seed"], line["sample_id"]) for line in lines] == [(5, 0), (5, 1), (11, 0), (11, 1)]
    assert lines[0]["motions"] == ["pan_left x1"] and lines[2]["motions"] == []
    before = {name: (folder / name).read_bytes() for name in ("0000.mp4", "0001.mp4", "0002.mp4")}
    times = {name: (folder / name).stat().st_mtime_ns for name in before}
    (folder / "0001.mp4").write_bytes(before["0001.mp4"][:300])  # cut off
    (folder / "0003.mp4").unlink()
    with (folder / "manifest.jsonl").open("a") as file:
        file.write('{"file": "00')
    capsys.readouterr()
    assert command.main(args) == 0
    assert "video 2 of 2" in capsys.readouterr().out
    assert (folder / "0001.mp4").read_bytes() == before["0001.mp4"] and (folder / "0003.mp4").is_file()
    assert (folder / "0000.mp4").stat().st_mtime_ns == times["0000.mp4"]
    assert [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()] == lines
    assert command.main(args) == 0 and "all 4 videos are there" in capsys.readouterr().out
    with (tmp_path / "prompts.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": PROMPTS[2], "sample_id": 7}) + "\n")
    assert command.main(args) == 0 and "video 2 of 2" in capsys.readouterr().out
    more = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    assert more[:4] == lines and [line["sample_id"] for line in more[4:]] == [7, 8]


def test_changed_settings_are_refused_by_name(moving_run: Path, tmp_path: Path, capsys) -> None:
    args = arguments(moving_run, tmp_path)
    assert command.main(args) == 0
    for more, name in ((["--num-steps", "2"], "num_steps = 3"), (["--seed", "8"], "0002.mp4 was made with seed = 11")):
        assert command.main([*args, *more]) == 2
        assert name in capsys.readouterr().err
    few = [a if a != "2" else "1" for a in args]
    assert command.main(few) == 2  # 0001.mp4 was another prompt's
    with (tmp_path / "prompts.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": PROMPTS[2], "camera": "none.txt"}) + "\n")
    assert command.main(args) == 2 and "none.txt" in capsys.readouterr().err


def test_a_folder_of_other_clips_is_left_alone(moving_run: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "batch").mkdir()
    (tmp_path / "batch" / "0001.mp4").write_bytes(b"mine")
    assert command.main(arguments(moving_run, tmp_path)) == 2
    assert "clips without settings.json" in capsys.readouterr().err
    assert (tmp_path / "batch" / "0001.mp4").read_bytes() == b"mine"


@pytest.mark.parametrize(
    "line, match",
    [
        ("[1]", "must be an object"), ('{"prompt": ""}', "not empty"), ("{", "must be JSON"),
        ('{"prompt": "a", "seed": -1}', "seed"), ('{"prompt": "a", "seed": true}', "seed"),
        ('{"prompt": "a", "sample_id": 4294967296}', "sample_id"), ('{"prompt": "a", "camera": 3}', "camera"),
    ],
)  # fmt: skip
def test_a_wrong_line_of_a_prompts_file_is_named(tmp_path: Path, line: str, match: str) -> None:
    from worldr1.prompts.requests import read_requests

    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": "a", "camera": "x.txt"}\n\n' + line + "\n")
    with pytest.raises(ValueError, match=f"line 3.*{match}"):
        read_requests(file)
    file.write_text('{"prompt": "a", "camera": "x.txt"}\n{"prompt": " b ", "camera": "words"}')
    first, second = read_requests(file)
    assert first.camera == tmp_path / "x.txt" and second == ("b", *[None] * 5)


@pytest.mark.slow
def test_two_ranks_make_what_one_makes(moving_run: Path, tmp_path: Path) -> None:
    args = arguments(moving_run, tmp_path)
    assert command.main(args) == 0
    one = tmp_path / "batch"
    one.rename(tmp_path / "one")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    subprocess.run([*torchrun, "-m", "worldr1.generate", *args], check=True, env=os.environ, timeout=300)
    for name in ("0000.mp4", "0003.mp4", "manifest.jsonl", "settings.json"):
        assert (one / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    assert torch.equal(read(one / "0002.mp4"), read(tmp_path / "one" / "0002.mp4"))
