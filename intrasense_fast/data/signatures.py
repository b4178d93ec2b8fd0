"""What near-duplicates are found by: a small picture, its mask, a perceptual hash of all of it, and
its local features.

Everything is taken from the picture reduced (or enlarged) to a longer side of 128, so that copies
of any size compare.
"""

from functools import cache
from typing import NamedTuple

import cv2
import numpy as np

# Part of the name of every cached result: a change of anything below, or of the search, makes new
# ones.
VERSION = 5

SIDE = 128
BITS = 143
FEATURES = 150
_HASH_SIDE = 64
_WAVES = 12
_JPEG_QUALITY = 90
# A FAST corner of a picture with little contrast; patches of 24 pixels see a tenth of the picture
# at the first scale.
_CORNER = 5
_PATCH = 24
_MARGIN = 15


class Signature(NamedTuple):
    """A picture in about 10 kB, on a raster (h, w) of its own shape whose longer side is 128.

    Attributes:
        hash: uint8 (18,), a perceptual hash of 143 bits: which of the lowest cosine coefficients of
            the picture, stretched to a square, exceed their median (but for the mean).
        thumbnail: bytes of a JPEG, uint8 (h, w), stretched over its own range of brightness.
        mask: uint8, packed bits of (h, w): lesion where it covers at least half of a pixel.
        shape: (h, w).
        coarseness: how many pixels of the raster one pixel of the picture covers, at least 1.
        points: float16 (n, 2), (x, y) of at most 150 corners on the raster.
        angles: float16 (n,), their orientations in degrees.
        descriptors: uint8 (n, 32), their ORB descriptors.
    """

    hash: np.ndarray
    thumbnail: bytes
    mask: np.ndarray
    shape: tuple[int, int]
    coarseness: float
    points: np.ndarray
    angles: np.ndarray
    descriptors: np.ndarray


def signature(image: np.ndarray, mask: np.ndarray) -> Signature:
    """The signature of an image, float32 (H, W) in [0, 1], and its mask, uint8 (H, W) in {0, 1}."""
    small = _stretched(_resized(image, _raster(image.shape)))
    points, angles, descriptors = _features(small)
    covered = _resized(mask.astype(np.float32), small.shape) >= 0.5
    encoded = cv2.imencode(".jpg", small, (cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY))[1].tobytes()
    return Signature(
        hash=_hash(image),
        thumbnail=encoded,
        mask=np.packbits(covered),
        shape=small.shape,
        coarseness=max(1.0, SIDE / max(image.shape)),
        points=points,
        angles=angles,
        descriptors=descriptors,
    )


def thumbnail_of(signature: Signature) -> np.ndarray:
    """The small picture, uint8 (h, w)."""
    return np.asarray(
        cv2.imdecode(np.frombuffer(signature.thumbnail, np.uint8), cv2.IMREAD_GRAYSCALE)
    )


def mask_of(signature: Signature) -> np.ndarray:
    """Its mask, uint8 (h, w) in {0, 1}."""
    height, width = signature.shape
    return np.unpackbits(signature.mask, count=height * width).reshape(height, width)


def _raster(shape: tuple[int, ...]) -> tuple[int, int]:
    scale = SIDE / max(shape[:2])
    height, width = (max(1, round(side * scale)) for side in shape[:2])
    return height, width


def _resized(image: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    way = cv2.INTER_AREA if max(image.shape) >= SIDE else cv2.INTER_LINEAR
    return cv2.resize(image, (shape[1], shape[0]), interpolation=way)


def _stretched(image: np.ndarray) -> np.ndarray:
    low, high = float(image.min()), float(image.max())
    return np.rint((image - low) * (255 / max(high - low, 1e-6))).astype(np.uint8)


def _features(small: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    # One each call: OpenCV's detectors are no good for several threads.
    detector = cv2.ORB.create(
        FEATURES, edgeThreshold=_MARGIN, patchSize=_PATCH, fastThreshold=_CORNER
    )
    corners, descriptors = detector.detectAndCompute(small, None)
    points = np.array([corner.pt for corner in corners], np.float16).reshape(-1, 2)
    angles = np.array([corner.angle for corner in corners], np.float16)
    if descriptors is None:
        descriptors = np.zeros((0, 32), np.uint8)
    return points, angles, descriptors


def _hash(image: np.ndarray) -> np.ndarray:
    square = cv2.resize(image, (_HASH_SIDE, _HASH_SIDE), interpolation=cv2.INTER_AREA)
    low, high = float(square.min()), float(square.max())
    square = (square - low) / max(high - low, 1e-6)
    waves = _waves()
    coefficients = (waves @ square @ waves.T).ravel()[1:]
    return np.packbits(coefficients > np.median(coefficients))


@cache
def _waves() -> np.ndarray:
    """The twelve longest cosine waves of 64 samples: float32 (12, 64)."""
    place = (np.arange(_HASH_SIDE) + 0.5) * np.pi / _HASH_SIDE
    return np.cos(np.arange(_WAVES)[:, None] * place).astype(np.float32)
