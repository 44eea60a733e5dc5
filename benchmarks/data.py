"""What knowing the data and the results again takes: fingerprints, rows, digests of weights.

Processor seconds, as ratios to one SHA-256 of the same bytes, measured in turn. Fingerprints and
rows are made beside the training, digests of weights at the end of a fit.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from common import Figures, Options, Result, for_information, fresh, in_turn

MIB = 1 << 20


def measure(what: str, mib: int) -> Figures:
    """One way to look at so many MiB of floats, and the hash of as many."""
    import numpy as np

    from tachograph.provenance.data import fingerprint
    from tachograph.provenance.outcomes import outcome
    from tachograph.provenance.row_hashes import hash_rows

    width = 50 if what == "fingerprint of a frame" else 250
    shape = (mib * MIB // (4 * width), width)
    values = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    ways: dict[str, tuple[Any, Callable[[Any], Any]]] = {
        "fingerprint": (values, fingerprint),
        "rows": (values, hash_rows),
        "weights": ({str(n): part for n, part in enumerate(np.array_split(values, 48))}, outcome),
    }
    if what == "fingerprint of a frame":
        import pandas as pd

        ways[what] = pd.DataFrame(values), fingerprint
    data, look = ways[what]
    seconds = _seconds(lambda: look(data))
    plain = _seconds(lambda: hashlib.sha256(memoryview(values).cast("B")).digest())
    return {"seconds": seconds, "ratio": seconds / plain}


def _seconds(call: Callable[[], Any]) -> float:
    call()
    before = time.process_time()
    call()
    return time.process_time() - before


def results(options: Options) -> Iterator[Result]:
    """Of what is read in full, and of what is sampled."""
    large = 256 if options.quick else 1024
    cases = [
        ("fingerprint", 60),
        ("fingerprint", large),
        ("fingerprint of a frame", 60),
        ("fingerprint of a frame", large),
        ("rows", 60),
        ("rows", large),
        ("weights", 60),
        ("weights", 256),
    ]
    variants = {
        f"{what}, {mib} MiB": partial(fresh, measure, what=what, mib=mib) for what, mib in cases
    }
    found = in_turn(variants, min(3, options.repeats))
    for name, figures in found.items():
        note = f"{figures['ratio']:.2g} times a SHA-256 of the same bytes"
        yield for_information(name, figures["seconds"], "s of CPU", note)
