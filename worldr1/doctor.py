"""`python -m worldr1.doctor FLAGS`: is everything there that a run needs? Takes the flags of train.py.

One line a finding, and at the end the command that starts the run, or the first thing to do before it can start.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from worldr1 import cli
from worldr1.config import TrainConfig
from worldr1.config_checks import judges_asked, validate

HELP = """usage: python -m worldr1.doctor [--ranks N] [--no-clip] FLAGS OF train.py

Looks at what a run would need: settings, packages, devices, prompts, model and judge folders with their licences, disk
and memory; tries one clip on every judge; then prints the command that starts the run, or the first thing to do.

  --ranks N    ranks of the whole run (default: the devices of this machine, or 1)
  --no-clip    do not load the judges

For example: python -m worldr1.doctor --preset wan2.1-1.3b --model.path WAN_FOLDER --reward.critic QWEN_FOLDER
"""

PAGES = {
    "--model.path": "docs/models/wan2.1.md says what to download",
    "--reward.reconstructor": "docs/models/depth-anything-3.md says what to download",
    "--reward.critic": "docs/models/qwen3-vl.md says what to download, or how to name a server",
    "--reward.aesthetic": "docs/models/hpsv3.md says what to download",
    "--reward.perceptual": "docs/models/lpips.md; `make lpips` fetches it",
    "--prompts": "a text file, one prompt a line",
    "--dynamic-prompts": "a text file, one prompt a line; --phase.dynamic-iterations 0 does without",
    "--eval-prompts": "a text file, one prompt a line, none of it trained on",
}
"""What a preset leaves to the user, and where to find it."""


class Finding(NamedTuple):
    """One thing looked at."""

    what: str
    good: bool
    text: str  # what was found; where it is not good, what to do


def main(argv: Sequence[str] | None = None) -> int:
    """Print the findings and the verdict; 0 where the run can start, 1 where something is to be done, 2 for flags."""
    args = list(sys.argv[1:] if argv is None else argv)
    if args in (["--help"], ["-h"]):
        print(HELP)
        return 0
    cli.set_environment_defaults()
    try:
        ranks, with_clip, flags = _own_flags(args)
        config = cli.parse(flags)
    except ValueError as error:
        print(error, file=sys.stderr)
        return cli.EXIT_USAGE
    ranks = ranks or (_ranks_here(config, _num_devices()) if config.device != "cpu" else 0) or 1
    todo = []
    for finding in examine(config, ranks=ranks, with_clip=with_clip):
        print(f"{'ok   ' if finding.good else 'TO DO'}  {finding.what:14} {finding.text}", flush=True)
        if not finding.good:
            todo.append(finding)
    if todo:
        print(f"\n{len(todo)} thing(s) to do; the next is {todo[0].what}: {todo[0].text}")
        return 1
    print(f"\nready; start with\n  {start_command(ranks, flags, config)}")
    return 0


def start_command(ranks: int, flags: Sequence[str], config: TrainConfig) -> str:
    """What starts the run; on several machines like this one where it has fewer devices than ranks."""
    here = _ranks_here(config, ranks)
    start = ["torchrun", "--nproc_per_node", str(here)]
    if ranks > here:
        start += ["--nnodes", str(ranks // here), "--rdzv_backend", "c10d", "--rdzv_endpoint", "FIRST_MACHINE:29500"]
    command = shlex.join([*start, "--shutdown-timeout", "600", "worldr1/train.py", *flags])
    return command + (f"\non each of {ranks // here} machines like this one" if ranks > here else "")


def examine(config: TrainConfig, *, ranks: int, with_clip: bool) -> Iterator[Finding]:
    """Look at everything in turn; a finding that is not good does not stop the others that can still be made.

    Args:
      config: The run's settings, unchecked.
      ranks: Of the run, on this machine.
      with_clip: Load the judges and show them the golden clip.
    """
    yield from _settings(config, ranks)
    yield from _attempt("ranks", lambda: _ranks(config, ranks))
    yield _packages()
    yield from _attempt("device", lambda: _device(config))
    yield from _attempt("prompts", lambda: _prompts(config))
    yield from _attempt("model", lambda: _model(config))
    for role in judges_asked(config):
        yield from _attempt(role, lambda role=role: _judge(config, role))  # type: ignore[misc]
    yield from _attempt("disk", lambda: _disk(config))
    yield from _attempt("memory", lambda: _memory(config, ranks))
    if with_clip:
        for role in judges_asked(config):
            if _is_given(getattr(config.reward, role)):
                yield from _attempt(f"clip, {role}", lambda role=role: _clip(config, role))  # type: ignore[misc]


def _own_flags(args: list[str]) -> tuple[int, bool, list[str]]:
    ranks, with_clip, rest = 0, True, []
    while args:
        arg = args.pop(0)
        name, _, value = arg.partition("=")
        if name == "--ranks":
            value = value or (args.pop(0) if args else "")
            if not value.isdecimal() or int(value) < 1:
                raise ValueError(f"--ranks must be a number >= 1, got {value!r}")
            ranks = int(value)
        elif arg == "--no-clip":
            with_clip = False
        else:
            rest.append(arg)
    return ranks, with_clip, rest


def _attempt(what: str, look: Callable[[], str | Finding | None]) -> Iterator[Finding]:
    """A finding of `look`: its text is good, what it raises is to be done; None: nothing to say."""
    try:
        found = look()
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        yield Finding(what, False, str(error).splitlines()[0] if str(error) else type(error).__name__)
        return
    if found is not None:
        yield found if isinstance(found, Finding) else Finding(what, True, found)


def _is_given(path: object) -> bool:
    from worldr1.presets import REQUIRED

    return str(path) != str(REQUIRED)


def _settings(config: TrainConfig, ranks: int) -> Iterator[Finding]:
    missing = cli.missing_paths(config)
    for flag in missing:
        yield Finding("settings", False, f"{flag} must be given: {PAGES.get(flag, 'only you know it')}")
    try:
        validate(config, world_size=ranks)
    except ValueError as error:
        for line in str(error).splitlines()[1:]:
            if "REQUIRED" not in line:
                yield Finding("settings", False, line.removeprefix("  - "))
    else:
        if not missing:
            yield Finding("settings", True, f"hold together, for {ranks} rank(s)")


def _packages() -> Finding:
    """Installed versions against what this package asks for."""
    from packaging.requirements import Requirement

    wrong, shown = [], []
    for text in importlib.metadata.requires("worldr1") or []:
        need = Requirement(text)
        if need.marker is not None and not need.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(need.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{need.name} is not installed")
            continue
        if not need.specifier.contains(version, prereleases=True):
            wrong.append(f"{need.name} must be {need.specifier}, got {version}")
        if need.name in ("torch", "diffusers", "transformers", "peft"):
            shown.append(f"{need.name} {version}")
    if wrong:
        return Finding("packages", False, "; ".join(wrong) + "; run `pip install -e .` again")
    return Finding("packages", True, ", ".join(shown))


def _num_devices() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _ranks_here(config: TrainConfig, ranks: int) -> int:
    """Of the run's ranks those of one machine like this one: a device each, or all of them on CPUs."""
    devices = _num_devices() if config.device != "cpu" else 0
    if config.reward.device.startswith("cuda:"):
        devices = min(devices, max(0, devices - int(config.reward.device.removeprefix("cuda:"))))
    return min(ranks, devices) or ranks


