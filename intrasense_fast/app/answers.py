"""What the page says of a picture: mask, doubt, measurements and contours of a probability map.

A picture goes through the network once; everything here follows from its probabilities and a
threshold.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from intrasense_fast.data.images import read_image
from intrasense_fast.files import legible
from intrasense_fast.inference import Segmenter, predict_probabilities

Map = NDArray[np.float32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Answer:
    """A picture and what the network makes of it.

    `name` is the file's, `image` (H, W) in [0, 1] as people see it, `probability` (H, W) of a
    lesion.
    """

    name: str
    image: Map
    probability: Map

    def mask(self, threshold: float) -> Mask:
        """(H, W), the pixels above the threshold."""
        return self.probability > threshold


def answer(segmenter: Segmenter, path: str | os.PathLike[str], name: str | None = None) -> Answer:
    """Read a picture and segment it on its own grid.

    Args:
        segmenter: see `open_segmenter`.
        path: the file.
        name: what it is called; None = as the file.

    Raises:
        ImageError: the file is no whole picture; the message names it.
        NotFiniteError: the network's output is NaN or infinite.
    """
    image = read_image(path, levels=segmenter.levels)
    return answer_of(segmenter, image, Path(path).name if name is None else name)


def answer_of(segmenter: Segmenter, image: Map, name: str) -> Answer:
    """The same for pixels (H, W) in [0, 1]."""
    (found,) = predict_probabilities(segmenter.net, [image], segmenter.size, segmenter.amp)
    return Answer(legible(name), image, found)


def entropy(probability: Map) -> Map:
    """Predictive entropy of each pixel in bits, in [0, 1]: -p log2 p - (1 - p) log2 (1 - p)."""
    total = np.zeros_like(probability)
    for p in (probability, 1 - probability):
        # 0 log 0 is 0.
        total -= p * np.log2(p, where=p > 0, out=np.zeros_like(p))
    return total


def doubt(probability: Map, threshold: float) -> float:
    """1 - the Dice to expect of the mask, were its pixels lesion independently with their
    probabilities: 1 - 2 sum_M p / (|M| + sum p), in [0, 1]; of an empty mask how near the largest
    probability comes to the threshold.
    """
    mask = probability > threshold
    area = np.count_nonzero(mask)
    if not area:
        return float(probability.max()) / threshold if threshold > 0 else 0.0
    inside = float(probability.sum(where=mask, dtype=np.float64))
    return 1 - 2 * inside / (area + float(probability.sum(dtype=np.float64)))


def measurements(mask: Mask) -> dict[str, str]:
    """Title -> value of a mask (H, W), in pixels: nothing says how large one is."""
    area = int(np.count_nonzero(mask))
    if not area:
        return {"Area": "no lesion at this threshold"}
    regions = cv2.connectedComponents(mask.astype(np.uint8))[0] - 1
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    height, width = int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1
    longest, across = _axes(mask)
    return {
        "Area": f"{area:,} px ({area / mask.size:.1%} of the picture)",
        "Longest axis": f"{longest:.0f} px",
        "Axis across it": f"{across:.0f} px",
        "Width x height": f"{width} x {height} px",
        "Taller than wide": f"{'yes' if height > width else 'no'} ({height / width:.2f})",
        "Regions": f"{regions}",
    }


def _axes(mask: Mask) -> tuple[float, float]:
    """The longest distance in the largest region and its extent across that, from pixel edge to
    pixel edge."""
    largest = max(_outlines(mask), key=cv2.contourArea)
    points = cv2.convexHull(largest).reshape(-1, 2).astype(np.float64)
    moves = points[:, None] - points[None]
    lengths = np.hypot(moves[..., 0], moves[..., 1])
    first, second = np.unravel_index(lengths.argmax(), lengths.shape)
    longest = float(lengths[first, second])
    if longest == 0:
        return 1.0, 1.0
    direction = moves[first, second] / longest
    across = points @ np.array([-direction[1], direction[0]])
    return longest + 1, float(np.ptp(across)) + 1


def contours_json(found: Answer, threshold: float) -> str:
    """The outlines of a mask in the form of COCO's annotations: one category, "lesion", polygons in
    pixels, x before y."""
    height, width = found.probability.shape
    annotations: list[dict[str, Any]] = []
    for outline in _outlines(found.mask(threshold)):
        x, y, across, down = cv2.boundingRect(outline)
        annotations.append(
            {
                "id": len(annotations) + 1,
                "image_id": 1,
                "category_id": 1,
                "segmentation": [outline.reshape(-1).tolist()],
                "area": float(cv2.contourArea(outline)),
                "bbox": [x, y, across, down],
                "iscrowd": 0,
            }
        )
    content = {
        "images": [{"id": 1, "file_name": found.name, "width": width, "height": height}],
        "categories": [{"id": 1, "name": "lesion"}],
        "annotations": annotations,
        "threshold": threshold,
    }
    return json.dumps(content, indent=1) + "\n"


def _outlines(mask: Mask) -> list[NDArray[np.int32]]:
    """The outer outline of each region: (points, 1, 2), x before y."""
    found, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return [np.asarray(each, np.int32) for each in found]
