"""Usage is measured truly, cheaply, and with or without psutil."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

from tachograph.recording import usage
from tachograph.recording.usage import ProcSource, PsutilSource, UsageSampler

linux = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
MACHINE = {
    "system/cpu_percent",
    "system/process_cpu_percent",
    "system/memory_percent",
    "system/process_rss_bytes",
}


def burn(seconds: float) -> float:
    """Use the processor for at least this long; the seconds it really got."""
    started, before = time.monotonic(), time.process_time()
    while time.monotonic() - started < seconds:
        pass
    return time.process_time() - before


@linux
def test_psutil_and_proc_agree() -> None:
    """The two sources tell the same counters."""
    one, two = PsutilSource().read(), ProcSource().read()
    assert two.rss_bytes == pytest.approx(one.rss_bytes, rel=0.02)
    assert two.total_seconds == pytest.approx(one.total_seconds, abs=2.0)
    assert two.busy_seconds == pytest.approx(one.busy_seconds, abs=2.0)
    assert two.memory_percent == pytest.approx(one.memory_percent, abs=5.0)


@pytest.mark.parametrize("source", [PsutilSource, pytest.param(ProcSource, marks=linux)])
def test_a_busy_process_is_seen(
    source: type[usage.Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As much processor time as it had, and in percent of one core."""
    monkeypatch.setattr(usage, "_source", source)
    sampler = UsageSampler()
    sampler.sample()
    started = time.monotonic()
    used = burn(0.4)
    sample = sampler.sample()
    expected = 100 * used / (time.monotonic() - started)
    assert sample["system/process_cpu_percent"] == pytest.approx(expected, abs=15)
    assert 0 < sample["system/cpu_percent"] <= 100


@linux
def test_memory_of_the_process_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block of 64 MB shows."""
    monkeypatch.setattr(usage, "_source", ProcSource)
    sampler = UsageSampler()
    before = sampler.sample()["system/process_rss_bytes"]
    block = bytearray(os.urandom(1 << 20) * 64)
    after = sampler.sample()["system/process_rss_bytes"]
    assert after - before > 0.9 * len(block)


def test_a_sample_costs_less_than_a_millisecond() -> None:
    """Processor time, in the median."""
    sampler = UsageSampler()
    sampler.sample()
    times = []
    for _ in range(101):
        before = time.process_time()
        sampler.sample()
        times.append(time.process_time() - before)
    assert sorted(times)[50] < 0.001


def test_constructing_loads_nothing() -> None:
    """The first sample does, beside the training."""
    script = (
        "import sys; from tachograph.recording.usage import UsageSampler; s = UsageSampler();"
        "assert 'psutil' not in sys.modules; s.sample(); assert 'psutil' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@linux
def test_it_works_without_psutil_and_pynvml() -> None:
    """In a process where neither can be imported."""
    script = (
        "import sys, time; sys.modules.update(psutil=None, pynvml=None);"
        "from tachograph.recording.usage import UsageSampler; s = UsageSampler(); s.sample();"
        "time.sleep(0.1); print(sorted(s.sample()))"
    )
    answer = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    assert answer.stdout.decode().strip() == str(sorted(MACHINE))


def test_a_fork_counts_for_itself() -> None:
    """The child's first sample says nothing of the parent's time."""
    script = (
        "import os, sys, time; from tachograph.recording.usage import UsageSampler\n"
        "sampler = UsageSampler(); sampler.sample(); time.sleep(0.1)\n"
        "child = os.fork(); sample = sampler.sample()\n"
        "assert 'system/process_rss_bytes' in sample\n"
        "assert ('system/process_cpu_percent' in sample) == (child != 0)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) if child else 0)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_failing_source_never_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    """It gives what is left."""
    sampler = UsageSampler()
    sampler.sample()
    monkeypatch.setattr(sampler, "_source", types.SimpleNamespace(read=lambda: 1 / 0))
    assert sampler.sample() == {}


class FakeNvml(types.ModuleType):
    """The calls of NVML that are used; device 1 tells no power."""

    NVML_TEMPERATURE_GPU = 0

    def nvmlInit(self) -> None: ...
    def nvmlDeviceGetCount(self) -> int:
        return 3

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return f"GPU-{handle}abc"

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> types.SimpleNamespace:
        return types.SimpleNamespace(gpu=50 + handle)

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> types.SimpleNamespace:
        return types.SimpleNamespace(used=1 << 30)

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        if handle == 1:
            raise RuntimeError("not supported")
        return 300_500

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> int:
        return 40


def test_devices_are_told_by_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that the process may see, and of each what it can tell."""
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml("pynvml"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,GPU-2")
    sample = UsageSampler().sample()
    devices = {name: value for name, value in sample.items() if "gpu" in name}
    assert devices == {
        "system/gpu1_utilization_percent": 51.0,
        "system/gpu1_memory_bytes": float(1 << 30),
        "system/gpu1_temperature_celsius": 40.0,
        "system/gpu2_utilization_percent": 52.0,
        "system/gpu2_memory_bytes": float(1 << 30),
        "system/gpu2_power_watts": 300.5,
        "system/gpu2_temperature_celsius": 40.0,
    }
