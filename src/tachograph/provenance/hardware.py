"""The machine: processor, memory, disk, accelerators, and what of it this process may use."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

_QUERY = ("name", "uuid", "memory.total", "driver_version", "compute_cap", "pci.bus_id")
_TIMEOUT = 10.0
_NUMERIC_FLAG = re.compile(  # extensions by which libraries choose how they compute
    r"sse4_[12]|f16c|fma|avx.*|amx.*|asimd.*|sve.*|sme\d?|bf16|i8mm|fphp|neon"
)


def collect() -> dict[str, Any]:
    """Processor, memory, disk of the working directory, accelerators and their driver."""
    return {
        "cpu": _cpu(),
        "memory": _memory(),
        "disk": _disk(),
        "gpus": _gpus(),
        "driver": _read("/sys/module/nvidia/version").strip() or None,
    }


def _cpu() -> dict[str, Any]:
    packages, model, flags = set(), None, set[str]()
    for block in _read("/proc/cpuinfo").split("\n\n"):
        fields = dict(_field(line) for line in block.splitlines())
        flags = flags or {*(fields.get("flags") or fields.get("Features") or "").split()}
        model = model or fields.get("model name") or fields.get("Processor")
        if "core id" in fields:
            packages.add((fields.get("physical id"), fields["core id"]))
    return {
        "model": model or platform.processor() or None,
        "architecture": platform.machine(),
        "logical": os.cpu_count(),
        "physical": len(packages) or None,
        "usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "limit": _cpu_limit(),
        "flags": sorted(filter(_NUMERIC_FLAG.fullmatch, flags)),
    }


def _field(line: str) -> tuple[str, str]:
    key, _, value = line.partition(":")
    return key.strip(), value.strip()


def _cpu_limit() -> float | None:
    """Cores that the control group allows, None where it sets no limit."""
    quota, _, period = _read("/sys/fs/cgroup/cpu.max").strip().partition(" ")
    if not quota:
        quota = _read("/sys/fs/cgroup/cpu/cpu.cfs_quota_us").strip()
        period = _read("/sys/fs/cgroup/cpu/cpu.cfs_period_us").strip()
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None


def _memory() -> dict[str, Any]:
    limit = _read("/sys/fs/cgroup/memory.max") or _read(
        "/sys/fs/cgroup/memory/memory.limit_in_bytes"
    )
    total = None
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limited = limit.strip().isdigit() and (total is None or int(limit) < total)
    return {"bytes": total, "limit_bytes": int(limit) if limited else None}


def _disk() -> dict[str, Any]:
    try:
        usage = shutil.disk_usage(os.getcwd())
    except OSError as error:
        return {"missing": str(error)}
    return {"bytes": usage.total, "free_bytes": usage.free}


def _gpus() -> list[dict[str, Any]]:
    """What `nvidia-smi` lists where it is installed, else what a loaded torch can say."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return _torch_gpus()
    listing = subprocess.run(
        [command, f"--query-gpu={','.join(_QUERY)}", "--format=csv,noheader,nounits"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT,
        check=False,
    )
    if listing.returncode != 0:
        return _torch_gpus()
    rows = (line.split(", ") for line in listing.stdout.splitlines() if line.strip())
    return [dict(zip(_QUERY, (value.strip() for value in row), strict=False)) for row in rows]


def _torch_gpus() -> list[dict[str, Any]]:
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return []
    found = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    return [{"name": device.name, "memory.total": device.total_memory >> 20} for device in found]


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""
