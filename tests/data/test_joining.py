"""Tables and lists: names written otherwise, columns of every name, and groups that never part."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from intrasense_fast.cli import main
from intrasense_fast.data import DataError, open_dataset, read_dataset
from intrasense_fast.data.joining import join
from intrasense_fast.data.splits import read_splits
from intrasense_fast.data.tables import attach


def tree(root: Path, names: list[str]) -> Path:
    rng = np.random.default_rng(1)
    mask = np.zeros((32, 32), np.uint8)
    mask[4:20, 6:22] = 255
    for name in names:
        for folder, pixels in (
            ("images", rng.integers(0, 256, (32, 32), np.uint8)),
            ("masks", mask),
        ):
            path = root / folder / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), pixels)
    return root


@pytest.mark.parametrize(
    ("entries", "names", "wanted"),
    [
        (["a", "b"], ["a", "b"], ["a", "b"]),
        (["a.png", "B.JPG"], ["a", "b"], ["a", "b"]),
        (["images/a.png", "x\\b.png"], ["a", "b"], ["a", "b"]),
        (["a"], ["sub/a"], ["sub/a"]),
        (["a"], ["one/a", "two/a"], [None]),
        (["two/a"], ["one/a", "two/a"], ["two/a"]),
        (["1", "12"], ["000001", "000012"], ["000001", "000012"]),
        (["1", "01"], ["1", "001"], ["1", "001"]),
        (["01"], ["1", "001"], [None]),
        (["A", "a"], ["a"], [None, "a"]),
        (["Caf\u00e9"], ["cafe\u0301"], [None]),
        (["bus_1-l"], ["bus_0001-l"], ["bus_0001-l"]),
        (["10"], ["1"], [None]),
        (["c"], ["a"], [None]),
    ],
)
def test_names_meet_only_where_it_is_unambiguous(
    entries: list[str], names: list[str], wanted: list[str | None]
) -> None:
    joined = join(entries, names)
    assert joined.names == wanted
    assert joined.lost == [e for e, name in zip(entries, wanted, strict=True) if name is None]
    assert joined.bare == [name for name in names if name not in wanted]
    assert all(entry != name for entry, name in joined.loose)


@pytest.mark.parametrize(
    "header",
    ["Image Name,Patient ID,Diagnosis", "filename;subject_id;class", "ID,Patient,Pathology",
     "image\tcase\tlabel", "File,PatientID,Type", "img_id,Subject-ID,tirads"],
)  # fmt: skip
def test_common_column_names_are_understood(header: str, tmp_path: Path) -> None:
    root = tree(tmp_path, ["a", "b", "c"])
    separator = next(each for each in ",;\t" if each in header)
    cells = (("a.png", "P1", "benign"), ("b.png", "P1", "benign"), ("C", "P2", "x"))
    rows = [header, *(separator.join(row) for row in cells)]
    (root / "labels.csv").write_text("\n".join(rows))
    data = open_dataset(root, group_duplicates=False)
    assert [record.group for record in data.records] == ["P1", "P1", "P2"]
    assert [record.label for record in data.records] == ["benign", "benign", "x"]
    (line,) = data.joins
    assert "3 rows, 3 of 3 images have one" in line and "('C' = 'c')" in line


def test_of_two_name_columns_the_one_that_joins(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("id,image,label,age\n7,a,x,30\n8,b,y,40\n")
    attached = attach(tmp_path / "t.csv", ["a", "b"])
    assert {name: identity.label for name, identity in attached.identities.items()} == {
        "a": "x", "b": "y"
    }  # fmt: skip
    assert "joined by image" in attached.lines[0] and "not understood: id, age" in attached.lines[0]


def test_rows_and_images_that_do_not_meet_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tree(tmp_path, ["a", "b", "c"])
    (root / "labels.csv").write_text("name,label\na,benign\nz,benign\n")
    (root / "patients.csv").write_text("name,age\n")
    assert main(["verify", str(root)]) == 0
    shown = capsys.readouterr().out
    assert "1 rows name no image, or several: z" in shown
    assert "2 images have no row, their class is unknown: b, c" in shown
    assert (
        "labels.csv: 2 rows, 1 of 3 images have one" in shown and "patients.csv: not read" in shown
    )
    (root / "labels.csv").write_text("name,label\nx,benign\nz,benign\n")
    assert main(["verify", str(root)]) == 1
    assert "none of its 2 rows names an image: x, z; the images are a, b, c" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize("column", ["Patient ID", "group"])
@pytest.mark.parametrize("how", ["no row", "empty cell"])
def test_patients_of_a_part_of_the_images_are_an_error(
    column: str, how: str, tmp_path: Path
) -> None:
    root = tree(tmp_path, ["a", "b", "c"])
    last = "" if how == "no row" else "c,\n"
    (root / "labels.csv").write_text(f"name,{column}\na,1\nb,1\n{last}")
    with pytest.raises(DataError, match=r"c\.png: no patient or group in labels\.csv"):
        open_dataset(root)
    kept = open_dataset(root, skip_bad=True, group_duplicates=False)
    assert [record.group for record in kept.records] == ["1", "1"]


def test_a_table_of_a_folder_above_that_names_other_images(tmp_path: Path) -> None:
    root = tree(tmp_path / "set", ["a", "b"])
    (root / "images").rename(root / "original")
    (root / "masks").rename(root / "GT")
    (tmp_path / "labels.csv").write_text("name,label\nx,benign\n")
    data = read_dataset(root)
    assert data.layout == "dataset-b" and not data.problems and "not used" in data.joins[0]
    (tmp_path / "labels.csv").write_text("name,label\na,benign\nb,malignant\n")
    assert [record.label for record in read_dataset(root).records] == ["benign", "malignant"]


def test_lists_and_folds_join_alike(tmp_path: Path) -> None:
    names = ["0001", "0002", "0003", "0010"]
    arguments = (names, names, ["x"] * 4)
    (tmp_path / "train.txt").write_text("images\\1.png\n0002\n")
    (tmp_path / "val.txt").write_text("3.PNG\n10\n")
    (fold,) = read_splits(tmp_path, *arguments).folds
    assert fold.train == ("0001", "0002") and fold.val == ("0003", "0010")
    (tmp_path / "val.txt").write_text("3.PNG\n11\n")
    with pytest.raises(DataError, match=r"1 names are not in the data.*: 11; images.*0010"):
        read_splits(tmp_path, *arguments)
    (tmp_path / "folds.csv").write_text("Image Name,Fold\n1,1\n2,1\n3,2\n10,2\n")
    folds = read_splits(tmp_path / "folds.csv", *arguments).folds
    assert [fold.test for fold in folds] == [("0001", "0002"), ("0003", "0010")]


@pytest.mark.parametrize(
    "text", ["[" * 5000 + "]" * 5000, '{"folds": 1' + "0" * 5000 + "}", "\xff"]
)
def test_a_splits_file_of_any_fault_is_one_failure(text: str, tmp_path: Path) -> None:
    (tmp_path / "splits.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"splits\.json: is no splits\.json"):
        read_splits(tmp_path / "splits.json", ["a"], ["a"], ["x"])
