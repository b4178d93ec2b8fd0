"""What the pictures share: a canvas without global state, colours, and images as 8-bit RGB."""

import os
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from intrasense_fast.files import atomic_path, legible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, told apart with every common colour vision.
GREEN, VERMILLION, SKY, BLUE, ORANGE, YELLOW, PURPLE = (
    (0, 158, 115),
    (213, 94, 0),
    (86, 180, 233),
    (0, 114, 178),
    (230, 159, 0),
    (240, 228, 66),
    (204, 121, 167),
)
INK = "#333333"
# Inches between what is drawn and the border.
_MARGIN = 0.06
MAX_ROWS = 64


def new_figure(width: float, height: float) -> "Figure":
    """A figure of `width` x `height` inches on its own Agg canvas; pyplot and its global state stay
    untouched."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def arrange(figure: "Figure", **spaces: Any) -> None:
    """Set spaces of the constrained layout that `new_figure` gives."""
    figure.get_layout_engine().set(**spaces)  # type: ignore[union-attr]


def save_figure(figure: "Figure", path: str | os.PathLike[str], dpi: int = 150) -> None:
    """Write `figure` to `path` atomically, in the format that its suffix names."""
    width, height = figure.get_size_inches()
    x, y = _MARGIN / width, _MARGIN / height
    arrange(figure, rect=(x, y, 1 - 2 * x, 1 - 2 * y))
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=dpi)


def hex_colour(rgb: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*rgb)


def show(axes: "Axes", picture: NDArray[np.generic], **options: object) -> None:
    """Draw a picture without ticks, in a thin frame."""
    axes.imshow(picture, **options)  # type: ignore[arg-type]
    blank(axes)


def blank(axes: "Axes", text: str = "") -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(linewidth=0.5, color="#bbbbbb")
    if text:
        axes.text(
            0.5,
            0.5,
            text,
            ha="center",
            va="center",
            transform=axes.transAxes,
            fontsize=8,
            color="#777777",
        )


def row_name(axes: "Axes", name: str, note: str = "") -> None:
    """`name`, shortened in its middle, and `note` below it, to the left of a row's first
    picture."""
    name = legible(name)
    short = name if len(name) <= 22 else f"{name[:10]}…{name[-11:]}"
    label = f"{short}\n{note}" if note else short
    axes.set_ylabel(label, fontsize=8, color=INK, parse_math=False)


def to_rgb(image: ArrayLike) -> NDArray[np.uint8]:
    """An image as (H, W, 3) uint8, grey repeated.

    Args:
        image: (H, W), (H, W, 1) or (H, W, 3); uint8 as it is, uint16 divided by 257, bool, and
            floats in [0, 1] times 255.

    Raises:
        ValueError: another shape or dtype, or floats outside [0, 1].
    """
    values = np.asarray(image)
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim != 3 or values.shape[2] not in (1, 3) or values.size == 0:
        raise ValueError(
            f"an image must be (H, W), (H, W, 1) or (H, W, 3), got shape {np.asarray(image).shape}"
        )
    if values.dtype == np.uint16:
        values = (values // 257).astype(np.uint8)
    elif values.dtype == np.bool_:
        values = values.astype(np.uint8) * np.uint8(255)
    elif np.issubdtype(values.dtype, np.floating):
        low, high = float(values.min()), float(values.max())
        if not (low >= -1e-6 and high <= 1 + 1e-6):
            raise ValueError(
                f"a float image must lie in [0, 1], got {low:g} to {high:g}; undo its "
                f"normalisation first"
            )
        values = np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)
    elif values.dtype != np.uint8:
        raise ValueError(f"an image must be uint8, uint16, bool or float, got {values.dtype}")
    return np.repeat(values, 3, axis=2) if values.shape[2] == 1 else values


def check_rows(items: int, what: str) -> None:
    if not 1 <= items <= MAX_ROWS:
        raise ValueError(
            f"{what}: a picture holds 1 to {MAX_ROWS} images, got {items}; write several pictures"
        )