def _ranks(config: TrainConfig, ranks: int) -> str | Finding | None:
    here = _ranks_here(config, ranks)
    if ranks % here:
        return Finding("ranks", False, f"{ranks} ranks must be the same number on each machine, here {here} fit")
    return f"{ranks}, {here} of them here" if ranks > here else None


LARGE_PIXELS = 1 << 20
"""Pixels of a clip above which a run without a GPU would take days: the preset of a rehearsal has 55,296."""


def _device(config: TrainConfig) -> str | Finding:
    import torch

    v = config.video
    if config.device != "cpu" and _num_devices():
        names = [
            f"{p.name}, {p.total_memory / 1e9:.0f} GB"
            for p in map(torch.cuda.get_device_properties, range(_num_devices()))
        ]
        return "; ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
    size = f"{v.height}x{v.width}x{v.num_frames}"
    if v.height * v.width * v.num_frames > LARGE_PIXELS:
        return Finding("device", False, f"clips of {size} need a GPU, torch {torch.__version__} sees none")
    return f"CPU, {os.cpu_count()} cores: enough for clips of {size}"


def _prompts(config: TrainConfig) -> str | None:
    from worldr1.prompts.reading import reading_lines
    from worldr1.prompts.sampler import read_prompts

    files = {config.prompts: True, config.eval_prompts: bool(config.evaluation.num_samples or config.validate_every)}
    dynamic = config.dynamic_prompts if config.phase.dynamic_iterations else None
    if dynamic is not None:
        files[dynamic] = True
    texts = {file: read_prompts(file) for file, asked in files.items() if asked and _is_given(file)}
    if config.prompts not in texts:
        return None
    lines = reading_lines(texts[config.prompts], texts.get(dynamic, []) if dynamic is not None else [])
    return lines[0].removeprefix("camera words: ")


