"""From scatterers and absorption to the log-compressed picture."""

import cv2
import numpy as np

from intrasense_fast.data.phantom.fields import curve

_FOCAL_ZONES = 3


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


def transmission(rng: np.random.Generator, loss: np.ndarray) -> np.ndarray:
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
    residue = rng.uniform(-9, 1) * rows**2 + 2 * curve(rng, height, 3, 1.0)[:, None]
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
