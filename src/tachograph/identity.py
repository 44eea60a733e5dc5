"""Who this process is among those that record one training: rank, restart, launch, run id.

A process is a rank only if its launcher says so. Knows environment variables, not frameworks.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Mapping
from typing import NamedTuple

from tachograph import host
from tachograph.records import check_run_id, uuid7

LAUNCH_VARIABLE = "TACHOGRAPH_LAUNCH_ID"
RUN_VARIABLE = "TACHOGRAPH_RUN_ID"
PARENT_VARIABLE = "TACHOGRAPH_PARENT_RUN_ID"
REPRODUCES_VARIABLE = "TACHOGRAPH_REPRODUCES"
"""Names the run that the runs of this process are to reproduce.

``<run id>/<execution>``, where the execution tells one attempt to reproduce it from the others.
"""

_NAMESPACE = "7ac40c1e-4a9e-5b1c-9f3e-0d5a3a1b2c4d"
_RANKS = (  # rank, local rank, world size
    ("RANK", "LOCAL_RANK", "WORLD_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "MPI_LOCALRANKID", "PMI_SIZE"),
    ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS"),
)


class Identity(NamedTuple):
    """The place of a process in a distributed training.

    Attributes
    ----------
    rank, local_rank, world_size : int
        0, 0 and 1 where the process trains alone.
    restarts : int
        How often the launcher has started this training again.
    launched : bool
        Whether a launcher started the process as one of several.
    follows : bool
        Whether rank 0 started this process from its own, to run the same script: the run that
        was current there then is this process's too.
    """

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    restarts: int = 0
    launched: bool = False
    follows: bool = False

    def with_rank(self, rank: int, local_rank: int, world_size: int) -> Identity:
        """The same process, as a framework that starts its own ranks names it."""
        launched = self.launched or world_size > 1
        return self._replace(
            rank=rank, local_rank=local_rank, world_size=world_size, launched=launched
        )


def read_identity(environ: Mapping[str, str] | None = None) -> Identity:
    """What the launcher's environment variables say of this process."""
    environ = os.environ if environ is None else environ
    restarts = _number(environ, "TORCHELASTIC_RESTART_COUNT") or 0
    for rank_name, local_name, size_name in _RANKS:
        rank, size = _number(environ, rank_name), _number(environ, size_name)
        if rank is not None and size is not None and (size > 1 or restarts):
            local = _number(environ, local_name) or 0
            return Identity(rank, local, size, restarts, launched=True)
    # Lightning starts the further ranks of a node without a RANK.
    one, size = _number(environ, "LOCAL_RANK"), _number(environ, "WORLD_SIZE")
    if one and size and size > 1 and "RANK" not in environ and not _number(environ, "NODE_RANK"):
        return Identity(one, one, size, restarts, launched=True, follows=True)
    return Identity(restarts=restarts, launched=restarts > 0)


def announce_launch() -> None:
    """Leave an id in the environment that processes started from here will inherit.

    Called where a callback is constructed: launchers copy the environment before any hook runs.
    Ranks of a launcher take its own id instead, because each would leave another.
    """
    if not read_identity().launched:
        os.environ.setdefault(LAUNCH_VARIABLE, uuid7())


def new_run_id(identity: Identity, ordinal: int) -> str:
    """The id of the run that this process opens as its `ordinal`-th.

    All ranks of a launch derive the same; any other process gets a fresh UUIDv7.
    """
    if ordinal == 0 and (given := os.environ.get(RUN_VARIABLE)):
        return check_run_id(given)
    if not identity.launched:
        return uuid7()
    arguments = "\0".join([os.path.abspath(sys.argv[0]), *sys.argv[1:]])
    script = hashlib.sha256(arguments.encode(errors="surrogateescape")).hexdigest()
    launch = f"{_launch_id()}/{script}/{_spawned_as(identity)}"
    return _uuid5(f"{launch}/{ordinal}")


def derived_id(parent: str, name: str) -> str:
    """A run id that follows from another id and a name, the same in every process."""
    return _uuid5(f"{parent}/{name}")


def _uuid5(name: str) -> str:
    import uuid

    return str(uuid.uuid5(uuid.UUID(_NAMESPACE), name))


def _spawned_as(identity: Identity) -> int | None:
    """What tells one set of spawned ranks from the next that the same process spawns.

    multiprocessing numbers the children of a process, and a launcher starts its ranks in a row.
    """
    process = sys.modules.get("multiprocessing.process")
    if process is None or process.parent_process() is None:
        return None
    numbers = process.current_process()._identity
    return numbers[-1] - identity.local_rank if numbers else None


def _launch_id() -> str:
    if inherited := os.environ.get(LAUNCH_VARIABLE):
        return inherited
    for name in ("TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID"):
        value = os.environ.get(name)
        if value and value != "none":
            return f"{name}={value}.{os.environ.get('SLURM_STEP_ID', '')}"
    parent = os.getppid()  # torchrun without an id: the workers of a node share the agent
    return f"{host.host_name()}/{host.boot_id()}/{parent}/{host.process_started(parent)}"


def _number(environ: Mapping[str, str], name: str) -> int | None:
    value = environ.get(name, "")
    return int(value) if value.isdecimal() else None
