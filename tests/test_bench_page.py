"""The results page: ratios, shares of the ceilings, targets, comparison with the last line of the same device."""

import json
from types import SimpleNamespace

import pytest
import torch

from bench import page, report, targets
from bench.page import Result
from bench.report import Case
from bench.timing import Timing, measure

TIMING = {"p20": 1.0, "p50": 2.0, "p80": 3.0, "cpu_p50": 0.5, "calls": 9, "on_gpu": True}


def case(name, p50, *, family="sde_step", peers=None, **more):
    entry = {"family": family, "name": name, "shape": "S", "dtype": "float32", "backend": "triton", "notes": "n"}
    entry["peers"] = {peer: TIMING | {"p50": ms} for peer, ms in (peers or {}).items()}
    return entry | {"timing": TIMING | {"p50": p50}, "num_bytes": 0, "num_flops": 0} | more


@pytest.fixture
def out(tmp_path, monkeypatch):
    """A run on an invented GPU, and a history in which `slow` was faster and `new` does not occur."""
    facts = {
        "device": "NVIDIA H200", "driver": "580.1", "commit": "abc", "dirty": False, "date": "2026-11-24T01:02:03",
        "gpu": True, "no_gpu": "", "python": "3.12", "torch": "2.11", "triton": "3.6.0", "threads": 1,
        "memory": "143771 MiB", "clocks": "345 MHz", "clocks_max": "1980 MHz",
    }  # fmt: skip
    (tmp_path / "facts.json").write_text(json.dumps(facts))
    lines = [
        case("copy", 0.1, family="ceilings", num_bytes=400_000),  # 4 GB/s
        case("matmul", 1.0, family="ceilings", num_flops=10**12),
        case("slow", 2.0, num_bytes=2_000_000),
        case("wan draw", 2.0, peers={"copy": 1.8, "torch reference": 14.0}, shape="8xS"),
        case("wan score", 2.0, peers={"copy": 1.6, "torch reference": 18.0}, shape="8xS"),
        case("slow", 2.2, num_bytes=2_000_000),  # measured again: this one counts
    ]
    (tmp_path / "cases.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    history = tmp_path / "history"
    history.mkdir()
    old = [
        case("slow", 1.0) | {"device": "NVIDIA H200", "commit": "older"},
        case("slow", 2.0) | {"device": "NVIDIA H200", "commit": "old"},
        case("slow", 0.1) | {"device": "other", "commit": "old"},
        case("wan draw", 2.0, shape="8xS") | {"device": "NVIDIA H200", "commit": "old"},
    ]
    (history / "sde_step.jsonl").write_text("".join(json.dumps(line) + "\n" for line in old) + '{"name": "cut')
    monkeypatch.setattr(report, "COMMITTED", history)
    return tmp_path


def test_the_page(out):
    page.write(out, [Result("build", "passed", 1.0, "a | b", "1980 MHz"), Result("ncu", "skipped", 0.0, "no ncu")])
    text = (out / "page.md").read_text()
    assert "# Kernels and loop on NVIDIA H200, 2026-11-24" in text and "commit abc (tree clean)" in text
    assert "| build | passed | 1 | a / b | 1980 MHz |" in text
    assert "copy 4 GB/s, bf16 matmul 1000.00 TFLOP/s" in text
    assert "copy 0.90x, torch reference 7.00x | 1.00x of old | n |" in text
    assert "Geometric mean against torch reference: 7.94x over 2." in text
    # 2 MB in 2.2 ms of the copy's 4 GB/s; the last line of this device took 2.0.
    assert "| slow S float32 | triton | 1.000 / 2.200 / 3.000 | 0.500 | 23 % |  | 1.10x of old **slower** | n |" in text
    assert text.count("| slow S float32 |") == 1 and "- sde_step slow S" in text
    # Worst of the forward rows: 80 % of a copy. 7 x against eager torch. se3 was not run.
    assert "| sde_step | forward of 8 samples, per cent of a copy | >= 85 | 80 (wan score 8xS) | **missed** |" in text
    assert "| sde_step | against eager torch | >= 8 | 7 (wan draw 8xS) | **missed** |" in text
    assert "against roma + torch | >= 10 | | not measured |" in text
    assert "- ncu: skipped, no ncu" in text
    page.write(out, [])
    assert "Nothing was left out" in (out / "page.md").read_text()


def test_publishing_and_recording(out, tmp_path):
    page.write(out, [])
    folder = tmp_path / "results"
    folder.mkdir()
    assert page.publish(out, folder).name == "h200_2026-11-24.md"
    assert (folder / "h200_2026-11-24.md").read_text() == (out / "page.md").read_text()
    into = tmp_path / "into"
    into.mkdir()
    assert page.append_history(out, into) == 5 and page.append_history(out, into) == 0
    lines = [json.loads(line) for line in (into / "sde_step.jsonl").read_text().splitlines()]
    assert [line["name"] for line in lines] == ["slow", "wan draw", "wan score"] and "family" not in lines[0]


def test_a_cpu_page_has_the_cpu_targets(out):
    facts = json.loads((out / "facts.json").read_text()) | {"gpu": False, "no_gpu": "no driver", "device": "Zen 4"}
    (out / "facts.json").write_text(json.dumps(facts))
    line = case("target", 9.9, family="rasterize", shape="N10000-C1")
    line["timing"] = line["timing"] | {"on_gpu": False, "cpu_p50": 3.0}
    (out / "cases.jsonl").write_text(json.dumps(line) + "\n")
    page.write(out, [])
    text = (out / "page.md").read_text()
    assert "No GPU: no driver" in text
    assert "10,000 Gaussians at 256x256, ms a core | <= 4 | 3 (target N10000-C1) | reached |" in text
    assert page.file_name(facts) == "zen_4_2026-11-24.md"


def test_of_several_forms_the_best_counts_where_the_target_says_so():
    rows = [("wan_loop", case("forward", 1.0), 40.0), ("wan_loop", case("forward", 1.0), 50.0)]
    lines = "\n".join(targets.table(rows, gpu=True))
    assert "| MFU of the rollout, % of the measured matmul | >= 45 | 50 (forward S) | reached |" in lines.replace(
        "| wan_loop ", ""
    )


def test_the_fastest_peer_and_the_leanest_count():
    peers = {"gsplat 1.5.3": 9.0, "gsplat 1.5.3 packed": 7.0, "torch": 1.0}
    peaks = {"native": 100, "gsplat 1.5.3": 500, "gsplat 1.5.3 packed": 180}
    line = case("view", 2.0, family="rasterize", peers=peers, backend="native", peaks=peaks)
    text = "\n".join(targets.table([("rasterize", line, None)], gpu=True))
    assert "| 2 M Gaussians against gsplat 1.5.3 | >= 3 | 3.5 (view S) | reached |" in text
    assert "| peak memory against gsplat 1.5.3 | >= 2 | 1.8 (view S) | **missed** |" in text
    del line["peaks"]  # a line from before they were counted
    assert "peak memory against gsplat 1.5.3 | >= 2 | | not measured |" in "\n".join(
        targets.table([("rasterize", line, None)], gpu=True)
    )


def test_a_table_on_the_terminal_names_the_last_line(out, monkeypatch, capsys):
    monkeypatch.setattr(report, "device_name", lambda: "NVIDIA H200")
    report.print_table([Case("slow", "S", "float32", "triton", Timing(1, 2.5, 3, 1, 9, on_gpu=True))])
    assert "; 1.25x of old **slower**" in capsys.readouterr().out


def test_measure_takes_turns_and_at_least_five_rounds_on_a_gpu(monkeypatch):
    """With a fake event clock: the order of the calls, and the best round by its median."""
    order = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    real = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, device=None, **k: real(1, **k))
    from bench import timing

    def turn(function, calls, flush):
        function()
        assert len(flush) == 1 and calls >= 3
        return Timing(1.0, 10.0 - len(order), 1.0, 1.0, calls, on_gpu=True)

    monkeypatch.setattr(timing, "_turn_cuda", turn)
    best = measure(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=1, seconds_per_round=0.0, device="cuda"
    )
    assert "".join(order) == "aabb" + "ab" * 5
    assert best["a"].p50 == 10.0 - 13 and best["b"].p50 == 10.0 - 14


