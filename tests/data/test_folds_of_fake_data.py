"""`train --data` on fake data sets: grouped folds without a further flag, whatever was planted, and
going on after a stop."""

import csv
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from intrasense_fast.cli import main
from intrasense_fast.data import open_dataset
from intrasense_fast.data.splits import Splits, parted_groups
from intrasense_fast.signals import Stopped
from intrasense_fast.training import run_folds as command
from intrasense_fast.training import sources
from intrasense_fast.training.config import TrainConfig

Trees = Callable[[str, bool], tuple[Path, list]]

# The data decide everything about folds; these make the network small.
SMALL = "--size 32 --batch-size 4 --epochs 1 --refine-strides 32".split()
SMALL += "--encoder resnet18 --decoder-channels 8 8 8 8 8".split()


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def groups_of(root: Path) -> dict[str, str]:
    return {record.name: record.group for record in open_dataset(root).records}


@pytest.mark.parametrize("layout", ["busi", "dataset-b", "ddti", "bus-bra"])
def test_five_grouped_folds_by_default(
    layout: str, trees: Trees, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, _ = trees(layout, False)
    config = TrainConfig(data=str(root))
    data, findings = sources.open_source(tmp_path, config)
    splits = sources.split(config, data, findings)
    shown = capsys.readouterr().out
    groups = groups_of(root)
    assert (
        len(splits.folds) == 5
        and not parted_groups(splits, groups)
        and len(set(groups.values())) < len(groups)
    )
    assert sorted(name for fold in splits.folds for name in fold.test) == sorted(groups)
    assert f"n = {len(groups)} images, subset all, layout {layout}" in shown
    assert ("near-duplicate of" in shown) == (layout != "bus-bra")
    assert shown.count(" train ") == shown.count(" val ") == shown.count(" test ") == 5
    again = sources.split(config, *sources.open_source(tmp_path, config))
    assert again.digest == splits.digest


@pytest.mark.parametrize("layout", ["generic", "unext"])
def test_one_split_for_other_layouts(layout: str, trees: Trees, tmp_path: Path) -> None:
    config = TrainConfig(data=str(trees(layout, False)[0]))
    (fold,) = sources.split(config, *sources.open_source(tmp_path, config)).folds
    assert (len(fold.train), len(fold.val), len(fold.test)) == (24, 6, 0)


@pytest.mark.parametrize(
    ("subset", "count"), [("all", 30), ("lesions", 25), ("deduplicated", 22), ("curated", 7)]
)
def test_subsets_print_their_n(
    subset: str, count: int, trees: Trees, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = TrainConfig(data=str(trees("busi", False)[0]), subset=subset, folds=2)
    sources.split(config, *sources.open_source(tmp_path, config))
    assert f"n = {count} images, subset {subset}, layout busi" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("layout", "count"),
    [("busi", 30), ("dataset-b", 30), ("ddti", 29)],
)
@pytest.mark.extended
def test_one_fold_without_a_flag_about_data(
    layout: str, count: int, trees: Trees, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root, _ = trees(layout, False)
    run = tmp_path / "run"
    assert main(["train", "--data", str(root), "--out", str(run), "--fold", "2", *SMALL]) == 0
    shown = capfd.readouterr()
    assert (
        "1 of 5 folds are trained" in shown.out
        and f"test images of {count} (subset all)" in shown.out
    )
    assert "fold 2: config.json, " in shown.out and "Corrupt JPEG" not in shown.err
    splits = Splits.load(run / "splits.json")
    assert {row["name"] for row in rows(run / "per_image.csv")} == set(splits.folds[2].test)
    assert [folder.name for folder in run.glob("fold-*")] == ["fold-2"]
    assert (
        len(rows(run / "fold-2" / "metrics.csv")) == 1
        and (run / "fold-2" / "best" / "model.safetensors").exists()
    )


def test_a_stop_within_a_fold_names_the_whole_run(
    trees: Trees,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stopped(*_: object) -> None:
        raise Stopped(signal.SIGINT)

    monkeypatch.setattr(command, "_train_fold", stopped)
    run = tmp_path / "run"
    assert main(["train", "--data", str(trees("busi", False)[0]), "--out", str(run), *SMALL]) == 130
    assert f"go on with: intrasense-fast train --resume {run}\n" in capsys.readouterr().out


@pytest.mark.slow
def test_busi_is_stopped_goes_on_and_is_summed_up(
    trees: Trees,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root, _ = trees("busi", False)
    run = tmp_path / "run"
    trained = []
    original = command._train_fold

    def stopped_in_fold_2(*arguments: object) -> None:
        trained.append(arguments[4])
        if trained == [0, 1, 2]:
            raise OSError(28, "No space left on device")
        original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(command, "_train_fold", stopped_in_fold_2)
    assert main(["train", "--data", str(root), "--out", str(run), *SMALL]) == 2
    shown = capsys.readouterr()
    assert (
        "conflict: the same picture as malignant (1)" in shown.out
        and f"--resume {run}" in shown.err
    )
    kept = (run / "fold-1" / "best" / "model.safetensors").read_bytes()
    assert main(["train", "--resume", str(run)]) == 0
    assert (
        trained == [0, 1, 2, 0, 1, 2, 3, 4]
        and (run / "fold-1" / "best" / "model.safetensors").read_bytes() == kept
    )
    shown = capsys.readouterr()
    assert (
        shown.out.count("finished already") == 2
        and "n = 30 test images of 30 (subset all); 5 normal" in shown.out
    )

    groups, splits = groups_of(root), Splits.load(run / "splits.json")
    assert not parted_groups(splits, groups)
    images = rows(run / "per_image.csv")
    assert sorted(row["name"] for row in images) == sorted(groups)
    for row in images:
        assert row["name"] in splits.folds[int(row["fold"])].test
    for number in range(5):
        files = {file.name for file in (run / f"fold-{number}").iterdir()}
        assert {
            "config.json",
            "metrics.csv",
            "history.jsonl",
            "per_image.csv",
            "summary.json",
            "best",
            "last",
        } <= files
    summary = {row["metric"]: row for row in rows(run / "summary.csv")}
    dices = {
        fold: [
            float(r["dice"]) for r in images if r["fold"] == str(fold) and r["label"] != "normal"
        ]
        for fold in range(5)
    }
    every = np.concatenate([dices[fold] for fold in range(5)])
    # Normal images are not in the means.
    assert len(every) == int(summary["dice"]["images"]) == 25 and int(summary["dice"]["folds"]) == 5
    assert float(summary["dice"]["image_mean"]) == pytest.approx(every.mean())
    assert float(summary["dice"]["image_sd"]) == pytest.approx(every.std(ddof=1))
    means = [np.mean(found) for found in dices.values()]
    assert float(summary["dice"]["fold_mean"]) == pytest.approx(np.mean(means))
    assert float(summary["dice"]["fold_sd"]) == pytest.approx(np.std(means, ddof=1))
    lesions = [row for row in images if row["label"] != "normal"]
    counts = {key: sum(int(row[key]) for row in lesions) for key in ("tp", "fp", "fn")}
    pooled = 2 * counts["tp"] / (2 * counts["tp"] + counts["fp"] + counts["fn"])
    assert float(summary["dice"]["pooled"]) == pytest.approx(pooled)


def test_published_lists_and_what_leaks_in_them(
    trees: Trees, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, _ = trees("busi", False)
    names = [record.name for record in open_dataset(root).records]
    lists = tmp_path / "lists"
    lists.mkdir()
    # benign (1) and its copy benign (6) stand in two lists, as they do in the lists that
    # publications share.
    roles = {
        "busi_val": [name for name in names if name.endswith(("(6)", "(7)"))],
        "busi_test": names[-4:],
    }
    roles["busi_train"] = [
        name for name in names if not any(name in others for others in roles.values())
    ]
    for role, members in roles.items():
        (lists / f"{role}.txt").write_text("".join(f"{name}.png\n" for name in members))
    config = TrainConfig(data=str(root), splits=str(lists))
    (fold,) = sources.split(config, *sources.open_source(tmp_path, config)).folds
    shown = capsys.readouterr().out
    assert (
        "warning: " in shown and "groups (patients or near-duplicates) stand in two roles" in shown
    )
    assert list(fold.test) == names[-4:]


def test_broken_data_stop_before_anything_is_written(
    trees: Trees, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, planted = trees("busi", True)
    copy = tmp_path / "data"
    shutil.copytree(root, copy)
    assert main(["train", "--data", str(copy), "--out", str(tmp_path / "run"), *SMALL]) == 2
    shown = capsys.readouterr().err
    for fault in (fault for fault in planted if fault.level == "error"):
        assert str(copy / fault.file) in shown and fault.says in shown
    assert not (tmp_path / "run").exists()
