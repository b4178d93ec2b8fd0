"""Markdown tables from results: what README shows, and the whole of it."""

import hashlib
from collections.abc import Iterable, Sequence
from statistics import median

GIB = 2**30
SPILL_FREE = ("sm_80", "sm_86", "sm_90")


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
    for run in results["sanitizer"]:
        checks = [[row["operator"], row["check"], row["outcome"]] for row in run["checks"]]
        parts += [f"## {run['file']}", provenance_line({"machine_info": run, "file": run["file"]})]
        parts.append(markdown(["operator", "check", "outcome"], checks))
    return "\n\n".join(parts) + "\n"


def static_table(tables: Sequence[dict]) -> str:
    """One row an operator and Triton version: what its kernels hold, and its worst bounds."""
    rows = []
    for table in tables:
        name = table["file"].rsplit("/", 1)[-1].rsplit("-triton-", 1)[0]
        compiled = [row for row in table["rows"] if row["target"] in SPILL_FREE]
        sources = hashlib.sha256(
            "".join(sorted({row["source"] for row in table["rows"]})).encode()
        ).hexdigest()[:10]
        worst = lambda mode, key, table=table: max(
            (row[key] for row in table["bounds"] if row["mode"] == mode), default=0
        )
        rows.append(
            [
                name,
                table["triton"],
                len(compiled),
                sum(1 for row in table["rows"] if row["error"]),
                max((row["stack"] for row in compiled), default=0),
                max((row["registers"] for row in compiled), default=0),
                " / ".join(
                    str(worst(mode, "launches")) for mode in ("inference", "forward", "backward")
                ),
                " / ".join(
                    ratio_text(worst(mode, "passes"))
                    for mode in ("inference", "forward", "backward")
                ),
                f"`{sources}`",
                table.get("commit", "-"),
            ]
        )
    if not rows:
        return (
            "No static table has been committed yet: "
            "`python -m benchmarks.static_report --write` makes it."
        )
    heads = [
        "operator",
        "Triton",
        "compiled",
        "errors",
        "stack, B a thread",
        "registers",
        "launches",
        "passes",
        "sources",
        "commit",
    ]
    note = (
        "Compiled: configurations on sm_80, sm_86 and sm_90; stack (spills) and registers are the "
        "largest of them, errors those on any target. Launches and passes over the feature maps "
        "(1 = the least possible bytes) are the largest of inference / training forward / "
        "backward, - where not asserted; `sources` is a hash of the kernels' sources."
    )
    return markdown(heads, rows) + "\n\n" + note


def bounds_table(table: dict) -> str:
    rows = [
        [
            bound["mode"],
            "x".join(map(str, bound["shape"])),
            bound["dtype"],
            bound["architecture"],
            bound["launches"],
            ratio_text(bound["passes"]),
            ratio_text(bound["flops"]),
            ratio_text(bound["requested"]),
            ", ".join(f"{key}={value}" for key, value in sorted(bound["options"].items())),
        ]
        for bound in table["bounds"]
    ]
    return markdown(
        ["mode", "shape", "dtype", "tables", "launches", "passes", "FLOPs", "requested", "options"],
        rows,
    )


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


def network_table(runs: Sequence[dict]) -> str:
    """A row a pass and size: the plain U-Net's time, and how many times it the network takes."""
    cells: dict[tuple[str, str], dict[str, dict]] = {}
    for run in runs:
        found: dict[tuple[str, str], dict[str, dict]] = {}
        for row in run["benchmarks"]:
            info = row["extra_info"]
            if info["operator"] == "model" and info["mode"].startswith(("inference", "step")):
                size = "{} x {} x {}".format(info["shape"][0], *info["shape"][2:])
                found.setdefault((info["mode"], size), {})[info["path"]] = row
        cells |= {place: members for place, members in found.items() if "plain U-Net" in members}
    paths = ("fused", "eager", "fused compiled", "eager compiled", "plain U-Net compiled")
    wall = lambda row: row["stats"]["median"] * 1e3
    rows = []
    for (mode, size), members in cells.items():
        plain = members["plain U-Net"]
        cell = f"{milliseconds(plain['extra_info'])} ({time_text(wall(plain))})"
        ratios = []
        for row in map(members.get, paths):
            ratio = row and row["extra_info"].get("times_as_long")
            ratios.append(f"{ratio:.2f} x ({wall(row) / wall(plain):.2f} x)" if ratio else "-")
        rows.append([mode.replace("step", "training step", 1), size, cell, *ratios])
    return markdown(["pass", "images", "plain U-Net", *paths], rows)


