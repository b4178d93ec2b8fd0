"""Mask files as masks in {0, 1}: decoded, read by the one rule of their data set, merged."""

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from intrasense_fast.data.budget import PixelBudget
from intrasense_fast.data.images import MAX_PIXELS, ImageError, decode_image, pixel_count
from intrasense_fast.data.mask_values import (
    AMBIGUOUS_FRACTION,
    MaskLevels,
    MaskRule,
    Value,
    any_lesion,
    colour_codes,
    decide,
    levels_of,
    two_valued,
)

SIZE_TOLERANCE = 2


def read_mask(
    paths: Sequence[str | os.PathLike[str]],
    shape: tuple[int, int],
    rule: MaskRule | None = None,
    max_pixels: int = MAX_PIXELS,
) -> tuple[np.ndarray, list[str]]:
    """Read the mask files of one image and merge them by logical OR: uint8 (H, W) in {0, 1}.

    Of each file alpha is dropped and the maximum over the colour channels taken, but for a mask of
    at most 16 colours, where every colour but black is lesion. A mask at most 2 pixels off `shape`
    (H,
    W) in height and width is resized by nearest neighbour, with a warning.

    Args:
        paths: the mask files of the image.
        shape: (H, W) of the image as people see it.
        rule: of the data set; None decides it over these files alone (see `decide`).
        max_pixels: as in `decode_image`.

    Returns:
        The mask, and warnings, each beginning with the file: resized; more than 1 % of the pixels
        near neither of two levels; faint values read as empty; constant colour under varying alpha.

    Raises:
        ImageError: a file is no whole image (see `decode_image`), its size differs by more than 2
            pixels, or its only value is background by the rule.
    """
    loaded = load_masks(paths, max_pixels)
    rule = rule or decide([(each.path, each.levels) for each in loaded])[0]
    return merge(loaded, shape, rule)


class LoadedMask(NamedTuple):
    """A mask file: pixels (H, W) reduced to one channel or (H, W, 3) coloured, and its values."""

    path: Path
    pixels: np.ndarray
    levels: MaskLevels
    warnings: tuple[str, ...]
    orientation: int


def load_masks(
    paths: Iterable[str | os.PathLike[str]], max_pixels: int = MAX_PIXELS
) -> list[LoadedMask]:
    """Decode mask files; errors as in `decode_image`."""
    loaded = []
    for path in paths:
        decoded = decode_image(path, max_pixels)
        pixels, notes = _reduced(decoded.pixels)
        levels = levels_of(pixels)
        if pixels.ndim == 3 and levels.kind != "colour":
            pixels = np.ascontiguousarray(pixels.max(axis=2))
        warnings = tuple(f"{path}: {note}" for note in notes)
        loaded.append(LoadedMask(Path(path), pixels, levels, warnings, decoded.orientation))
    return loaded


def merge(
    loaded: Sequence[LoadedMask], shape: tuple[int, int], rule: MaskRule
) -> tuple[np.ndarray, list[str]]:
    """Decoded mask files as one mask by a rule; values, warnings and errors as in `read_mask`."""
    merged = np.zeros(shape, np.uint8)
    warnings: list[str] = []
    for path, pixels, levels, notes, _ in loaded:
        mask = _binary(pixels, levels, rule)
        warnings += [*notes, *(f"{path}: {note}" for note in _doubts(levels, rule, path))]
        if mask.shape != shape:
            sizes = f"mask is {mask.shape[1]} x {mask.shape[0]}, its image {shape[1]} x {shape[0]}"
            sizes += " (width x height)"
            if max(abs(mask.shape[0] - shape[0]), abs(mask.shape[1] - shape[1])) > SIZE_TOLERANCE:
                raise ImageError(
                    f"{path}: {sizes}: use the mask drawn on this image, or resize it with nearest "
                    "neighbour"
                )
            mask = cv2.resize(mask, (shape[1], shape[0]), interpolation=cv2.INTER_NEAREST)
            warnings.append(f"{path}: {sizes}: resized with nearest neighbour")
        merged |= mask
    return merged, warnings


