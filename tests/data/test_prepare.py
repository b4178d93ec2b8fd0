"""`prepare`: a clean copy that reads back the same, says where every file came from, and is whole
or not there."""

import csv
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from intrasense_fast.cli import main
from intrasense_fast.data import open_dataset
from intrasense_fast.data.phantom import write_phantom
from intrasense_fast.data.prepare import prepare
from intrasense_fast.data.records import DataError
from intrasense_fast.data.tables import read_rows
from intrasense_fast.data.verify import verify
from intrasense_fast.errors import UsageError

Trees = Callable[[str, bool], tuple[Path, list]]


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    "layout", ["busi", "unext", "dataset-b", "ddti", "ddti-masks", "bus-bra", "generic"]
)
def test_original_size_reads_back_the_same(layout: str, trees: Trees, tmp_path: Path) -> None:
    root, _ = trees(layout, False)
    copy = prepare(root, tmp_path / "copy é", None)
    source = open_dataset(root)
    assert len(copy) == len(source) and not copy.problems and copy.layout == "unext"
    assert not verify(tmp_path / "copy é").errors
    for before, after in zip(source, copy, strict=True):
        assert np.array_equal(before.mask, after.mask)
        assert np.abs(before.image - after.image).max() <= 0.5 / 255 + 1e-6
        assert (after.name, after.label, after.group) == (before.name, before.label, before.group)
    for record, row in zip(source.records, rows(tmp_path / "copy é" / "manifest.csv"), strict=True):
        assert row["source"] == str(record.image)
        assert row["source_sha256"] == hashlib.sha256(record.image.read_bytes()).hexdigest()
        assert len(row["masks_sha256"].split("|") if row["masks"] else []) == len(record.masks)


def test_square_copy_keeps_every_lesion(trees: Trees, tmp_path: Path) -> None:
    root, _ = trees("busi", False)
    out = tmp_path / "copy"
    assert main(["prepare", str(root), "--out", str(out), "--size", "64"]) == 0
    for before, after in zip(open_dataset(root), open_dataset(out), strict=True):
        assert after.image.shape == after.mask.shape == (64, 64)
        assert cv2.connectedComponents(before.mask)[0] == 1 or after.mask.any()
        assert abs(before.mask.mean() - after.mask.mean()) < 0.01
        assert abs(float(before.image.mean()) - float(after.image.mean())) < 0.02
    manifest = {row["name"]: row for row in rows(out / "manifest.csv")}
    assert (
        "3 masks merged" in manifest["benign (5)"]["repaired"]
        and "RGB image read as grey" in manifest["benign (5)"]["repaired"]
    )
    assert "resized with nearest neighbour" in manifest["benign (8)"]["repaired"]
    assert manifest["malignant (1)"]["group"] == "benign (2)"
    listed = [row["message"] for row in rows(out / "problems.csv")]
    assert any("conflict" in message for message in listed)


