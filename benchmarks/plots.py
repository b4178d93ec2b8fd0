"""Plots of committed results; matplotlib is imported here only."""

from pathlib import Path

from intrasense_fast.files import atomic_path


def memory_plot(result: dict, path: Path) -> None:
    """Peak memory against resolution: measured points, predictions dashed.

    A cross stands where memory ran out or was not enough.

    Args:
        result: what benchmarks.memory wrote. path: a .png, replaced in one step.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    batch = result["rows"][0]["batch"]
    for axes, mode in zip(
        figure.subplots(1, 2, sharey=True), ("inference", "training"), strict=True
    ):
        series: dict[str, list[dict]] = {}
        for row in result["rows"]:
            if row["mode"] == mode and row["batch"] == batch:
                strides = " at " + ", ".join(map(str, row["strides"])) if row["strides"] else ""
                series.setdefault(row["path"] + strides, []).append(row)
        for index, (name, rows) in enumerate(series.items()):
            rows = sorted(rows, key=lambda row: row["size"])
            colour = f"C{index}"
            measured = [row for row in rows if row["peak"] is not None]
            lost = [row for row in rows if row["peak"] is None]
            gib = lambda rows, key: [row[key] / 2**30 for row in rows]
            axes.plot(
                [row["size"] for row in rows],
                gib(rows, "predicted_peak"),
                "--",
                color=colour,
                linewidth=0.8,
            )
            axes.plot(
                [row["size"] for row in measured],
                gib(measured, "peak"),
                "o-",
                color=colour,
                label=name,
            )
            axes.plot(
                [row["size"] for row in lost],
                gib(lost, "predicted_peak"),
                "x",
                color=colour,
                markersize=9,
            )
        axes.set(
            xscale="log",
            yscale="log",
            xlabel="side of the image in pixels",
            title=f"{mode}, batch {batch}",
        )
        sizes = sorted({row["size"] for row in result["rows"]})
        axes.set_xticks(sizes, [str(size) for size in sizes], minor=False)
        axes.minorticks_off()
        axes.grid(True, which="major", alpha=0.3)
        if series:
            axes.legend(fontsize=8)
    figure.axes[0].set_ylabel("peak memory of a pass, GiB")
    where = result["gpu"] or f"CPU, {result['cpu']}"
    figure.suptitle(
        f"{where}, torch {result['torch']}, commit {result['commit']}. "
        "Dashed: predicted. Cross: no memory, or not measured.",
        fontsize=8,
    )
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)
