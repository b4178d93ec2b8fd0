"""Resizing and augmentation: what happens to images, happens to masks; small lesions stay; workers
change nothing."""

import pickle
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from intrasense_fast.data import DataError, open_dataset
from intrasense_fast.data.torch_dataset import ResumableSampler, SegmentationDataset
from intrasense_fast.data.transforms import augment, resize_image, resize_mask, resize_probability

Trees = Callable[[str, bool], tuple[Path, list]]


@pytest.mark.parametrize("shape", [(64, 96), (300, 40), (33, 257)])
def test_shrinking_averages_area(shape: tuple[int, int], seed: int) -> None:
    image = np.random.default_rng(seed).random(shape, np.float32)
    for size in (32, 64):
        small = resize_image(image, size)
        assert (
            small.shape == (size, size)
            and small.dtype == np.float32
            and 0 <= small.min()
            and small.max() <= 1
        )
        if min(shape) >= size:
            rows, columns = (_area_weights(side, size) for side in shape)
            assert np.allclose(small, rows @ image.astype(np.float64) @ columns.T, atol=1e-5)


def _area_weights(source: int, target: int) -> np.ndarray:
    """Share of each source cell in each target cell."""
    edges = np.linspace(0, source, target + 1)
    low, high = (
        np.maximum(edges[:-1, None], np.arange(source)),
        np.minimum(edges[1:, None], np.arange(source) + 1),
    )
    return np.maximum(high - low, 0) * target / source


def test_no_lesion_is_lost(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(60):
        shape = tuple(int(side) for side in rng.integers(100, 700, 2))
        mask = np.zeros(shape, np.uint8)
        for _ in range(rng.integers(1, 4)):
            y, x = (int(rng.integers(0, side - 3)) for side in shape)
            mask[y : y + int(rng.integers(1, 40)), x : x + int(rng.integers(1, 4))] = 1
        small = resize_mask(mask, 64)
        assert (
            small.shape == (64, 64) and small.dtype == np.uint8 and set(np.unique(small)) <= {0, 1}
        )
        count, parts = cv2.connectedComponents(mask, connectivity=8)
        for part in range(1, count):
            assert small[resize_image((parts == part).astype(np.float32), 64) > 0].any(), (
                "a lesion vanished"
            )
    assert (
        not resize_mask(np.zeros((90, 80), np.uint8), 32).any()
        and resize_mask(np.ones((90, 80), np.uint8), 32).all()
    )


def test_probabilities_return_to_the_original_grid(seed: int) -> None:
    for shape in ((180, 260), (40, 50), (64, 31)):
        y, x = np.mgrid[0 : shape[0], 0 : shape[1]]
        smooth = (
            0.5 + 0.5 * np.sin(2 * np.pi * y / shape[0]) * np.cos(2 * np.pi * x / shape[1])
        ).astype(np.float32)
        back = resize_probability(resize_image(smooth, 64), shape)
        assert back.shape == shape and np.abs(back - smooth).max() < 0.1


@pytest.mark.parametrize("kind", ["paper", "us"])
def test_image_and_mask_move_together(kind: str, seed: int) -> None:
    y, x = np.mgrid[0:64, 0:64]
    blob = np.exp(-(((y - 20) / 9) ** 2 + ((x - 40) / 6) ** 2)).astype(np.float32)
    for index in range(40):
        image, mask = augment(
            blob, (blob >= 0.5).astype(np.uint8), kind, seed=seed, epoch=1, index=index
        )  # type: ignore[arg-type]
        assert (
            image.dtype == np.float32 and mask.dtype == np.uint8 and set(np.unique(mask)) <= {0, 1}
        )
        square = np.ones((3, 3), np.uint8)
        edge = cv2.dilate(mask, square) != cv2.erode(mask, square)
        assert mask.any() and not ((mask != (image >= 0.5)) & ~edge).any(), (
            "the mask is where the image says, but for its edge"
        )


def test_draws_depend_on_seed_epoch_and_index_alone(seed: int) -> None:
    image = np.random.default_rng(seed).random((32, 32), np.float32)
    mask = (image > 0.5).astype(np.uint8)

    def drawn(seed: int, epoch: int, index: int) -> bytes:
        return augment(image, mask, "paper", seed=seed, epoch=epoch, index=index)[0].tobytes()

    assert drawn(1, 2, 3) == drawn(1, 2, 3)
    assert len({drawn(1, 2, 3), drawn(2, 2, 3), drawn(1, 3, 3), drawn(1, 2, 4)}) == 4
    same = augment(image, mask, "none", seed=1, epoch=1, index=1)
    assert same[0] is image and same[1] is mask
    with pytest.raises(ValueError, match="augment must be one of"):
        augment(image, mask, "elastic", seed=0, epoch=0, index=0)  # type: ignore[arg-type]


def test_ultrasound_augmentation_keeps_the_probe_on_top(seed: int) -> None:
    rows = np.repeat(np.linspace(1, 0, 64, dtype=np.float32)[:, None], 64, axis=1)
    zero = np.zeros((64, 64), np.uint8)
    upright = [augment(rows, zero, "us", seed=seed, epoch=0, index=i)[0] for i in range(60)]
    assert all(image[:16].mean() > image[-16:].mean() + 0.4 for image in upright)
    paper = [augment(rows, zero, "paper", seed=seed, epoch=0, index=i)[0] for i in range(60)]
    turned = sum(image[:16].mean() < image[-16:].mean() for image in paper)
    assert 12 <= turned <= 48, "half of the paper's draws stand on their head"
    columns = [
        augment(rows.T.copy(), zero, "us", seed=seed, epoch=0, index=i)[0] for i in range(60)
    ]
    flipped = sum(image[:, :16].mean() < image[:, -16:].mean() for image in columns)
    assert 12 <= flipped <= 48, "left-right flips stay"


@pytest.mark.parametrize("cache", ["none", "memory", "disk"])
def test_workers_and_caches_change_nothing(cache: str, trees: Trees, tmp_path: Path) -> None:
    data = open_dataset(trees("busi", False)[0], group_duplicates=False)
    order = [7, 3, 20, 3, 29, 0]

    def batches(cache: str, workers: int, epochs: int) -> list[torch.Tensor]:
        items = SegmentationDataset(
            data,
            order,
            size=48,
            augment="paper",
            seed=5,
            cache=cache,
            cache_dir=tmp_path / "kept é",
            in_channels=3,  # type: ignore[arg-type]
        )
        found = []
        for epoch in range(epochs):
            items.set_epoch(epoch)
            found += [
                each
                for batch in DataLoader(items, 2, num_workers=workers)
                for each in (batch["image"], batch["mask"])
            ]
        return found

    wanted, found = batches("none", 0, 2), batches(cache, 2, 2)
    assert (
        len(found) == 12 and found[0].shape == (2, 3, 48, 48) and found[1].shape == (2, 1, 48, 48)
    )
    assert all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True))
    assert not torch.equal(found[0], found[6]), "epochs differ"
    again = batches(cache, 0, 2)
    assert all(torch.equal(a, b) for a, b in zip(wanted, again, strict=True))


