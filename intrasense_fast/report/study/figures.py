"""The figures of a study, as PNG bytes."""

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from intrasense_fast.metrics import METRICS
from intrasense_fast.report import figures
from intrasense_fast.report.curves import LINES
from intrasense_fast.report.figures import INK
from intrasense_fast.report.overlays import overlay
from intrasense_fast.report.study.predictions import LazySample, Probability
from intrasense_fast.report.study.tables import heading

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

_DPI = 110
_BINS = 5
# Letters of a network's name in a line above a column of pictures.
_TITLE_WIDTH = 16
# How the lines of a second and third round of colours are told from those of the first.
_ROUNDS = (("-", "o"), ("--", "s"), (":", "^"))


def png(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, bbox_inches="tight", pad_inches=0.06)
    return buffer.getvalue()


def box_plots(values: Mapping[str, Mapping[str, Array]]) -> bytes:
    """One panel a metric, one box a network; `values`: metric -> label -> (images,), nan left
    out."""
    down = math.ceil(len(METRICS) / 3)
    labels = list(next(iter(values.values())))
    figure = figures.new_figure(10, down * (0.9 + 0.28 * len(labels)))
    # Names stand on the left alone, so that long ones leave room for the boxes.
    grid = figure.subplots(down, 3, squeeze=False, sharey=True)
    for axes, metric in zip(grid.flat, METRICS, strict=False):
        # The first network stands on top.
        boxes = [each[~np.isnan(each)] for each in reversed(list(values[metric].values()))]
        drawn = axes.boxplot(
            boxes,
            orientation="horizontal",
            widths=0.6,
            flierprops={"markersize": 2},
            patch_artist=True,
        )
        for i, box in enumerate(drawn["boxes"]):
            box.set(facecolor=LINES[(len(labels) - 1 - i) % len(LINES)], alpha=0.5)
        axes.set_yticks(range(1, len(labels) + 1), list(reversed(labels)), fontsize=8)
        axes.set_title(heading(metric).replace(" (%)", ""), loc="left", fontsize=9, color=INK)
        _tidy(axes)
    return png(figure)


def texture_plot(dice: Mapping[str, Array], index: Array) -> bytes:
    """Dice against the texture index: every image a dot, and each network's means over fifths of
    the images."""
    figure = figures.new_figure(8, 4)
    axes = figure.subplots()
    for i, (label, values) in enumerate(dice.items()):
        defined = ~np.isnan(values) & ~np.isnan(index)
        if not defined.any():
            continue
        style = _line_style(i)
        dots = {"marker": ".", "linestyle": "", "color": style["color"]}
        axes.plot(index[defined], values[defined], markersize=3.5, alpha=0.35, **dots)
        order = np.argsort(index[defined])
        parts = [part for part in np.array_split(order, _BINS) if len(part)]
        axes.plot(
            [index[defined][part].mean() for part in parts],
            [values[defined][part].mean() for part in parts],
            markersize=4,
            label=label,
            **style,
        )
    axes.axvline(0.5, color="#999999", linewidth=0.7, linestyle=":")
    axes.set_xlabel("texture index (AUC of local texture alone); left is harder", fontsize=8)
    axes.set_ylabel("Dice, mean over seeds", fontsize=8)
    _legend_beside(axes)
    _tidy(axes)
    return png(figure)


def reliability_plot(curves: Mapping[str, Mapping[str, Any]]) -> bytes:
    """Share of lesion pixels against the predicted probability, a line a network."""
    figure = figures.new_figure(8, 4.4)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], ":", color="#999999", linewidth=0.8)
    for i, (label, curve) in enumerate(curves.items()):
        name = f"{label}: ECE {100 * curve['ece']:.2f} %"
        style = _line_style(i)
        axes.plot(curve["confidence"], curve["frequency"], markersize=3, label=name, **style)
    axes.set_xlabel("predicted probability", fontsize=8)
    axes.set_ylabel("share of lesion pixels", fontsize=8)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    _legend_beside(axes)
    _tidy(axes)
    return png(figure)


def case_grid(
    cases: Sequence[tuple[str, str]],
    samples: Mapping[str, LazySample],
    probabilities: Mapping[str, Mapping[str, Probability]],
    dice: Mapping[str, Mapping[str, float]],
) -> bytes:
    """One row a case (name, why it is shown): image, truth, and every network's errors with its
    Dice.

    `dice` and `probabilities`: label -> name -> value; where a network has no prediction the place
    says so.
    """
    labels = list(probabilities)
    figure = figures.new_figure(0.4 + 1.6 * (2 + len(labels)), 0.3 + 1.75 * len(cases))
    grid = figure.subplots(len(cases), 2 + len(labels), squeeze=False)
    for i, (name, reason) in enumerate(cases):
        sample = samples[name].load()
        figures.show(grid[i, 0], figures.to_rgb(sample.image))
        figures.show(grid[i, 1], overlay(sample.image, None, sample.mask))
        figures.row_name(grid[i, 0], name, reason)
        for axes, label in zip(grid[i, 2:], labels, strict=True):
            probability = probabilities[label].get(name)
            if probability is None:
                figures.blank(axes, "no prediction")
                continue
            figures.show(axes, overlay(sample.image, sample.mask, probability > 0.5))
            axes.set_xlabel(f"Dice {dice[label].get(name, math.nan):.3f}", fontsize=7, color=INK)
    for axes, title in zip(grid[0], ["image", "ground truth", *labels], strict=True):
        axes.set_title(textwrap.fill(title, _TITLE_WIDTH), fontsize=8, color=INK)
    return png(figure)


def _line_style(index: int) -> dict[str, Any]:
    """Colour, dashes and marker of a network's line: no two of eighteen are alike."""
    line, marker = _ROUNDS[index // len(LINES) % len(_ROUNDS)]
    return {"color": LINES[index % len(LINES)], "linestyle": line, "marker": marker}


def _legend_beside(axes: "Axes") -> None:
    """A legend that covers no data, however many networks there are."""
    axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1))


def _tidy(axes: "Axes") -> None:
    axes.tick_params(labelsize=8, colors=INK, length=3, width=0.6)
    axes.grid(axis="both", color="#e5e5e5", linewidth=0.5)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