class MaskDecision:
    """The rule of a data set, decided over all its masks when it is first asked for.

    Attributes:
        files: every mask file of the data set.
        values: what --mask-values says, or None.
        problem: why the rule is not known, or None; None too while it has not been decided.
    """

    def __init__(
        self,
        files: Iterable[Path],
        values: tuple[Value, ...] | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.files = tuple(files)
        self.values = values
        self.max_pixels = max_pixels
        self.problem: str | None = None
        self._rule: MaskRule | None = None

    @property
    def decided(self) -> bool:
        return self._rule is not None

    def settle(self, masks: Sequence[tuple[Path, MaskLevels]]) -> MaskRule:
        """Decide over what all the files hold."""
        self._rule, self.problem = decide(masks, self.values)
        return self._rule

    def rule(self) -> MaskRule:
        """The rule; the first time every mask file is decoded. Files that cannot be are passed
        over."""
        if self._rule is None:
            budget = PixelBudget(self.max_pixels)
            held = partial(_held, max_pixels=self.max_pixels, budget=budget)
            with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
                seen = [each for each in pool.map(held, self.files) if each is not None]
            return self.settle(seen)
        return self._rule


def _held(path: Path, max_pixels: int, budget: PixelBudget) -> tuple[Path, MaskLevels] | None:
    with budget.hold(pixel_count(path, max_pixels)):
        try:
            (loaded,) = load_masks([path], max_pixels)
        except ImageError:
            return None
        return path, loaded.levels


def _binary(pixels: np.ndarray, levels: MaskLevels, rule: MaskRule) -> np.ndarray:
    if rule.values is not None:
        if levels.kind == "colour":
            codes, wanted = colour_codes(pixels), [_code(value) for value in rule.values]
            return np.isin(codes, [code for code in wanted if code is not None]).astype(np.uint8)
        numbers = [value for value in rule.values if not isinstance(value, str)]
        return np.isin(pixels, numbers).astype(np.uint8)
    if levels.kind == "colour":
        return (colour_codes(pixels) > 0).astype(np.uint8)
    threshold = rule.threshold(levels.kind)
    lesion: np.ndarray
    if levels.kind == "float":
        lesion = np.greater_equal(pixels, threshold)
    else:
        # A whole number: compared with a float, every pixel would become one.
        lesion = np.greater(pixels, int(threshold))
    return lesion.astype(np.uint8)


def _reduced(pixels: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Without alpha, and one channel where all are equal; a warning where alpha holds the
    picture."""
    if pixels.ndim == 2:
        return pixels, []
    alpha = pixels[:, :, 3] if pixels.shape[2] == 4 else None
    colour = pixels[:, :, :3]
    first = colour[:, :, 0]
    grey = all(np.array_equal(first, colour[:, :, i]) for i in (1, 2))
    reduced = np.ascontiguousarray(first if grey else colour)
    hidden = alpha is not None and alpha.min() != alpha.max()
    if hidden and reduced.min() == reduced.max():
        text = (
            "colour is constant and alpha is not: alpha is dropped; store the lesion in the colour"
        )
        return reduced, [f"{text} channels"]
    return reduced, []


def _doubts(levels: MaskLevels, rule: MaskRule, path: Path) -> list[str]:
    """Warnings about one file under the rule of its data set.

    Raises:
        ImageError: it holds one value beside 0, and that is background in this data set.
    """
    if rule.values is not None or levels.kind == "colour":
        return []
    threshold = rule.threshold(levels.kind)
    if levels.top > 0 and not any_lesion(rule, levels):
        if two_valued(levels):
            raise ImageError(
                f"{path}: values up to {levels.top:g}, none above {threshold:g}, which is "
                "lesion in this data set: store lesions as 255, or give --mask-values"
            )
        return [
            f"values up to {levels.top:g}, none above {threshold:g}: read as an empty mask; store "
            "lesions as 255"
        ]
    if threshold > 0 and levels.between > AMBIGUOUS_FRACTION:
        return [
            f"ambiguous grey values: {levels.between:.1%} of the pixels are near neither 0 nor "
            f"{levels.top:g}; above {threshold:g} counts as lesion"
        ]
    return []


def _code(value: Value) -> int | None:
    """The code of a colour; a number is the grey of that value."""
    if isinstance(value, str):
        return int(value[1:], 16)
    return value * 0x010101 if isinstance(value, int) and value < 256 else None
