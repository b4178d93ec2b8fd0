"""Memory of the network by resolution, refined strides and batch: measured beside predicted.

    python -m benchmarks.memory --device cpu --max-size 1024 --out FOLDER
    python -m benchmarks.memory --device cuda --max-size 4096 --out FOLDER

On a CPU: exact bytes saved for backward (saved-tensor hooks) and the peak resident memory of a
process of its own, beyond what it held before the pass; on a GPU: the peak that torch allocated,
beyond the same. A training pass is forward, loss and backward, without an optimizer. "eager whole"
is the eager path with attention not cut into chunks of queries.

Writes memory.json, memory.csv and memory.png; what is not measured is written with its prediction
and the reason.
"""

import argparse
import csv
import gc
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.prediction import PATHS, peak, saved
from benchmarks.provenance import ROOT, provenance, write_json
from intrasense_fast.files import atomic_path

GIB = 2**30
STRIDES = ((8, 16, 32), (4, 8, 16, 32))
# A prediction holds when the measurement lies within these factors of it, or within SLACK of it.
SAVED_WITHIN, PEAK_WITHIN, SLACK = 1.05, 1.35, 128 * 2**20
COLUMNS = (
    "path",
    "mode",
    "size",
    "strides",
    "batch",
    "predicted_peak",
    "peak",
    "predicted_saved",
    "saved",
    "holds",
    "status",
)


def rows(device: str, sizes: Sequence[int], batches: Sequence[int]) -> list[dict]:
    """Every case of the sweep, the small ones first."""
    paths = [path for path in PATHS if path != ("fused" if device == "cpu" else "eager whole")]
    found = []
    for size in sizes:
        for batch in batches:
            for path in paths:
                for strides in ((),) if path == "plain" else STRIDES:
                    for mode in ("inference", "training"):
                        # A training pass keeps the scores whether or not they were made in chunks.
                        if not (path == "eager whole" and mode == "training"):
                            found.append(
                                {
                                    "path": path,
                                    "mode": mode,
                                    "size": size,
                                    "strides": list(strides),
                                    "batch": batch,
                                }
                            )
    return found


def predicted(row: dict, item: int) -> dict:
    arguments = row["size"], row["strides"], row["batch"], item
    kept = sum(saved(row["path"], *arguments).values()) if row["mode"] == "training" else None
    return {"predicted_peak": peak(row["path"], row["mode"], *arguments), "predicted_saved": kept}


def measure(row: dict, device: str) -> dict:
    """{"peak", "saved"} in bytes of one pass in this process, a fresh one on a CPU."""
    import torch

    from benchmarks.saved import saved_storages
    from intrasense_fast import IntraSenseNet
    from intrasense_fast.kernels.nonlocal_attention import api
    from intrasense_fast.losses import IntraSenseLoss

    torch.manual_seed(0)
    kind = (
        {"gcp": False, "cdr": False}
        if row["path"] == "plain"
        else {"refine_strides": row["strides"]}
    )
    fused = row["path"] == "fused"
    format = torch.channels_last if device == "cuda" else torch.contiguous_format
    with torch.device(device):
        net = IntraSenseNet(fused=fused, **kind).to(memory_format=format)
    if row["path"] == "eager whole":
        api.eager.__kwdefaults__["scores_at_a_time"] = (
            2**62
        )  # this process ends with the measurement
    image = torch.rand(row["batch"], 1, row["size"], row["size"], device=device)
    target = torch.rand_like(image) > 0.7
    loss = IntraSenseLoss(fused=fused)
    known = [*net.parameters(), *net.buffers(), image, target]
    mixed = torch.autocast("cuda", torch.bfloat16, enabled=device == "cuda")
    before = used(device, reset=True)
    kept = None
    if row["mode"] == "inference":
        net.eval()
        with torch.no_grad(), mixed:
            net(image)
    else:
        with saved_storages(known) as found:
            with mixed:
                output = net(image)
            total = loss(output, target)
            kept = sum(found.values())
        total.backward()
    return {"peak": used(device) - before, "saved": kept}


def used(device: str, reset: bool = False) -> int:
    """Bytes allocated (GPU) or resident (CPU): now (reset), else at most since (GPU) or ever."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() if reset else torch.cuda.max_memory_allocated()
    if reset and Path("/proc/self/statm").exists():
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


def measured(row: dict, device: str, limit: float) -> dict:
    """{"peak", "saved", "status"} of `measure`; status: "", "out of memory" or what went wrong."""
    return measured_here(row, device) if device == "cuda" else measured_apart(row, device, limit)


def measured_here(row: dict, device: str) -> dict:
    """In this process: on a GPU what was allocated before is known."""
    import torch

    try:
        return {**measure(row, device), "status": ""}
    except torch.OutOfMemoryError:
        return {"status": "out of memory"}
    except Exception as failure:
        return {"status": f"failed: {type(failure).__name__}: {str(failure)[:140]}"}
    finally:
        gc.collect()
        torch.cuda.empty_cache()


def measured_apart(row: dict, device: str, limit: float) -> dict:
    """In a process of its own."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.memory",
        "--device",
        device,
        "--one",
        json.dumps(row),
    ]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"status": f"not finished in {limit:.0f} s"}
    if done.returncode == 0:
        return {**json.loads(done.stdout.splitlines()[-1]), "status": ""}
    if (
        "OutOfMemoryError" in done.stderr
        or "DefaultCPUAllocator" in done.stderr
        or done.returncode == -9
    ):
        return {"status": "out of memory"}
    return {"status": "failed: " + (done.stderr.strip().splitlines() or ["no message"])[-1][:160]}