def _model(config: TrainConfig) -> str | None:
    from worldr1.models.wan import check_folder

    folder = Path(config.model.path)
    if not _is_given(folder):
        return None
    check_folder(folder)
    sizes = {part: _weights_size(folder / part) for part in ("transformer", "text_encoder", "vae")}
    return "WanPipeline; on disk " + ", ".join(f"{part} {_gb(size)}" for part, size in sizes.items())


def _weights_size(folder: Path) -> int:
    """Bytes of a folder's weights. ValueError where a shard that an index names is missing, or there are no weights."""
    from worldr1.rewards.judges.shards import parts

    for index in sorted(folder.glob("*.safetensors.index.json")):
        parts(index)
    files = [path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin", ".pth", ".ckpt", ".pt")]
    if not files:
        raise ValueError(f"{folder} must hold weights, it has none; download it")
    return sum(path.stat().st_size for path in files)


def _num_weights(folder: Path) -> int:
    """Numbers in a folder's safetensors files, by their headers alone."""
    from safetensors import safe_open

    num = 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            num += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())
    return num


def _judge(config: TrainConfig, role: str) -> str | None:
    from worldr1.rewards.judges.registry import is_address, is_dotted, kind_of

    source = str(getattr(config.reward, role))
    if not _is_given(source):
        return None
    if is_address(source) or is_dotted(source):
        return source
    kind = kind_of(source, role=role)
    return f"{kind.__name__}, {_gb(_weights_size(Path(source)))}; licence: {kind.licence(Path(source))}"


def _disk(config: TrainConfig) -> str:
    folder = Path(config.output_dir).absolute()
    there = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    if not os.access(there, os.W_OK):
        raise ValueError(f"{there} cannot be written; choose --output-dir")
    free, need = shutil.disk_usage(there).free, _run_bytes(config)
    if free < need:
        raise ValueError(f"a run may take {_gb(need)}, {there} has {_gb(free)}; choose --output-dir")
    return f"{_gb(free)} free in {there}, a run takes up to {_gb(need)}"


def _run_bytes(config: TrainConfig) -> int:
    """Checkpoints, one more than are kept, and the clips of the validations as if they were not compressed well."""
    v, m = config.video, _meta_policy(config)
    adapter = 0 if m is None else m.num_bytes()[1]
    checkpoints = (config.keep_checkpoints + 1) * 4 * adapter  # adapter, average, two moments
    validations = config.max_iterations // config.validate_every if config.validate_every else 0
    clip = 2 * v.height * v.width * v.num_frames * 3 // 20  # of a pair; H.264 takes less than a twentieth
    return checkpoints + validations * config.evaluation.num_validation * clip + 100_000_000


def _meta_policy(config: TrainConfig) -> Any:
    """The model on the meta device, from its own configuration; None where no folder is given."""
    from worldr1.cost.memory import meta_policy

    folder = Path(config.model.path)
    read = {}
    for part in ("transformer", "vae"):
        path = folder / part / "config.json"
        if not path.is_file():
            return None
        settings = json.loads(path.read_text(encoding="utf-8"))
        read[part] = {k: v for k, v in settings.items() if not k.startswith("_")}
    return meta_policy(read["transformer"], read["vae"], replace(config.model, attention="auto"))