def model_table(runs: Sequence[dict]) -> str:
    """The eager network beside the plain U-Net: inference and training step at usual sizes."""
    members = [
        row for run in runs for row in run["benchmarks"] if "times_as_long" in row["extra_info"]
    ]
    rows = []
    for row in sorted(
        members, key=lambda row: (row["extra_info"]["mode"], row["extra_info"]["shape"])
    ):
        info = row["extra_info"]
        batch, _, height, width = info["shape"]
        if info["operator"] == "model" and height >= 256 and info["mode"] in ("inference", "step"):
            low, high = info["times_as_long_range"]
            rows.append(
                [
                    "training step" if info["mode"] == "step" else info["mode"],
                    f"{batch} x {height} x {width}",
                    milliseconds(info, row),
                    time_text(info["rival_ms"]),
                    f"{info['times_as_long']:.2f} ({low:.2f} to {high:.2f})",
                ]
            )
    return markdown(
        ["pass", "images", "eager", "plain U-Net", "times as long, in turns (range)"], rows
    )


def speed_table(run: dict) -> str:
    """Every path of every group, the quickest first."""
    groups: dict[str, list[dict]] = {}
    for row in run["benchmarks"]:
        groups.setdefault(row["group"], []).append(row)
    rows = []
    for group, members in groups.items():
        for row in sorted(members, key=seconds_of):
            info = row["extra_info"]
            share = info.get("fraction_of_floor")
            peak = info.get("peak_mib")
            rows.append(
                [
                    group,
                    info["path"] + (f" ({info['sdpa']})" if info.get("sdpa") else ""),
                    milliseconds(info, row),
                    f"{row['stats']['median'] * 1e3:.3f} ms",
                    f"{info['times_as_long']:.2f} x {info['against']}"
                    if "times_as_long" in info
                    else "-",
                    "-" if share is None else f"{100 * share:.0f} %",
                    f"{info['error']:.1e}",
                    "-" if peak is None else f"{peak:.0f} MiB",
                    "-"
                    if info.get("saved_bytes") is None
                    else f"{info['saved_bytes'] / 2**20:.1f} MiB",
                ]
            )
    return markdown(
        [
            "what",
            "path",
            "time",
            "wall",
            "in turns",
            "of the floor",
            "error",
            "peak",
            "saved for backward",
        ],
        rows,
    )


def breakdown_summary(runs: Sequence[dict]) -> str:
    """A row a call, operators first, then the network by path; a column a run."""
    calls = list(
        dict.fromkeys(
            call
            for run in runs
            for call, kernels in run["calls"].items()
            if "failed" not in kernels
        )
    )
    spent = lambda kernels: (
        f"{sum(time for time, _ in kernels.values()):.0f} us" if kernels else "-"
    )
    rows = [[call, *(spent(run["calls"].get(call, {})) for run in runs)] for call in calls]
    return markdown(["call, an operator's with backward", *(run["commit"] for run in runs)], rows)


def breakdown_table(run: dict) -> str:
    """Device time of a call, and of the kernels that take the most of it."""
    rows = []
    for call, kernels in run["calls"].items():
        if "failed" not in kernels:
            first = sorted(kernels.items(), key=lambda item: -item[1][0])[:4]
            shares = ", ".join(
                f"{name.split('(')[0][-40:]} {time:.0f}" for name, (time, _) in first
            )
            total, launches = (sum(row[i] for row in kernels.values()) for i in (0, 1))
            rows.append([call, f"{total:.0f}", f"{launches:.0f}", shares])
    return markdown(["call", "device time, us", "launches", "longest kernels, us"], rows)


