"""What this GPU reaches on copies and products: the ceilings that every other figure is a fraction of.

python -m benchmarks.ceilings [--out FILE]
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch


def seconds(function: Callable[[], object], rounds: int) -> float:
    """Median time of a call."""
    cuda = torch.cuda.is_available()
    wait = torch.cuda.synchronize if cuda else lambda: None
    for _ in range(2):
        function()
    times = []
    for _ in range(rounds):
        wait()
        start = time.perf_counter()
        function()
        wait()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def copy_rate(size: int, device: str, rounds: int) -> float:
    """Bytes read and written a second."""
    source = torch.randn(size // 4, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / seconds(lambda: target.copy_(source), rounds)


def product_rate(size: int, dtype: torch.dtype, device: str, rounds: int, precision: str = "highest") -> float:
    """Floating-point operations a second of a square product."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        return 2 * size**3 / seconds(lambda: a @ b, rounds)
    finally:
        torch.set_float32_matmul_precision(before)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ceilings", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the figures as JSON here")
    options = parser.parse_args(arguments)
    cuda = torch.cuda.is_available()
    device, rounds, size, side = ("cuda", 20, 2 << 30, 8192) if cuda else ("cpu", 3, 4 << 20, 128)
    figures = {
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "torch": torch.__version__,
        "copy_gb_per_s": copy_rate(size, device, rounds) / 1e9,
        "l2_copy_gb_per_s": copy_rate(8 << 20 if cuda else 1 << 16, device, rounds) / 1e9,
        "bfloat16_tflops": product_rate(side, torch.bfloat16, device, rounds) / 1e12,
        "tf32_tflops": product_rate(side, torch.float32, device, rounds, "high") / 1e12,
        "float32_tflops": product_rate(side, torch.float32, device, rounds) / 1e12,
    }
    text = json.dumps(figures, indent=1)
    print(text)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        temporary = options.out.with_suffix(".tmp")
        temporary.write_text(text + "\n")
        os.replace(temporary, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
