"""A study folder without training: fabricated metrics, and checkpoints of tiny untrained
networks."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from intrasense_fast.data.layouts import open_dataset
from intrasense_fast.data.phantom import write_phantom
from intrasense_fast.data.splits import make_splits
from intrasense_fast.metrics import image_metrics
from intrasense_fast.networks import build_network, save_network
from intrasense_fast.report.tables import write_csv

IMAGES, FOLDS, SEEDS = 18, 3, (0, 1)
# Label -> by how many pixels its predictions miss.
LABELS = {"unet": 3, "narrow": 6}
OPTIONS = {"unet": {"widths": [4, 4, 4, 4, 4]}, "narrow": {"widths": [2, 2, 2, 2, 2]}}


@pytest.fixture(scope="session")
def fabricated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete compare of two networks: three folds, two seeds, 18 phantoms in pairs."""
    return fabricate(tmp_path_factory.mktemp("study") / "out")


@pytest.fixture
def study_copy(fabricated: Path, tmp_path: Path) -> Callable[[], Path]:
    """Copies of the folder that a test may change."""
    import shutil

    return lambda: Path(shutil.copytree(fabricated, tmp_path / "copy"))


def fabricate(out: Path) -> Path:
    write_phantom(out / "data", IMAGES, size=64, seed=5, normal_fraction=0.12)
    data = open_dataset(out / "data", "generic", group_duplicates=False)
    names = [record.name for record in data.records]
    groups = [f"pair {i // 2}" for i in range(len(names))]
    splits = make_splits(names, groups, ["x"] * len(names), folds=FOLDS, seed=0)
    splits.save(out / "splits.json")
    images = zip(names, groups, strict=True)
    write_csv(out / "images.csv", [{"name": name, "group": group} for name, group in images])
    rows = [
        {"name": label, "network": "unet", "options": OPTIONS[label], "encoder": "scratch"}
        | {"parameters": 1000}
        for label in LABELS
    ]
    record = {"kind": "compare", "data": None, "layout": "phantom", "recipe": "paper"}
    record |= {"rows": rows, "seeds": list(SEEDS), "folds": list(range(FOLDS))}
    (out / "study.json").write_text(json.dumps(record | {"reference": "unet"}))
    samples = {sample.name: sample for sample in data}
    times = {}
    for label, miss in LABELS.items():
        torch.manual_seed(0)
        net = build_network("unet", 1, 1, **OPTIONS[label])
        for seed in SEEDS:
            for fold in range(FOLDS):
                cell = out / "cells" / f"{label}-s{seed}-f{fold}"
                cell.mkdir(parents=True)
                save_network(net, cell / "best", extra={"image_size": 32})
                rng = np.random.default_rng((seed, fold, miss))
                measured = []
                for name in splits.folds[fold].test:
                    mask = samples[name].mask
                    prediction = np.roll(mask, int(rng.integers(1, miss + 1)), 1)
                    who = {"role": "test", "name": name, "case": name, "label": "benign"}
                    measured.append(who | image_metrics(prediction, mask))
                write_csv(cell / "per_image.csv", measured)
                (cell / "summary.json").write_text("{}")
                times[cell.name] = 90.0
    (out / "times.json").write_text(json.dumps(times))
    return out
