"""Markdown from results: what README shows, and the whole of it."""

from collections.abc import Sequence

from benchmarks.sections import (
    bounds_table,
    breakdown_summary,
    breakdown_table,
    host_table,
    memory_summary,
    memory_table,
    model_table,
    network_table,
    speed_table,
    static_table,
)
from benchmarks.text import ceilings_line, markdown, milliseconds, provenance_line

# What README shows of a GPU: a typical call of the operators whose measured code ships.
FRONT_CALLS = {
    "nonlocal_attention B4 N1024 d64 C512": "nonlocal_attention, 4 x 1024 positions, d 64, C 512",
    "entropy_whitening window 7 B4 C512 32x32": "entropy_whitening, 4 x 512 x 32 x 32, window 7",
    "bce_dice B4 K1 256x256": "bce_dice, 4 x 1 x 256 x 256",
}


def front_page(results: dict[str, list[dict]]) -> str:
    """README's rows: operators by their kernels' time, the network on a CPU beside the U-Net."""
    rows, sources = [], []
    for run in results["breakdown"][-1:]:
        for call, label in FRONT_CALLS.items():
            kernels = run["calls"].get(call)
            if kernels:
                total = sum(time for time, _ in kernels.values())
                rows.append([f"{label}, forward and backward", run["gpu"], f"{total:.0f} us"])
        sources.append(f"GPU: time of the kernels in bfloat16, commit {run['commit']}")
    for run in results["benchmarks"]:
        for row in run["benchmarks"]:
            info = row["extra_info"]
            shown = info["operator"] == "model" and info["shape"][2:] == [256, 256]
            if run["machine_info"]["gpu"] or not shown or "times_as_long" not in info:
                continue
            if info["mode"] not in ("inference", "step"):
                continue
            name = "training step" if info["mode"] == "step" else info["mode"]
            ratio = f"{milliseconds(info, row)}, {info['times_as_long']:.2f} x the plain U-Net"
            rows.append(
                [
                    f"network, eager, {name}, 1 x 256 x 256",
                    run["machine_info"]["cpu"]["brand_raw"],
                    ratio,
                ]
            )
            sources.append(
                f"CPU: {run['machine_info']['threads']} threads, "
                f"commit {run['machine_info']['commit']}"
            )
    if not rows:
        return "No result has been measured yet: `bash benchmarks/gpu.sh` measures everything.\n"
    return markdown(["what", "on", "time"], rows) + f"\n\n*{'; '.join(dict.fromkeys(sources))}.*\n"


def summary(results: dict[str, list[dict]]) -> str:
    """docs/measurements.md."""
    on_gpu = [run for run in results["benchmarks"] if run["machine_info"]["gpu"]]
    on_cpu = [run for run in results["benchmarks"] if not run["machine_info"]["gpu"]]
    parts = [
        "# Measurements",
        "Rendered by `python -m benchmarks.report` from committed JSON; do not edit.",
    ]
    for gpu in dict.fromkeys(run["machine_info"]["gpu"] for run in on_gpu):
        runs = [run for run in on_gpu if run["machine_info"]["gpu"] == gpu]
        parts += [
            f"On a GPU ({gpu}), in bfloat16: time of a call of the fused operators, and how many "
            "times as long others take, in turns with them (below 1: they are quicker). (host): "
            "the GPU waited for Python, whose time it is. What was timed, "
            "and under which conditions, stands below the table.",
            headline(runs),
        ]
        if any(
            row["extra_info"]["operator"] == "model" for run in runs for row in run["benchmarks"]
        ):
            parts += [
                "The network under autocast, in multiples of the plain U-Net (no GCP, no CDR) of "
                "the same run: the GPU's time "
                "and, in brackets, the whole call's:"
            ]
            parts += [network_table(runs)]
        parts += map(provenance_line, runs)
    if not on_gpu:
        parts.append(
            "**No GPU result has been measured yet.** `bash benchmarks/gpu.sh` measures "
            "everything on any GPU with one command. Until then, this is what a machine without "
            "a GPU can prove (`python -m benchmarks.static_report`): every shipped configuration "
            "is compiled ahead of time, and traffic, FLOPs and launches are counted on the "
            "kernels themselves."
        )
    if results["breakdown"]:
        parts.append(
            "Time that the GPU itself spent in a call, summed over its kernels (torch's "
            "profiler), by commit:"
        )
        parts += [breakdown_summary(results["breakdown"])]
        parts += [
            provenance_line({"machine_info": run, "file": run["file"]})
            for run in results["breakdown"]
        ]
    parts.append(static_table(results["static"]))
    models = [
        run
        for run in on_cpu
        if any(row["extra_info"]["operator"] == "model" for row in run["benchmarks"])
    ]
    if models:
        parts += [
            "What GCP and CDR cost without a GPU, eager, beside the plain U-Net:",
            model_table(models),
        ]
        parts += map(provenance_line, models)
    for run in results["memory"]:
        parts.append(
            "Peak memory of a pass beyond the network in GiB and, in brackets, predicted from the "
            "shapes alone, which must hold within 35 % or 128 MiB; - where not measured. "
            '"eager whole": attention not cut into chunks of queries.'
        )
        parts += [memory_summary(run), provenance_line({"machine_info": run, "file": run["file"]})]
    parts.append("Every figure, with errors against float64: `benchmarks/results/README.md`.")
    return "\n\n".join(parts) + "\n"


