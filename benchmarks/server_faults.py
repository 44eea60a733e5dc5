"""What a training notices of its server, whatever is wrong with it: its steps, its calls, its end.

A step is about a millisecond of Python and a call of `log` with twenty metrics. What the server
does goes on in another process. A training that records to a file is measured in turn with them.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

from common import ROOT, Figures, Options, Result, at_most, for_information, fresh, in_turn, scratch
from server import serving

sys.path.insert(0, str(ROOT / "tests" / "server"))
from faulty import FAULTS, FaultyServer

DEADLINE = 2.0
TRAINING = """
import json, sys, time
import tachograph

url, steps, deadline = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
names = [f"layer{i}/norm" for i in range(20)]
config = {"backend": url, "record": {"exit_deadline": deadline}}
began = time.perf_counter()
run = tachograph.start_run(config=config)
start, weight, times, calls = time.perf_counter() - began, 1.0, [], []
for step in range(steps):
    began = time.perf_counter()
    for number in range(8_000):
        weight = (weight * 1.000001 + number) % 17.0
    called = time.perf_counter()
    run.log(dict.fromkeys(names, weight), step=step)
    now = time.perf_counter()
    times.append(now - began)
    calls.append(now - called)
print(json.dumps({"start": start, "times": times, "calls": calls, "ends": time.time()}), flush=True)
run.finish()
"""


def results(options: Options) -> Iterator[Result]:
    """Each fault beside the file."""
    found = fresh(measure, steps=1000 if options.quick else 5000, repeats=options.repeats)
    file = {name: found[f"file_{name}"] for name in ("start", "p50", "p99", "call", "call99")}
    yield for_information("file: p50 of a step", file["p50"], "ms", f"p99 {file['p99']:.2f} ms")
    yield for_information("file: p50 of log", file["call"], "µs", f"p99 {file['call99']:.1f} µs")
    for kind in ("healthy", *FAULTS):
        p50, p99, longest = (found[f"{kind}_{name}"] for name in ("p50", "p99", "longest"))
        note = f"p99 {p99:.2f} ms, longest {longest:.1f} ms"
        yield at_most(f"{kind}: p50 of a step", p50, 1.05 * file["p50"], "ms", note)
        yield at_most(f"{kind}: p99 of a step", p99, 1.5 * file["p99"] + 1.0, "ms")
        note = f"p99 {found[f'{kind}_call99']:.1f} µs"
        yield at_most(f"{kind}: p50 of log", found[f"{kind}_call"], 1.1 * file["call"], "µs", note)
        end, start = found[f"{kind}_end"], found[f"{kind}_start"]
        note = f"start_run {start:.0f} ms, {file['start']:.0f} ms with the file"
        yield at_most(f"{kind}: from the last step to the end", end, DEADLINE + 0.5, "s", note)


def measure(steps: int, repeats: int) -> Figures:
    """Train with each, in turn; medians over the repeats."""
    with serving("sqlite") as served:
        port = int(served.url.rpartition(":")[2])

        def faulty(kind: str) -> Figures:
            with FaultyServer(None if kind == "healthy" else kind, port) as server:
                return train(server.url, steps)

        local = f"sqlite:///{scratch()}/local/runs.sqlite"
        variants = {kind: lambda kind=kind: faulty(kind) for kind in ("healthy", *FAULTS)}
        found = in_turn({"file": lambda: train(local, steps), **variants}, repeats)
    return {f"{kind}_{name}": value for kind, one in found.items() for name, value in one.items()}


def train(url: str, steps: int) -> Figures:
    """Train in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", TRAINING, url, str(steps), str(DEADLINE)],
        env=os.environ | {"XDG_STATE_HOME": str(scratch() / "state")},
        capture_output=True,
        text=True,
        check=True,
    )
    ended = time.time()
    told = json.loads(done.stdout)
    steps_ms = statistics.quantiles([one * 1e3 for one in told["times"]], n=100)
    calls_us = statistics.quantiles([one * 1e6 for one in told["calls"]], n=100)
    return {
        "start": told["start"] * 1e3,
        "p50": steps_ms[49],
        "p99": steps_ms[98],
        "longest": max(told["times"]) * 1e3,
        "call": calls_us[49],
        "call99": calls_us[98],
        "end": ended - told["ends"],
    }
