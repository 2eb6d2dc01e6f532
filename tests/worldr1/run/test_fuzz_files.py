"""Every file of a run, damaged at random: what reads it gives a right result or a sentence with the path, nothing else.

WORLDR1_FUZZ_CASES (80) and WORLDR1_FUZZ_SEED (0) set how many damages are tried and which; a failure prints its seed.
"""

from __future__ import annotations

import collections
import contextlib
import io
import json
import os
import random
import shutil
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fakes import fake_config, fake_iteration, fake_learner
from synthetic_run import make_run

from worldr1 import generate
from worldr1.camera.motion import parse_motion
from worldr1.camera.pose_files import load_poses, save_realestate, save_tum
from worldr1.camera.trajectory import build_trajectory, check_rigid, intrinsics, save_trajectory
from worldr1.config import MICRO_CAMERA, ModelConfig, to_json
from worldr1.evaluation.validate import Scored, _read_base, _write_base
from worldr1.models.text_cache import TextCache
from worldr1.models.wan import load_policy
from worldr1.prompts.sampler import read_prompts
from worldr1.report import write_report
from worldr1.run import checkpoint
from worldr1.run.distributed import World
from worldr1.run.lock import LOCK_FILE, _self
from worldr1.run.metrics import MetricsWriter
from worldr1.run.runtime import prepare_output_dir
from worldr1.run.video import write_video

CASES = int(os.environ.get("WORLDR1_FUZZ_CASES", "80"))
SEED = int(os.environ.get("WORLDR1_FUZZ_SEED", "0"))
PROMPT = "Camera pan left. A red ball."
LARGEST = 32 * 32 * 9  # pixels of a video that a changed setting may ask for here

CHECKPOINT = "checkpoints/iteration_000002"
READ_BY = {  # which of the readers below open a file
    "config.json": "report generate", "environment.json": "report", "metrics.jsonl": "report resume",
    "timings.jsonl": "report resume", "evaluation/study.json": "report", "evaluation/samples.npz": "report",
    "validation/validation.jsonl": "report", "validation/iteration_000002/grid.mp4": "report",
    "validation/base/prompt_00.npz": "validation", f"{CHECKPOINT}/state.json": "resume",
    f"{CHECKPOINT}/tensors.safetensors": "resume", LOCK_FILE: "resume",
    "adapter/adapter.json": "generate", "adapter/pytorch_lora_weights.safetensors": "generate",
    "foreign/wan_lora.safetensors": "foreign", "cache/*.safetensors": "cache", "prompts.txt": "prompts",
    "path.json": "poses", "path.txt": "poses", "path.tum": "poses",
}  # fmt: skip