def document(results: dict[str, list[dict]]) -> str:
    """benchmarks/results/README.md: every figure of every file."""
    parts = [
        "# Results",
        "Rendered by `python -m benchmarks.report` from the JSON beside it; do not edit.",
    ]
    parts += ["## Static evidence", static_table(results["static"])]
    parts += [
        text
        for table in results["static"]
        for text in (f"### {table['file']}", bounds_table(table))
    ]
    for run in results["benchmarks"]:
        parts += [
            f"## {run['file']}",
            provenance_line(run),
            ceilings_line(run["machine_info"]["ceilings"]),
            speed_table(run),
        ]
    for run in results["ceilings"]:
        parts += [
            f"## {run['file']}",
            provenance_line({"machine_info": run, "file": run["file"]}),
            ceilings_line(run["ceilings"]),
        ]
    for run in results["memory"]:
        folder = run["file"].removeprefix("benchmarks/results/").removesuffix("memory.json")
        parts += [
            f"## {run['file']}",
            provenance_line({"machine_info": run, "file": run["file"]}),
            memory_table(run),
        ]
        parts.append(f"![Peak memory against resolution]({folder}memory.png)")
    for run in results["breakdown"]:
        parts += [
            f"## {run['file']}",
            provenance_line({"machine_info": run, "file": run["file"]}),
            breakdown_table(run),
        ]
    for run in results["host"]:
        parts += [
            f"## {run['file']}",
            provenance_line({"machine_info": run, "file": run["file"]}),
            host_table(run),
        ]
    for run in results["sanitizer"]:
        checks = [[row["operator"], row["check"], row["outcome"]] for row in run["checks"]]
        parts += [f"## {run['file']}", provenance_line({"machine_info": run, "file": run["file"]})]
        parts.append(markdown(["operator", "check", "outcome"], checks))
    return "\n\n".join(parts) + "\n"


def headline(runs: Sequence[dict]) -> str:
    """A row a shape of every operator: fused time, and how many times as long other paths take.

    Also where they are faster.
    """
    cells: dict[tuple[str, str], dict[str, dict[str, dict]]] = {}
    for run in runs:
        found: dict[tuple[str, str, str], dict[str, dict]] = {}
        for info in (row["extra_info"] for row in run["benchmarks"]):
            if info["operator"] != "model" and info["mode"] in ("forward", "both"):
                shape = "x".join(map(str, info["shape"]))
                found.setdefault((info["operator"], shape, info["mode"]), {})[info["path"]] = info
        for (operator, shape, mode), paths in found.items():
            cells.setdefault((operator, shape), {})[mode] = paths
    rows = []
    for (operator, shape), modes in cells.items():
        row = [operator, shape]
        for mode in ("forward", "both"):
            paths = modes.get(mode, {})
            longer = {
                path: info["times_as_long"]
                for path, info in paths.items()
                if info.get("against") == "fused"
            }
            best = min(longer, key=lambda path: longer[path], default=None)
            verdict = (
                "-"
                if best is None
                else f"{best} {longer[best]:.2f} x"
                + ("" if longer[best] >= 1 else " (**slower than it**)")
            )
            ratios = (
                f"{longer[path]:.2f} x" if path in longer else "-"
                for path in ("eager", "eager compiled")
            )
            row += [milliseconds(paths["fused"]) if "fused" in paths else "-", *ratios, verdict]
        rows.append(row)
    heads = ["fused", "eager takes", "compiled takes", "best other path takes"]
    return markdown(
        [
            "operator",
            "shape",
            *(f"{head}, {mode}" for mode in ("forward", "with backward") for head in heads),
        ],
        rows,
    )
