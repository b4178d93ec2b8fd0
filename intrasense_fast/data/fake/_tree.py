"""What the writers of fake data sets share: phantoms of a class, variants of a picture, files, and
what was planted."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np

from intrasense_fast.data.phantom import phantom, to_bytes

# The outlines that each class of lesion shows.
_MARGINS: dict[str, tuple[Literal["round", "lobulated", "irregular", "spiculated"], ...]] = {
    "benign": ("round", "lobulated"),
    "malignant": ("irregular", "spiculated"),
}
VARIANTS = ("resized", "recompressed", "brightness", "cropped")


class Planted(NamedTuple):
    """One problem that `verify` must report: its level, the file (relative to the data set), and a
    part of the message."""

    level: Literal["error", "warning"]
    file: str
    says: str


class Picture(NamedTuple):
    """Image and mask, both uint8 (H, W); the mask holds 0 and 255."""

    image: np.ndarray
    mask: np.ndarray


class Tree:
    """A fake data set while it is written.

    Args:
        root: an empty folder.
        size: about the sides of the pictures in pixels; each picture has its own.
        seed: of everything drawn.
        broken: also plant what cannot be used.
    """

    def __init__(self, root: Path, size: int, seed: int, broken: bool) -> None:
        self.root, self.size, self.seed, self.broken = root, size, seed, broken
        self.rng = np.random.default_rng((seed, size))
        self.planted: list[Planted] = []
        self._drawn = 0

    def picture(self, label: str = "benign") -> Picture:
        """A new phantom: one lesion with an outline that fits the class, none for "normal"."""
        shape = tuple(int(self.size * share) for share in self.rng.uniform(0.8, 1.3, 2))
        margin = str(self.rng.choice(_MARGINS.get(label, ("round",))))
        self._drawn += 1
        image, mask = phantom(
            (self.seed, self._drawn),
            (shape[0], shape[1]),
            lesions=label != "normal",
            margin=margin,  # type: ignore[arg-type]
        )
        return Picture(to_bytes(image), mask * np.uint8(255))

    def write(self, name: str, pixels: np.ndarray, *options: int) -> None:
        """A picture file, (H, W) or RGB(A) (H, W, 3 or 4), in the format that its name ends in."""
        if pixels.ndim == 3:
            pixels = pixels[:, :, [2, 1, 0, *range(3, pixels.shape[2])]]
        self.write_bytes(
            name,
            cv2.imencode(Path(name).suffix, np.ascontiguousarray(pixels), options)[1].tobytes(),
        )

    def write_bytes(self, name: str, content: bytes) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def copy(self, source: str, target: str) -> None:
        self.write_bytes(target, (self.root / source).read_bytes())

    def truncate(self, name: str) -> None:
        """Cut the second half of a file off, and expect `verify` to say so."""
        content = (self.root / name).read_bytes()
        (self.root / name).write_bytes(content[: len(content) // 2])
        self.error(name, "truncated")

    def table(self, name: str, rows: Sequence[Sequence[object]]) -> None:
        self.write_bytes(name, "".join(",".join(map(str, row)) + "\n" for row in rows).encode())

    def warning(self, file: str, says: str) -> None:
        self.planted.append(Planted("warning", file, says))

    def error(self, file: str, says: str) -> None:
        self.planted.append(Planted("error", file, says))


def in_colour(pixels: np.ndarray, alpha: bool = False) -> np.ndarray:
    """Grey as three equal channels, with an opaque fourth one on request."""
    channels = [pixels, pixels, pixels, np.full_like(pixels, 255)]
    return np.stack(channels[: 4 if alpha else 3], axis=2)


def variant(picture: Picture, rng: np.random.Generator, *kinds: str) -> Picture:
    """A near-duplicate of a picture by one or several of VARIANTS, in the order given.

    Resized by 0.5 to 1.5 (height and width differ by up to 10 %), recompressed as JPEG of quality
    30 to 90, contrast times 0.75 to 1.25 and brightness plus or minus 25 of 255, up to 6 % cut off
    each side.
    """
    image, mask = picture
    for kind in kinds:
        height, width = image.shape
        if kind == "resized":
            scale = rng.uniform(0.5, 1.5)
            size = (round(width * scale), round(height * scale * rng.uniform(0.9, 1.1)))
            image = cv2.resize(
                image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
            )
            mask = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST)
        elif kind == "recompressed":
            coded = cv2.imencode(
                ".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(30, 91)))
            )[1]
            image = np.asarray(cv2.imdecode(coded, cv2.IMREAD_GRAYSCALE))
        elif kind == "brightness":
            image = np.clip(image * rng.uniform(0.75, 1.25) + rng.uniform(-25, 25), 0, 255).astype(
                np.uint8
            )
        elif kind == "cropped":
            top, bottom, left, right = (
                rng.uniform(0, 0.06, 4) * (height, height, width, width)
            ).astype(int)
            image, mask = (
                each[top : height - bottom, left : width - right] for each in (image, mask)
            )
        else:
            raise ValueError(f"variant {kind!r} is unknown; known: {', '.join(VARIANTS)}")
    return Picture(np.ascontiguousarray(image), np.ascontiguousarray(mask))


def cut_out(picture: Picture, rng: np.random.Generator) -> Picture:
    """A rectangle of 65 to 80 % of each side that holds the middle, enlarged to the size of the
    whole: the picture zoomed."""
    height, width = picture.image.shape
    share = rng.uniform(0.65, 0.8)
    rows, columns = round(share * height), round(share * width)
    top = int(rng.integers(0, height // 8))
    left = int(rng.integers((width - columns) // 3, 2 * (width - columns) // 3 + 1))
    area = (slice(top, top + rows), slice(left, left + columns))
    image = cv2.resize(picture.image[area], (width, height), interpolation=cv2.INTER_CUBIC)
    mask = cv2.resize(picture.mask[area], (width, height), interpolation=cv2.INTER_NEAREST)
    return Picture(image, mask)


def sector(picture: Picture) -> Picture:
    """The picture as a curved probe shows it: black beyond the sides of a sector, which widens
    downwards."""
    height, width = picture.image.shape
    depth = np.arange(height)[:, None] / height
    away = np.abs(np.arange(width)[None, :] - (width - 1) / 2) / width
    inside = away <= 0.3 + 0.35 * depth
    return Picture(picture.image * inside, picture.mask * inside)


def neighbour(picture: Picture, rng: np.random.Generator) -> Picture:
    """A neighbouring frame: tissue moved by a smooth field of a few pixels, and other speckle."""
    image, mask = picture
    height, width = image.shape
    strength = max(height, width) / 90
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    moved = []
    for place in (x, y):
        coarse = rng.normal(0, strength, (4, 4)).astype(np.float32)
        moved.append(place + cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC))
    frame = cv2.remap(image, moved[0], moved[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    mask = cv2.remap(mask, moved[0], moved[1], cv2.INTER_NEAREST)
    grain = cv2.GaussianBlur(rng.normal(0, 1, image.shape).astype(np.float32), (0, 0), 1.2)
    speckled = frame * (1 + 0.15 * grain / grain.std())
    return Picture(np.clip(np.rint(speckled), 0, 255).astype(np.uint8), mask)


def with_calipers(picture: Picture, rng: np.random.Generator) -> Picture:
    """The same frame with two crosses and a dotted line between them, and a label below."""
    image = picture.image.copy()
    height, width = image.shape
    ends = [
        (int(rng.uniform(low, low + 0.15) * width), int(rng.uniform(0.3, 0.6) * height))
        for low in (0.25, 0.6)
    ]
    for place in ends:
        cv2.drawMarker(image, place, 255, cv2.MARKER_CROSS, max(5, width // 24), 1)
    for step in np.linspace(0, 1, 24):
        x, y = (round(a + step * (b - a)) for a, b in zip(*ends, strict=True))
        image[y, x] = 255
    text = (width // 10, round(0.9 * height))
    cv2.putText(image, "RT UOQ", text, cv2.FONT_HERSHEY_SIMPLEX, width / 512, 255, 1)
    return Picture(image, picture.mask)
