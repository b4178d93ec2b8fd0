"""Smooth random fields and lines."""

import cv2
import numpy as np


def field(
    rng: np.random.Generator, shape: tuple[int, int], cells: tuple[float, float]
) -> np.ndarray:
    """Smooth random field of unit variance, about `cells` (down, across) independent values,
    float32 (H, W)."""
    coarse = rng.standard_normal((max(2, round(cells[0])), max(2, round(cells[1]))), np.float32)
    return cv2.resize(coarse, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC) * np.float32(1.3)


def curve(rng: np.random.Generator, width: int, waves: int, height: float) -> np.ndarray:
    """A smooth random line across the image: float32 (W,), `height` its SD in pixels."""
    return field(rng, (2, width), (2, waves))[0] * np.float32(height)