def test_memory_is_shared_by_workers(trees: Trees) -> None:
    data = open_dataset(trees("generic", False)[0], group_duplicates=False)
    items = SegmentationDataset(data, [4, 2, 9], size=32, cache="memory")
    plain = SegmentationDataset(data, [4, 2, 9], size=32)
    list(DataLoader(items, 1, num_workers=2, multiprocessing_context="fork"))
    assert items._memory is not None and items._memory.filled.tolist() == [1, 1, 1], (
        "filled by the workers"
    )
    for index in (4, 2, 9, 7):
        for found, wanted in zip(items.pixels(index), plain.pixels(index), strict=True):
            assert np.array_equal(found, wanted)
    spawned = pickle.loads(pickle.dumps(items))
    assert spawned._memory.filled.tolist() == [0, 0, 0], (
        "a spawned process begins with an empty one of its own"
    )


def test_disk_cache_follows_the_files(trees: Trees, tmp_path: Path) -> None:
    for name in ("images", "masks"):
        (tmp_path / "data" / name).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / "data" / name / "a.png"), np.full((40, 40), 200, np.uint8))
    cache = tmp_path / "cache"

    def pixel() -> float:
        data = open_dataset(tmp_path / "data", group_duplicates=False)
        return float(
            SegmentationDataset(data, [0], size=32, cache="disk", cache_dir=cache)[0][
                "image"
            ].mean()
        )

    assert pixel() == pytest.approx(200 / 255, abs=1e-6) and pixel() == pytest.approx(
        200 / 255, abs=1e-6
    )
    (kept,) = cache.iterdir()
    kept.write_bytes(kept.read_bytes()[:50])
    assert pixel() == pytest.approx(200 / 255, abs=1e-6), "a torn cache file is made again"
    cv2.imwrite(str(tmp_path / "data" / "images" / "a.png"), np.full((40, 40), 100, np.uint8))
    assert pixel() == pytest.approx(100 / 255, abs=1e-6), "a changed image is decoded again"


def test_a_file_that_went_away_is_named(trees: Trees, tmp_path: Path) -> None:
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
        cv2.imwrite(str(tmp_path / name / "a.png"), np.full((40, 40), 200, np.uint8))
    items = SegmentationDataset(open_dataset(tmp_path, group_duplicates=False), [0], size=32)
    (tmp_path / "images" / "a.png").unlink()
    with pytest.raises(
        DataError, match=r"a\.png: no such file; the file was readable when training began"
    ):
        items[0]


def test_the_sampler_goes_on_where_it_stopped(seed: int) -> None:
    whole = ResumableSampler(20, seed=seed)
    whole.set_position(3)
    order = list(whole)
    assert sorted(order) == list(range(20))
    rest = ResumableSampler(20, seed=seed)
    rest.set_position(3, 8)
    assert list(rest) == order[8:] and len(rest) == 12
    rest.set_position(4)
    assert list(rest) != order


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 31}, "size must be at least 32"),
        ({"augment": "elastic"}, "augment must be one of"),
        ({"cache": "ram"}, "cache must be one of"),
        ({"in_channels": 2}, "in_channels must be one of"),
        ({"cache": "disk"}, "needs cache_dir"),
    ],
)
def test_bad_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SegmentationDataset([], [], **{"size": 64, **options})
