"""How the processes of a run find each other: by the variables that torchrun sets."""

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta

import torch.distributed as dist

from intrasense_fast.errors import UsageError, first_line
from intrasense_fast.training.distributed import ALONE, LONGEST_WAIT, LostProcess, Ranks
from intrasense_fast.training.heartbeat import Heartbeat

_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_MEETING = timedelta(minutes=5)


@contextlib.contextmanager
def joined() -> Iterator[Ranks]:
    """The processes of this run, by the variables that torchrun sets; one alone where there are
    none.

    Raises:
        UsageError: variables are missing or are no numbers, or the others do not come.
        LostProcess: one of them is lost before all are here.
    """
    place = _place()
    if place is None:
        yield ALONE
        return
    ranks, heartbeat = Ranks(*place), None
    try:
        store, _, _ = next(dist.rendezvous("env://", timeout=_MEETING))
        store.set_timeout(_MEETING)
        dist.init_process_group(
            "gloo", store=store, rank=ranks.rank, world_size=ranks.world, timeout=LONGEST_WAIT
        )
    except (RuntimeError, ValueError) as error:
        raise UsageError(
            f"process {ranks.rank} of {ranks.world} does not find the others "
            f"({first_line(error)}): check MASTER_ADDR and MASTER_PORT, and that all are started"
        ) from error
    try:
        ranks.wait()
        heartbeat = Heartbeat(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            ranks.rank,
            ranks.world,
            advice=lambda: ranks.advice(),
            is_known=lambda: ranks.broken,
        )
        yield ranks
        # Nobody leaves while another writes: launchers end the rest when one has ended.
        with contextlib.suppress(LostProcess):
            ranks.wait()
        if not ranks.broken:
            dist.destroy_process_group()
    finally:
        if heartbeat is not None:
            heartbeat.stop()


def _place() -> tuple[int, int, int] | None:
    """(rank, world, number on the machine); None for a process that is alone."""
    given = {name: os.environ.get(name) for name in _VARIABLES[:2]}
    if not any(given.values()):
        return None
    names = [*_VARIABLES, "LOCAL_RANK"] if given["WORLD_SIZE"] != "1" else list(_VARIABLES[:2])
    missing = [name for name in names if not os.environ.get(name)]
    if missing:
        raise UsageError(
            f"{' and '.join(name for name, value in given.items() if value)} set, "
            f"{', '.join(missing)} not: several processes are started with torchrun, which sets "
            "all; for one process unset them"
        )
    try:
        numbers = {name: int(os.environ[name]) for name in names if name != "MASTER_ADDR"}
    except ValueError as error:
        raise UsageError(f"a variable of the launcher is no number ({error})") from error
    rank, world = numbers["RANK"], numbers["WORLD_SIZE"]
    if not 0 <= rank < world:
        raise UsageError(f"RANK must be at least 0 and below WORLD_SIZE, got {rank} of {world}")
    return None if world == 1 else (rank, world, numbers["LOCAL_RANK"])
