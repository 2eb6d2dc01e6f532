import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from worldr1 import cli
from worldr1.config import TrainConfig
from worldr1.run.lock import FolderRefused

REPOSITORY = Path(__file__).parents[2]


def never(config: TrainConfig) -> cli.Outcome:
    raise AssertionError("training must not start")


def test_no_flags_are_the_defaults():
    assert cli.parse([]) == TrainConfig()


def test_nested_flags():
    config = cli.parse([
        "--max-iterations", "3", "--seed=7", "--output-dir", "x/y", "--reward.control", "permuted", "--resume",
        "--schedule.window-range", "1", "3", "--update.learning_rate", "0.5", "--model.path", "m",
    ])  # fmt: skip
    assert (config.max_iterations, config.seed, config.output_dir) == (3, 7, Path("x/y"))
    assert config.reward.control == "permuted" and config.resume and config.schedule.window_range == (1, 3)
    assert config.update.learning_rate == 0.5 and config.model.path == Path("m")
    assert config.rollout == TrainConfig().rollout


@pytest.mark.parametrize("spelling", [["--preset", "wan2.1-1.3b"], ["--preset=wan2.1-1.3b"]])
def test_flags_are_laid_over_a_preset(spelling):
    config = cli.parse([*spelling, "--rollout.group-size", "16"])
    assert config.rollout.group_size == 16 and config.rollout.prompts_per_iteration == 48
    assert config.video.width == 832


def test_a_preset_without_its_paths_names_the_flags():
    with pytest.raises(
        ValueError, match="--prompts --dynamic-prompts --eval-prompts --model.path --reward.reconstructor"
    ):
        cli.check_paths(cli.parse(["--preset", "wan2.1-14b"]))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--preset", "micor"], "got 'micor'; the nearest is 'micro'"),
        (["--preset"], "--preset must be followed by"),
        (["--reward.control", "permutd"], "got 'permutd'; the nearest is 'permuted'"),
        (["--schedule.sde_type=Flow"], "got 'Flow'; the nearest is 'flow'"),
        (["--rollout.group-size", "2"], "rollout.group_size must be >= 4, got 2"),
    ],
)
def test_wrong_values_name_the_nearest_and_exit_2(args, message, capsys):
    assert cli.main(never, args) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [(["--rollout.grup-size", "4"], "--rollout.group-size"), (["--seed", "four"], "--seed")],
)
def test_wrong_flags_are_explained(args, message, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(never, args)
    assert caught.value.code == 2 and message in capsys.readouterr().err


def test_help_of_a_preset_says_why(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(never, ["--preset", "wan2.1-1.3b", "--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert caught.value.code == 0
    for words in ("20,280 tokens instead of 32,760", "the adapter acts on exactly the steps that may be trained"):
        assert words in text
    assert (
        "the draws that are trained" not in text and "(default: 49)" in text
    )  # its own defaults, not the micro world's


def test_other_ranks_keep_quiet_and_wait_for_rank_0(monkeypatch, capsys):
    waits = []
    monkeypatch.setattr(cli.time, "sleep", waits.append)
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit):
        cli.main(never, ["--rollout.grup-size", "4"])
    assert cli.main(never, ["--preset", "x"]) == 2
    assert capsys.readouterr() == ("", "") and waits == [cli.SECONDS_FOR_RANK_0] * 2
    with pytest.raises(SystemExit):
        cli.main(never, ["--help"])  # no rank is killed for an exit code of 0
    monkeypatch.setenv("RANK", "0")
    assert cli.main(never, ["--preset", "x"]) == 2 and len(waits) == 2


# Rank 0 needs two seconds more than the others to find the mistake.
SLOW_RANK_0 = """
import os, sys, time
if os.environ["RANK"] == "0":
    time.sleep(2)
from worldr1.cli import main
sys.exit(main(None))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("flag", "words"), [("--bogus", "--bogus"), ("--rollout.group-size=2", "must be >= 4, got 2")])
def test_under_torchrun_the_mistake_is_explained_though_rank_0_is_slow(tmp_path, flag, words):
    script = tmp_path / "slow.py"
    script.write_text(SLOW_RANK_0)
    command = (sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master-port", "29747")
    start = time.monotonic()
    got = subprocess.run([*command, str(script), flag], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert got.returncode != 0 and words in got.stderr
    assert time.monotonic() - start < 60  # rank 1 ends with rank 0, not after its whole wait


@pytest.mark.parametrize(
    ("error", "code"),
    [(ValueError("wrong"), 2), (RuntimeError("broken"), 1), (OSError("full"), 1), (KeyboardInterrupt(), 130)],
)
def test_how_training_ends_is_the_exit_code(error, code, tmp_path, capsys):
    def fails(config: TrainConfig) -> cli.Outcome:
        raise error

    assert cli.main(fails, ["--output-dir", str(tmp_path)]) == code
    said = capsys.readouterr().err
    assert (str(error) or "stopped at once") in said and said.count("\n") <= 2
    for interrupted, expected in ((True, 130), (False, 0)):
        assert cli.main(lambda config, i=interrupted: SimpleNamespace(interrupted=i), []) == expected


def test_a_folder_of_another_gets_no_file_of_ours(tmp_path, monkeypatch, capsys):
    def refused(config: TrainConfig) -> cli.Outcome:
        raise FolderRefused("in use")

    monkeypatch.setattr(cli.time, "sleep", lambda seconds: None)
    for rank, said in (("0", "in use\n"), ("1", "")):
        monkeypatch.setenv("RANK", rank)
        assert cli.main(refused, ["--output-dir", str(tmp_path)]) == 2
        assert capsys.readouterr().err == said and not list(tmp_path.iterdir())


def test_smaller_commands_share_the_exit_codes(capsys):
    def fail(error: Exception) -> None:
        raise error

    assert cli.exit_code(lambda: None) == 0
    assert cli.exit_code(lambda: fail(ValueError("wrong"))) == 2
    assert cli.exit_code(lambda: fail(RuntimeError("broken"))) == cli.exit_code(lambda: fail(OSError("full"))) == 1
    assert capsys.readouterr().err == "wrong\nbroken\nfull\n"


def test_help_documents_every_field_without_torch():
    code = (
        "import sys, runpy; sys.argv = ['train.py', '--help']\n"
        "try: runpy.run_path('worldr1/train.py', run_name='__main__')\n"
        "except SystemExit as e: assert e.code == 0\n"
        "assert 'torch' not in sys.modules"
    )
    got = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert got.returncode == 0, got.stderr
    text = " ".join(got.stdout.replace("│", " ").split())
    for flag, words in (("--reward.control", "The gain must vanish"), ("--preset", "wan2.1-14b")):
        assert flag in text and words in text
    for name, _, _ in cli._leaves(TrainConfig()):
        shown = f"--{name.replace('_', '-')}" in text
        assert shown == (name != "schedule.compat"), name  # that is for `--preset compat` alone