def _memory(config: TrainConfig, ranks: int) -> str | Finding | None:
    """The fullest stage against the device, and where it does not fit the first change that would make it."""
    from worldr1.cost.memory import stages

    policy = _meta_policy(config)
    if policy is None:
        return None
    judges = 0
    for role in judges_asked(config):
        source = Path(str(getattr(config.reward, role)))
        judges += _weights_size(source) if source.is_dir() else 0
    text_encoder = _num_weights(Path(config.model.path) / "text_encoder")
    device, room = _room(config, _ranks_here(config, ranks))

    def peak(settings: TrainConfig) -> tuple[float, str]:
        own = policy if settings.model == config.model else _meta_policy(settings)
        counted = stages(own, settings, num_ranks=ranks, judges=judges, num_text_encoder=text_encoder)
        return max((stage.device + (0 if room.gpu else stage.host), stage.name) for stage in counted)

    need, where = peak(config)
    text = f"{_gb(need)} of a rank in {where}, counted (the judges' own activations come on top); {device}"
    if need <= room.bytes:
        return text
    for flags, settings in _smaller(config):
        if peak(settings)[0] <= room.bytes:
            return Finding("memory", False, f"{text}: too little; {flags} would fit with {_gb(peak(settings)[0])}")
    return Finding("memory", False, f"{text}: too little, and neither offloading nor recomputing more makes it fit")


class _Room(NamedTuple):
    gpu: bool
    bytes: float


def _room(config: TrainConfig, ranks: int) -> tuple[str, _Room]:
    """What a rank has, in words and in bytes."""
    import torch

    if config.device != "cpu" and _num_devices():
        smallest = min(torch.cuda.get_device_properties(i).total_memory for i in range(_num_devices()))
        return f"the smallest device has {_gb(smallest)}", _Room(True, 0.97 * smallest)
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return f"this machine has {_gb(total)} for {ranks} rank(s)", _Room(False, 0.9 * total / ranks)


def _smaller(config: TrainConfig) -> Iterator[tuple[str, TrainConfig]]:
    """Settings that take less, the cheapest change first."""
    offload = replace(config, reward=replace(config.reward, offload=True))
    bare = replace(config.model, gradient_checkpointing=True, checkpoint_keep="nothing")
    yield "--reward.offload", offload
    yield "--model.checkpoint-keep nothing", replace(config, model=bare)
    yield "--reward.offload --model.checkpoint-keep nothing", replace(offload, model=bare)
    single = replace(offload, model=bare, rollout=replace(config.rollout, micro_batch=1))
    yield "--reward.offload --model.checkpoint-keep nothing --rollout.micro-batch 1", single


def _clip(config: TrainConfig, role: str) -> str:
    """Load one judge, show it the golden clip, and let it go."""
    import torch

    from worldr1.rewards.combine import judges_device
    from worldr1.rewards.golden import golden_clip, try_judge
    from worldr1.rewards.judges.registry import load_judge

    device = judges_device(
        config.reward.device,
        torch.device("cuda", 0) if config.device != "cpu" and _num_devices() else torch.device("cpu"),
    )
    start = time.perf_counter()
    judge = load_judge(getattr(config.reward, role), role=role, device=device, config=config.reward)
    loading = time.perf_counter() - start
    v = config.video
    clip = golden_clip(num_frames=v.num_frames, height=v.height, width=v.width).to(device)
    trial = try_judge(judge, role, clip, num_aesthetic_frames=config.reward.num_aesthetic_frames)
    memory = f", {trial.peak_gb:.1f} GB beside its weights" if device.type == "cuda" else ""
    return f"{trial.answer}; {loading:.1f} s to load, {trial.seconds:.2f} s a clip{memory}"


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.3g} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.3g} MB"


if __name__ == "__main__":
    sys.exit(main())
