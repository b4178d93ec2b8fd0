"""Connected components of masks, and the clean-up of predicted ones by them.

Lesion pixels connect to their 8 neighbours, background to its 4.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from intrasense_fast.errors import UsageError


@dataclass(frozen=True)
class CleanUp:
    """What is done to a predicted mask, in this order; nothing as it stands.

    Attributes:
        fill_holes: background that does not reach the border of the image becomes lesion.
        min_area: components of fewer pixels are removed.
        keep_largest: all components but the largest are removed.
    """

    fill_holes: bool = False
    min_area: int = 0
    keep_largest: bool = False

    def __post_init__(self) -> None:
        if self.min_area < 0:
            raise UsageError(f"--min-area must be a number of pixels from 0, got {self.min_area}")

    def __bool__(self) -> bool:
        return self.fill_holes or self.min_area > 0 or self.keep_largest

    def __str__(self) -> str:
        """The flags of the command line."""
        parts = ["--keep-largest"] if self.keep_largest else []
        parts += ["--fill-holes"] if self.fill_holes else []
        parts += [f"--min-area {self.min_area}"] if self.min_area else []
        return " ".join(parts) or "no clean-up"

    def __call__(self, mask: np.ndarray) -> np.ndarray:
        """A mask (H, W), bool or 0 and 1, cleaned up; of the same dtype, the argument untouched."""
        cleaned = mask.astype(bool)
        if self.fill_holes:
            cleaned = filled(cleaned)
        if self.min_area:
            labels, areas = components(cleaned)
            cleaned = np.concatenate([[False], areas >= self.min_area])[labels]
        if self.keep_largest:
            cleaned, _ = largest_component(cleaned)
        return cleaned.astype(mask.dtype)


NO_CLEAN_UP = CleanUp()


def components(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels int32 (H, W), 0 for background and 1 to N, and the area in pixels of each, (N,)."""
    _, labels, statistics, _ = cv2.connectedComponentsWithStats(
        mask.astype(np.uint8), connectivity=8
    )
    return labels, statistics[1:, cv2.CC_STAT_AREA]


def largest_component(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """The largest component, bool (H, W), the first from the top of equal ones, and how many there
    are."""
    labels, areas = components(mask)
    if not len(areas):
        return np.zeros(mask.shape, bool), 0
    return labels == 1 + int(np.argmax(areas)), len(areas)


def filled(mask: np.ndarray) -> np.ndarray:
    """The mask, bool (H, W), and every part of the background that does not reach its border."""
    framed = np.pad(mask == 0, 1, constant_values=True).astype(np.uint8)
    _, labels = cv2.connectedComponents(framed, connectivity=4)
    return (labels != labels[0, 0])[1:-1, 1:-1]
