"""The command that writes videos: settings, files, and that a trained adapter shows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from worldr1 import generate as command
from worldr1.config import ModelConfig, NoiseConfig, ScheduleConfig, TrainConfig, VideoConfig, to_json
from worldr1.models.wan import load_policy
from worldr1.prompts.sampler import read_batch
from worldr1.rollout.sample import generate
from worldr1.rollout.schedule import euler_sigmas
from worldr1.run.saved_config import read_run_config
from worldr1.run.video import write_video

PROMPT = "the camera pans left on a green floor"


@pytest.fixture()
def run_folder(tiny_wan: Path, tmp_path: Path) -> Path:
    """What a training run leaves: config.json and an adapter that acts at high noise only."""
    config = TrainConfig(
        model=ModelConfig(path=tiny_wan, lora_rank=4, lora_alpha=12, adapter_sigma_min=0.6),
        video=VideoConfig(height=16, width=24, num_frames=5, fps=5),
        schedule=ScheduleConfig(num_steps=4, shift=2.0, window_range=(0, 2)),
        noise=NoiseConfig(mode="plain"),
    )
    policy = load_policy(config.model, device="cpu")
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in policy.adapter_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    policy.save_lora(tmp_path / "adapter")
    (tmp_path / "config.json").write_text(json.dumps(to_json(config)))
    return tmp_path


def read(path: Path) -> torch.Tensor:
    import imageio.v3 as imageio

    return torch.from_numpy(imageio.imread(path, index=None)).permute(0, 3, 1, 2).float() / 255  # [F, 3, H, W]


def test_config_json_reads_back_as_the_settings_of_the_run(tmp_path: Path) -> None:
    config = replace(TrainConfig(), seed=5, schedule=ScheduleConfig(window_range=(1, 5)), output_dir=Path("x/y"))
    file = tmp_path / "config.json"
    file.write_text(json.dumps(to_json(config)))
    assert read_run_config(file) == config


@pytest.mark.parametrize("text", ["{", '{"sed": 1}', '{"video": {"hight": 2}}'])
def test_a_broken_config_json_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "config.json"
    file.write_text(text)
    with pytest.raises(ValueError, match="config.json"):
        read_run_config(file)


def test_adapter_video_is_that_of_the_sampler(run_folder: Path, tiny_wan: Path) -> None:
    """gif at factor 1 of what rollout.generate gives for the run's settings, sigma range included."""
    output = run_folder / "out.gif"
    code = command.main(
        ["--prompt", PROMPT, "--adapter", str(run_folder / "adapter"), "--output", str(output)]
        + ["--upscale", "1", "--device", "cpu", "--seed", "4"]
    )
    assert code == 0
    from worldr1.camera.noise import initial_noise
    from worldr1.models.wan import load_adapted_policy

    settings = replace(read_run_config(run_folder / "config.json"), seed=4)
    policy = load_adapted_policy(tiny_wan, run_folder / "adapter")
    assert policy.model.adapter_sigma_min == 0.6
    ids = torch.zeros(1, dtype=torch.int64)
    batch = read_batch([PROMPT], config=settings, group_size=1, sample_ids=ids, group_ids=ids, dynamic=False)
    noise = initial_noise(batch, (4, 2, 4, 6), config=settings)
    video = generate(policy, [PROMPT], noise, sigmas=euler_sigmas(4, 2.0))[0]
    got = read(output)
    assert got.shape == video.shape == (5, 3, 16, 24)
    assert (got - video).abs().mean() < 0.02  # 256 colours


def test_compare_shows_base_left_and_adapter_right(run_folder: Path) -> None:
    arguments = ["--prompt", PROMPT, "--adapter", str(run_folder / "adapter"), "--upscale", "4", "--device", "cpu"]
    both, alone, base = (run_folder / f"{n}.mp4" for n in ("both", "alone", "base"))
    assert command.main([*arguments, "--compare", "--output", str(both)]) == 0
    assert command.main([*arguments, "--output", str(alone)]) == 0
    settings = read_run_config(run_folder / "config.json")
    rest = [
        "--height",
        "16",
        "--width",
        "24",
        "--num-frames",
        "5",
        "--num-steps",
        "4",
        "--noise",
        "plain",
        "--fps",
        "5",
    ]
    assert settings.rollout.guidance_scale == 1.0
    assert (
        command.main(
            ["--prompt", PROMPT, "--model", str(settings.model.path), "--output", str(base), "--upscale", "4"] + rest
        )
        == 0
    )
    left, right, video = read(base), read(alone), read(both)
    gap = 4 * 4
    assert video.shape == (5, 3, 64, 2 * 96 + gap)
    assert (video[..., :96] - left).abs().mean() < 0.02
    assert (video[..., 96 + gap :] - right).abs().mean() < 0.02
    assert (left - right).abs().mean() > 0.03
    assert float(video[..., 98 : 96 + gap - 2].min()) > 0.9