def holds(row: dict) -> bool | None:
    """Whether prediction and measurement agree; None where nothing was measured."""
    if row.get("peak") is None:
        return None
    near = lambda a, b, factor: (
        max(a, b) <= factor * max(1, min(a, b)) or abs(a - b) <= SLACK * (factor == PEAK_WITHIN)
    )
    kept = row["saved"] is None or near(row["saved"], row["predicted_saved"], SAVED_WITHIN)
    return kept and near(row["peak"], row["predicted_peak"], PEAK_WITHIN)


def label(row: dict) -> str:
    strides = " ".join(map(str, row["strides"]))
    return f"{row['path']:12} {strides:9} {row['mode']:9} {row['batch']} x {row['size']:4}"


def shown(count: int | None) -> str:
    return "-" if count is None else f"{count / GIB:.2f}"


def save(folder: Path, result: dict) -> None:
    """JSON and CSV in one step each, so that an interruption leaves the last complete state."""
    write_json(folder / "memory.json", result)
    with (
        atomic_path(folder / "memory.csv") as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(
            {**row, "strides": " ".join(map(str, row["strides"]))} for row in result["rows"]
        )


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.memory", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--max-size", type=int, default=1024, help="largest side of the image in pixels"
    )
    parser.add_argument(
        "--min-size", type=int, default=256, help="smallest side; doubled up to the largest"
    )
    parser.add_argument(
        "--batches", type=int, nargs="+", help="default: 1 on a CPU, 1 and 4 on a GPU"
    )
    parser.add_argument(
        "--limit-gib",
        type=float,
        default=8,
        help="on a CPU: measure nothing predicted to need more",
    )
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="begin no measurement after this time"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/memory"))
    parser.add_argument(
        "--dry-run", action="store_true", help="two small cases: a walk, not a result"
    )
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if not 32 <= options.min_size <= options.max_size:
        parser.error(
            "--min-size and --max-size must be 32 or more, in this order; "
            f"got {options.min_size}, {options.max_size}"
        )
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if options.one:
        print(json.dumps(measure(json.loads(options.one), options.device)))
        return 0
    result = {**provenance(), "device": options.device, "dry_run": options.dry_run, "rows": []}
    if options.device == "cuda" and result["gpu"] is None:
        print("benchmarks.memory: torch sees no GPU; measure with --device cpu", file=sys.stderr)
        return 2
    begin = time.monotonic()
    sizes = [options.min_size]
    while sizes[-1] * 2 <= options.max_size:
        sizes.append(sizes[-1] * 2)
    batches = options.batches or ([1] if options.device == "cpu" else [1, 4])
    item = 4 if options.device == "cpu" else 2
    cases = rows(options.device, sizes, batches)
    if options.dry_run:
        cases = [{**cases[0], "size": 64, "batch": 1}, {**cases[-1], "size": 64, "batch": 1}]
    print(f"{'GiB':40} {'predicted':>9} {'peak':>7} {'predicted':>9} {'saved':>7}")
    dead: set[tuple] = set()
    for case in cases:
        row = {**case, **predicted(case, item), "peak": None, "saved": None, "status": ""}
        rest = options.seconds - (time.monotonic() - begin)
        kind = (row["path"], tuple(row["strides"]), row["mode"], row["batch"])
        if options.device == "cpu" and row["predicted_peak"] > options.limit_gib * GIB:
            row["status"] = (
                f"not measured: {shown(row['predicted_peak'])} GiB predicted, "
                f"--limit-gib {options.limit_gib:g}"
            )
        elif kind in dead:
            row["status"] = "out of memory"
        elif rest <= 0:
            row["status"] = "not measured: the time was used up"
        else:
            row.update(measured(case, options.device, min(max(60, rest), 1800)))
            if row["status"] == "out of memory":
                dead.add(kind)
        row["holds"] = holds(row)
        figures = (
            shown(row[key]) for key in ("predicted_peak", "peak", "predicted_saved", "saved")
        )
        remark = row["status"] or ("" if row["holds"] else "PREDICTION IS OFF")
        print("{:40} {:>9} {:>7} {:>9} {:>7}  {}".format(label(row), *figures, remark), flush=True)
        result["rows"].append(row)
        save(options.out, result)
    from benchmarks.plots import memory_plot

    memory_plot(result, options.out / "memory.png")
    off = [
        row for row in result["rows"] if row["holds"] is False or row["status"].startswith("failed")
    ]
    for row in off:
        print(
            f"prediction and measurement disagree, or failed: {label(row)} {row['status']}",
            file=sys.stderr,
        )
    return 1 if off else 0


if __name__ == "__main__":
    sys.exit(main())
