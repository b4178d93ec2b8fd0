"""Outlines of lesions and distractors, and the masks inside them."""

import cv2
import numpy as np

_CONTOUR = 180
_SUBPIXEL = 4


def contour(
    rng: np.random.Generator,
    outline: str,
    x: float,
    y: float,
    radius: float,
    ratio: float = 0.0,
    tilt: float = 0.0,
) -> np.ndarray:
    """Closed outline, float64 (N, 2) of (x, y). `radius` is the mean one; for a lens it is half its
    thickness."""
    angle = np.linspace(0, 2 * np.pi, _CONTOUR, endpoint=False)
    if outline == "lens":
        ends = np.sign(np.cos(angle)) * np.abs(np.cos(angle))
        wobble = 1 + 0.12 * np.cos(2 * angle + rng.uniform(0, 6.28)) * np.abs(np.sin(angle))
        return _place(
            ratio * radius * ends,
            radius * wobble * np.sin(angle) * np.abs(np.sin(angle)) ** 0.3,
            tilt,
            x,
            y,
        )
    ratio = rng.uniform(1.0, 1.35) if outline == "round" else rng.uniform(1.0, 1.6)
    bumps = {
        "round": (2, 0.02),
        "lobulated": (4, 0.09),
        "irregular": (7, 0.11),
        "spiculated": (7, 0.06),
    }[outline]
    edge = np.ones_like(angle)
    for order in range(2, 2 + bumps[0]):
        edge += (
            bumps[1]
            * rng.standard_normal()
            / np.sqrt(order / 2)
            * np.cos(order * angle + rng.uniform(0, 6.28))
        )
    if outline == "spiculated":
        for centre in rng.uniform(0, 2 * np.pi, int(rng.integers(6, 13))):
            away = np.abs((angle - centre + np.pi) % (2 * np.pi) - np.pi)
            edge += rng.uniform(0.15, 0.5) * np.exp(-away / rng.uniform(0.06, 0.14))
    edge = edge.clip(0.4, 2.0) * radius
    upright = rng.random() < (0.35 if outline in ("irregular", "spiculated") else 0.1)
    tilt = rng.normal(0, 0.25) + (np.pi / 2 if upright else 0)
    return _place(
        edge * np.cos(angle) * np.sqrt(ratio), edge * np.sin(angle) / np.sqrt(ratio), tilt, x, y
    )


def _place(across: np.ndarray, down: np.ndarray, tilt: float, x: float, y: float) -> np.ndarray:
    cos, sin = np.cos(tilt), np.sin(tilt)
    return np.stack([x + cos * across - sin * down, y + sin * across + cos * down], 1)


def fill(contour: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    return cv2.fillPoly(
        mask, [np.rint(contour * 2**_SUBPIXEL).astype(np.int32)], 1, shift=_SUBPIXEL
    )
