"""Splits: groups never part, strata spread, the same whatever the order, and refused where they do
not fit."""

import glob
import json
import random
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from intrasense_fast.data import open_dataset, order
from intrasense_fast.data.records import DataError
from intrasense_fast.data.splits import (
    Fold,
    Splits,
    fold_table,
    make_splits,
    parted_groups,
    read_splits,
)

# The digest below must come out on every Python and every machine.
FROZEN = "308a9c2180f2f4c4fe55b5e184cc1c9376935dc83ce208a6cd4867544a32f7c1"


def tree(rng: random.Random) -> tuple[list[str], list[str], list[str]]:
    """Names, groups and strata of a random data set: groups of 1 to 6 images, a few large ones,
    uneven classes."""
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
        splits = make_splits(
            names,
            groups,
            strata,
            folds=folds,
            val_fraction=rng.uniform(0.1, 0.4),
            seed=rng.randrange(1000),
        )
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


def test_two_folds_leave_each_other_groups_to_train_and_select_on() -> None:
    """One group as large as all others together: by size alone, it would be a fold of its own."""
    names = [f"case_{i}" for i in range(13)]
    groups = ["large"] * 6 + [f"g{i}" for i in range(7)]
    for seed in range(20):
        for fold in make_splits(names, groups, ["benign"] * 13, folds=2, seed=seed).folds:
            assert fold.train and fold.val and len(fold.train + fold.val + fold.test) == 13
    with pytest.raises(DataError, match="at least 4 groups are needed"):
        make_splits(names[:8], groups[:8], ["benign"] * 8, folds=2, seed=0)


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
    splits = make_splits(
        names,
        [f"g{i // 3}" for i in range(200)],
        [f"s{i % 5}" for i in range(200)],
        folds=5,
        seed=3,
    )
    assert splits.digest == FROZEN


