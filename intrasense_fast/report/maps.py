"""Where the network whitened: entropy maps and masks of the refined strides."""

import os
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from intrasense_fast.report import figures
from intrasense_fast.report.figures import to_rgb


class RefinementItem(NamedTuple):
    """One row: an image as `to_rgb` takes it; per stride the entropy (h, w) and mask (h, w), bool or 0/1 (Eq. 6)."""

    name: str
    image: ArrayLike
    entropy: Mapping[int, ArrayLike]
    mask: Mapping[int, ArrayLike]


def save_refinement_maps(
    path: str | os.PathLike[str], items: Iterable[RefinementItem], scale: str = "nats"
) -> None:
    """A grid, one row an image: the image, then entropy map and mask of every stride; written atomically.

    The entropy's colours span that map's own range, printed above it with the share of positions that the mask selects.

    Args:
        items: RefinementItem, or tuples (name, image, entropy, mask) with the same strides; 1 to 64.
        scale: what the entropy is measured in, the network's `entropy_scale`; it is printed.

    Raises:
        ValueError: no items or too many, strides that differ, or maps that are not two-dimensional or differ in size.
    """
    rows = [RefinementItem(*item) for item in items]
    figures.check_rows(len(rows), "save_refinement_maps")
    strides = sorted(rows[0].entropy)
    for row in rows:
        _check(row, strides)
    across, cell = 1 + 2 * len(strides), 1.75
    figure = figures.new_figure(0.4 + cell * across, 0.5 + (cell + 0.28) * len(rows))
    grid = figure.subplots(len(rows), across, squeeze=False)
    for i, row in enumerate(rows):
        figures.show(grid[i, 0], to_rgb(row.image), interpolation="lanczos")
        figures.row_name(grid[i, 0], row.name)
        if i == 0:
            grid[i, 0].set_title("image", fontsize=9, color=figures.INK)
        for k, stride in enumerate(strides):
            entropy, mask = (
                np.asarray(row.entropy[stride], np.float64),
                np.asarray(row.mask[stride]).astype(bool),
            )
            left, right = grid[i, 1 + 2 * k], grid[i, 2 + 2 * k]
            figures.show(left, entropy, cmap="cividis", interpolation="nearest")
            figures.show(right, mask, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            heads = (
                (f"stride {stride}: entropy ({scale})\n", f"stride {stride}: mask\n")
                if i == 0
                else ("", "")
            )
            left.set_title(f"{heads[0]}{_span(entropy)}", fontsize=8, color=figures.INK)
            right.set_title(
                f"{heads[1]}{100 * mask.mean():.0f} % whitened", fontsize=8, color=figures.INK
            )
    figure.supxlabel(
        "entropy from low (blue) to high (yellow), each map on its own scale\nmask: white positions are whitened",
        fontsize=8,
        color=figures.INK,
    )
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0.01, hspace=0.02)  # type: ignore[union-attr, call-arg]
    figures.save_figure(figure, path)


def _span(entropy: np.ndarray) -> str:
    finite = entropy[np.isfinite(entropy)]
    return f"{finite.min():.2f} to {finite.max():.2f}" if finite.size else "not finite"


def _check(row: RefinementItem, strides: list[int]) -> None:
    if sorted(row.entropy) != strides or sorted(row.mask) != strides:
        raise ValueError(
            f"save_refinement_maps: {row.name} has entropy at strides {sorted(row.entropy)} and masks at {sorted(row.mask)}; "
            f"every image needs both at {strides}"
        )
    for stride in strides:
        entropy, mask = np.shape(row.entropy[stride]), np.shape(row.mask[stride])
        if len(entropy) != 2 or entropy != mask or 0 in entropy:
            raise ValueError(
                f"save_refinement_maps: {row.name}, stride {stride}: entropy {entropy} and mask {mask} must be (h, w)"
            )
