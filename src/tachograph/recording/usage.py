"""How much processor, memory and accelerator the process and the machine use right now.

The one file that touches psutil and pynvml. Without psutil it reads /proc; without pynvml it asks
a loaded torch for its memory. Starts no process and initialises no device.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

_SHORTEST = 0.05  # seconds; the kernel counts machine time in ticks of 10 ms


class Reading(NamedTuple):
    """Counters of one moment: seconds of processor time, bytes and percent of memory."""

    process_seconds: float
    busy_seconds: float
    total_seconds: float
    rss_bytes: float
    memory_percent: float


class Source(Protocol):
    """Reads the counters of this process and its machine."""

    def read(self) -> Reading:
        """The counters now."""


class PsutilSource:
    """Counters from psutil, on any system it knows."""

    def __init__(self) -> None:
        self._psutil: Any = importlib.import_module("psutil")
        self._process = self._psutil.Process()

    def read(self) -> Reading:
        """The counters now."""
        times = self._psutil.cpu_times()._asdict()
        total = sum(times.values()) - times.get("guest", 0.0) - times.get("guest_nice", 0.0)
        idle = times["idle"] + times.get("iowait", 0.0)
        return Reading(
            time.process_time(),
            total - idle,
            total,
            float(self._process.memory_info().rss),
            float(self._psutil.virtual_memory().percent),
        )


class ProcSource:
    """Counters from /proc, on Linux."""

    def __init__(self) -> None:
        self._tick = os.sysconf("SC_CLK_TCK")
        self._page = os.sysconf("SC_PAGE_SIZE")
        self.read()

    def read(self) -> Reading:
        """The counters now."""
        with open("/proc/stat", "rb") as file:
            fields = [int(value) for value in file.readline().split()[1:9]]
        total = sum(fields)  # user nice system idle iowait irq softirq steal
        idle = fields[3] + fields[4]
        resident = int(Path("/proc/self/statm").read_bytes().split()[1])
        return Reading(
            time.process_time(),
            (total - idle) / self._tick,
            total / self._tick,
            float(resident * self._page),
            self._memory_percent(),
        )

    @staticmethod
    def _memory_percent() -> float:
        with open("/proc/meminfo", "rb") as file:
            head = dict(line.split()[:2] for line, _ in zip(file, range(3), strict=False))
        total, available = int(head[b"MemTotal:"]), int(head[b"MemAvailable:"])
        return 100.0 * (total - available) / total


def _source() -> Source | None:
    for source in (PsutilSource, ProcSource):
        try:
            return source()
        except Exception:  # not installed, not this system, not allowed
            continue
    return None


# ---------------------------------------------------------------------------- accelerators

Gauge = Callable[[], float]


def _nvml_gauges() -> dict[str, Gauge]:
    """What the NVIDIA driver can tell of the devices that this process may see."""
    try:
        nvml: Any = importlib.import_module("pynvml")
        nvml.nvmlInit()
        handles = {
            index: nvml.nvmlDeviceGetHandleByIndex(index)
            for index in range(nvml.nvmlDeviceGetCount())
        }
    except Exception:  # no library, no driver, no permission
        return {}
    gauges: dict[str, Gauge] = {}
    for index, handle in handles.items():
        if not _is_visible(index, str(nvml.nvmlDeviceGetUUID(handle))):
            continue
        gauges |= {
            f"system/gpu{index}_{name}": gauge for name, gauge in _device(nvml, handle).items()
        }
    return {name: gauge for name, gauge in gauges.items() if _try(gauge) is not None}


def _device(nvml: Any, handle: Any) -> dict[str, Gauge]:
    return {
        "utilization_percent": lambda: float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu),
        "memory_bytes": lambda: float(nvml.nvmlDeviceGetMemoryInfo(handle).used),
        "power_watts": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000.0,
        "temperature_celsius": lambda: float(
            nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)
        ),
    }


def _is_visible(index: int, uuid: str) -> bool:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return True
    chosen = [name.strip() for name in visible.split(",")]
    return str(index) in chosen or any(name and uuid.startswith(name) for name in chosen)


def _torch_gauges() -> dict[str, Gauge]:
    """Memory that a loaded torch holds, where it has initialised its devices."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return {}
    return {
        f"system/gpu{index}_allocated_bytes": lambda index=index: float(  # type: ignore[misc]
            torch.cuda.memory_allocated(index)
        )
        for index in range(torch.cuda.device_count())
    }


def _try(gauge: Gauge) -> float | None:
    try:
        return gauge()
    except Exception:
        return None


# ---------------------------------------------------------------------------- the sampler


class UsageSampler:
    """Samples the use of the machine; percentages cover the time since the sample before.

    Constructing it costs nothing; the first sample loads psutil and the driver's library and has
    no processor percentages yet.
    """

    def __init__(self) -> None:
        self._pid: int | None = None
        self._gpus: dict[str, Gauge] = {}
        self._source: Source | None = None
        self._last: Reading | None = None
        self._last_at = 0.0

    def _start(self) -> None:
        self._pid = os.getpid()
        self._gpus = _nvml_gauges()
        self._source = _source()
        self._last = self._source.read() if self._source else None
        self._last_at = time.monotonic()

    def sample(self) -> dict[str, float]:
        """Metric name to value, only of what is known.

        Returns
        -------
        dict
            `system/cpu_percent` (of all cores), `system/process_cpu_percent` (100 is one core),
            `system/memory_percent`, `system/process_rss_bytes`, and per device
            `system/gpu0_utilization_percent`, `_memory_bytes`, `_power_watts`,
            `_temperature_celsius`, or `_allocated_bytes`. Never raises.
        """
        try:
            if os.getpid() != self._pid:  # the first sample, or a fork with counters of its own
                self._start()
            values = self._process_and_machine()
        except Exception:  # /proc or psutil refused this once
            values = {}
        for name, gauge in (self._gpus or _torch_gauges()).items():
            value = _try(gauge)
            if value is not None:
                values[name] = value
        return values

    def _process_and_machine(self) -> dict[str, float]:
        if self._source is None or self._last is None:
            return {}
        now, at = self._source.read(), time.monotonic()
        values = {
            "system/memory_percent": now.memory_percent,
            "system/process_rss_bytes": now.rss_bytes,
        }
        elapsed = at - self._last_at
        total = now.total_seconds - self._last.total_seconds
        if elapsed >= _SHORTEST and total > 0:
            busy = now.busy_seconds - self._last.busy_seconds
            used = now.process_seconds - self._last.process_seconds
            values["system/cpu_percent"] = min(100.0, max(0.0, 100.0 * busy / total))
            values["system/process_cpu_percent"] = 100.0 * used / elapsed
            self._last, self._last_at = now, at
        return values
