"""The course of a training run."""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from intrasense_fast.report import figures
from intrasense_fast.report.figures import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    hex_colour,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LOSS_COLUMNS = {
    "train_loss": "total",
    "train_bce": "cross-entropy",
    "train_dice": "Dice",
    "train_whitening": "whitening",
    "val_loss": "selection total",
}
# Hundreds of times smaller than the others: on their axis it would be a line at zero.
WHITENING = "train_whitening"
LINES = tuple(hex_colour(rgb) for rgb in (BLUE, ORANGE, GREEN, PURPLE, VERMILLION, SKY))


def save_curves(path: str | os.PathLike[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Small multiples over the epochs, written atomically: losses, Dice, health, learning rate.

    Columns, of which only `epoch` must exist: train_loss, train_bce, train_dice, train_whitening,
    val_loss; val_dice and any other val_ score that ends in "dice"; masked_fraction_S,
    attention_entropy_S, gate_deviation_S, weight_deviation_S for a stride S; learning_rate. A panel
    without its columns is left out; empty, None and nan values are gaps; one epoch is drawn as
    points. Values may be text, as a CSV reader gives them.

    Raises:
        ValueError: no rows, no epoch, text that is no number, or no column that can be drawn.
    """
    table = list(rows)
    if not table:
        raise ValueError("save_curves: no rows; a run needs one finished epoch")
    names = list(dict.fromkeys(key for row in table for key in row))
    if "epoch" not in names:
        raise ValueError(f"save_curves: rows must have a column epoch, got {', '.join(names)}")
    epochs = _column(table, "epoch")
    losses = [name for name in LOSS_COLUMNS if name in names and name != WHITENING]
    dice = [name for name in names if name.startswith("val_") and name.endswith("dice")]

    def strides(quantity: str) -> list[str]:
        return sorted((name for name in names if name.startswith(f"{quantity}_")), key=_stride)

    panels = [
        (_draw_losses, losses),
        (_draw_whitening, [name for name in names if name == WHITENING]),
        (_draw_dice, dice),
        (_draw_masked, strides("masked_fraction")),
        (_draw_attention, strides("attention_entropy")),
        (_draw_gate, strides("gate_deviation")),
        (_draw_weights, strides("weight_deviation")),
        (_draw_rate, [name for name in names if name == "learning_rate"]),
    ]
    drawn = [
        (draw, {name: _column(table, name) for name in columns})
        for draw, columns in panels
        if columns
    ]
    if not drawn:
        raise ValueError(f"save_curves: nothing to draw in the columns {', '.join(names)}")
    across = min(2, len(drawn))
    down = math.ceil(len(drawn) / across)
    figure = figures.new_figure(4.6 * across, 2.9 * down)
    grid = figure.subplots(down, across, squeeze=False)
    for axes, (draw, columns) in zip(grid.flat, drawn, strict=False):
        draw(axes, epochs, columns)
        _finish(axes, epochs)
    for axes in grid.flat[len(drawn) :]:
        axes.remove()
    figures.arrange(figure, w_pad=0.08, h_pad=0.08)
    figures.save_figure(figure, path)


def _draw_losses(axes: "Axes", epochs: list[float], columns: Mapping[str, list[float]]) -> None:
    axes.set_title("Loss", loc="left", fontsize=10, color=INK)
    for name, values in columns.items():
        colour = LINES[list(LOSS_COLUMNS).index(name)]
        _line(axes, epochs, values, colour, LOSS_COLUMNS[name], dashed=name == "val_loss")
    if any(value < 0 for values in columns.values() for value in values):
        axes.axhline(0, color="#999999", linewidth=0.6)
    _legend(axes)


def _draw_whitening(axes: "Axes", epochs: list[float], columns: Mapping[str, list[float]]) -> None:
    _draw_losses(axes, epochs, columns)
    axes.set_title("Whitening loss (Eq. 9), unweighted", loc="left", fontsize=10, color=INK)


def _draw_dice(axes: "Axes", epochs: list[float], columns: Mapping[str, list[float]]) -> None:
    axes.set_title("Selection Dice, mean over images", loc="left", fontsize=10, color=INK)
    for i, (name, values) in enumerate(columns.items()):
        _line(
            axes, epochs, values, LINES[i % len(LINES)], name.removeprefix("val_").replace("_", " ")
        )
    values = next(iter(columns.values()))
    seen = [i for i, value in enumerate(values) if not math.isnan(value)]
    if seen:
        best = max(seen, key=values.__getitem__)
        axes.plot(
            epochs[best],
            values[best],
            "o",
            markersize=6,
            markerfacecolor="none",
            markeredgecolor=INK,
            clip_on=False,
        )
        axes.text(
            0.98,
            0.05,
            f"best {values[best]:.3f} at epoch {epochs[best]:g}",
            transform=axes.transAxes,
            ha="right",
            fontsize=8,
            color=INK,
        )
    axes.set_ylim(0, 1)
    if len(columns) > 1:
        _legend(axes)


def _draw_masked(axes: "Axes", epochs: list[float], columns: Mapping[str, list[float]]) -> None:
    _draw_strides(axes, epochs, columns, "Fraction of positions whitened")
    axes.set_ylim(0, 1)


def _draw_attention(axes: "Axes", epochs: list[float], columns: Mapping[str, list[float]]) -> None:
    _draw_strides(axes, epochs, columns, "Attention: entropy over log N (0 = one-hot)")
    axes.set_ylim(0, 1)


def _draw_gate(axes: "Axes", epochs: list[float], columns: Mapping[str, list[float]]) -> None:
    _draw_strides(axes, epochs, columns, "Gate: standard deviation between images")
    axes.set_ylim(bottom=0)


def _draw_weights(axes: "Axes", epochs: list[float], columns: Mapping[str, list[float]]) -> None:
    _draw_strides(axes, epochs, columns, "Channel weights: standard deviation between images")
    axes.set_ylim(bottom=0)


def _draw_strides(
    axes: "Axes", epochs: list[float], columns: Mapping[str, list[float]], title: str
) -> None:
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    for i, (name, values) in enumerate(columns.items()):
        _line(axes, epochs, values, LINES[i % len(LINES)], f"stride {name.rpartition('_')[2]}")
    _legend(axes)


def _draw_rate(axes: "Axes", epochs: list[float], columns: Mapping[str, list[float]]) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_title("Learning rate", loc="left", fontsize=10, color=INK)
    values = columns["learning_rate"]
    _line(axes, epochs, values, LINES[0], "")
    positive = [value for value in values if value > 0]
    if positive and max(positive) > 3 * min(positive):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(numticks=6))
        axes.yaxis.set_minor_formatter(NullFormatter())
    elif positive:
        axes.set_ylim(0, 1.25 * max(positive))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _line(
    axes: "Axes",
    epochs: list[float],
    values: list[float],
    colour: str,
    label: str,
    *,
    dashed: bool = False,
) -> None:
    marker = "o" if len(epochs) <= 30 else ""
    style = "--" if dashed else "-"
    axes.plot(
        epochs,
        values,
        style,
        marker=marker,
        markersize=2.5,
        color=colour,
        linewidth=1.4,
        label=label,
    )


def _legend(axes: "Axes") -> None:
    axes.legend(
        fontsize=8, frameon=True, framealpha=0.85, edgecolor="none", borderpad=0.2, loc="best"
    )


def _finish(axes: "Axes", epochs: Sequence[float]) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("epoch", fontsize=8, color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    if len(set(epochs)) == 1:
        axes.set_xlim(epochs[0] - 1, epochs[0] + 1)
    axes.tick_params(labelsize=8, colors=INK, length=3, width=0.6)
    axes.grid(axis="y", color="#e5e5e5", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set(color="#888888", linewidth=0.6)


def _stride(name: str) -> tuple[int, str]:
    text = name.rpartition("_")[2]
    return (int(text), "") if text.isdigit() else (10**9, text)


def _column(table: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    values = []
    for i, row in enumerate(table):
        value = row.get(name)
        try:
            values.append(math.nan if value is None or value == "" else float(value))
        except (TypeError, ValueError):
            raise ValueError(
                f"save_curves: row {i} has {name} = {value!r}, which is no number"
            ) from None
    return values
