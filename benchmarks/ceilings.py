"""What this machine reaches on copies and products: every other figure is a fraction of these.

python -m benchmarks.ceilings [--quick] [--out FILE]
"""

import argparse
import contextlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks.provenance import provenance, write_json


def measure(quick: bool = False) -> dict[str, float]:
    """Copies in GB/s (read and written), products in TFLOP/s by dtype; quick: small, few rounds."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rounds, size, cached, side = (
        (3, 64 << 20, 1 << 19, 512) if quick else (20, 2 << 30, 8 << 20, 8192)
    )
    if device == "cpu":
        size, side = min(size, 256 << 20), min(side, 1024)
    return {
        "copy_gb_per_s": copy_rate(size, device, rounds) / 1e9,
        "l2_copy_gb_per_s": copy_rate(cached, device, rounds, repeats=16) / 1e9,
        "bfloat16_tflops": product_rate(side, torch.bfloat16, device, rounds) / 1e12,
        "tf32_tflops": product_rate(side, torch.float32, device, rounds, "high") / 1e12,
        "float32_tflops": product_rate(side, torch.float32, device, rounds) / 1e12,
    }


def copy_rate(size: int, device: str, rounds: int, repeats: int = 1) -> float:
    """Bytes read and written a second."""
    source = torch.randn(size // 4, device=device)
    target = torch.empty_like(source)

    def copies() -> None:
        for _ in range(repeats):
            target.copy_(source)

    return 2 * repeats * source.numel() * 4 / seconds(copies, rounds)


def product_rate(
    size: int, dtype: torch.dtype, device: str, rounds: int, precision: str = "highest"
) -> float:
    """Floating-point operations a second of a square product of random matrices."""
    with matmul_precision(precision):
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        return 2 * size**3 / seconds(lambda: a @ b, rounds)


@contextlib.contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def seconds(function: Callable[[], object], rounds: int) -> float:
    """Median time of a call: by events on a GPU, where a launch would count otherwise."""
    for _ in range(2):
        function()
    if torch.cuda.is_available():
        marks = [
            (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
            for _ in range(rounds)
        ]
        for start, stop in marks:
            start.record()
            function()
            stop.record()
        torch.cuda.synchronize()
        return statistics.median(start.elapsed_time(stop) for start, stop in marks) * 1e-3
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        function()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ceilings", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--out", type=Path, help="write the figures as JSON here")
    parser.add_argument(
        "--quick", action="store_true", help="small copies and products: a walk, not a measurement"
    )
    options = parser.parse_args(arguments)
    result = {**provenance(), "dry_run": options.quick, "ceilings": measure(options.quick)}
    print(json.dumps(result, indent=1))
    if options.out:
        write_json(options.out, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