@pytest.mark.parametrize("version", ["3.10", "3.12", "3.13"])
def test_same_on_another_python(version: str, seed: int, tmp_path: Path) -> None:
    python = _python(version)
    if python is None:
        pytest.skip(f"no Python {version} is installed here")
    rng = random.Random(seed)
    cases = [
        (list(zip(*tree(rng), strict=True)), [1 / 5] * 5, [rng.randrange(100), 0])
        for _ in range(20)
    ]
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    # order.py needs nothing but the standard library, so that it runs where the package is not
    # installed.
    code = (
        "import json, runpy, sys; deal = runpy.run_path(sys.argv[1])['deal'];"
        "print(json.dumps([deal([tuple(r) for r in rows], f, s) for rows, f, s in "
        "json.load(open(sys.argv[2]))]))"
    )
    command = [python, "-I", "-c", code, order.__file__, str(tmp_path / "cases.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    here = [order.deal(rows, fractions, seeds) for rows, fractions, seeds in cases]
    assert json.loads(done.stdout) == json.loads(json.dumps(here))


def _python(version: str) -> str | None:
    """A working interpreter of a version; the shim of a version manager may be there without
    one."""
    for place in (
        shutil.which(f"python{version}"),
        *glob.glob(str(Path.home() / f".pyenv/versions/{version}*/bin/python")),
    ):
        if place and subprocess.run([place, "-V"], capture_output=True).returncode == 0:
            return place
    return None


def test_lists_may_name_files_that_are_no_utf8(tmp_path: Path) -> None:
    for role, name in (("train", b"caf\xe9.png"), ("val", b"b")):
        (tmp_path / f"{role}.txt").write_bytes(name + b"\n")
    splits = read_splits(tmp_path, ["b", "caf%E9"], ["1", "2"], ["", ""])
    assert splits.folds == (Fold(("caf%E9",), ("b",), ()),)
    odd = Splits((Fold(("caf\udce9",), ("b",), ()),), {})
    odd.save(tmp_path / "splits.json")
    assert Splits.load(tmp_path / "splits.json") == odd


def test_strata_spread_evenly() -> None:
    names = [f"i{i}" for i in range(600)]
    strata = ["benign"] * 400 + ["malignant"] * 200
    splits = make_splits(names, names, strata, folds=5, val_fraction=0.2)
    kind = dict(zip(names, strata, strict=True))
    for fold in splits.folds:
        assert Counter(kind[name] for name in fold.test) == {"benign": 80, "malignant": 40}
        val = Counter(kind[name] for name in fold.val)
        assert abs(val["benign"] - 64) <= 1 and abs(val["malignant"] - 32) <= 1


def test_classes_spread_where_strata_are_small(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(20):
        strata = [
            f"{label}, {rng.choice('abc')}"
            for label, count in (("x", 20), ("y", 10), ("z", 5))
            for _ in range(count)
        ]
        names = [f"i{i}" for i in range(35)]
        splits = make_splits(names, names, strata, folds=5, seed=rng.randrange(99))
        kind = dict(zip(names, strata, strict=True))
        tested = [Counter(kind[name][0] for name in fold.test) for fold in splits.folds]
        for label, share in (("x", 4), ("y", 2), ("z", 1)):
            assert all(abs(counts[label] - share) <= 1 for counts in tested), tested


def test_written_once_and_read_back(tmp_path: Path) -> None:
    names = [f"näm {i}" for i in range(20)]
    splits = make_splits(names, names, ["x"] * 20, folds=2)
    splits.save(tmp_path / "splits.json")
    loaded = read(tmp_path / "splits.json", names)
    assert (
        loaded.folds == splits.folds and loaded.digest == splits.digest and loaded.made["seed"] == 0
    )
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
    content["folds"][0]["train"], content["folds"][0]["test"] = (
        content["folds"][0]["test"],
        content["folds"][0]["train"],
    )
    (tmp_path / "splits.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="was changed since it was written"):
        Splits.load(tmp_path / "splits.json")


def test_other_data_is_refused() -> None:
    names = [f"i{i}" for i in range(20)]
    splits = make_splits(names, names, ["x"] * 20, folds=2)
    with pytest.raises(
        DataError,
        match=r"1 images of the splits are not in the data \(i19\); 1 images of the data.*\(new\)",
    ):
        splits.check([*names[:-1], "new"])


def read(path: Path, names: list[str], groups: list[str] | None = None) -> Splits:
    return read_splits(path, names, groups or names, ["x"] * len(names))


def test_published_lists(tmp_path: Path) -> None:
    names = ["images/a (1)", "images/a (2)", "images/b (1)"]
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "train.txt").write_text("a (1).png\n")
    with pytest.raises(DataError, match="selecting on the test images would spoil the test"):
        read(tmp_path / "only", names)
    (tmp_path / "train.txt").write_text("a (1).png\n\n")
    (tmp_path / "valid.txt").write_text("images/a (2)\n")
    with pytest.raises(
        DataError, match=r"1 images of the data are not in the splits \(images/b \(1\)\).*--subset"
    ):
        read(tmp_path, names)
    (tmp_path / "test.txt").write_text("b (1).png\n")
    splits = read(tmp_path, names)
    assert splits.folds == (Fold(("images/a (1)",), ("images/a (2)",), ("images/b (1)",)),)
    (tmp_path / "test.txt").write_text("c (9).png\n")
    with pytest.raises(DataError, match=r"test\.txt: 1 names are not in the data.*c \(9\)"):
        read(tmp_path, names)


def test_lists_beside_the_data(
    trees: Callable[[str, bool], tuple[Path, list]], tmp_path: Path
) -> None:
    root = tmp_path / "copy"
    shutil.copytree(trees("unext", False)[0], root)
    names = [record.name for record in open_dataset(root, group_duplicates=False).records]
    with pytest.raises(
        DataError, match=r"busi_val\.txt: 1 names are not in the data.*benign \(999\)"
    ):
        read(root, names)
    listed = (root / "busi_val.txt").read_text().replace("benign (999).png\n", "")
    (root / "busi_val.txt").write_text(listed)
    (root / "._busi_train.txt").write_bytes(b"\0\5\x16\7")
    (fold,) = read(root, names).folds
    assert (len(fold.train), len(fold.val), len(fold.test)) == (21, 9, 0)
    (root / "busi_train2.txt").write_text(listed)
    (root / "more_train.txt").write_text(listed)
    with pytest.raises(
        DataError, match=r"several lists could be train\.txt: busi_train\.txt, more_train\.txt"
    ):
        read(root, names)


def test_official_folds_of_bus_bra(
    trees: Callable[[str, bool], tuple[Path, list]], tmp_path: Path
) -> None:
    root, _ = trees("bus-bra", False)
    data = open_dataset(root, group_duplicates=False)
    names, groups = (
        [record.name for record in data.records],
        [record.group for record in data.records],
    )
    splits = read(root / "5-fold-cv.csv", names, groups)
    assert len(splits.folds) == 5
    assert [fold.test for fold in splits.folds] == [
        data.published[f"5-fold-cv/{k}"] for k in range(1, 6)
    ]
    group = dict(zip(names, groups, strict=True))
    assert not parted_groups(splits, group) and len(set(groups)) < len(names)
    assert all(fold.val for fold in splits.folds)
    (tmp_path / "odd.csv").write_text("image,part\na,1\n")
    with pytest.raises(DataError, match="columns image, part; needed"):
        read(tmp_path / "odd.csv", names)


def test_leaking_lists_are_told() -> None:
    groups = {"a": "1", "b": "1", "c": "2", "d": "3", "e": "3"}
    assert not parted_groups(Splits((Fold(("a", "b"), ("c",), ("d", "e")),), {}), groups)
    (line,) = parted_groups(Splits((Fold(("a", "d"), ("b", "c"), ("e",)),), {}), groups)
    assert (
        "2 groups (patients or near-duplicates) stand in two roles, 1 of them in the test: 1, 3"
        in line
    )


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
