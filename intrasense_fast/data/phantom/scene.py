"""What is insonified: tissue layers, lesions and distractors."""

from typing import Literal, NamedTuple

import cv2
import numpy as np

from intrasense_fast.data.phantom.fields import curve, field
from intrasense_fast.data.phantom.outlines import contour, fill
from intrasense_fast.data.phantom.signal import transmission

Echo = Literal["any", "anechoic", "hypoechoic", "isoechoic", "hyperechoic"]
Margin = Literal["any", "round", "lobulated", "irregular", "spiculated"]

# Mean brightness in dB relative to fibroglandular tissue, and how often a lesion is of this kind.
ECHOES = {
    "anechoic": (-30.0, -22.0, 0.14),
    "hypoechoic": (-17.0, -9.0, 0.64),
    "isoechoic": (-3.5, 1.0, 0.1),
    "hyperechoic": (6.0, 10.0, 0.12),
}
MARGINS = {"round": 0.3, "lobulated": 0.25, "irregular": 0.25, "spiculated": 0.2}

LESIONS = (0.08, 0.74, 0.14, 0.04)
_DISTRACTORS = (0.15, 0.4, 0.3, 0.15)


class Scene(NamedTuple):
    """What is insonified: `echo` and `transmission`, float32 (H, W) in dB (backscatter; two-way
    loss or gain down to a point).

    `mask` is uint8 (H, W), 1 in a lesion; `distractors` likewise for look-alikes.
    """

    echo: np.ndarray
    transmission: np.ndarray
    mask: np.ndarray
    distractors: np.ndarray


def scene(
    rng: np.random.Generator,
    shape: tuple[int, int],
    *,
    lesions: int | None = None,
    distractors: int | None = None,
    echo: Echo = "any",
    margin: Margin = "any",
) -> Scene:
    """Skin, fat, fibroglandular tissue and muscle with lesions and distractors; arguments and
    errors as in `phantom`."""
    for name, value, known in (("echo", echo, ECHOES), ("margin", margin, MARGINS)):
        if value != "any" and value not in known:
            raise ValueError(f"{name}={value!r} is unknown: use 'any' or one of {', '.join(known)}")
    for name, count in (("lesions", lesions), ("distractors", distractors)):
        if count is not None and not 0 <= count <= 8:
            raise ValueError(f"{name}={count}: 0 to 8 are drawn, or None for a random number")
    # Drawn always, so that giving one argument does not change the rest of the scene more than it
    # must.
    number = int(rng.choice(len(LESIONS), p=LESIONS))
    alike = int(rng.choice(len(_DISTRACTORS), p=_DISTRACTORS))
    tissue, top, bottom = _tissue(rng, shape)
    mask, lookalikes = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    loss = np.zeros(shape, np.float32)
    levels = []
    for _ in range(number if lesions is None else lesions):
        levels.append(_add_lesion(rng, tissue, loss, mask, (top, bottom), echo, margin))
    for _ in range(alike if distractors is None else distractors):
        level = levels[int(rng.integers(len(levels)))] if levels else _level(rng, "any")[1]
        _add_distractor(rng, tissue, lookalikes, mask, (top, bottom), level)
    return Scene(tissue, transmission(rng, loss), mask, lookalikes)


