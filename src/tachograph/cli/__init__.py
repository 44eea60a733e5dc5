"""The command `tachograph`: each command parses, asks the query layer, and shows."""

from __future__ import annotations

import sys
from collections.abc import Sequence

INSTALL = "the tachograph command needs its extra; install it with: pip install 'tachograph[cli]'"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the return value is its exit status, errors go to stderr."""
    try:
        from tachograph.cli.app import run
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.partition(".")[0] == "tachograph":
            raise
        print(f"{INSTALL} ({error})", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # while all of that loads
        return 130
    return run(arguments)
