"""The trainer's own step, plain and as CUDA graphs: the fused network beside the plain U-Net.

    python -m benchmarks.training_step [--rounds N] [--out FILE] [--dry-run]

Needs a GPU. Four images of 256 and 512 pixels, bfloat16, channels_last, as `train --amp bf16` does
it, with and without --cuda-graph: forward, loss, backward, norm, the numbers' way to the host, the
optimizer. All variants take turns in one process; a time is the median of the rounds. Beside each
graph stands how far its losses are from those of plain steps: 0 is the same to the bit.
--dry-run: a small network on a CPU, where calls are repeated in place of graphs: a walk.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.bench_model import awaken
from benchmarks.common import CUDA
from benchmarks.provenance import provenance, write_json
from benchmarks.text import markdown
from intrasense_fast import IntraSenseNet
from intrasense_fast.training.config import TrainConfig
from intrasense_fast.training.graphed import WARM_STEPS, GraphedStep
from intrasense_fast.training.interruptions import Wholeness
from intrasense_fast.training.position import Position
from intrasense_fast.training.step import TrainingStep

DEVICE = torch.device("cuda" if CUDA else "cpu")
PLAIN, FUSED = "plain U-Net", "fused"
EAGER, GRAPH = "eager", "graph"
STEPS_A_ROUND = 5
# Whose losses are compared: those of the first steps, some of them of a graph.
COMPARED_STEPS = WARM_STEPS + 3


class Variant(NamedTuple):
    """A network and how its step is run, by their names."""

    network: str
    way: str


def steps(size: int, dry: bool) -> dict[Variant, Callable[[], dict[str, float]]]:
    """A step of each variant on the same batch, from the same weights."""
    batch = 2 if dry else 4
    torch.manual_seed(1)
    image = torch.rand(batch, 1, size, size, device=DEVICE)
    mask = (torch.rand(batch, 1, size, size, device=DEVICE) > 0.7).float()
    made: dict[Variant, Callable[[], dict[str, float]]] = {}
    for network in (PLAIN, FUSED):
        for way in (EAGER, GRAPH):
            step = step_of(network, way, dry)
            made[Variant(network, way)] = lambda step=step: step(image, mask, Position())
    return made


def step_of(network: str, way: str, dry: bool) -> TrainingStep:
    """The trainer's step of a network, from the weights that every variant begins with."""
    fused = network == FUSED and not dry
    options: dict[str, Any] = {} if network == FUSED else {"gcp": False, "cdr": False}
    if dry:
        options |= {"encoder": "resnet18", "decoder_channels": (8,) * 5, "refine_strides": (32,)}
    torch.manual_seed(0)
    net = IntraSenseNet(fused=fused, **options)
    awaken(net)
    # The loss has kernels too, whichever the network.
    config = TrainConfig(amp="bf16", channels_last=True, fused=not dry, cuda_graph=way == GRAPH)
    kind = GraphedStep if way == GRAPH else TrainingStep
    step = kind(net, config, DEVICE, steps=10**6, whole=Wholeness())
    step.net.train()
    return step


def compared(functions: dict[Variant, Callable[[], dict[str, float]]]) -> dict[str, float]:
    """{network: largest relative difference of a graph's loss from the plain step's}; also warms
    up, and records the graphs."""
    losses = {
        variant: [function()["loss"] for _ in range(COMPARED_STEPS)]
        for variant, function in functions.items()
    }
    return {
        network: max(
            abs(one - other) / abs(other)
            for one, other in zip(
                losses[Variant(network, GRAPH)], losses[Variant(network, EAGER)], strict=True
            )
        )
        for network in (PLAIN, FUSED)
    }


def measured(
    functions: dict[Variant, Callable[[], dict[str, float]]], rounds: int, steps_a_round: int
) -> dict[Variant, list[float]]:
    """Seconds of a step, one number a round."""
    times: dict[Variant, list[float]] = {variant: [] for variant in functions}
    for _ in range(rounds):
        for variant, function in functions.items():
            _synchronise()
            began = time.perf_counter()
            for _ in range(steps_a_round):
                function()
            _synchronise()
            times[variant].append((time.perf_counter() - began) / steps_a_round)
    return times


def _synchronise() -> None:
    if CUDA:
        torch.cuda.synchronize()


def table(sizes: list[dict[str, Any]]) -> str:
    """One row a size, network and way."""
    rows = []
    for result in sizes:
        medians = {
            Variant(row["network"], row["way"]): statistics.median(row["seconds"])
            for row in result["variants"]
        }
        for variant, seconds in medians.items():
            plain = medians[Variant(PLAIN, variant.way)]
            eager = medians[Variant(variant.network, EAGER)]
            difference = result["differences"][variant.network] if variant.way == GRAPH else None
            rows.append(
                [
                    result["size"],
                    *variant,
                    f"{1e3 * seconds:.2f}",
                    f"{seconds / plain:.2f}",
                    f"{eager / seconds:.2f}",
                    "-" if difference is None else f"{difference:.1e}",
                ]
            )
    heads = ["size", "network", "step", "ms", "over the plain U-Net", "faster than eager", "losses"]
    return markdown(heads, rows)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training_step", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--rounds", type=int, default=20, help="turns of each (default 20)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/training_step.json"))
    parser.add_argument("--dry-run", action="store_true", help="a small network: a walk, no result")
    options = parser.parse_args(arguments)
    if not (CUDA or options.dry_run):
        parser.error("torch sees no GPU; --dry-run walks without one")
    rounds, steps_a_round = options.rounds, STEPS_A_ROUND
    if options.dry_run:
        rounds = steps_a_round = 1
        torch.set_num_threads(1)
    result: dict[str, Any] = {**provenance(), "dry_run": options.dry_run, "sizes": []}
    # As in the trainer: cuDNN gives the same bits every time.
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        for size in (32,) if options.dry_run else (256, 512):
            functions = steps(size, options.dry_run)
            differences = compared(functions)
            times = measured(functions, rounds, steps_a_round)
            variants = [{**one._asdict(), "seconds": seconds} for one, seconds in times.items()]
            entry = {"size": size, "differences": differences, "variants": variants}
            result["sizes"].append(entry)
            write_json(options.out, result)
    print(table(result["sizes"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
