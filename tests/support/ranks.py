"""Several processes of one run, as torchrun would start them, forked from the test's own."""

import multiprocessing
import os
import pickle
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_TIMEOUT = 240


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def variables(rank: int, world: int, port: int) -> dict[str, str]:
    """What torchrun sets."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


class Forked:
    """`world` processes that run `call(rank)`, each with one thread.

    Args:
        call: its result goes through a pipe; what it prints into `folder`/RANK.txt.
        folder: made if missing.
    """

    def __init__(self, world: int, call: Callable[[int], Any], folder: Path) -> None:
        context, port = multiprocessing.get_context("fork"), free_port()
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.processes, self.pipes = [], []
        for rank in range(world):
            here, there = context.Pipe(duplex=False)
            arguments = (call, rank, variables(rank, world, port), folder, there)
            process = context.Process(target=_run, args=arguments)
            process.start()
            there.close()
            self.processes.append(process)
            self.pipes.append(here)

    def results(self) -> list[Any]:
        """Of all, by rank; None of one that was killed."""
        found = []
        for process, pipe in zip(self.processes, self.pipes, strict=True):
            try:
                found.append(
                    pickle.loads(pipe.recv_bytes()) if pipe.poll(_TIMEOUT) else "timed out"
                )
            except EOFError:
                found.append(None)
            process.join(10)
            process.kill()
        return found

    def printed(self, rank: int) -> str:
        return (self.folder / f"{rank}.txt").read_text()


def together(world: int, call: Callable[[int], Any], folder: Path) -> list[Any]:
    """The results of `call(rank)` in `world` processes."""
    forked = Forked(world, call, folder)
    found = forked.results()
    for rank, result in enumerate(found):
        assert not isinstance(result, str), f"process {rank}: {result}\n{forked.printed(rank)}"
    return found


def _run(
    call: Callable[[int], Any], rank: int, given: dict[str, str], folder: Path, pipe: Any
) -> None:
    os.environ.update(given)
    os.environ.pop("TRITON_INTERPRET", None)
    sys.stdout = sys.stderr = open(folder / f"{rank}.txt", "w", buffering=1)
    torch.set_num_threads(1)
    try:
        result = call(rank)
    except BaseException:
        result = traceback.format_exc()
    # Not by the pipe's own pickler, which shares a tensor's memory with a process that ends.
    pipe.send_bytes(pickle.dumps(result))
    pipe.close()
    # Without the test's own clean-up.
    os._exit(0)
