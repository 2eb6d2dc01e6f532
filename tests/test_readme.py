"""What the README says can be run, can be run; what it points to is there."""

from __future__ import annotations

import contextlib
import functools
import io
import re
import runpy
import shlex
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from worldr1 import cli

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(line, comments=True)
    for block in re.findall(r"```bash\n(.*?)```", README, re.S)
    for line in block.splitlines()
    if line.strip()
]
PAGES = [
    p
    for p in [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/**/*.md")), *sorted(ROOT.glob("bench/*.md"))]
    if p.name not in ("log.md", "CHANGELOG.md")
]  # those tell of what was
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))


@functools.cache
def help_text(module: str) -> str:
    """What `python -m module --help` prints; here, and not in a process of its own, for the imports are the cost."""
    out, argv = io.StringIO(), sys.argv
    sys.argv = [module, "--help"]
    try:
        with contextlib.redirect_stdout(out), warnings.catch_warnings(), pytest.raises(SystemExit) as done:
            warnings.simplefilter("ignore", RuntimeWarning)  # that it has been imported before
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        sys.argv = argv
    assert not done.value.code
    return out.getvalue()


def test_the_two_commands_come_first() -> None:
    assert [c[:2] for c in COMMANDS[:2]] == [["make", "train"], ["make", "test"]]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: " ".join(c)[:60])
def test_command_exists_and_its_flags_are_known(command: list[str]) -> None:
    if command[0] == "make":
        assert command[1] in TARGETS
        args = [a.removeprefix("ARGS=") for a in command[2:] if a.startswith("ARGS=")]
        if command[1] == "train" and args:
            assert cli.parse(shlex.split(args[0])).max_iterations == 20
    elif command[0] == "torchrun":
        script = command.index("worldr1/train.py")
        assert (ROOT / command[script]).is_file()
        config = cli.parse(command[script + 1 :])  # SystemExit on a flag that is not there
        cli.check_paths(config)
    elif command[:2] == ["python", "-m"]:
        assert find_spec(command[2]) is not None
        if len(command) > 3:  # every flag is in the help text
            said = " ".join(help_text(command[2]).split())
            assert [flag for flag in command[3:] if flag.startswith("--") and flag not in said] == []
    else:
        assert command[:2] == ["pip", "install"]


def test_rasterizer_snippet_gives_what_its_comment_says(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    image = names["image"]
    assert isinstance(image, torch.Tensor) and image.shape == (1, 65, 65, 4)
    torch.testing.assert_close(image[0, 32, 32], torch.tensor([0.9, 0.0, 0.0, 2.0]), atol=1e-5, rtol=0)
    assert "tensor([" in capsys.readouterr().out


def test_paths_exist() -> None:
    table = README[README.index("## Where is what") : README.index("## Licence")]
    paths = re.findall(r"`([\w./]+/[\w./]*)`", table) + re.findall(r"\]\((?!http)([^)]+)\)", README)
    assert len(paths) > 20
    assert [p for p in paths if not (ROOT / p).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_what_a_page_names_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    files = re.findall(
        r"\b(?:worldr1|worldr1_kernels|tests|bench|csrc|docs)/[\w./]*\w\.(?:py|md|h|cu|cpp|jsonl?|png)\b", text
    )
    assert [f for f in files if not (ROOT / f).exists()] == []
    assert [m for m in re.findall(r"python -m ((?:worldr1|bench)[\w.]*\w)", text) if find_spec(m) is None] == []


def test_every_module_has_its_place_in_the_tree() -> None:
    architecture = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    tree = architecture[architecture.index("## The tree") : architecture.index("## Layers")]
    words = set(re.findall(r"\w+", tree))
    named = [p for p in (ROOT / "worldr1").rglob("*.py") if "microworld" not in p.parts and "report" not in p.parts]
    inside = {"registry"}  # of judges/, whose other files are said to be one a judge
    judges = {p.stem for p in (ROOT / "worldr1" / "rewards" / "judges").glob("*.py")} - inside
    missing = {p.stem for p in named} | {p.parent.name for p in named}
    assert sorted(missing - judges - words - {"__init__", "__main__", "base"}) == []


def test_make_help_lists_every_target() -> None:
    done = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    listed = set(re.findall(r"^  make ([a-z-]+)", done.stdout, re.M))
    assert listed == TARGETS and {"train", "test", "lint", "bench", "clean"} <= listed
