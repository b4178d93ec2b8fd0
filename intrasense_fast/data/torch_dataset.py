"""A torch Dataset over images on disk, and a sampler that can go on where it stopped."""

import hashlib
import mmap
import os
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from intrasense_fast.data.images import ImageError
from intrasense_fast.data.records import DataError, Record, Sample
from intrasense_fast.data.transforms import (
    AUGMENTATIONS,
    Augmentation,
    augment,
    resize_image,
    resize_mask,
)
from intrasense_fast.files import atomic_path

Cache = Literal["none", "memory", "disk"]
CACHES: tuple[str, ...] = get_args(Cache)
# Part of every cached file's name: a new way of decoding or resizing makes new files.
_CACHE_VERSION = 2
# Of the memory cache: a float32 image and a uint8 mask.
_BYTES_A_PIXEL = 5


class SegmentationDataset(Dataset[dict[str, Any]]):
    """Resized and augmented items of a data set:
    {"image": (in_channels, size, size), "mask": (1, size, size), "index": int}.

    Image in [0, 1] and mask in {0, 1} are float32. An item depends on (seed, epoch, index) alone,
    so that any number of workers gives the same batches.

    Args:
        data: what `open_dataset` returns, or any sequence of `Sample`; with `records`, the disk
            cache can name its files.
        indices: which of its samples, in this order; `index` in an item is the sample's place in
            `data`.
        size: side in pixels of the square items, at least 32.
        augment: "paper", "us" or "none"; see `augment`.
        seed: of the augmentation.
        cache: keep decoded and resized pixels in "memory" (5 bytes a pixel, shared by workers) or
            on "disk"; "none" decodes every time.
        cache_dir: folder of the disk cache; needed with cache="disk".
        in_channels: 1, or 3 equal channels.

    Raises:
        ValueError: an argument outside its range.
        DataError: from an item whose file can no longer be read, or a cache folder that cannot be
            written.
    """

    def __init__(
        self,
        data: Sequence[Sample],
        indices: Sequence[int],
        *,
        size: int,
        augment: Augmentation = "none",
        seed: int = 0,
        cache: Cache = "none",
        cache_dir: str | os.PathLike[str] | None = None,
        in_channels: int = 1,
    ) -> None:
        for name, value, allowed in (
            ("augment", augment, AUGMENTATIONS),
            ("cache", cache, CACHES),
            ("in_channels", in_channels, (1, 3)),
        ):
            if value not in allowed:
                raise ValueError(
                    f"SegmentationDataset: {name} must be one of {allowed}, got {value!r}"
                )
        if size < 32:
            raise ValueError(f"SegmentationDataset: size must be at least 32, got {size}")
        if cache == "disk" and cache_dir is None:
            raise ValueError(
                'SegmentationDataset: cache="disk" needs cache_dir, a folder that can be written'
            )
        self.data = data
        self.indices = list(indices)
        self.size = size
        self.augment = augment
        self.seed = seed
        self.cache = cache
        self.cache_dir = None if cache_dir is None else Path(cache_dir)
        self.in_channels = in_channels
        # Shared with worker processes, which are forked anew every epoch and must see it.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._memory = _Memory(self.indices, size) if cache == "memory" else None

    def __len__(self) -> int:
        return len(self.indices)

    def set_epoch(self, epoch: int) -> None:
        """Draw the augmentation of this epoch from now on."""
        self._epoch.fill_(epoch)

    def __getitem__(self, position: int) -> dict[str, Any]:
        index = self.indices[position]
        image, mask = augment(
            *self.pixels(index), self.augment, seed=self.seed, epoch=int(self._epoch), index=index
        )
        pixels = torch.from_numpy(np.ascontiguousarray(image)).unsqueeze(0)
        target = torch.from_numpy(np.ascontiguousarray(mask)).float().unsqueeze(0)
        return {"image": pixels.repeat(self.in_channels, 1, 1), "mask": target, "index": index}

    def pixels(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image float32 and mask uint8, both (size, size), of sample `index` of `data`, before
        augmentation."""
        if self._memory is None:
            return self._from_disk(index) if self.cache == "disk" else self._resized(index)
        return self._memory.get(index) or self._memory.put(index, self._resized(index))

    def _resized(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        try:
            sample = self.data[index]
        except (ImageError, OSError) as error:
            raise DataError(
                f"{error}; the file was readable when training began: restore it or leave it out"
            ) from error
        return resize_image(sample.image, self.size), resize_mask(sample.mask, self.size)

    def _reading(self) -> str:
        """What pixels depend on beside their file: levels, and the rule of the masks."""
        options, masks = (getattr(self.data, name, None) for name in ("options", "masks"))
        rule = masks.rule() if masks is not None else None
        return f"{getattr(options, 'levels', None)} {rule and (rule.thresholds, rule.values)}"

    def _from_disk(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        folder = self.cache_dir
        records = getattr(self.data, "records", None)
        if folder is None or records is None:
            raise DataError(
                'cache="disk" needs a data set of files (open_dataset) and a folder; '
                'use cache="memory"'
            )
        path = folder / f"{_fingerprint(records[index], self.size, self._reading())}.npz"
        if path.exists():
            try:
                with np.load(path) as stored:
                    return stored["image"], stored["mask"]
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
                path.unlink(missing_ok=True)
        image, mask = self._resized(index)
        try:
            with atomic_path(path) as temporary:
                np.savez(temporary, image=image, mask=mask)
        except OSError as error:
            raise DataError(
                f"{folder}: the cache cannot be written ({error.strerror}); choose another "
                f"--cache-dir"
            ) from error
        return image, mask


def check_memory(images: int, size: int) -> None:
    """Refuse cache="memory" for more pixels than the machine has memory.

    Raises:
        DataError: the message says what to do.
    """
    needed = images * (_BYTES_A_PIXEL * size * size + 1)
    try:
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return
    if needed > there:
        raise DataError(
            f"--cache memory needs {needed / 1e9:.1f} GB for {images} images of {size} x {size}, "
            f"this machine has {there / 1e9:.1f}: use --cache disk or none, or a smaller --size"
        )


class _Memory:
    """Pixels of the images at `indices`, in memory that worker processes share, so that each image
    is decoded once.

    Anonymous memory rather than torch's, which lies in /dev/shm: containers keep that small. A page
    is taken when it is filled.
    """

    def __init__(self, indices: Sequence[int], size: int) -> None:
        self.indices, self.size = sorted(set(indices)), size
        self.place = {index: place for place, index in enumerate(self.indices)}
        count, pixels = len(self.indices), size * size
        self.buffer = mmap.mmap(-1, max(1, count * (5 * pixels + 1)))
        bytes_ = np.frombuffer(self.buffer, np.uint8)
        self.images = bytes_[: 4 * count * pixels].view(np.float32).reshape(count, size, size)
        self.masks = bytes_[4 * count * pixels : 5 * count * pixels].reshape(count, size, size)
        self.filled = bytes_[5 * count * pixels :]

    def __reduce__(self) -> tuple[type["_Memory"], tuple[Sequence[int], int]]:
        """A process that was spawned, not forked, begins with an empty one of its own."""
        return _Memory, (self.indices, self.size)

    def get(self, index: int) -> tuple[np.ndarray, np.ndarray] | None:
        place = self.place.get(index)
        return (
            None
            if place is None or not self.filled[place]
            else (self.images[place], self.masks[place])
        )

    def put(self, index: int, pair: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        place = self.place.get(index)
        if place is not None:
            self.images[place], self.masks[place] = pair
            # Last, so that another process never reads half an image; two that fill it write the
            # same.
            self.filled[place] = 1
        return pair


def _fingerprint(record: Record, size: int, reading: str) -> str:
    """Changes with a file of the record, its regions, the size, how files are read, and the
    cache."""
    digest = hashlib.sha256(f"{_CACHE_VERSION} {size} {reading} {record.regions}".encode())
    for path in (record.image, *record.masks):
        status = path.stat()
        digest.update(
            f"{path.resolve()} {status.st_size} {status.st_mtime_ns}".encode(
                errors="surrogateescape"
            )
        )
    return digest.hexdigest()[:32]


class ResumableSampler(Sampler[int]):
    """A random order of 0 ... length - 1 that depends on (seed, epoch) alone and can begin in the
    middle of an epoch.

    Args:
        length: how many items.
        seed: of the order.
    """

    def __init__(self, length: int, *, seed: int = 0) -> None:
        self.length = length
        self.seed = seed
        self.epoch = 0
        self.start = 0

    def set_position(self, epoch: int, start: int = 0) -> None:
        """Go to `epoch`; the first `start` items of the next pass are left out."""
        self.epoch, self.start = epoch, start

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.length)
        yield from (int(index) for index in order[self.start :])

    def __len__(self) -> int:
        return self.length - self.start