class Run:
    """A small run of real files, and what reads them."""

    def __init__(self, folder: Path, tiny_wan: Path) -> None:
        self.folder, self.model = folder, tiny_wan
        self.config = replace(fake_config(), output_dir=folder)
        make_run(folder, num_samples=1, height=16, width=16, num_frames=5)
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()[:3]]
        one_term = [row | {"terms": {"traj": row["terms"]["traj"]}} for row in rows]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in one_term))
        (folder / "timings.jsonl").write_text('{"iteration": 0, "seconds": 2.5}\n{"iteration": 1, "seconds": 2.5}\n')
        model = ModelConfig(path=tiny_wan, lora_rank=4, adapter_sigma_min=0.5)
        run = replace(
            self.config, model=model, video=replace(self.config.video, height=16, width=16, num_frames=5)
        )  # of generate; resume takes its own from the checkpoint
        (folder / "config.json").write_text(json.dumps(to_json(run), indent=1))
        self.learner = fake_learner(self.config)
        fake_iteration(self.learner, self.config, iteration=0)
        checkpoint.save(folder, *self.learner, iteration=2, config=self.config)
        self.trained = [p.detach().clone() for p in self.learner.ema.params]
        policy = load_policy(model, device="cpu")
        policy.save_lora(folder / "adapter")
        (folder / "foreign").mkdir()
        (folder / "adapter" / "wan_lora.safetensors").rename(folder / "foreign" / "wan_lora.safetensors")
        self.clip = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
        self.base = folder / "validation" / "base" / "prompt_00.npz"
        _write_base(self.base, "key", Scored(self.clip, {"reward": 1.0, "traj": 0.5}))
        pair = {"base": 1.0, "adapter": 1.2, "gain": 0.2, "stderr": 0.05, "num": 1}
        row = {"iteration": 1, "prompts": [PROMPT], "num": 1, "reward": pair, "terms": {}}
        (folder / "validation" / "validation.jsonl").write_text(json.dumps(row) + "\n")
        (folder / "validation" / "iteration_000002").mkdir()
        write_video(torch.rand(5, 3, 16, 16), folder / "validation" / "iteration_000002" / "grid.mp4", fps=8)
        self.cache()[PROMPT] = torch.randn(5, 8)
        (folder / "prompts.txt").write_text(f"{PROMPT}\nPush in. Zwölf Boote.\n", encoding="utf-8")
        tokens = parse_motion(PROMPT)
        viewmats = build_trajectory(tokens, 5, MICRO_CAMERA)
        save_trajectory(folder / "path.json", viewmats, tokens=tokens, camera=MICRO_CAMERA)
        K = intrinsics(16, 16, MICRO_CAMERA)
        save_realestate(folder / "path.txt", viewmats, K=K, height=16, width=16, fps=8)
        save_tum(folder / "path.tum", viewmats, fps=8)
        (folder / LOCK_FILE).write_text(json.dumps(_self()))  # of a run that was killed
        self.files = {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}

    def readers(self, path: Path) -> list[str]:
        name = path.relative_to(self.folder).as_posix()
        name = "cache/*.safetensors" if name.startswith("cache/") else name
        return READ_BY[name].split()

    def restore(self) -> None:
        for path in self.folder.rglob("*"):
            if path.is_file() and path not in self.files:
                path.unlink()
        for path, content in self.files.items():
            path.write_bytes(content)

    # The readers. Each asserts what is right where it does not raise.

    def cache(self) -> TextCache:
        return TextCache(self.folder / "cache", model=self.model, dtype="float32")

    def read_cache(self, touched: set[Path]) -> None:
        embedding = self.cache()[PROMPT]
        assert embedding.ndim == 2 and bool(embedding.isfinite().all())

    def read_report(self, touched: set[Path]) -> None:
        html = write_report(self.folder).read_text(encoding="utf-8")
        assert "<h1>" in html and html.rstrip().endswith("</html>")

    def read_resume(self, touched: set[Path]) -> None:
        config = replace(self.config, resume=True)
        with contextlib.ExitStack() as held:
            alone = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
            found = prepare_output_dir(config, alone, held)
            learner = fake_learner(config, seed=5)
            first = checkpoint.load(found, *learner)
            assert all(torch.equal(a, b) for a, b in zip(learner.ema.params, self.trained, strict=True))
            writer = MetricsWriter(self.folder, first_iteration=first, enabled=True)
            writer.newest()
            writer.write({"iteration": first, "reward": 1.0})
            writer.amend(validation={"num": 1})
            assert writer.newest()["iteration"] == first and writer.newest()["validation"] == {"num": 1}
            writer.close()

    def read_generate(self, touched: set[Path]) -> None:
        output = self.folder / "out.gif"
        asked = generate.GenerateConfig(prompt=(PROMPT,), adapter=self.folder / "adapter", output=output, num_steps=1)
        video = generate.resolve(asked).video
        if video.height * video.width * video.num_frames <= LARGEST:
            generate.run(asked)
            assert output.read_bytes()[-1:] == b";"

    def read_foreign(self, touched: set[Path]) -> None:
        from worldr1.models.lora_files import read_adapter

        _, weights = read_adapter(self.folder / "foreign")
        assert all(bool(value.isfinite().all()) for value in weights.values())

    def read_validation(self, touched: set[Path]) -> None:
        found = _read_base(self.base, "key")  # None: it is made again
        assert found is None or (torch.equal(found.clip, self.clip) and found.scores == {"reward": 1.0, "traj": 0.5})

    def read_prompts(self, touched: set[Path]) -> None:
        prompts = read_prompts(self.folder / "prompts.txt")
        assert prompts and not any("\0" in p or p != p.strip() for p in prompts)

    def read_poses(self, touched: set[Path]) -> None:
        for name in ("path.json", "path.txt", "path.tum"):
            if self.folder / name in touched:
                check_rigid("test", load_poses(self.folder / name).viewmats)


