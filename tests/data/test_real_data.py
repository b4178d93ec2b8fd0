"""BUSI and BUS-BRA as they lie beside the checkout: the published counts. They are in no
repository."""

from pathlib import Path

import pytest

from intrasense_fast.data import read_dataset
from intrasense_fast.data.inputs import list_inputs

DATA = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
PUBLISHED = {
    "Dataset_BUSI_with_GT": {
        "layout": "busi",
        "images": "780",
        "masks": "798",
        "images with several masks": "17",
        "classes": "benign 437, malignant 210, normal 133",
        "problems": "0 errors, 0 warnings",
    },
    "BUSBRA": {
        "layout": "bus-bra",
        "images": "1875",
        "masks": "1875",
        "groups": "1064",
        "classes": "benign 1268, malignant 607",
        "problems": "0 errors, 0 warnings",
    },
}


def folder(name: str) -> Path:
    if not (DATA / name).is_dir():
        pytest.skip(f"the real data set {name} is not in ../shared/data")
    return DATA / name


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_are_the_published_ones(name: str) -> None:
    data = read_dataset(folder(name))
    facts = dict(data.facts())
    assert {key: facts[key] for key in PUBLISHED[name]} == PUBLISHED[name]
    rule = data.masks.rule()
    assert data.masks.problem is None and rule.describe() == "0, 255 (uint8): lesion above 0"


@pytest.mark.parametrize("name", PUBLISHED)
def test_predict_sees_the_same_images(name: str) -> None:
    inputs = list_inputs(folder(name))
    assert len(inputs.images) == int(PUBLISHED[name]["images"]) and not inputs.problems
    assert len(inputs.masks) == int(PUBLISHED[name]["masks"])


def test_the_patients_of_bus_bra_and_their_folds() -> None:
    data = read_dataset(folder("BUSBRA"))
    assert "1875 rows, 1875 of 1875 images have one; joined by id" in data.joins[0]
    assert "patient from case" in data.joins[0]
    for folds in (5, 10):
        parts = [data.published[f"{folds}-fold-cv/{i + 1}"] for i in range(folds)]
        assert sum(map(len, parts)) == len({name for part in parts for name in part}) == 1875
