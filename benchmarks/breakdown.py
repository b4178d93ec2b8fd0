"""Where device time goes, by kernel: every operator, the network's training step and inference.

    python -m benchmarks.breakdown --out FILE [--dry-run]

Needs a GPU. bfloat16 (autocast in the network), channels_last; the mean of several calls by torch's
profiler. --dry-run: tiny shapes and eager paths, on a CPU too: a walk, not a result.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.bench_model import awaken
from benchmarks.common import CUDA, kernels
from benchmarks.provenance import provenance, write_json
from intrasense_fast import IntraSenseNet
from intrasense_fast.functional import (
    bce_dice,
    channel_decoupling,
    entropy_whitening,
    nonlocal_attention,
)
from intrasense_fast.losses import IntraSenseLoss

DEVICE = "cuda" if CUDA else "cpu"


def operators(dry: bool) -> dict[str, Callable[[], object]]:
    """One training call (forward and backward) of every operator on the model's shapes."""
    fused = not dry
    make = lambda *shape: torch.randn(*shape, device=DEVICE).to(
        torch.bfloat16 if CUDA else torch.float32
    )
    found = {}

    def add(label: str, function: Callable, *inputs: torch.Tensor) -> None:
        leaves = [t.detach().requires_grad_(t.is_floating_point()) for t in inputs]
        wanted = [t for t in leaves if t.requires_grad]
        grads: list[torch.Tensor] = []

        def call() -> None:
            outputs = function(*leaves)
            outputs = [
                t
                for t in (outputs if isinstance(outputs, tuple) else (outputs,))
                if t.requires_grad
            ]
            grads.extend(torch.randn_like(t) for t in outputs[len(grads) :])
            torch.autograd.grad(outputs, wanted, grads)

        found[label] = call

    rows = ((4, 4096, 64, 512), (4, 1024, 64, 512), (4, 256, 128, 1024), (4, 64, 256, 2048))
    for batch, positions, depth, channels in ((1, 16, 4, 16),) if dry else rows:
        parts = make(batch, positions, 2 * depth + channels).split([depth, depth, channels], -1)
        residual = make(batch, positions, channels)
        label = f"nonlocal_attention B{batch} N{positions} d{depth} C{channels}"
        add(label, lambda *t: nonlocal_attention(*t, fused=fused), *parts, residual)
    shapes = ((4, 512, 64, 64), (4, 512, 32, 32), (4, 1024, 16, 16), (4, 2048, 8, 8))
    for shape in ((1, 16, 4, 4),) if dry else shapes:
        x = make(*shape).contiguous(memory_format=torch.channels_last)
        name = "B{} C{} {}x{}".format(*shape)
        maps = (
            x.float().mean(1),
            x.float().amax(1),
            torch.randn(1, 2, 7, 7, device=DEVICE) / 10,
            torch.zeros(1, device=DEVICE),
        )
        for window in (7, 3):
            whitening = lambda *t, window=window: entropy_whitening(*t, window=window, fused=fused)[
                0
            ]
            add(f"entropy_whitening window {window} {name}", whitening, x, *maps)
        channels, reduced = shape[1], shape[1] // 16
        sizes = ((reduced, channels), (reduced,), (channels, reduced), (channels,))
        weights = [torch.randn(*size, device=DEVICE) / 8 for size in sizes]
        add(
            f"channel_decoupling {name}",
            lambda *t: channel_decoupling(*t, fused=fused),
            x,
            *weights,
        )
    mask = torch.rand(4, 1, 256, 256, device=DEVICE) > 0.5
    add(
        "bce_dice B4 K1 256x256",
        lambda z, y: bce_dice(z, y, fused=fused),
        make(4, 1, 256, 256),
        mask,
    )
    return found


def networks(dry: bool) -> dict[str, Callable[[], object]]:
    """Training step and inference of the network, fused and eager, and of the plain U-Net."""
    found: dict[str, Callable[[], object]] = {}
    kinds = {
        "plain U-Net": {"gcp": False, "cdr": False},
        "fused": {"fused": not dry},
        "eager": {"fused": False},
    }
    for batch, size in ((2, 32),) if dry else ((4, 256), (4, 512), (1, 1024)):
        image = torch.rand(batch, 1, size, size, device=DEVICE)
        mask = image > 0.7
        for path, arguments in kinds.items():
            torch.manual_seed(0)
            net = IntraSenseNet(**arguments)
            awaken(net)
            net.to(DEVICE, memory_format=torch.channels_last)
            loss = IntraSenseLoss(fused=path == "fused" and not dry)

            def step(net=net, loss=loss, image=image, mask=mask) -> None:
                net.train()
                with torch.autocast(DEVICE, torch.bfloat16, enabled=CUDA):
                    output = net(image)
                torch.autograd.grad(loss(output, mask), list(net.parameters()))

            def inference(net=net, image=image) -> None:
                net.eval()
                with torch.no_grad(), torch.autocast(DEVICE, torch.bfloat16, enabled=CUDA):
                    net(image)

            found[f"{path} training {batch}x{size}x{size}"] = step
            found[f"{path} inference {batch}x{size}x{size}"] = inference
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.breakdown", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/breakdown.json"))
    parser.add_argument("--only", default="", help="labels that hold this text")
    parser.add_argument(
        "--dry-run", action="store_true", help="tiny shapes and eager paths: a walk, not a result"
    )
    parser.add_argument("--rows", type=int, default=12, help="kernels printed of each")
    options = parser.parse_args(arguments)
    if not (CUDA or options.dry_run):
        parser.error("torch sees no GPU; --dry-run walks without one")
    result = {**provenance(), "dry_run": options.dry_run, "calls": {}}
    for make in (operators, networks):
        for label, function in make(options.dry_run).items():
            if options.only not in label:
                continue
            try:
                rows = kernels(function)
            except Exception as failure:
                print(f"{label}: {type(failure).__name__}: {str(failure)[:300]}", flush=True)
                result["calls"][label] = {"failed": str(failure)[:300]}
                continue
            print(
                f"{label}: {sum(row[0] for row in rows.values()):.0f} us, "
                f"{sum(row[1] for row in rows.values()):.0f} launches"
            )
            for name, (time, count) in list(rows.items())[: options.rows]:
                print(f"  {time:9.1f} us {count:5.1f} x {name[:70]}")
            sys.stdout.flush()
            result["calls"][label] = rows
            write_json(options.out, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