def memory_table(run: dict) -> str:
    """Peak of a pass and bytes saved, predicted beside measured."""
    rows = []
    for row in run["rows"]:
        strides = " ".join(map(str, row["strides"])) or "-"
        size = f"{row['batch']} x {row['size']} x {row['size']}"
        figures = [gib(row[key]) for key in ("predicted_peak", "peak", "predicted_saved", "saved")]
        rows.append([row["path"], strides, row["mode"], size, *figures, row["status"]])
    heads = [
        "path",
        "strides",
        "pass",
        "images",
        "peak predicted, GiB",
        "measured",
        "saved predicted",
        "counted",
        "remark",
    ]
    return markdown(heads, rows)


def memory_summary(run: dict) -> str:
    """A row a path, refined strides and pass, a column a size: the measured peak (predicted)."""
    batch, sizes = run["rows"][0]["batch"], sorted({row["size"] for row in run["rows"]})
    lines: dict[tuple, dict[int, str]] = {}
    for row in run["rows"]:
        if row["batch"] == batch:
            remark = "out of memory" if row["status"] == "out of memory" else "-"
            measured = remark if row["peak"] is None else gib(row["peak"])
            key = row["path"], " ".join(map(str, row["strides"])) or "-", row["mode"]
            lines.setdefault(key, {})[row["size"]] = f"{measured} ({gib(row['predicted_peak'])})"
    rows = [
        [*key, *(line.get(size, "-") for size in sizes)]
        for key, line in sorted(lines.items(), key=lambda item: item[0][2])
    ]
    return markdown(
        ["path", "strides", "pass", *(f"{batch} x {size} x {size}" for size in sizes)], rows
    )


def gib(count: int | None) -> str:
    return "-" if count is None else f"{count / GIB:.2f}"


def ceilings_line(ceilings: dict[str, float]) -> str:
    if not ceilings:
        return "Ceilings: not measured."
    rates = [
        f"{key.removesuffix('_tflops')} products {value:.3g} TFLOP/s"
        for key, value in ceilings.items()
        if "tflops" in key
    ]
    return (
        f"Ceilings of the same run: copy {ceilings['copy_gb_per_s']:.3g} GB/s, "
        f"in cache {ceilings['l2_copy_gb_per_s']:.3g} GB/s, " + ", ".join(rates) + "."
    )


def provenance_line(run: dict) -> str:
    """Device, versions, commit and conditions of one file."""
    info = run["machine_info"]
    cpu = (
        info["cpu"]
        if isinstance(info["cpu"], str)
        else f"{info['cpu'].get('brand_raw', info['machine'])}"
    )
    device = (
        f"{info['gpu']}, driver {info['driver']}"
        if info["gpu"]
        else f"CPU ({cpu}), {info['threads']} thread(s)"
    )
    remarks = [text for text in (info.get("l2"), info.get("note")) if text]
    versions = f"torch {info['torch']}, Triton {info['triton']}, Python {info['python']}"
    origin = f"commit {info['commit']}, {info['date']}"
    return f"*{device}; {versions}; {origin}; {'; '.join([*remarks, run['file']])}.*"


def seconds_of(row: dict) -> float:
    return row["extra_info"].get("device_ms", median(row["stats"]["data"]) * 1e3) / 1e3


def milliseconds(info: dict, row: dict | None = None) -> str:
    """Device time where it was measured, else wall time."""
    if "device_ms" in info:
        # Results that do not name the clock are of events around calls as Python makes them.
        return f"{info['device_ms']:.3f} ms" + (
            " (host)" if info.get("device_clock", "events") == "events" else ""
        )
    return "-" if row is None else time_text(row["stats"]["median"] * 1e3)


def time_text(milliseconds: float) -> str:
    return f"{milliseconds / 1e3:.2f} s" if milliseconds >= 1000 else f"{milliseconds:.3g} ms"


def ratio_text(value: float) -> str:
    return f"{value:.2f}" if value else "-"


def markdown(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    line = lambda cells: "| " + " | ".join(str(cell).replace("|", "/") for cell in cells) + " |"
    return "\n".join([line(heads), line(["---"] * len(heads)), *map(line, rows)])
