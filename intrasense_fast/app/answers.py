"""What the page says of a picture: what `predict` says of the same file.

A picture goes through the networks once; everything here follows from their probabilities and a
threshold.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from intrasense_fast.files import legible
from intrasense_fast.inference import NOT_FINITE, NotFiniteError
from intrasense_fast.inference.doubt import doubt
from intrasense_fast.inference.ensemble import Ensemble, Map
from intrasense_fast.measuring.lesion import Measurements, measure
from intrasense_fast.prediction.work import Picture, answers_of, read_picture

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Shown:
    """A picture, what its file is called, and the probability (H, W) of a lesion."""

    name: str
    picture: Picture
    probability: Map

    def mask(self, threshold: float) -> Mask:
        """(H, W), the pixels above the threshold."""
        return self.probability > threshold

    def doubt(self, threshold: float) -> float:
        """Of what the networks saw, in [0, 1]."""
        return doubt(self.picture.origin.scan(self.probability), threshold)

    def measurements(self, threshold: float) -> Measurements:
        """Of the mask's largest component, in millimetres where the file gives them."""
        return measure(self.mask(threshold), self.picture.origin.spacing)


def shown_file(ensemble: Ensemble, path: str | os.PathLike[str], name: str | None = None) -> Shown:
    """Read a picture and segment it on its own grid.

    Args:
        ensemble: see `open_ensemble`.
        path: the file.
        name: what it is called; None = as the file.

    Raises:
        ImageError: the file is no whole picture; the message names it.
        NotFiniteError: a network's output is NaN or infinite.
    """
    picture = read_picture(Path(path), ensemble.levels)
    return shown_picture(ensemble, picture, Path(path).name if name is None else name)


def shown_picture(ensemble: Ensemble, picture: Picture, name: str) -> Shown:
    """The same for pixels that are there."""
    (answer,) = answers_of([picture], ensemble)
    if answer is None:
        raise NotFiniteError(f"{name}: {NOT_FINITE}")
    return Shown(legible(name), picture, answer.probability)
