"""Markdown tables, one a kind of result."""

import hashlib
from collections.abc import Sequence

from benchmarks.text import gib, markdown, milliseconds, ratio_text, seconds_of, time_text

SPILL_FREE = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")


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
        "Compiled: configurations on sm_80 to sm_120; stack (spills) and registers are the largest "
        "of them, errors those on any target. Launches and passes over the feature maps (1 = the "
        "least possible bytes) are the largest of inference / training forward / backward, - where "
        "not asserted; `sources` is a hash of the kernels' sources."
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


def host_table(run: dict) -> str:
    """Host time of a call, forward and backward, beside an empty autograd.Function's."""
    rows = []
    for call, row in run["host"].items():
        sums = [
            " + ".join(str(row[way][what]) for way in ("forward", "backward"))
            for what in ("launches", "allocations")
        ]
        times = [f"{time:.0f}" for time in row["us"].values()]
        ratios = [f"{row[key]:.{digits}f}" for key, digits in (("ratio_before", 1), ("ratio", 2))]
        rows.append([call, *sums, *times, *ratios, f"{row['goal']:.0f}"])
    times = [f"{name}, us" for name in next(iter(run["host"].values()))["us"]]
    ratios = ["times as long without plans", "with plans", "goal"]
    return markdown(["call", "launches", "allocations", *times, *ratios], rows)


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
