"""The arguments of commands that train several runs: where these are trained."""

import argparse

from intrasense_fast.training.place import EXECUTORS, LOCAL, Place


def add_place_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of every command that trains several runs."""
    parser.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="runs at a time (default 1; on a cluster as many as it lets)",
    )
    parser.add_argument(
        "--executor",
        choices=EXECUTORS,
        default=LOCAL,
        help="where runs are trained: local, this machine (default); slurm, jobs of a cluster; "
        "submitit-local, such jobs on this machine, to try it out",
    )
    parser.add_argument(
        "--slurm",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="of each job: time=MINUTES, partition=NAME, gpus=N, cpus=N, mem=32GB, and other "
        "options of sbatch",
    )


def place_of(args: argparse.Namespace) -> Place:
    return Place(args.executor, args.jobs, tuple(args.slurm))
