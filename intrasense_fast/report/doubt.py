"""Is a network as sure as it is right? Reliability of its probabilities, and the risk that is left
when the most doubted images are put aside."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from intrasense_fast.inference.doubt import Risk
from intrasense_fast.report import figures
from intrasense_fast.report.figures import BLUE, INK, ORANGE, hex_colour

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_AFTER, _BEFORE = hex_colour(BLUE), hex_colour(ORANGE)
_GREY = "#999999"


def save_doubt(
    path: str | os.PathLike[str], calibration: Mapping[str, Any], risk: Risk | None
) -> None:
    """A reliability diagram, and beside it a risk-coverage curve where there is one; written
    atomically.

    Args:
        path: of the picture.
        calibration: "ece" and "reliability", rows of "probability" and "lesion"; perhaps
            "ece_before" and "reliability_before".
        risk: of the images.
    """
    columns = 1 if risk is None else 2
    figure = figures.new_figure(3.9 * columns, 3.4)
    axes = figure.subplots(1, columns, squeeze=False)[0]
    _reliability(axes[0], calibration)
    if risk is not None:
        _risk(axes[1], risk)
    for each in axes:
        each.tick_params(labelsize=8, colors=INK)
        each.grid(color="#e5e5e5", linewidth=0.6)
        each.set_axisbelow(True)
        for side in ("top", "right"):
            each.spines[side].set_visible(False)
    figures.save_figure(figure, path)


def _reliability(axes: "Axes", calibration: Mapping[str, Any]) -> None:
    axes.plot([0, 1], [0, 1], color=_GREY, linewidth=0.8, linestyle="--")
    if "reliability_before" in calibration:
        label = f"without temperature, ECE {calibration['ece_before']:.4f}"
        _line(axes, calibration["reliability_before"], _BEFORE, label)
    _line(axes, calibration["reliability"], _AFTER, f"ECE {calibration['ece']:.4f}")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xlabel("mean probability", fontsize=9, color=INK)
    axes.set_ylabel("share of lesion pixels", fontsize=9, color=INK)
    axes.set_title("Reliability", fontsize=10, color=INK)
    axes.legend(fontsize=8, frameon=False, loc="upper left")


def _line(axes: "Axes", rows: Sequence[Mapping[str, float]], colour: str, label: str) -> None:
    xs = [row["probability"] for row in rows]
    ys = [row["lesion"] for row in rows]
    axes.plot(xs, ys, color=colour, marker="o", markersize=3, linewidth=1.2, label=label)


def _risk(axes: "Axes", risk: Risk) -> None:
    axes.plot(risk.coverage, risk.risk, color=_AFTER, linewidth=1.4, label=f"{risk.area:.4f}")
    axes.axhline(risk.mean_risk, color=_GREY, linewidth=0.8, linestyle="--")
    axes.set_xlim(0, 1)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("share of images kept, least doubted first", fontsize=9, color=INK)
    axes.set_ylabel("mean of 1 - Dice", fontsize=9, color=INK)
    axes.set_title(f"Risk (rank correlation {risk.spearman:.2f})", fontsize=10, color=INK)
    axes.legend(title="area", title_fontsize=8, fontsize=8, frameon=False, loc="lower right")
