"""The measurements of the machine itself count the right work, and really do it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from click.testing import CliRunner

from inferlab.engine.process_group import ProcessGroup, spawn
from inferlab.lab import machine

ROOT = Path(__file__).parents[1]


def measured(*arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(machine.main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    (line,) = result.output.splitlines()
    answer: dict[str, Any] = json.loads(line)
    return answer


class Clock:
    """Time passes only when a call says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.calls = 0
        monkeypatch.setattr(machine.time, "perf_counter", lambda: self.now)

    def call(self, seconds: float) -> None:
        self.now += seconds
        self.calls += 1


def test_a_sample_is_long_enough_for_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    samples = machine.seconds_per_call(lambda: clock.call(0.003))
    # 1, 2, 4 and 8 calls to find that 8 last 20 ms, then 8 a sample.
    assert clock.calls == 15 + 8 * machine.SAMPLES
    assert samples == pytest.approx([0.003] * machine.SAMPLES)


def test_one_long_call_is_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    machine.seconds_per_call(lambda: clock.call(0.5))
    assert clock.calls == 1 + machine.SAMPLES


def test_copy_counts_each_byte_twice_and_copies_them(monkeypatch: pytest.MonkeyPatch) -> None:
    copied = []

    def timed(call: machine.Call) -> list[float]:
        target, source = call.args  # type: ignore[attr-defined]
        target[:] = 7
        call()
        copied.append((target.nbytes, bool((target == source).all()), int(source.min())))
        return [0.002, 0.004, 0.001]

    monkeypatch.setattr(machine, "seconds_per_call", timed)
    answer = measured("copy", "--megabytes", "3")
    assert copied == [(3_000_000, True, 1)], "a source of zeros would be one page"
    assert answer["metrics"] == pytest.approx({"copy_gb_per_s": 3.0, "copy_best_gb_per_s": 6.0})
    assert answer["samples"]["copy_gb_per_s"] == pytest.approx([3.0, 1.5, 6.0])


def test_matmul_counts_the_products_and_the_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    products = []

    def timed(call: machine.Call) -> list[float]:
        left, right = call.args  # type: ignore[attr-defined]
        product = call()
        assert isinstance(product, torch.Tensor)
        expected = left.numpy().astype(np.float64) @ right.numpy()
        np.testing.assert_allclose(product.numpy(), expected, rtol=1e-3, atol=1e-4)
        products.append((product.dtype, tuple(product.shape)))
        return [2e-6, 1e-6]

    monkeypatch.setattr(machine, "seconds_per_call", timed)
    answer = measured("matmul", "--m", "2", "--n", "3", "--k", "4")
    assert products == [(torch.float32, (2, 3))]
    flop, num_bytes = 2 * 2 * 3 * 4, 4 * (2 * 4 + 4 * 3 + 2 * 3)
    assert answer["metrics"] == pytest.approx(
        {
            "matmul_gflop_per_s": 1e-9 * flop * (1 / 1e-6 + 1 / 2e-6) / 2,
            "matmul_best_gflop_per_s": 1e-9 * flop / 1e-6,
            "matmul_flop_per_byte": flop / num_bytes,
        }
    )


def count_all_reduces(group: ProcessGroup, num_bytes: int) -> tuple[int, int, float]:
    """Samples, all-reduces of that size, and the sum of two ranks' arrays."""
    sizes, real = [], dist.all_reduce

    def counted(array: torch.Tensor) -> None:
        sizes.append(array.nbytes)
        array += 1 + group.rank
        real(array)
        totals.append(float(array[0]))
        array.zero_()

    totals: list[float] = []
    dist.all_reduce = counted
    samples = machine.time_all_reduce(group, num_bytes)
    assert set(sizes) == {num_bytes}
    assert set(totals) == {3.0}, "1 of rank 0 and 2 of rank 1"
    return len(samples), len(sizes), min(samples)


def test_all_reduce_adds_up_over_two_processes() -> None:
    for num_samples, num_calls, fastest in spawn(count_all_reduces, 2, 4096):
        assert num_samples == machine.SAMPLES
        assert num_calls == (1 + machine.SAMPLES) * machine.CALLS_PER_SAMPLE
        assert fastest > 0


@pytest.mark.slow
def test_the_command_prints_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "inferlab.lab.machine", "all-reduce", "--bytes", "1024"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    (line,) = done.stdout.splitlines()
    answer = json.loads(line)
    samples = answer["samples"]["all_reduce_us"]
    assert len(samples) == machine.SAMPLES
    assert answer["metrics"]["all_reduce_best_us"] == min(samples)
    assert answer["metrics"]["all_reduce_us"] == sorted(samples)[machine.SAMPLES // 2]


def test_too_few_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    result = CliRunner().invoke(machine.main, ["all-reduce", "--bytes", "8", "--ranks", "4"])
    assert result.exit_code == 2
    assert "4 ranks need 4 GPUs, and this machine has 2" in result.output


def test_shared_memory_without_engines_says_how_to_get_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("INFERLAB_ENGINES", str(tmp_path))
    result = CliRunner().invoke(machine.main, ["all-reduce", "--bytes", "8", "--shared-memory"])
    assert result.exit_code == 1
    assert "make engines" in result.output


@pytest.mark.engines
@pytest.mark.slow
def test_shared_memory_is_vllms_and_leaves_nothing_behind() -> None:
    before = shared_files()
    answer = measured("all-reduce", "--bytes", "8192", "--shared-memory")
    assert len(answer["samples"]["all_reduce_us"]) == machine.SAMPLES
    assert answer["metrics"]["all_reduce_best_us"] > 0
    assert shared_files() == before


def shared_files() -> set[str]:
    return {path.name for path in Path("/dev/shm").glob("inferlab-*")}
