"""What each network of a study costs: parameters, operations, training time, and where its encoder
comes from."""

import json
import math
import statistics
from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from intrasense_fast.errors import first_line
from intrasense_fast.networks import build_network
from intrasense_fast.report.study.folder import Study

# Side in pixels of the image that operations are counted on.
COUNTED_SIZE = 256
TIMES = "times.json"


def costs(study: Study, speeds: Mapping[str, float]) -> list[dict[str, Any]]:
    """One row a network: encoder, parameters, gmac, train_minutes (median of a cell), milliseconds
    an image.

    Args:
        speeds: label -> milliseconds of one image on this machine, where measured.
    """
    times = _times(study)
    rows = []
    for label in study.labels:
        row = study.row(label)
        gmac, fault = count_gmac(row["network"], row.get("options", {}), _channels(study, label))
        minutes = [times[cell.name] / 60 for cell in study.done(label) if cell.name in times]
        rows.append(
            {
                "label": label,
                "network": row["network"],
                "encoder": row.get("encoder", "scratch"),
                "parameters": row.get("parameters", math.nan),
                "gmac": gmac,
                "train_minutes": statistics.median(minutes) if minutes else math.nan,
                "milliseconds": speeds.get(label, math.nan),
                "note": fault,
            }
        )
    return rows


def count_gmac(name: str, options: Mapping[str, Any], channels: int) -> tuple[float, str]:
    """Multiply-additions of one 256 x 256 image in 10^9, and why they could not be counted, or "".

    Products and convolutions only, on the meta device: no weights, no arithmetic.
    """
    options = {key: value for key, value in options.items() if key != "encoder_weights"}
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    try:
        with torch.device("meta"):
            net = build_network(name, channels, 1, **options).eval()
            image = torch.empty(1, channels, COUNTED_SIZE, COUNTED_SIZE)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            net(image)
    # Networks from outside may do anything on the meta device; the table says what.
    except Exception as error:
        return math.nan, f"GMAC not counted: {first_line(error)}"
    return counter.get_total_flops() / 2e9, ""


def _times(study: Study) -> dict[str, float]:
    """Seconds that each cell took, as times.json has them; none where there is no such file."""
    try:
        times = json.loads((study.out / TIMES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {name: float(seconds) for name, seconds in times.items()}


def _channels(study: Study, label: str) -> int:
    for cell in study.done(label):
        return int(cell.record().get("config", {}).get("in_channels", 1))
    return 1
