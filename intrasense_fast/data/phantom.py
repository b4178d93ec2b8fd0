"""Phantom B-mode images of the breast with exact lesion masks, simulated from scatterers to the
log-compressed picture.

They are made for "identical texture, distinct semantics". A lesion is compact (at most twice as
long as wide) and disturbs what is around it: a rim, or a shadow or an enhancement below it, or
both. A distractor has the speckle, the brightness and the inner structure of a lesion, but it is a
lens that lies along the tissue layers, at least 2.5 times as long as thick, without rim and without
effect on what is below; it is not in the mask. Fat lobules and shadows of poor contact are dark as
well. No threshold and no local texture tells them apart.

Scores on phantoms are not clinical scores.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np

from intrasense_fast.data.images import write_png
from intrasense_fast.files import atomic_folder

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

_LESIONS = (0.08, 0.74, 0.14, 0.04)
_DISTRACTORS = (0.15, 0.4, 0.3, 0.15)
_FOCAL_ZONES = 3
_CONTOUR = 180
_SUBPIXEL = 4


class Scene(NamedTuple):
    """What is insonified: `echo` and `transmission`, float32 (H, W) in dB (backscatter; two-way
    loss or gain down to a point).

    `mask` is uint8 (H, W), 1 in a lesion; `distractors` likewise for look-alikes.
    """

    echo: np.ndarray
    transmission: np.ndarray
    mask: np.ndarray
    distractors: np.ndarray


def phantom(
    seed: int | Sequence[int],
    size: int | tuple[int, int] = 256,
    *,
    lesions: int | None = None,
    distractors: int | None = None,
    echo: Echo = "any",
    margin: Margin = "any",
) -> tuple[np.ndarray, np.ndarray]:
    """One phantom: image float32 (H, W) in [0, 1] and mask uint8 (H, W) in {0, 1}.

    Args:
        seed: one number or several, not negative; the same seed and arguments give the same image
            (to the rounding of float32 filters; the mask exactly).
        size: pixels of the square image, or (height, width); at least 32. Lengths scale with the
            height.
        lesions: how many, at most 8; None draws 0 to 3, mostly 1.
        distractors: how many, at most 8; None draws 0 to 3.
        echo: the lesions' brightness. "any" draws one for each; isoechoic is the rare and hard one.
        margin: the lesions' outline. "any" draws one for each.

    Raises:
        ValueError: an argument outside what is named above.
    """
    shape = _shape(size)
    rng = np.random.default_rng(_seed(seed))
    drawn = scene(rng, shape, lesions=lesions, distractors=distractors, echo=echo, margin=margin)
    looks = int(rng.choice((1, 2, 3), p=(0.2, 0.4, 0.4)))
    signal = envelope(drawn.echo + drawn.transmission, rng, looks=looks)
    return compress(signal, gain=rng.uniform(-4, 4), dynamic_range=rng.uniform(50, 60)), drawn.mask


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
    number = int(rng.choice(len(_LESIONS), p=_LESIONS))
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
    return Scene(tissue, _transmission(rng, loss), mask, lookalikes)


def envelope(echo: np.ndarray, rng: np.random.Generator, *, looks: int = 1) -> np.ndarray:
    """The detected signal of dense scatterers under a focused beam: float32 (H, W), before
    compression.

    Complex Gaussian scatterers, scaled by `echo` (H, W, in dB), pass a point-spread function that
    is narrowest at the focal depth; the envelope is the modulus. Where `echo` is constant it is
    Rayleigh distributed: mean / SD = 1.91, and mean square 1 at 0 dB. `looks` > 1 averages that
    many independent ones, as spatial compounding does.
    """
    height = echo.shape[0]
    amplitude = (10 ** (echo / 20)).astype(np.float32)[..., None]
    focus = rng.uniform(0.3, 0.7)
    total = np.zeros(echo.shape, np.float32)
    for _ in range(looks):
        scatterers = rng.standard_normal((*echo.shape, 2), np.float32) * amplitude
        total += _beam(scatterers, focus * height)
    return total / np.float32(looks)


def compress(signal: np.ndarray, *, gain: float = 0.0, dynamic_range: float = 55.0) -> np.ndarray:
    """Log compression of an envelope (H, W): float32 in [0, 1]; `gain` and `dynamic_range` in dB,
    tissue of 0 dB near 0.6."""
    decibels = 20 * np.log10(np.maximum(signal, 1e-6))
    return (0.62 + (decibels + gain) / dynamic_range).clip(0, 1).astype(np.float32)


def write_phantom(
    out: str | os.PathLike[str],
    count: int,
    *,
    size: int = 256,
    seed: int = 0,
    normal_fraction: float = 0.08,
) -> Path:
    """Write `count` phantoms as out/images/NAME.png and out/masks/NAME.png (8-bit grey; 0 and 255),
    NAME = phantom_0001 on.

    Image i has the seed (seed, i), so that a larger set begins with the smaller one but for which
    images are normal: round(count * normal_fraction) of them, spread at random. The folder appears
    whole or not at all. Returns `out`.

    Raises:
        ValueError: `out` is in use (nothing is overwritten), or `count`, `normal_fraction`, `size`
            or `seed` is out of range.
        OSError: the folder cannot be written.
    """
    out = Path(out)
    _shape(size)
    _seed(seed)
    if count < 1:
        raise ValueError(f"count={count}: at least one image is needed")
    if not 0 <= normal_fraction <= 1:
        raise ValueError(f"normal_fraction={normal_fraction}: a fraction from 0 to 1 is needed")
    normals = set(
        np.random.default_rng((seed, count))
        .permutation(count)[: round(count * normal_fraction)]
        .tolist()
    )
    with atomic_folder(out) as temporary:
        (temporary / "images").mkdir()
        (temporary / "masks").mkdir()
        for index in range(count):
            image, mask = labelled_phantom((seed, index), size, normal=index in normals)
            name = f"phantom_{index + 1:04d}.png"
            write_png(temporary / "images" / name, to_bytes(image))
            write_png(temporary / "masks" / name, mask * np.uint8(255))
    return out


def labelled_phantom(
    seed: Sequence[int], size: int | tuple[int, int], *, normal: bool
) -> tuple[np.ndarray, np.ndarray]:
    """A phantom that is normal (no lesion) or shows at least one, as asked; see `phantom`."""
    weights = np.asarray(_LESIONS[1:])
    number = 1 + int(
        np.random.default_rng((*seed, 1)).choice(len(weights), p=weights / weights.sum())
    )
    return phantom(seed, size, lesions=0 if normal else number)


def to_bytes(image: np.ndarray) -> np.ndarray:
    """An image in [0, 1] as uint8."""
    return np.rint(image * 255).astype(np.uint8)


def _shape(size: int | tuple[int, int]) -> tuple[int, int]:
    shape = (size, size) if isinstance(size, int) else tuple(size)
    if len(shape) != 2 or min(shape) < 32 or max(shape) > 4096:
        raise ValueError(
            f"size={size}: 32 to 4096 pixels are needed, one number or (height, width)"
        )
    return shape


def _seed(seed: int | Sequence[int]) -> int | Sequence[int]:
    if min([seed] if isinstance(seed, int) else seed, default=-1) < 0:
        raise ValueError(f"seed={seed}: whole numbers that are not negative are needed")
    return seed


def _field(
    rng: np.random.Generator, shape: tuple[int, int], cells: tuple[float, float]
) -> np.ndarray:
    """Smooth random field of unit variance, about `cells` (down, across) independent values,
    float32 (H, W)."""
    coarse = rng.standard_normal((max(2, round(cells[0])), max(2, round(cells[1]))), np.float32)
    return cv2.resize(coarse, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC) * np.float32(1.3)


def _curve(rng: np.random.Generator, width: int, waves: int, height: float) -> np.ndarray:
    """A smooth random line across the image: float32 (W,), `height` its SD in pixels."""
    return _field(rng, (2, width), (2, waves))[0] * np.float32(height)


def _smooth_step(rows: np.ndarray, line: np.ndarray, width: float) -> np.ndarray:
    """0 above the line, 1 below, over about `width` pixels."""
    return ((rows - line) / np.float32(width) + np.float32(0.5)).clip(0, 1)


def _tissue(
    rng: np.random.Generator, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Echo of the layers in dB (H, W), and the upper and lower edge of the fibroglandular layer
    (W,) in pixels."""
    height, width = shape
    aspect = width / height
    rows = np.arange(height, dtype=np.float32)[:, None]
    skin = height * rng.uniform(0.035, 0.06) + _curve(rng, width, 3, 0.004 * height)
    top = height * rng.uniform(0.16, 0.32) + _curve(
        rng, width, round(3 * aspect) + 1, 0.03 * height
    )
    bottom = height * rng.uniform(0.68, 0.86) + _curve(
        rng, width, round(2 * aspect) + 1, 0.025 * height
    )

    slope = (top + bottom) / 2
    lift = (slope - slope.mean())[None].repeat(height, 0)
    across = np.broadcast_to(np.arange(width, dtype=np.float32), shape).copy()

    def along_layers(field: np.ndarray) -> np.ndarray:
        return cv2.remap(
            field, across, rows - lift, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
        )

    septa = np.exp(-((_field(rng, shape, (9, 5 * aspect)) / 0.16) ** 2))
    fat = (
        rng.uniform(-14, -9)
        + 1.5 * _field(rng, shape, (12, 8 * aspect))
        + rng.uniform(7, 12) * septa
    )
    strands = np.exp(-((_field(rng, shape, (26, 4 * aspect)) / 0.3) ** 2))
    gland = 2.2 * _field(rng, shape, (7, 5 * aspect)) + along_layers(
        1.8 * _field(rng, shape, (40, 7 * aspect)) - rng.uniform(1, 5) * strands
    )
    fibres = along_layers(np.exp(-((_field(rng, shape, (50, 3 * aspect)) / 0.35) ** 2)))
    muscle = (
        rng.uniform(-12, -7)
        + 1.5 * _field(rng, shape, (6, 4 * aspect))
        + rng.uniform(5, 9) * fibres
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
        own = _fill(_contour(rng, outline, x, y, max(shrink * radius, 3.0)), mask.shape)
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
        own = _fill(_contour(rng, "lens", x, y, thick, rng.uniform(2.6, 4.2), tilt), mask.shape)
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
    inner = level + rng.uniform(0.4, 1.8) * _field(rng, tissue.shape, (12, 12))
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


def _contour(
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


def _fill(contour: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    return cv2.fillPoly(
        mask, [np.rint(contour * 2**_SUBPIXEL).astype(np.int32)], 1, shift=_SUBPIXEL
    )


def _transmission(rng: np.random.Generator, loss: np.ndarray) -> np.ndarray:
    """Gain in dB down to each point (H, W): what lesions absorb, shadows of poor contact, and what
    the time gain left over."""
    height, width = loss.shape
    rows = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    along = -np.cumsum(loss, 0, dtype=np.float32)
    # Sharp where the lesion is, washed out below it: the shadow of a wide aperture fills in from
    # its sides.
    sharp, wide = (
        cv2.GaussianBlur(along, (0, 0), sigmaX=sigma * height, sigmaY=0.8)
        for sigma in (0.012, 0.035)
    )
    total = sharp + rows * (wide - sharp)
    residue = rng.uniform(-9, 1) * rows**2 + 2 * _curve(rng, height, 3, 1.0)[:, None]
    bands = np.zeros(width, np.float32)
    columns = np.arange(width, dtype=np.float32)
    for _ in range(int(rng.integers(0, 3))):
        bands += rng.uniform(4, 11) * np.exp(
            -(((columns - rng.uniform(0, width)) / (rng.uniform(0.02, 0.07) * height)) ** 2)
        )
    onset = (rows / rng.uniform(0.15, 0.5)).clip(0, 1)
    sides = rng.uniform(0, 8) * np.abs(np.linspace(-1, 1, width, dtype=np.float32)) ** 4
    return (total + residue - (bands + sides) * onset).astype(np.float32)


def _beam(scatterers: np.ndarray, focus: float) -> np.ndarray:
    """Envelope (H, W) of complex scatterers (H, W, 2) under a beam that widens away from the depth
    `focus` (pixels)."""
    height = scatterers.shape[0]
    scale = height / 256
    axial = _gaussian(max(0.85 * scale, 0.5))
    zones = np.linspace(0, height - 1, _FOCAL_ZONES)
    lateral = [
        _gaussian(max((1.2 + 1.6 * abs(zone - focus) / height) * scale, 0.6)) for zone in zones
    ]
    filtered = [
        cv2.sepFilter2D(scatterers, cv2.CV_32F, kernel, axial, borderType=cv2.BORDER_REFLECT)
        for kernel in lateral
    ]
    position = np.linspace(0, _FOCAL_ZONES - 1, height, dtype=np.float32)
    out = np.zeros_like(scatterers)
    power = np.zeros(height, np.float32)
    weights = [np.maximum(0, 1 - np.abs(position - zone)) for zone in range(_FOCAL_ZONES)]
    for a, weight in enumerate(weights):
        out += weight[:, None, None] * filtered[a]
        for b, other in enumerate(weights):
            power += weight * other * _overlap(lateral[a], lateral[b])
    out /= np.sqrt(2 * power * np.float32(axial @ axial))[:, None, None]
    # cv2.magnitude rounds differently with where the arrays lie in memory.
    return np.sqrt(out[..., 0] ** 2 + out[..., 1] ** 2)


def _gaussian(sigma: float) -> np.ndarray:
    reach = int(np.ceil(3 * sigma))
    return np.exp(-((np.arange(-reach, reach + 1) / sigma) ** 2) / 2).astype(np.float32)


def _overlap(a: np.ndarray, b: np.ndarray) -> np.float32:
    """Inner product of two centred kernels of odd length."""
    short, long = sorted((a, b), key=len)
    inset = (len(long) - len(short)) // 2
    return np.float32(short @ long[inset : inset + len(short)])
