"""What a run records of its files: digests by hand, roles of every fold."""

import csv
import hashlib
import json
from pathlib import Path

from intrasense_fast.data.records import Record
from intrasense_fast.data.splits import Fold, Splits
from intrasense_fast.provenance import (
    TrainedOn,
    digests_of,
    read_trained_on,
    trained_on_text,
    write_images,
)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_every_fold_has_its_roles(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "m1", "m2"):
        (tmp_path / name).write_bytes(name.encode())
    outline = (((0.0, 0.0), (5.0, 0.0), (5.0, 5.0)),)
    records = [
        Record("a", tmp_path / "a", (tmp_path / "m1", tmp_path / "m2"), "a", "a"),
        Record("b", tmp_path / "b", (tmp_path / "m1",), "b", "b"),
        Record("c", tmp_path / "c", (), "c", "c", regions=outline),
    ]
    folds = (Fold(("a",), ("b",), ("c",)), Fold(("b",), ("c",), ("a",)))
    digests = digests_of(records)
    write_images(tmp_path / "images.csv", Splits(folds, {}), digests)
    with open(tmp_path / "images.csv", newline="", encoding="utf-8") as file:
        rows = [list(row.values()) for row in csv.DictReader(file)]
    points = hashlib.sha256(json.dumps(outline).encode()).hexdigest()
    assert rows == [
        ["a", "train", "test", sha256(b"a"), f"{sha256(b'm1')}|{sha256(b'm2')}"],
        ["b", "val", "train", sha256(b"b"), sha256(b"m1")],
        ["c", "test", "val", sha256(b"c"), points],
    ]
    (tmp_path / "trained_on.json").write_text(trained_on_text(folds[1], digests))
    trained_on = read_trained_on(tmp_path)
    assert trained_on == TrainedOn(frozenset({sha256(b"b")}), frozenset({sha256(b"c")}))
    assert [trained_on.role(sha256(name)) for name in (b"a", b"b", b"c")] == ["no", "train", "val"]
    assert read_trained_on(tmp_path / "elsewhere") is None
