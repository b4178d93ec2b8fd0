"""Every reader of images keeps to the bound of pixels in memory, and reads as the options say."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from intrasense_fast.data import ReadingOptions, masks, open_dataset, read_dataset
from intrasense_fast.data import prepare as prepare_module
from intrasense_fast.data.contact_sheet import write_contact_sheet
from intrasense_fast.data.duplicates import Duplicates, Pair
from intrasense_fast.data.prepare import prepare
from intrasense_fast.data.records import SegmentationData
from intrasense_fast.training import results

SIDE = 40


class Held:
    """How many threads are in a function at once, at most."""

    def __init__(self, function: Callable) -> None:
        self.most, self._now, self._lock = 0, 0, threading.Lock()
        self._function = function

    def __call__(self, *arguments: object) -> object:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        time.sleep(0.005)
        try:
            return self._function(*arguments)
        finally:
            with self._lock:
                self._now -= 1


def tree(root: Path, seed: int, count: int = 6, top: int = 255) -> Path:
    """Pairs of 40 x 40 pixels; 16 bits where `top` is more than 255."""
    rng = np.random.default_rng(seed)
    dtype = np.uint8 if top < 256 else np.uint16
    for i in range(count):
        mask = np.zeros((SIDE, SIDE), np.uint8)
        mask[10:20, 10 : 20 + i] = 255
        image = rng.integers(0, top + 1, (SIDE, SIDE)).astype(dtype)
        cv2.imwrite(str(root / f"{i}.png"), image)
        cv2.imwrite(str(root / f"{i}_mask.png"), mask)
    return root


def test_prepare_holds_no_more_pixels_than_allowed(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(prepare_module._copy)
    monkeypatch.setattr(prepare_module, "_copy", held)
    (tmp_path / "data").mkdir()
    options = ReadingOptions(max_pixels=SIDE * SIDE)
    prepare(tree(tmp_path / "data", seed), tmp_path / "out", None, options=options)
    assert held.most == 1


def test_the_rule_of_masks_is_decided_within_the_bound(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(masks.load_masks)
    monkeypatch.setattr(masks, "load_masks", held)
    data = read_dataset(tree(tmp_path, seed), options=ReadingOptions(max_pixels=SIDE * SIDE))
    assert data.decided() is not None and held.most == 1


class Half(nn.Module):
    """A network of one class that answers one half."""

    def __init__(self) -> None:
        super().__init__()
        self.architecture, self.config = "half", {"in_channels": 1, "num_classes": 1}
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :1] * self.weight


@pytest.mark.parametrize(("pictures", "chunks"), [(1, [1] * 6), (4, [4, 2]), (100, [6])])
def test_results_are_measured_within_the_bound(
    pictures: int,
    chunks: list[int],
    tmp_path: Path,
    seed: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = ReadingOptions(max_pixels=pictures * SIDE * SIDE)
    data: SegmentationData = open_dataset(
        tree(tmp_path, seed), group_duplicates=False, options=options
    )
    sizes: list[int] = []
    original = results.evaluate_samples

    def counted(net: nn.Module, samples: list, size: int, **options: object) -> list[dict]:
        sizes.append(len(samples))
        return original(net, samples, size, **options)

    monkeypatch.setattr(results, "evaluate_samples", counted)
    rows = results._measured(Half(), data, range(6), 32, "test", {"network": []}, {})
    assert sizes == chunks and [row["name"] for row in rows] == [str(i) for i in range(6)]


def test_the_contact_sheet_reads_files_as_the_options_say(tmp_path: Path, seed: int) -> None:
    data = read_dataset(tree(tmp_path, seed, count=2, top=4095))
    found = Duplicates((Pair("0", "1", 0.99, 1.0),))
    means = []
    for levels in (None, 4095):
        sheet = tmp_path / "sheets" / f"{levels}.png"
        sheet.parent.mkdir(exist_ok=True)
        read_as = replace(data, options=ReadingOptions(levels=levels))
        write_contact_sheet(sheet, read_as, found)
        tile = cv2.imread(str(sheet), cv2.IMREAD_GRAYSCALE)[64 + 8 + 10 : 64 + 8 + 100, 20:150]
        means.append(float(tile.mean()))
    assert means[1] > 90 > 30 > means[0]
