"""Are two pictures one? Local features give a map, it is refined, and structure is correlated."""

from typing import NamedTuple

import cv2
import numpy as np

from intrasense_fast.data.signatures import Signature, mask_of, thumbnail_of

# Structure lies between these two blurs, in pixels: compression is finer, brightness coarser.
_NOISE, _MEAN = 1.0, 4.0
_MATCHES = 80
_FEWEST_INLIERS = 8
_ENOUGH_CORNERS = 40
# Pixels of the raster of 128 by which a corner may miss its partner under the map.
_LARGEST_MISS = 2.5
_LARGEST_SCALE = 2.9
_LARGEST_TURN = 12.0
_SMALLEST_SHARE = 0.5


class Alignment(NamedTuple):
    """How well two pictures lie on each other.

    Attributes:
        matches: pairs of corners whose descriptors are each other's nearest, at most 80.
        inliers: those of them that one affine map brings together.
        correlation: of the structure (less noise and local mean) where both pictures are seen; 0
            where no map was found.
        overlap: Dice of the two masks there.
        zoom: by how much one is enlarged against the other, at least 1.
    """

    matches: int
    inliers: int
    correlation: float
    overlap: float
    zoom: float = 1.0


NONE = Alignment(0, 0, 0.0, 0.0)


def align(first: Signature, second: Signature, alike: bool) -> Alignment:
    """Lay two pictures on each other and compare them there, on the raster of the one that shows
    more.

    Args:
        alike: the two are similar as a whole: where there are too few corners to show a map, the
            whole of one is laid on the whole of the other.
    """
    if first.shape == second.shape and first.thumbnail == second.thumbnail:
        return Alignment(_MATCHES, _MATCHES, 1.0, _dice(mask_of(first) > 0, mask_of(second) > 0))
    own, other = _matches(first, second)
    matrix, inliers = _similarity(own, other)
    if matrix is None:
        if not alike or min(len(first.points), len(second.points)) >= _ENOUGH_CORNERS:
            return Alignment(len(own), 0, 0.0, 0.0)
        matrix = _stretch(first.shape, second.shape)
    elif np.linalg.det(matrix[:, :2]) < 1:
        matrix = cv2.invertAffineTransform(matrix)
        first, second, own, other = second, first, other, own
    matrix = _refined(first, second, matrix)
    if matrix is None:
        return Alignment(len(own), inliers, 0.0, 0.0)
    correlation, overlap = _compare(first, second, matrix)
    mirrored, _ = _compare(first, second, _mirror(first.shape, second.shape))
    if mirrored > correlation:
        return Alignment(len(own), inliers, 0.0, 0.0)
    inliers = max(inliers, _fits(own, other, matrix))
    zoom = _zoom(matrix)
    return Alignment(len(own), inliers, correlation, overlap, max(zoom, 1 / max(zoom, 1e-3)))


def _matches(first: Signature, second: Signature) -> tuple[np.ndarray, np.ndarray]:
    """Corners whose descriptors are each other's nearest, the closest 80: their points in both,
    float32 (n, 2)."""
    matcher = cv2.BFMatcher(cv2.NORM_HAMMING, crossCheck=True)
    few = min(len(first.points), len(second.points)) < _FEWEST_INLIERS
    pairs = [] if few else matcher.match(first.descriptors, second.descriptors)
    pairs = sorted(pairs, key=lambda pair: pair.distance)[:_MATCHES]
    own = first.points[[pair.queryIdx for pair in pairs]]
    other = second.points[[pair.trainIdx for pair in pairs]]
    return own.astype(np.float32), other.astype(np.float32)


