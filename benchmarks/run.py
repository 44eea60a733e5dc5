"""Measures what Tachograph promises: ``python benchmarks/run.py [subject ...]``.

Each measurement runs in a process of its own; what is compared is measured in turn in the same
invocation. Other work on the machine spoils times, so it is shown above each table.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import sys
import time

from common import Busy, Options, Result

SUBJECTS = (
    "log",
    "store",
    "server",
    "server_faults",
    "start",
    "query",
    "training",
    "memory",
    "data",
    "peers",
    "health",
    "tensors_store",
    "tensors_torch",
    "tensors_gpu",
    "tensors_xgboost",
    "tensors_keras",
    "tensors_sklearn",
)
_VERDICT = {None: "", True: "met", False: "MISSED"}


def main() -> int:
    """Print a table per subject; 1 where a target was missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("subjects", nargs="*", metavar="subject", help=", ".join(SUBJECTS))
    parser.add_argument("--repeats", type=int, default=5, help="of each measurement (5)")
    parser.add_argument("--quick", action="store_true", help="small sizes, for a first look")
    chosen = parser.parse_args()
    if unknown := set(chosen.subjects) - set(SUBJECTS):
        parser.error(f"no subject {', '.join(sorted(unknown))}; there are {', '.join(SUBJECTS)}")
    print(
        f"Python {platform.python_version()}, {platform.system()} {platform.machine()}, "
        f"{os.cpu_count()} processors"
    )
    options = Options(chosen.repeats, chosen.quick)
    met = [_measure(name, options) for name in chosen.subjects or SUBJECTS]
    return 0 if all(met) else 1


def _measure(name: str, options: Options) -> bool:
    subject = importlib.import_module(name)
    print(f"\n{name}: {(subject.__doc__ or '').splitlines()[0]}", flush=True)
    busy, began = Busy(), time.monotonic()
    met = True
    for result in subject.results(options):
        _print(result)
        met = met and result.met is not False
    seconds = time.monotonic() - began
    others = busy.others(seconds)
    load = f"load {os.getloadavg()[0]:.1f}"
    if others is not None:
        load += f", other programs used {others:.1f} processors"
    print(f"  took {seconds:.0f} s; {load}", flush=True)
    return met


def _print(result: Result) -> None:
    line = f"  {result.what:<58} {result.target:<18} {_VERDICT[result.met]:<7} {result.measured}"
    print(line.rstrip(), flush=True)


if __name__ == "__main__":
    sys.exit(main())
