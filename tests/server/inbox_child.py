"""A process that receives through an inbox and says what it has acknowledged, until it is killed.

Usage: python inbox_child.py URL FOLDER LOG. Four writers send from threads of their own; what is
acknowledged is appended to LOG as ``writer next`` lines, which survive the process.
"""

from __future__ import annotations

import os
import random
import sys
import threading
from pathlib import Path

from tachograph.errors import Busy
from tachograph.records import Batch
from tachograph.server.inbox import Inbox
from tachograph.testing import make_batch, make_block
from tachograph.wire.encoding import compress, encode

WRITERS = 4
PER_BATCH = 20


def batch(writer: str, first: int, after: int) -> Batch:
    """Records of a writer: points whose values are their numbers, an event for every tenth."""
    seqs = range(first, after)
    block = make_block(f"run-{writer}", {"loss": [float(seq) for seq in seqs]}, seqs=seqs)
    events = [
        {"run_id": f"run-{writer}", "seq": seq, "message": str(seq)}
        for seq in seqs
        if seq % 10 == 0
    ]
    return make_batch(writer, first, after, blocks=[block], events=events)


def send(inbox: Inbox, writer: str, log: int) -> None:
    """Send batches for ever, now and then one that overlaps what was sent."""
    chance = random.Random(writer)
    while True:
        try:
            known = inbox.expected(writer)
            start = max(0, known - chance.choice([0, 0, 0, 7]))
            one = batch(writer, start, known + chance.randint(1, PER_BATCH))
            acknowledged = inbox.receive(compress(encode(one)), one)
        except Busy:
            continue
        os.write(log, f"{writer} {acknowledged}\n".encode())


def main(url: str, folder: str, log: str) -> None:
    """Receive until killed."""
    inbox = Inbox([url], Path(folder))
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    threads = [
        threading.Thread(target=send, args=(inbox, f"w{n}", descriptor)) for n in range(WRITERS)
    ]
    for thread in threads:
        thread.start()
    print("receiving", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
