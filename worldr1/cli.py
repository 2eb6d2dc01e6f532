"""The command line: flags -> TrainConfig, and the exit code. Imports nothing heavy: --help and mistakes answer at once.

Exit codes: 0 done, 1 failed while running, 2 wrong settings, 130 stopped by Ctrl-C (saved, see the printed command).
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import inspect
import io
import os
import re
import sys
import time
import traceback
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from worldr1.config import TrainConfig
from worldr1.config_checks import JUDGE_ROLES, judges_asked, validate
from worldr1.presets import PRESETS, REQUIRED, preset
from worldr1.run.lock import FolderRefused

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130
SECONDS_FOR_RANK_0 = 15.0
"""So long a silent rank waits before it exits: rank 0 explains, and torchrun kills all ranks when one has gone."""


class Outcome(Protocol):
    """What a run says of its end; train.Outcome has it."""

    @property
    def interrupted(self) -> bool: ...


def main(train: Callable[[TrainConfig], Outcome], argv: Sequence[str] | None = None) -> int:
    """Parse the command line, train, and turn what went wrong into one message and an exit code.

    Args:
      train: Called with the settings once they have been checked; it brings the heavy imports.
      argv: Without the program's name; None takes sys.argv.
    Returns:
      The exit code.
    """
    set_environment_defaults()
    args = list(sys.argv[1:] if argv is None else argv)
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    try:
        config = parse(args)
        check_paths(config)
        validate(config, world_size=world_size)
    except ValueError as error:
        _say_on_rank_0(error, rank=rank)
        return EXIT_USAGE
    except SystemExit as leave:
        if leave.code:
            _say_on_rank_0(None, rank=rank)  # the parser has said it
        raise
    try:
        return EXIT_INTERRUPTED if train(config).interrupted else 0
    except KeyboardInterrupt:
        print("stopped at once, without saving; --resume goes on from the last checkpoint", file=sys.stderr)
        return EXIT_INTERRUPTED
    except FolderRefused as error:  # another's folder: no file of ours goes there
        _say_on_rank_0(error, rank=rank)
        return EXIT_USAGE
    except ValueError as error:
        _report(error, config, rank=rank)
        return EXIT_USAGE
    except (RuntimeError, OSError) as error:
        _report(error, config, rank=rank)
        return EXIT_FAILED


def exit_code(command: Callable[[], object]) -> int:
    """Run the body of a smaller command: 0, or what went wrong in one line on stderr and 2 (wrong settings) or 1. Wrong
    settings are told by rank 0 alone."""
    try:
        command()
    except ValueError as error:
        _say_on_rank_0(error, rank=int(os.environ.get("RANK", "0")))
        return EXIT_USAGE
    except (RuntimeError, OSError) as error:
        print(error, file=sys.stderr)
        return EXIT_FAILED
    return 0


def set_environment_defaults() -> None:
    """What must be set before torch starts; values that the user set stay.

    OpenMP threads that wait by spinning make a busy machine many times slower, so they sleep.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def parse(args: Sequence[str]) -> TrainConfig:
    """Flags -> TrainConfig. `--preset NAME` chooses what the other flags are laid over.

    Raises:
      ValueError: unknown preset or wrong value, with the nearest right one.
      SystemExit: --help (0), or an unknown flag or a value that cannot be read (2), explained on stderr.
    """
    import tyro

    name, rest = _take_preset(list(args))
    default = preset(name)
    _check_choices(rest)
    why = re.sub(r"\n\s+", " ", inspect.cleandoc(PRESETS[name].__doc__ or "").replace("\n\n", "\n"))
    description = (
        f"{TrainConfig.__doc__}\n\n--preset {{{','.join(PRESETS)}}} (default: micro) chooses the settings that the "
        f"flags below change.\n\n{name}: " + why.replace("\n", "\n\n")
    )
    quiet = os.environ.get("RANK", "0") != "0"  # one rank explains, all exit
    with contextlib.redirect_stderr(io.StringIO()) if quiet else contextlib.nullcontext():
        with contextlib.redirect_stdout(io.StringIO()) if quiet else contextlib.nullcontext():
            return tyro.cli(TrainConfig, default=default, args=rest, description=description, prog="train.py")


def missing_paths(config: TrainConfig) -> list[str]:
    """Flags of the paths that a preset leaves to the user and that were not given; of judges, where a weight asks."""
    idle = {f"reward.{role}" for role in JUDGE_ROLES if role not in judges_asked(config)}
    open_ones = [name for name, value, _ in _leaves(config) if str(value) == str(REQUIRED) and name not in idle]
    return [f"--{name.replace('_', '-')}" for name in open_ones]


def check_paths(config: TrainConfig) -> None:
    """Every path that a preset leaves to the user must be given.

    Raises:
      ValueError: the flags that are missing.
    """
    if missing := missing_paths(config):
        raise ValueError(
            f"this preset needs paths that only you know, missing are: {' '.join(missing)}; "
            "python -m worldr1.doctor with the same flags says what they are"
        )


def _take_preset(args: list[str]) -> tuple[str, list[str]]:
    rest, name = [], "micro"
    while args:
        arg = args.pop(0)
        if arg == "--preset":
            if not args:
                raise ValueError(f"--preset must be followed by one of {', '.join(PRESETS)}")
            name = args.pop(0)
        elif arg.startswith("--preset="):
            name = arg.removeprefix("--preset=")
        else:
            rest.append(arg)
    return name, rest


def _check_choices(args: list[str]) -> None:
    """A wrong word where only some are allowed: name the nearest. The parser would only list them."""
    choices = {f"--{name.replace('_', '-')}": typing.get_args(kind) for name, _, kind in _leaves(TrainConfig())
               if typing.get_origin(kind) is typing.Literal}  # fmt: skip
    following = [*args[1:], ""]
    pairs = [a.split("=", 1) if "=" in a else (a, b) for a, b in zip(args, following, strict=False)]
    for flag, value in pairs:
        allowed = choices.get(flag.replace("_", "-"))
        if allowed and value not in allowed:
            near = difflib.get_close_matches(value.lower(), allowed, n=1, cutoff=0.0)[0]
            raise ValueError(f"{flag} must be one of {', '.join(allowed)}, got {value!r}; the nearest is {near!r}")


def _leaves(config: object, prefix: str = "") -> list[tuple[str, object, object]]:
    """(dotted name, value, type) of every setting."""
    out: list[tuple[str, object, object]] = []
    assert dataclasses.is_dataclass(config)
    hints = typing.get_type_hints(type(config))
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            out += _leaves(value, f"{prefix}{f.name}.")
        else:
            out.append((f"{prefix}{f.name}", value, hints[f.name]))
    return out


def _say_on_rank_0(error: Exception | None, *, rank: int) -> None:
    """What all ranks found; the silent ones leave rank 0 the time to say it."""
    if rank:
        time.sleep(SECONDS_FOR_RANK_0)
    elif error is not None:
        print(error, file=sys.stderr)


def _report(error: Exception, config: TrainConfig, *, rank: int) -> None:
    """The message for the user, and the traceback in a file for whoever looks for a bug."""
    text = re.sub(r"\n(?=\n)", "", str(error)) or type(error).__name__
    where = Path(config.output_dir) / f"error_rank{rank}.txt"
    try:
        where.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        text += f"\n(traceback: {where})"
    except OSError:  # the folder may be what is wrong
        pass
    print(text if rank == 0 else f"rank {rank}: {text}", file=sys.stderr)
