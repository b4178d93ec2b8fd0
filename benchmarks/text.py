"""Figures, provenance and tables as Markdown."""

from collections.abc import Iterable, Sequence
from statistics import median

GIB = 2**30


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