class SimulatedGpu:
    """A host that queues work and a device that does it in order; seconds of each one's clock."""

    def __init__(self):
        self.host = self.device = 0.0

    def launch(self, seconds):
        self.host += 5e-6
        self.device = max(self.device, self.host) + seconds

    def event(self, enable_timing):
        return SimulatedEvent(self)


class SimulatedEvent:
    def __init__(self, gpu):
        self.gpu = gpu

    def record(self):
        self.at = max(self.gpu.device, self.gpu.host)

    def elapsed_time(self, end):
        return 1e3 * (end.at - self.at)


@pytest.mark.parametrize("host_seconds", [115e-6, 5e-3])
def test_device_time_holds_no_time_of_the_host(monkeypatch, host_seconds):
    """A launch of 50 us after `host_seconds` of Python: the flush alone would not hide them."""
    from bench import timing

    simulated = SimulatedGpu()
    flush = SimpleNamespace(zero_=lambda: simulated.launch(70e-6))
    monkeypatch.setattr(torch.cuda, "Event", simulated.event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: simulated.launch(cycles / 2e9), raising=False)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: simulated.host)

    def call():
        simulated.host += host_seconds
        simulated.launch(50e-6)

    assert timing._turn_cuda(call, 9, flush).p50 == pytest.approx(0.05)