def test_several_prompts_make_several_files(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = run_folder / "new" / "clip.gif"
    arguments = [
        "--prompt",
        PROMPT,
        "The camera swoops. A ball",
        "--adapter",
        str(run_folder / "adapter"),
        "--output",
        str(output),
    ]
    assert command.main(arguments) == 0
    files = sorted(output.parent.iterdir())
    assert [f.name for f in files] == ["clip_0.gif", "clip_1.gif"]
    assert read(files[0]).shape == (5, 3, 256, 384)  # enlarged 16 times
    assert (read(files[0]) - read(files[1])).abs().mean() > 0.01
    text = capsys.readouterr().out
    assert "pan_left x1" in text and "camera not asked for: The camera swoops. A ball\n  not understood: swoops" in text
    assert "video 2 of 2" in text


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_a_written_video_reads_back(tmp_path: Path, suffix: str) -> None:
    video = torch.rand(6, 3, 3, 5, generator=torch.Generator().manual_seed(0)).round()  # 0 or 1: exact in a palette
    write_video(video, tmp_path / f"v{suffix}", fps=7)
    factor = 86  # ceil(256 / 3)
    got = read(tmp_path / f"v{suffix}")
    assert got.shape == (6, 3, 3 * factor, 5 * factor)
    centres = got[:, :, factor // 2 :: factor, factor // 2 :: factor]
    assert (centres - video).abs().max() < (0.1 if suffix == ".mp4" else 0.01)


@pytest.mark.parametrize(
    "arguments, match",
    [
        (["--prompt", "a", "--output", "x.avi"], "must end in .mp4 or .gif"),
        (["--prompt", "a", "--compare"], "needs --adapter"),
        (["--prompt", "a", "--adapter", "/no/such"], "must be a folder"),
        (["--prompt", "a", "--model", "/no/such"], "WanPipeline folder"),
        (["--prompt", "a", "--num-steps", "0"], "num_steps"),
        (["--prompt", "a", "--guidance-scale", "0.5"], "guidance_scale"),
        (["--prompt"], "at least once"),
        (["--prompt", "a", "--camera", "/no/such.txt"], "must be `words` or a pose file"),
        (["--prompt", "a", "--num-per-prompt", "0"], "num_per_prompt"),
        (["--prompt", "a", "--seed", "-1"], "seed must be"),
        (["--prompt", "a", "--camera-scale", "0"], "camera_scale"),
        (["--prompts", "p.txt"], "needs --output-dir"),
        (["--prompts", "/no/such.txt", "--output-dir", "d"], "must be readable"),
    ],
)
def test_wrong_settings_are_told_before_anything_is_loaded(
    arguments: list[str], match: str, tiny_wan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "--model" not in arguments:
        arguments = [*arguments, "--model", str(tiny_wan)]
    assert command.main(arguments) == 2
    assert match in capsys.readouterr().err


def test_a_cut_adapter_is_one_line_and_exit_2(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = run_folder / "adapter" / "pytorch_lora_weights.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    args = ["--prompt", PROMPT, "--adapter", str(run_folder / "adapter"), "--output", str(run_folder / "out.gif")]
    assert command.main(args) == 2
    error = capsys.readouterr().err
    assert error.startswith(str(file)) and error.count("\n") == 1 and not (run_folder / "out.gif").exists()


def test_a_video_that_is_not_finite_is_no_success(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Weights that are finite and far too large."""
    file = run_folder / "adapter" / "pytorch_lora_weights.safetensors"
    save_file({name: 1e18 * value for name, value in load_file(file).items()}, file)
    args = ["--prompt", PROMPT, "--adapter", str(run_folder / "adapter"), "--output", str(run_folder / "out.gif")]
    assert command.main(args) == 1
    said = capsys.readouterr().err
    assert f"generate: a video of {run_folder / 'adapter'} must be finite, got NaN" in said
    assert not (run_folder / "out.gif").exists()


def test_a_lora_file_of_others_needs_no_run(run_folder: Path, tiny_wan: Path, tmp_path: Path) -> None:
    """Beside a model's config.json, which is no run's."""
    other = tmp_path / "other"
    other.mkdir()
    (run_folder / "adapter" / "wan_lora.safetensors").rename(other / "lora.safetensors")
    (other / "config.json").write_text('{"_class_name": "WanTransformer3DModel"}')
    output = tmp_path / "out.gif"
    args = ["--adapter", str(other / "lora.safetensors"), "--model", str(tiny_wan), "--prompt", PROMPT]
    sizes = ["--height", "16", "--width", "24", "--num-frames", "5", "--num-steps", "2"]
    assert command.main([*args, *sizes, "--output", str(output)]) == 0 and output.is_file()