def _similarity(own: np.ndarray, other: np.ndarray) -> tuple[np.ndarray | None, int]:
    """The scale, turn and shift that most corners agree on, float32 (2, 3), and how many do; None
    where too few do, or it is no likely map."""
    if len(own) < _FEWEST_INLIERS:
        return None, 0
    # OpenCV seeds the draws itself: the same pictures give the same map.
    matrix, inliers = cv2.estimateAffinePartial2D(
        own, other, method=cv2.RANSAC, ransacReprojThreshold=_LARGEST_MISS, maxIters=2000
    )
    if matrix is None or inliers.sum() < _FEWEST_INLIERS:
        return None, 0
    scale = float(np.hypot(matrix[0, 0], matrix[1, 0]))
    turn = abs(float(np.degrees(np.arctan2(matrix[1, 0], matrix[0, 0]))))
    likely = turn <= _LARGEST_TURN and 1 / _LARGEST_SCALE <= scale <= _LARGEST_SCALE
    return (matrix.astype(np.float32), int(inliers.sum())) if likely else (None, 0)


def _refined(first: Signature, second: Signature, matrix: np.ndarray) -> np.ndarray | None:
    """The affine map near `matrix` by which the structure correlates best; None where there is
    none."""
    criteria = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 30, 1e-4)
    inputs = (_structure(thumbnail_of(each)) for each in (first, second))
    start = np.ascontiguousarray(matrix, np.float32)
    try:
        _, refined = cv2.findTransformECC(  # type: ignore[call-overload]
            *inputs, start, cv2.MOTION_AFFINE, criteria, None, 3
        )
    except cv2.error:
        # Pictures without common structure do not converge.
        return None
    return np.asarray(refined)


def _zoom(matrix: np.ndarray) -> float:
    return float(np.sqrt(abs(np.linalg.det(matrix[:, :2]))))


def _fits(own: np.ndarray, other: np.ndarray, matrix: np.ndarray) -> int:
    """How many corners the map brings to their partners."""
    if not len(own):
        return 0
    misses = np.linalg.norm(own @ matrix[:, :2].T + matrix[:, 2] - other, axis=1)
    return int((misses <= _LARGEST_MISS).sum())


def _stretch(first: tuple[int, int], second: tuple[int, int]) -> np.ndarray:
    """The map of one raster onto the whole of another, float32 (2, 3)."""
    down, along = second[0] / first[0], second[1] / first[1]
    return np.array([[along, 0, 0], [0, down, 0]], np.float32)


def _mirror(first: tuple[int, int], second: tuple[int, int]) -> np.ndarray:
    """The map of one raster onto the whole of another from right to left, float32 (2, 3)."""
    matrix = _stretch(first, second)
    matrix[0] = -matrix[0, 0], 0, second[1] - 1
    return matrix


def _compare(first: Signature, second: Signature, matrix: np.ndarray) -> tuple[float, float]:
    """Correlation of structure and Dice of the masks where both pictures are seen, on the raster of
    `first`."""
    height, width = first.shape
    zoom = _zoom(matrix)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP

    def laid(image: np.ndarray) -> np.ndarray:
        return cv2.warpAffine(image.astype(np.float32), matrix, (width, height), flags=flags)

    seen = laid(np.ones(second.shape)) > 0.99
    smaller = min(seen.size, second.shape[0] * second.shape[1] / max(zoom, 1e-3) ** 2)
    if seen.sum() < _SMALLEST_SHARE * smaller:
        return 0.0, 0.0
    # Both are blurred to what the coarser one can show; what is enlarged in `second`, as much more.
    zoom = max(1.0, zoom)
    coarseness = max(first.coarseness, second.coarseness / zoom)
    own = _structure(thumbnail_of(first), coarseness)
    other = laid(_structure(thumbnail_of(second), coarseness * zoom))
    correlation = np.corrcoef(own[seen], other[seen])[0, 1]
    overlap = _dice((mask_of(first) > 0) & seen, (laid(mask_of(second)) >= 0.5) & seen)
    return float(np.nan_to_num(correlation)), overlap


def _structure(thumbnail: np.ndarray, scale: float = 1.0) -> np.ndarray:
    image = thumbnail.astype(np.float32)
    fine, coarse = (cv2.GaussianBlur(image, (0, 0), scale * blur) for blur in (_NOISE, _MEAN))
    return fine - coarse


def _dice(a: np.ndarray, b: np.ndarray) -> float:
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else 1.0