def damage(raw: bytes, draw: random.Random) -> bytes:
    """Flipped bits, a cut, a hole, two places exchanged, a piece twice."""
    data, n = bytearray(raw), len(raw)
    kind = draw.choice(("bit", "bits", "byte", "cut", "hole", "exchange", "twice", "empty"))
    a, b = sorted((draw.randrange(n), draw.randrange(n)))
    if draw.random() < 0.5:  # headers are short and matter most
        a, b = sorted((draw.randrange(min(n, 200)), draw.randrange(min(n, 200))))
    if kind in ("bit", "bits"):
        for _ in range(1 if kind == "bit" else draw.randrange(2, 40)):
            data[draw.randrange(n) if draw.random() < 0.5 else a] ^= 1 << draw.randrange(8)
    elif kind == "byte":
        data[a] = draw.randrange(256)
    elif kind == "cut":
        del data[b:]
    elif kind == "hole":
        data[a:b] = bytes([draw.choice((0, 0xFF, 0x20))]) * (b - a)
    elif kind == "exchange":
        size = min(b - a, n - b, draw.randrange(1, 65))
        data[a : a + size], data[b : b + size] = data[b : b + size], data[a : a + size]
    elif kind == "twice":
        data[b:b] = data[a:b]
    else:
        data.clear()
    return bytes(data)


def damaged(run: Run, draw: random.Random) -> set[Path]:
    """Damages one file, exchanges two, or deletes one; returns those."""
    one, two = draw.sample(list(run.files), 2)
    how = draw.random()
    if how < 0.85:
        one.write_bytes(damage(run.files[one], draw))
        return {one}
    if how < 0.95:
        one.write_bytes(run.files[two])
        two.write_bytes(run.files[one])
        return {one, two}
    one.unlink()
    return {one}


def says_where(error: Exception, touched: set[Path]) -> bool:
    """Whether a sentence names a damaged file or its folder. Settings are named by themselves: a config.json with
    another height is a whole file."""
    text = str(error)
    named = any(str(path) in text or str(path.parent) in text for path in touched)
    return named or any(path.name in ("config.json", "state.json") for path in touched)


def try_one(run: Run, seed: int) -> Iterator[tuple[str, str]]:
    """(reader, outcome) of one damage; AssertionError with all that is needed to see it again."""
    draw = random.Random(seed)
    touched = damaged(run, draw)
    for name in sorted({name for path in touched for name in run.readers(path)}):
        reader: Callable[[set[Path]], None] = getattr(run, f"read_{name}")
        try:
            with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
                warnings.simplefilter("ignore")  # of drawing numbers that are none
                reader(touched)
            yield name, "right"
        except (ValueError, OSError, RuntimeError) as error:
            where = [str(path) for path in touched]
            assert says_where(error, touched), f"seed {seed}, {name} of {where} does not say where: {error!r}"
            yield name, "sentence"
        except Exception:
            raise AssertionError(
                f"seed {seed}, {name} of {[str(p) for p in touched]}:\n{traceback.format_exc()}"
            ) from None


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_damage_is_a_sentence_or_costs_nothing(tiny_wan: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "run", tiny_wan)
    outcomes: collections.Counter[tuple[str, str]] = collections.Counter()
    faults: list[str] = []
    for path in run.files:
        assert run.readers(path)
    for seed in range(SEED, SEED + CASES):
        try:
            outcomes.update(try_one(run, seed))
        except AssertionError as fault:
            faults.append(str(fault))
        run.restore()
    print(f"\n{CASES} damages from seed {SEED}:")
    for (name, outcome), number in sorted(outcomes.items()):
        print(f"  {name:12}{outcome:10}{number}")
    assert not faults, f"{len(faults)} of {CASES}:\n" + "\n".join(faults[:20])
    shutil.rmtree(run.folder)


def test_the_files_that_are_damaged_are_all_that_a_run_has(tiny_wan: Path, tmp_path: Path) -> None:
    """Undamaged, every reader is content."""
    run = Run(tmp_path / "run", tiny_wan)
    for name in sorted({name for names in READ_BY.values() for name in names.split()}):
        getattr(run, f"read_{name}")(set(run.files))
    assert run.readers(next(p for p in run.files if p.parent.name == "cache")) == ["cache"]
