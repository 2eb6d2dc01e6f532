"""The Triton backend without a GPU: its mathematics in Triton's interpreter, its code compiled for sm_90."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


def _run(arguments: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "WORLDR1_BACKEND")}
    python_path = os.pathsep.join(filter(None, (str(ROOT), inherited.get("PYTHONPATH"))))
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env={**inherited, "PYTHONPATH": python_path, **environment},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_interpreted_kernels_pass_the_tests_of_every_backend() -> None:
    tests = str(HERE / "test_sde_step_backends.py")
    result = _run(["-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "triton-cpu", tests], TRITON_INTERPRET="1")
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-1000:]
    summary = result.stdout.strip().splitlines()[-1]
    passed = re.match(r"(\d+) passed", summary)
    assert passed and int(passed[1]) >= 40 and "skipped" not in summary


@pytest.mark.slow
def test_compiled_kernels_do_not_spill_and_load_whole_lines(tmp_path: Path) -> None:
    result = _run([str(HERE / "sde_step_aot.py")], TRITON_CACHE_DIR=str(tmp_path))
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    kernels = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(kernels) == 3 * 8
    for kernel in kernels:
        name = f"{kernel['case']} {kernel['kernel']}"
        assert kernel["STACK"] == kernel["LOCAL"] == 0, name
        assert not [op for op in kernel["memory"] if op.startswith(("LDL", "STL"))], name
        assert kernel["REG"] <= 64, name  # at least half of a multiprocessor's threads
        assert not kernel["fused"], name

    # 8 elements a thread: one 16-byte access of bfloat16, two of float32. Beside them a sample id or two weights, and
    # the float64 partial sums. Tensors (velocities, latents) read and written by each launch:
    expected = [
        ("draw_kernel", (1, 1), (0, 2)),
        ("score_kernel", (3, 2), (0, 1)),
        ("backward_kernel", (1, 2), (1, 0)),
        ("backward_kernel", (3, 3), (2, 0)),
    ]
    for case, width in (("bf16", 1), ("f32", 2)):
        streaming = [k for k in kernels if k["case"] == case and k["kernel"] != "finish_kernel"]
        assert [k["kernel"] for k in streaming] == ["draw_kernel", *(name for name, _, _ in expected)]
        # Seed and step are not specialised on: the second draw is the first one's code.
        assert streaming[0]["hash"] == streaming[1]["hash"]
        for kernel, (name, loads, stores) in zip(streaming[1:], expected, strict=True):
            memory = kernel["memory"]
            assert memory["LDG.E.128"] == width * loads[0] + 2 * loads[1], f"{case} {name}"
            assert memory["STG.E.128"] == width * stores[0] + 2 * stores[1], f"{case} {name}"
            narrow = {op: n for op, n in memory.items() if not op.endswith(".128")}
            assert set(narrow) <= {"LDG.E", "LDG.E.64", "STG.E.64"} and sum(narrow.values()) <= 2, f"{case} {name}"
