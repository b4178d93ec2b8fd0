"""Images per second that the loader gives: decoded, from memory, from disk, with workers; `verify`.

pytest benchmarks/bench_loading.py --benchmark-only
"""

import pytest
from torch.utils.data import DataLoader

from benchmarks.common import QUICK
from intrasense_fast.data import open_dataset
from intrasense_fast.data.fake import write_tree
from intrasense_fast.data.torch_dataset import SegmentationDataset
from intrasense_fast.data.verify import verify

COUNT, SIDE, TRAINED = (30, 96, 64) if QUICK else (60, 500, 256)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A fake BUSI with pictures about as large as the real ones."""
    root = tmp_path_factory.mktemp("loading") / "busi"
    write_tree("busi", root, COUNT, size=SIDE)
    return root


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cache", ["none", "memory", "disk"])
@pytest.mark.parametrize("augment", ["none", "paper"])
def test_an_epoch(benchmark, folder, tmp_path, augment, cache, workers):
    data = open_dataset(folder, group_duplicates=False)
    items = SegmentationDataset(
        data, range(COUNT), size=TRAINED, augment=augment, cache=cache, cache_dir=tmp_path
    )
    loader = DataLoader(items, 4, num_workers=workers)

    def epoch():
        return sum(len(batch["image"]) for batch in loader)

    benchmark.group = (
        f"loading {COUNT} images of about {SIDE} x {SIDE} at {TRAINED}, augment {augment}"
    )
    assert epoch() == COUNT
    benchmark.pedantic(epoch, rounds=1 if QUICK else 5)
    report(benchmark, cache=cache, workers=workers)


def test_verify(benchmark, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    benchmark.group = f"verify {COUNT} images of about {SIDE} x {SIDE}"
    assert not benchmark.pedantic(lambda: verify(folder), rounds=1 if QUICK else 3).errors
    report(benchmark)


def report(benchmark, **info):
    if not benchmark.disabled:
        benchmark.extra_info.update(info, images_per_second=COUNT / benchmark.stats.stats.median)