def _tissue(
    rng: np.random.Generator, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Echo of the layers in dB (H, W), and the upper and lower edge of the fibroglandular layer
    (W,) in pixels."""
    height, width = shape
    aspect = width / height
    rows = np.arange(height, dtype=np.float32)[:, None]
    skin = height * rng.uniform(0.035, 0.06) + curve(rng, width, 3, 0.004 * height)
    top = height * rng.uniform(0.16, 0.32) + curve(rng, width, round(3 * aspect) + 1, 0.03 * height)
    bottom = height * rng.uniform(0.68, 0.86) + curve(
        rng, width, round(2 * aspect) + 1, 0.025 * height
    )

    slope = (top + bottom) / 2
    lift = (slope - slope.mean())[None].repeat(height, 0)
    across = np.broadcast_to(np.arange(width, dtype=np.float32), shape).copy()

    def along_layers(field: np.ndarray) -> np.ndarray:
        return cv2.remap(
            field, across, rows - lift, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
        )

    septa = np.exp(-((field(rng, shape, (9, 5 * aspect)) / 0.16) ** 2))
    fat = (
        rng.uniform(-14, -9)
        + 1.5 * field(rng, shape, (12, 8 * aspect))
        + rng.uniform(7, 12) * septa
    )
    strands = np.exp(-((field(rng, shape, (26, 4 * aspect)) / 0.3) ** 2))
    gland = 2.2 * field(rng, shape, (7, 5 * aspect)) + along_layers(
        1.8 * field(rng, shape, (40, 7 * aspect)) - rng.uniform(1, 5) * strands
    )
    fibres = along_layers(np.exp(-((field(rng, shape, (50, 3 * aspect)) / 0.35) ** 2)))
    muscle = (
        rng.uniform(-12, -7) + 1.5 * field(rng, shape, (6, 4 * aspect)) + rng.uniform(5, 9) * fibres
    )

    edge = 0.015 * height
    echo = fat + (gland - fat) * _smooth_step(rows, top, 2.5 * edge)
    echo += (muscle - echo) * _smooth_step(rows, bottom, 2 * edge)
    fascia = np.exp(-(((rows - bottom) / (0.8 * edge)) ** 2)) * rng.uniform(3, 8)
    echo += fascia.astype(np.float32)
    echo += (rng.uniform(3, 7) - echo) * (1 - _smooth_step(rows, skin, edge))
    line = np.exp(-(((rows - 0.008 * height) / (0.006 * height)) ** 2)) + 0.7 * np.exp(
        -(((rows - skin) / (0.5 * edge)) ** 2)
    )
    echo += (6 * line).astype(np.float32)
    return echo.astype(np.float32), top, bottom


def _smooth_step(rows: np.ndarray, line: np.ndarray, width: float) -> np.ndarray:
    """0 above the line, 1 below, over about `width` pixels."""
    return ((rows - line) / np.float32(width) + np.float32(0.5)).clip(0, 1)


def _add_lesion(
    rng: np.random.Generator,
    tissue: np.ndarray,
    loss: np.ndarray,
    mask: np.ndarray,
    layer: tuple[np.ndarray, np.ndarray],
    echo: Echo,
    margin: Margin,
) -> float:
    """Draw one lesion into `tissue` (dB), `loss` (dB a pixel of depth) and `mask`, clear of earlier
    ones; its level in dB."""
    height = tissue.shape[0]
    kind, level = _level(rng, echo)
    outline = (
        str(rng.choice(list(MARGINS), p=list(MARGINS.values()))) if margin == "any" else margin
    )
    radius = height * float(np.exp(rng.uniform(np.log(0.055), np.log(0.17))))
    own = np.zeros_like(mask)
    for shrink in (1.0, 0.85, 0.7, 0.55, 0.4, 0.3):
        x, y = _centre(rng, layer, shrink * radius)
        own = fill(contour(rng, outline, x, y, max(shrink * radius, 3.0)), mask.shape)
        gap = cv2.dilate(own, np.ones((5, 5), np.uint8))
        if not (gap & mask).any():
            break
    own &= 1 - mask
    mask |= own

    malignant = outline in ("irregular", "spiculated")
    blur = 0.004 * height * rng.uniform(1.5, 3) if malignant else 0.003 * height
    soft = cv2.GaussianBlur(own.astype(np.float32), (0, 0), max(blur, 0.5))
    _paint(rng, tissue, soft, level)
    rimmed = kind == "isoechoic" or malignant or rng.random() < 0.5
    rim = rng.uniform(6, 10) if kind == "isoechoic" else rng.uniform(3, 8) if rimmed else 0.0
    wide = cv2.GaussianBlur(
        own.astype(np.float32), (0, 0), (0.016 if malignant else 0.008) * height
    )
    # Outside the lesion only, so that the mask stays its edge.
    tissue += (rim * 4 * wide * (1 - wide) * (1 - soft)).astype(np.float32)

    depth = max(float(own.sum(0).max()), 1.0)
    if kind == "anechoic":
        gain = rng.uniform(5, 9)
    elif malignant:
        gain = -rng.uniform(6, 16)
    elif kind == "isoechoic" or rim == 0:
        gain = rng.choice([-1, 1]) * rng.uniform(4, 8)
    else:
        gain = rng.uniform(-4, 6)
    loss += own * np.float32(-gain / depth)
    return level


def _add_distractor(
    rng: np.random.Generator,
    tissue: np.ndarray,
    lookalikes: np.ndarray,
    mask: np.ndarray,
    layer: tuple[np.ndarray, np.ndarray],
    level: float,
) -> None:
    """Draw one lens along the layers with a lesion's level and structure; left out where it would
    touch a lesion."""
    height, width = tissue.shape
    slope = np.gradient((layer[0] + layer[1]) / 2)
    for _ in range(6):
        thick = height * rng.uniform(0.025, 0.055)
        x, y = _centre(rng, layer, thick)
        tilt = float(np.arctan(slope[min(max(int(x), 0), width - 1)]))
        own = fill(contour(rng, "lens", x, y, thick, rng.uniform(2.6, 4.2), tilt), mask.shape)
        near = cv2.dilate(own, np.ones((9, 9), np.uint8))
        if not (near & (mask | lookalikes)).any():
            lookalikes |= own
            blur = 0.003 * height * rng.uniform(1, 3)
            _paint(
                rng, tissue, cv2.GaussianBlur(own.astype(np.float32), (0, 0), max(blur, 0.5)), level
            )
            return


def _paint(rng: np.random.Generator, tissue: np.ndarray, soft: np.ndarray, level: float) -> None:
    """Replace the tissue where `soft` is 1 by an interior of `level` dB; the same for lesions and
    distractors."""
    inner = level + rng.uniform(0.4, 1.8) * field(rng, tissue.shape, (12, 12))
    tissue += soft * (inner.astype(np.float32) - tissue)


def _level(rng: np.random.Generator, echo: Echo) -> tuple[str, float]:
    kind = (
        str(rng.choice(list(ECHOES), p=[share for *_, share in ECHOES.values()]))
        if echo == "any"
        else echo
    )
    low, high, _ = ECHOES[kind]
    return kind, rng.uniform(low, high)


def _centre(
    rng: np.random.Generator, layer: tuple[np.ndarray, np.ndarray], radius: float
) -> tuple[float, float]:
    """A point of the fibroglandular layer, (x, y) in pixels; a large object may reach into its
    neighbours."""
    width = len(layer[0])
    x = rng.uniform(0.1, 0.9) * width
    top, bottom = (float(edge[int(x)]) for edge in layer)
    inset = min(0.7 * radius, 0.45 * (bottom - top))
    return x, rng.uniform(top + inset, bottom - inset)
