"""Where the runs of a grid are trained, as the command line says it."""

from dataclasses import dataclass
from pathlib import Path

import torch

from intrasense_fast.errors import UsageError
from intrasense_fast.training import cluster
from intrasense_fast.training.cluster import SLURM, SUBMITIT_LOCAL
from intrasense_fast.training.execution import Executor, LocalExecutor

LOCAL = "local"
EXECUTORS = (LOCAL, SLURM, SUBMITIT_LOCAL)


@dataclass(frozen=True)
class Place:
    """An executor and how much it may do.

    Attributes:
        kind: of EXECUTORS.
        jobs: runs at a time; None = one on this machine, as many as it lets on a cluster.
        options: KEY=VALUE of a job.
    """

    kind: str = LOCAL
    jobs: int | None = None
    options: tuple[str, ...] = ()

    @property
    def is_default(self) -> bool:
        """One after the other on this machine."""
        return self.kind == LOCAL and self.jobs in (None, 1)

    def check(self) -> None:
        """Raise a UsageError where no run could be trained so."""
        if self.jobs is not None and self.jobs < 1:
            raise UsageError(f"--jobs must be at least 1, got {self.jobs}")
        if self.kind != LOCAL:
            cluster.check_cluster(self.kind, self.options)
        elif self.options:
            raise UsageError("--slurm is for jobs of a cluster: give --executor slurm too")

    def threads(self) -> int:
        """Of each run: the CPUs of its job, or its share of this machine's."""
        if self.kind == SLURM:
            return cluster.cpus_of(self.options)
        return max(1, torch.get_num_threads() // (self.jobs or 1))

    def executor(self, out: Path, threads: int) -> Executor:
        """What trains the runs of the grid in `out`."""
        if self.kind == LOCAL:
            return LocalExecutor(self.jobs or 1, threads)
        return cluster.ClusterExecutor(self.kind, out, self.options, self.jobs, threads)

    def flags(self) -> list[str]:
        """The command line that says the same."""
        flags = [] if self.jobs is None else ["--jobs", str(self.jobs)]
        flags += [] if self.kind == LOCAL else ["--executor", self.kind]
        return flags + (["--slurm", *self.options] if self.options else [])


ONE_BY_ONE = Place()