def test_errors_stop_it_and_skip_bad_lists_them(
    trees: Trees, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, planted = trees("busi", True)
    assert main(["prepare", str(root), "--out", str(tmp_path / "copy")]) == 2
    shown = capsys.readouterr().err
    assert "cannot be used" in shown and "--skip-bad" in shown and not list(tmp_path.iterdir())
    assert main(["prepare", str(root), "--out", str(tmp_path / "copy"), "--skip-bad"]) == 0
    shown = capsys.readouterr().out
    problems = rows(tmp_path / "copy" / "problems.csv")
    for fault in (fault for fault in planted if fault.level == "error"):
        assert any(
            str(root / fault.file) in row["file"] and fault.says in row["message"]
            for row in problems
        ), fault
        assert str(root / fault.file) in shown
    names = {record.name for record in open_dataset(tmp_path / "copy").records}
    assert len(names) == 25 and not names & {
        "benign (9)",
        "benign (10)",
        "benign (11)",
        "malignant (6)",
        "malignant (7)",
    }


def test_nothing_is_overwritten_and_no_half_copy_stays(
    trees: Trees,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root, _ = trees("generic", False)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="in use, and nothing is overwritten"):
        prepare(root, tmp_path / "used")
    with pytest.raises(DataError, match="lies inside the data set"):
        prepare(root, root / "copy")
    with pytest.raises(DataError, match="size 0"):
        prepare(root, tmp_path / "copy", 0)
    for size in ("0", "big"):
        assert main(["prepare", str(root), "--out", str(tmp_path / "copy"), "--size", size]) == 2

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("intrasense_fast.data.prepare.write_png", full)
    assert main(["prepare", str(root), "--out", str(tmp_path / "copy")]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert [entry.name for entry in tmp_path.iterdir()] == ["used"]
    assert (tmp_path / "used" / "mine.txt").read_text() == "mine"


def test_split_lists_come_along(trees: Trees, tmp_path: Path) -> None:
    root, _ = trees("unext", False)
    before, after = open_dataset(root), prepare(root, tmp_path / "copy", 64)
    kept = set(record.name for record in before.records)
    assert after.published == {
        name: tuple(m for m in members if m in kept) for name, members in before.published.items()
    }


def test_a_near_duplicate_whose_name_is_no_utf8_stays_in_its_group(tmp_path: Path) -> None:
    root = write_phantom(tmp_path / "data", 6, size=96, seed=3)
    odd = os.fsdecode(b"caf\xe9.png")
    image = cv2.imread(str(root / "images" / "phantom_0001.png"), 0)
    brighter = cv2.imencode(".png", np.clip(image * 1.1 + 12, 0, 255).astype(np.uint8))[1].tobytes()
    try:
        (root / "images" / odd).write_bytes(brighter)
        (root / "masks" / odd).write_bytes((root / "masks" / "phantom_0001.png").read_bytes())
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    assert main(["prepare", str(root), "--out", str(tmp_path / "copy"), "--size", "64"]) == 0
    assert sorted(file.name for file in (tmp_path / "copy" / "images").iterdir())[0] == "caf%E9.png"
    (row,) = (row for row in rows(tmp_path / "copy" / "manifest.csv") if row["name"] == "caf%E9")
    assert row["source"] == str(root / "images" / "caf%E9.png")
    groups = {
        record.name: record.group
        for record in open_dataset(tmp_path / "copy", group_duplicates=False).records
    }
    assert (
        len(groups) == 7
        and groups["caf%E9"] == groups["phantom_0001"]
        and len(set(groups.values())) == 6
    )


def test_names_with_line_ends_and_control_characters_read_back(tmp_path: Path, seed: int) -> None:
    names = ("b\nline", "a\x1b[31mred", "=cmd", "c\u2028d", "plain")
    rng = np.random.default_rng(seed)
    for folder in ("images", "masks"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    for name in names:
        mask = np.zeros((20, 24), np.uint8)
        mask[4:9, 5:15] = 255
        image = rng.integers(0, 255, mask.shape).astype(np.uint8)
        for folder, pixels in (("images", image), ("masks", mask)):
            file = tmp_path / "data" / folder / f"{name}.png"
            file.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    copy = prepare(tmp_path / "data", tmp_path / "out", None)
    assert {record.name for record in copy.records} == set(names) and not copy.problems
    assert {row["name"] for row in rows(tmp_path / "out" / "manifest.csv")} == set(names)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_tables_with_any_line_ends(end: str, tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    lines = ["name,label,Patient ID", "a,benign,1", '"b' + end + 'c","x, y",2', "", "d,,3"]
    file.write_bytes(end.join(lines).encode())
    found, problems = read_rows(file)
    assert not problems and [row["patient_id"] for row in found] == ["1", "2", "3"]
    assert found[1] == {"name": f"b{end}c", "label": "x, y", "patient_id": "2"}
