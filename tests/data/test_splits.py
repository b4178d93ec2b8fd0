"""Splits: groups never part, strata spread, the same whatever the order, and refused where they do not fit."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest

from intrasense_fast.data.records import DataError
from intrasense_fast.data.splits import Fold, Splits, fold_table, make_splits, read_splits

# The digest below must come out on every Python and every numpy.
FROZEN = "6073fbe024c965fe33faac86ac60603bfdfbae45b832ab55d9c4827433ed626b"


def tree(rng: random.Random) -> tuple[list[str], list[str], list[str]]:
    """Names, groups and strata of a random data set: groups of 1 to 6 images, a few large ones, uneven classes."""
    names, groups, strata = [], [], []
    for group in range(rng.randint(8, 40)):
        label = rng.choice(["benign", "benign", "malignant", "normal"])
        for _ in range(rng.choice([1, 1, 1, 2, 3, 6])):
            names.append(f"{label} ({len(names)})")
            groups.append(f"g{group}")
            strata.append(f"{label}, {rng.choice(['small', 'large'])}")
    return names, groups, strata


def test_no_group_parts_in_a_thousand_random_trees(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(1000):
        names, groups, strata = tree(rng)
        folds = rng.choice([0, 2, 3, 5])
        splits = make_splits(names, groups, strata, folds=folds, val_fraction=rng.uniform(0.1, 0.4), seed=rng.randrange(1000))
        group = dict(zip(names, groups, strict=True))
        assert len(splits.folds) == max(1, folds)
        tested: Counter[str] = Counter()
        for fold in splits.folds:
            roles = [{group[name] for name in role} for role in fold]
            assert not (roles[0] & roles[1] or roles[0] & roles[2] or roles[1] & roles[2])
            assert sorted(name for role in fold for name in role) == sorted(names)
            assert fold.train and fold.val
            tested.update(fold.test)
        if folds:
            assert set(tested) == set(names) and set(tested.values()) == {1}
        splits.check(names)


def test_order_of_the_files_does_not_matter(seed: int) -> None:
    rng = random.Random(seed)
    rows = list(zip(*tree(rng), strict=True))
    wanted = make_splits(*zip(*rows, strict=True), folds=4, seed=7)  # type: ignore[arg-type]
    for _ in range(5):
        rng.shuffle(rows)
        found = make_splits(*zip(*rows, strict=True), folds=4, seed=7)  # type: ignore[arg-type]
        assert found.folds == wanted.folds and found.digest == wanted.digest
    other = make_splits(*zip(*rows, strict=True), folds=4, seed=8)  # type: ignore[arg-type]
    assert other.digest != wanted.digest


def test_same_digest_on_every_version() -> None:
    names = [f"case_{i}" for i in range(200)]
    splits = make_splits(names, [f"g{i // 3}" for i in range(200)], [f"s{i % 5}" for i in range(200)], folds=5, seed=3)
    assert splits.digest == FROZEN


def test_strata_spread_evenly() -> None:
    names = [f"i{i}" for i in range(600)]
    strata = ["benign"] * 400 + ["malignant"] * 200
    splits = make_splits(names, names, strata, folds=5, val_fraction=0.2)
    kind = dict(zip(names, strata, strict=True))
    for fold in splits.folds:
        assert Counter(kind[name] for name in fold.test) == {"benign": 80, "malignant": 40}
        val = Counter(kind[name] for name in fold.val)
        assert abs(val["benign"] - 64) <= 1 and abs(val["malignant"] - 32) <= 1


def test_written_once_and_read_back(tmp_path: Path) -> None:
    names = [f"näm {i}" for i in range(20)]
    splits = make_splits(names, names, ["x"] * 20, folds=2)
    splits.save(tmp_path / "splits.json")
    loaded = read_splits(tmp_path / "splits.json", names)
    assert loaded.folds == splits.folds and loaded.digest == splits.digest and loaded.made["seed"] == 0
    with pytest.raises(FileExistsError, match="written once"):
        splits.save(tmp_path / "splits.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no splits.json"),
        ('{"folds": [{"train": ["a"]}]}', "is no splits.json"),
        ('{"folds": [{"train": ["a"], "val": ["a"], "test": []}]}', "two roles"),
        ('{"folds": [{"train": ["a"], "val": [], "test": ["b"]}]}', "one list is empty"),
    ],
)
def test_damaged_splits_are_named(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "splits.json").write_text(content)
    with pytest.raises(DataError, match=message):
        Splits.load(tmp_path / "splits.json")


def test_changed_splits_are_refused(tmp_path: Path) -> None:
    names = [f"i{i}" for i in range(20)]
    make_splits(names, names, ["x"] * 20, folds=2).save(tmp_path / "splits.json")
    content = json.loads((tmp_path / "splits.json").read_text())
    content["folds"][0]["train"], content["folds"][0]["test"] = content["folds"][0]["test"], content["folds"][0]["train"]
    (tmp_path / "splits.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="was changed since it was written"):
        Splits.load(tmp_path / "splits.json")


def test_other_data_is_refused() -> None:
    names = [f"i{i}" for i in range(20)]
    splits = make_splits(names, names, ["x"] * 20, folds=2)
    with pytest.raises(DataError, match=r"1 images of the splits are not in the data \(i19\); 1 images of the data.*\(new\)"):
        splits.check([*names[:-1], "new"])


def test_published_lists(tmp_path: Path) -> None:
    names = ["images/a (1)", "images/a (2)", "images/b (1)"]
    (tmp_path / "train.txt").write_text("a (1).png\n\n")
    (tmp_path / "valid.txt").write_text("images/a (2)\n")
    with pytest.raises(DataError, match=r"test\.txt|val"):
        (tmp_path / "only").mkdir()
        (tmp_path / "only" / "train.txt").write_text("a (1).png\n")
        read_splits(tmp_path / "only", names)
    (tmp_path / "test.txt").write_text("b (1).png\n")
    splits = read_splits(tmp_path, names)
    assert splits.folds == (Fold(("images/a (1)",), ("images/a (2)",), ("images/b (1)",)),)
    (tmp_path / "test.txt").write_text("c (9).png\n")
    with pytest.raises(DataError, match=r"test\.txt: 1 names are not in the data.*c \(9\)"):
        read_splits(tmp_path, names)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"folds": 1}, "0 .one split. or at least 2, got 1"),
        ({"folds": -1}, "got -1"),
        ({"val_fraction": 0.0}, "val_fraction must lie between 0 and 1"),
        ({"folds": 9}, "8 images in 4 groups cannot be split into 9 folds"),
        ({"names": ["a"] * 8}, "names must be unique"),
    ],
)
def test_impossible_splits(changes: dict, message: str) -> None:
    arguments = {
        "names": [f"i{i}" for i in range(8)],
        "groups": [f"g{i % 4}" for i in range(8)],
        "strata": ["x"] * 8,
        "folds": 2,
    }
    with pytest.raises(DataError, match=message):
        make_splits(**{**arguments, **changes})


def test_the_fold_table_counts() -> None:
    names = [f"i{i}" for i in range(12)]
    groups = dict(zip(names, [f"g{i // 2}" for i in range(12)], strict=True))
    strata = dict.fromkeys(names, "benign, small")
    splits = make_splits(names, list(groups.values()), list(strata.values()), folds=3)
    lines = [line.split() for line in fold_table(splits, groups, strata).splitlines()[1:]]
    assert len(lines) == 9
    assert all(int(line[2]) == 2 * int(line[3]) == int(line[4]) for line in lines)
    assert sum(int(line[2]) for line in lines if line[1] == "test") == 12
