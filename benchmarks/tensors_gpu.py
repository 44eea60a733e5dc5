"""What statistics of weights and gradients add to a step on a CUDA device, and that nothing waits.

Without such a device it prints nothing. Steps without, with, and with recording of each step
alternate in blocks; times are those of the device's own events. The trace of the profiler is
searched for calls by which the host waits for the device.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

from common import Figures, Options, Result, at_most, fresh, scratch

WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")


def results(options: Options) -> Iterator[Result]:
    """Share of a step of a transformer, of each step and of every='auto'; waits in the trace."""
    if not fresh(has_device)["devices"]:
        return
    for title, record, share, steps in (
        ("each step, moments", {"every": 1, "histograms": "off"}, 0.08, 20),
        ("each step, with histograms", {"every": 1, "histograms": 1}, 0.30, 20),
        ("every='auto'", {}, 0.02, 400),  # the first record is in each block
    ):
        found = fresh(overhead, record=record, steps=steps, blocks=4 * options.repeats)
        shown = 100 * found["added"] / found["without"]
        note = f"of {found['without']:.4g} ms"
        yield at_most(f"{title}: added a step", shown, 100 * share, "%", note)
    found = fresh(waits)
    yield at_most("waits for the device in 10 recorded steps", found["more"], 0, "more", "trace")


def has_device() -> Figures:
    """How many CUDA devices there are."""
    import torch

    return {"devices": float(torch.cuda.device_count())}


def overhead(record: dict[str, Any], steps: int, blocks: int) -> Figures:
    """Milliseconds of a step, and what recording adds; medians of blocks in turn."""
    import torch

    step, watched = _training(record)
    with watched as optimizer_hooks:
        taken: dict[bool, list[float]] = {False: [], True: []}
        for block in range(2 * blocks + 2):
            recorded = block % 2 == 1
            optimizer_hooks(recorded)
            begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begun.record()
            for _ in range(steps):
                step()
            ended.record()
            ended.synchronize()
            if block > 1:
                taken[recorded].append(begun.elapsed_time(ended) / steps)
    without = statistics.median(taken[False])
    return {"without": without, "added": statistics.median(taken[True]) - without}


def waits() -> Figures:
    """How often the host waits in ten recorded steps, more than in ten that are not."""
    from torch.profiler import ProfilerActivity, profile

    step, watched = _training({"every": 1, "histograms": 1})
    counts = []
    with watched as optimizer_hooks:
        for recorded in (False, True):
            optimizer_hooks(recorded)
            for _ in range(3):
                step()
            with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as trace:
                for _ in range(10):
                    step()
            counts.append(sum(event.name in WAITS for event in trace.events()))
    return {"more": float(counts[1] - counts[0])}


def _training(record: dict[str, Any]) -> tuple[Callable[[], None], Any]:
    """A step of a transformer of 124 million parameters, and what records it."""
    import contextlib

    import torch

    from tachograph.callbacks import watch

    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(768, 12, 3072, 0.0, batch_first=True, device="cuda")
    body = torch.nn.TransformerEncoder(layer, 12, enable_nested_tensor=False)
    table = torch.nn.Embedding(50_000, 768, device="cuda")
    model = torch.nn.ModuleDict({"table": table, "body": body})
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    tokens = torch.randint(0, 50_000, (8, 513), device="cuda")

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16):
            found = model["body"](model["table"](tokens[:, :-1])) @ model["table"].weight.T
            loss = torch.nn.functional.cross_entropy(found.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        optimizer.step()

    config = {"backend": f"sqlite:///{scratch()}/runs.sqlite", "record": record}

    @contextlib.contextmanager
    def watched() -> Iterator[Callable[[bool], None]]:
        with contextlib.ExitStack() as stack:

            def switch(on: bool) -> None:
                stack.pop_all().close()
                stack.enter_context(watch(model, optimizer, config=config) if on else nullcontext())

            yield switch

    return step, watched()
