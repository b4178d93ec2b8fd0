"""The network beside the plain U-Net on a CPU: precisions and memory formats, side by side.

    python -m benchmarks.cpu [--size N] [--rounds N] [--only TEXT] [--out FILE] [--check]

One image, one thread, eager operators: inference as `predict` runs it, and the trainer's own step.
All variants take turns in one process, a plain U-Net and the full network side by side, and what
counts is the processor time of the process, which a busy machine changes less than the clock: the
least of all rounds, and the median of the rounds' ratios to the plain U-Net in the same format.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from benchmarks.provenance import provenance, write_json
from benchmarks.text import markdown
from intrasense_fast import IntraSenseNet
from intrasense_fast.training.config import TrainConfig
from intrasense_fast.training.interruptions import Wholeness
from intrasense_fast.training.position import Position
from intrasense_fast.training.step import TrainingStep

PLAIN, FULL = "plain U-Net", "full network"
NETWORKS = {PLAIN: {"gcp": False, "cdr": False}, FULL: {}}
FORMATS = {
    "NCHW float32": ("off", False),
    "channels_last float32": ("off", True),
    "NCHW bf16": ("bf16", False),
    "channels_last bf16": ("bf16", True),
}
MODES = ("inference", "training step")
# Of the full network's time over the plain U-Net's, in every format; asserted by --check.
GOAL = 1.25
CPU = torch.device("cpu")


class Cell(NamedTuple):
    """What is timed: a mode, a format and a network by their names."""

    mode: str
    format: str
    network: str


def calls(size: int, small: bool) -> dict[Cell, Callable[[], object]]:
    """Every variant: one image of size x size."""
    torch.manual_seed(0)
    image = torch.rand(1, 1, size, size)
    mask = (image > 0.7).float()
    made: dict[Cell, Callable[[], object]] = {}
    for name, (amp, channels_last) in FORMATS.items():
        config = TrainConfig(amp=amp, channels_last=channels_last, fused=False)
        width = {"encoder": "resnet18", "decoder_channels": (8,) * 5} if small else {}
        steps = {
            network: _step(config, IntraSenseNet(fused=False, **options, **width))
            for network, options in NETWORKS.items()
        }
        for network, step in steps.items():
            made[Cell("inference", name, network)] = lambda step=step: _infer(step, image)
        for network, step in steps.items():
            made[Cell("training step", name, network)] = lambda step=step: _train(step, image, mask)
    return made


def _step(config: TrainConfig, net: nn.Module) -> TrainingStep:
    return TrainingStep(net, config, CPU, steps=10**6, whole=Wholeness())


def _infer(step: TrainingStep, image: torch.Tensor) -> None:
    step.net.eval()
    with torch.inference_mode(), step.autocast():
        step.net(image)


def _train(step: TrainingStep, image: torch.Tensor, mask: torch.Tensor) -> None:
    step.net.train()
    step(image, mask, Position())


def measured(functions: dict[Cell, Callable[[], object]], rounds: int) -> dict[Cell, list[float]]:
    """Seconds of processor time of a call, one number a round; one call of each is not timed."""
    for function in functions.values():
        function()
    times: dict[Cell, list[float]] = {cell: [] for cell in functions}
    for _ in range(rounds):
        for cell, function in functions.items():
            began = time.process_time()
            function()
            times[cell].append(time.process_time() - began)
    return times


def ratios(times: dict[Cell, list[float]]) -> dict[tuple[str, str], float]:
    """(mode, format) -> the full network's time over the plain U-Net's in the same round."""
    found = {}
    for mode, name, network in times:
        if network == FULL:
            pairs = zip(times[Cell(mode, name, FULL)], times[Cell(mode, name, PLAIN)], strict=True)
            found[mode, name] = statistics.median(full / plain for full, plain in pairs)
    return found


def table(times: dict[Cell, list[float]]) -> str:
    """One row a mode and format."""
    found = ratios(times)
    rows = [
        [
            mode,
            name,
            *(f"{1e3 * min(times[Cell(mode, name, network)]):.0f}" for network in NETWORKS),
            f"{found[mode, name]:.2f}",
        ]
        for mode, name in sorted(found, key=lambda row: MODES.index(row[0]))
    ]
    return markdown(["", "format", *(f"{name}, ms" for name in NETWORKS), "median ratio"], rows)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cpu", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--size", type=int, default=256, help="side of the image (default 256)")
    parser.add_argument("--rounds", type=int, default=10, help="turns of each (default 10)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default 1)")
    parser.add_argument(
        "--only", default="", help='rows that hold this text, such as "inference NCHW float32"'
    )
    parser.add_argument("--out", type=Path, help="write the figures there as JSON")
    parser.add_argument("--check", action="store_true", help=f"fail where a ratio is above {GOAL}")
    parser.add_argument("--dry-run", action="store_true", help="a small network: a walk, no result")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    size, rounds = (64, 1) if options.dry_run else (options.size, options.rounds)
    if not any(options.only in f"{mode} {name}" for mode in MODES for name in FORMATS):
        parser.error(f"--only {options.only}: no row holds this text")
    functions = calls(size, options.dry_run)
    wanted = [cell for cell in functions if options.only in f"{cell.mode} {cell.format}"]
    times = measured({cell: functions[cell] for cell in wanted}, rounds)
    print(table(times))
    if options.out:
        cells = [{**cell._asdict(), "seconds": row} for cell, row in times.items()]
        content = {**provenance(), "dry_run": options.dry_run, "size": size, "rounds": rounds}
        write_json(options.out, {**content, "cells": cells})
    worst = max(ratios(times).values())
    if options.check and worst > GOAL:
        print(f"the full network takes up to {worst:.2f} x the plain U-Net's time", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
