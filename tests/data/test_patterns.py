"""Folders that no layout fits: --pairs, and class folders."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from intrasense_fast.cli import main
from intrasense_fast.data import DataError, ReadingOptions, open_dataset, read_dataset
from intrasense_fast.data.inputs import list_inputs
from intrasense_fast.data.patterns import check_pattern, compiled
from intrasense_fast.errors import UsageError

Trees = Callable[[str, bool], tuple[Path, list]]


def write(root: Path, name: str, value: int) -> None:
    pixels = np.random.default_rng(len(name)).integers(0, 256, (24, 24), np.uint8)
    if value:
        pixels = np.zeros((24, 24), np.uint8)
        pixels[value : value + 6, value : value + 6] = 255
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), pixels)


@pytest.mark.parametrize(
    ("pattern", "text", "fields"),
    [
        ("Image_{id}.png", "Image_7.png", {"id": "7"}),
        ("Image_{id}.png", "sub/Image_7.png", None),
        ("**/Image_{id}.png", "a/b/Image_7.png", {"id": "7"}),
        ("{label}/{id}/scan.png", "benign/12/scan.png", {"label": "benign", "id": "12"}),
        ("{id}/{id}_mask*.png", "3/3_mask_2.png", {"id": "3"}),
        ("{id}/{id}_mask*.png", "3/4_mask.png", None),
        ("a+(1)_{id}.png", "a+(1)_x.png", {"id": "x"}),
    ],
)
def test_what_a_pattern_matches(pattern: str, text: str, fields: dict | None) -> None:
    match = compiled(pattern).fullmatch(text)
    assert (match.groupdict() if match else None) == fields


def test_patterns_that_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for pattern, message in (("a.png", "{id} is missing"), ("{id}{x}.png", "{x} is unknown")):
        with pytest.raises(UsageError, match=message):
            check_pattern(pattern, "image")
    write(tmp_path, "a.png", 0)
    assert main(["verify", str(tmp_path), "--pairs", "b.png", "{id}.png"]) == 2
    assert "--pairs: the image pattern 'b.png' must hold {id}" in capsys.readouterr().err
    assert main(["verify", str(tmp_path), "--pairs", "I{id}.png", "{id}.png"]) == 2
    assert "no picture matches 'I{id}.png'; there are a.png" in capsys.readouterr().err


def test_pairs_with_folders_labels_and_several_masks(tmp_path: Path) -> None:
    for label in ("benign", "malignant"):
        for i in (1, 2):
            write(tmp_path, f"{label}/Image_{i}.png", 0)
            write(tmp_path, f"{label}/seg/mask_{i}_0.png", 2)
            write(tmp_path, f"{label}/seg/mask_{i}_1.png", 10)
    write(tmp_path, "other.png", 0)
    pairs = ("{label}/Image_{id}.png", "{label}/seg/mask_{id}_*.png")
    data = open_dataset(tmp_path, options=ReadingOptions(pairs=pairs), group_duplicates=False)
    assert [record.name for record in data.records] == [
        "benign/1", "benign/2", "malignant/1", "malignant/2"
    ]  # fmt: skip
    assert {record.label for record in data.records} == {"benign", "malignant"}
    assert all(len(record.masks) == 2 for record in data.records) and data.layout == "pairs"
    assert all(sample.mask.sum() == 2 * 36 for sample in data)
    assert "1 pictures match neither pattern: other.png" in data.joins[-1]
    inputs = list_inputs(tmp_path, pairs)
    assert [str(relative) for relative, _ in inputs.images] == [
        f"{label}/Image_{i}.png" for label in ("benign", "malignant") for i in (1, 2)
    ]


def test_what_patterns_leave_alone_or_confuse_is_named(tmp_path: Path) -> None:
    for name, value in (
        ("Image_1.png", 0),
        ("Image_2.png", 0),
        ("mask_1.png", 3),
        ("mask_3.png", 3),
    ):
        write(tmp_path, name, value)
    pairs = ReadingOptions(pairs=("Image_{id}.png", "mask_{id}.png"))
    problems = {
        Path(p.file).name: p.message for p in read_dataset(tmp_path, options=pairs).problems
    }
    assert "image without mask" in problems["Image_2.png"]
    assert "mask without image" in problems["mask_3.png"]
    for folder in ("a", "b"):
        write(tmp_path, f"{folder}/Image_1.png", 0)
    twice = ReadingOptions(pairs=("**/Image_{id}.png", "mask_{id}.png"))
    messages = [p.message for p in read_dataset(tmp_path, options=twice).problems]
    assert sum("the same {id} as Image_1.png" in message for message in messages) == 2
    with pytest.raises(DataError, match="leave --layout busi out"):
        read_dataset(tmp_path, "busi", twice)


def test_the_message_that_finds_no_layout_shows_how(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in (1, 2):
        write(tmp_path, f"Image_{i}.png", 0)
        write(tmp_path, f"mask_{i}.png", 3)
    assert main(["verify", str(tmp_path)]) == 2
    assert "--pairs 'Image_{id}.png' 'mask_{id}.png'" in capsys.readouterr().err
    arguments = ["verify", str(tmp_path), "--pairs", "Image_{id}.png", "mask_{id}.png"]
    assert main(arguments) == 0
    assert "layout                     pairs" in capsys.readouterr().out


def test_class_folders(trees: Trees) -> None:
    data = open_dataset(trees("class-folders", False)[0], group_duplicates=False)
    assert len(data) == 30 and data.layout == "class-folders"
    for record in data.records:
        number = int(record.name.split("/")[1])
        assert record.label == record.name.split("/")[0] == ("benign", "malignant")[number % 2]
        assert record.group == f"P{(number + 1) // 2}"
    for sample in data:
        assert sample.mask.shape == sample.image.shape and sample.mask.any()
    assert "'1' = 'malignant/0001'" in data.joins[0] and "not understood: scanner" in data.joins[0]


def test_parts_of_a_split_are_no_classes(tmp_path: Path) -> None:
    for part, count in (("train", 3), ("val", 2), ("test", 1)):
        for i in range(count):
            write(tmp_path, f"{part}/images/{i}.png", 0)
            write(tmp_path, f"{part}/masks/{i}.png", 3)
    data = read_dataset(tmp_path)
    assert {record.label for record in data.records} == {""} and not data.problems
    assert {name: len(names) for name, names in data.published.items()} == {
        "train": 3, "val": 2, "test": 1
    }  # fmt: skip


def test_a_single_folder_is_opened_as_before(tmp_path: Path) -> None:
    write(tmp_path, "Dataset/images/a.png", 0)
    write(tmp_path, "Dataset/masks/a.png", 3)
    data = read_dataset(tmp_path)
    assert data.layout == "generic" and [record.name for record in data.records] == ["a"]
