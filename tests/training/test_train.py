"""`train` as a user runs it: the run folder, the logs, mixed precision, folds, and everything that
can be wrong."""

import csv
import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from intrasense_fast import IntraSenseNet
from intrasense_fast.cli import main
from intrasense_fast.data.splits import Splits
from intrasense_fast.metrics import image_metrics
from intrasense_fast.networks.pretrained import read_config
from tests.support.runs import TINY, train, write_pairs

ONE = [*TINY, "--epochs", "1", "--folds", "0", "--val-fraction", "0.3"]
TABLE_4 = (
    ["--no-gcp", "--no-cdr"],
    ["--no-cdr", "--no-entropy-normalization"],
    ["--no-cdr"],
    ["--no-gcp"],
    [],
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("train") / "data set", 12, seed=1)


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_quick_writes_every_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert (
        main(
            [
                "train",
                "--quick",
                "--size",
                "32",
                "--encoder",
                "resnet18",
                "--refine-strides",
                "8",
                "32",
                "--out",
                str(run),
                "--device",
                "cpu",
            ]
        )
        == 0
    )
    shown = capsys.readouterr().out
    files = "config.json metrics.csv history.jsonl per_image.csv splits.json".split()
    for name in [*files, "summary.txt", "summary.json"]:
        assert (run / name).stat().st_size > 0, name
    card = (run / "best" / "README.md").read_text(encoding="utf-8")
    assert "simulated phantoms" in card and "| Dice | " in card
    for name in ("curves.png", "overlays.png", "maps.png"):
        assert cv2.imread(str(run / name)).std() > 0, name
    assert "preset quick" in shown and "Phantom scores are not clinical scores" in shown
    assert all(
        name in shown
        for name in (
            "IntraSense-Net",
            "empty mask",
            "mean mask",
            "intensity",
            "Dice",
            "Jaccard",
            "Accuracy",
        )
    )
    record = json.loads((run / "config.json").read_text())
    assert (
        record["config"]["preset"] == "quick"
        and record["config"]["batch_size"] == 4
        and "torch" in record["versions"]
    )
    splits = Splits.load(run / "splits.json")
    assert [len(role) for role in splits.folds[0]] == [16, 6, 8] and record[
        "splits"
    ] == splits.digest
    images = rows(run / "per_image.csv")
    assert [sum(row["role"] == role for row in images) for role in ("selection", "test")] == [6, 8]
    assert {row["name"] for row in images if row["role"] == "test"} == set(splits.folds[0].test)
    steps = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps] == list(range(1, 9))
    assert {
        "loss",
        "bce",
        "dice",
        "whitening",
        "masked_fraction_8",
        "masked_fraction_32",
        "learning_rate",
    } <= set(steps[0])
    epochs = rows(run / "metrics.csv")
    assert [row["epoch"] for row in epochs] == ["1", "2"]
    mean = np.mean([line["loss"] for line in steps[:4]])
    assert float(epochs[0]["train_loss"]) == pytest.approx(mean)
    net = IntraSenseNet.from_pretrained(run / "best")
    assert net.config["refine_strides"] == [8, 32] and read_config(run / "best")["image_size"] == 32
    assert read_config(run / "last")["splits"] == splits.digest
    baseline = json.loads((run / "summary.json").read_text())["empty mask"]
    truths = [cv2.imread(str(file), 0) > 0 for file in (run / "data" / "test" / "masks").iterdir()]
    assert len(truths) == 8 and all(name.startswith("test/") for name in splits.folds[0].test)
    accuracy = np.mean(
        [image_metrics(np.zeros_like(truth), truth)["accuracy"] for truth in truths if truth.any()]
    )
    assert (
        baseline["metrics"]["accuracy"]["mean"] == pytest.approx(accuracy)
        and baseline["metrics"]["dice"]["mean"] == 0
    )


@pytest.mark.extended
@pytest.mark.parametrize(
    "flags",
    # tests/model trains all five; here the flags reach the network.
    [pytest.param(flags, marks=[pytest.mark.slow] * (len(flags) == 1)) for flags in TABLE_4],
    ids=str,
)
def test_rows_of_table_4(flags: list[str], data: Path, tmp_path: Path) -> None:
    assert main(["train", "--data", str(data), "--out", str(tmp_path / "run"), *ONE, *flags]) == 0
    config = read_config(tmp_path / "run" / "best")["arguments"]
    assert (config["gcp"], config["cdr"]) == ("--no-gcp" not in flags, "--no-cdr" not in flags)
    (row,) = rows(tmp_path / "run" / "metrics.csv")
    assert (float(row["train_whitening"]) != 0) == config["cdr"]
    assert ("masked_fraction_32" in row) == config["gcp"]
    assert (tmp_path / "run" / "maps.png").exists() == config["gcp"]


@pytest.mark.extended
@pytest.mark.parametrize(("amp", "scheduler"), [("bf16", "plateau"), ("fp16", "cosine")])
def test_mixed_precision_and_schedules(
    amp: str, scheduler: str, data: Path, tmp_path: Path
) -> None:
    options = [
        *ONE,
        "--amp",
        amp,
        "--scheduler",
        scheduler,
        "--clip",
        "1",
        "--encoder-weights",
        str(_weights(tmp_path)),
    ]
    assert main(["train", "--data", str(data), "--out", str(tmp_path / "run"), *options]) == 0
    (row,) = rows(tmp_path / "run" / "metrics.csv")
    assert np.isfinite(float(row["train_loss"]))
    assert all(
        value.dtype != torch.float16
        for value in IntraSenseNet.from_pretrained(tmp_path / "run" / "last").state_dict().values()
    )


def _weights(folder: Path) -> Path:
    weights = folder / "resnet18.pth"
    torch.save(IntraSenseNet(encoder="resnet18").encoder.state_dict(), weights)
    return weights


@pytest.mark.extended
def test_folds_are_runs_and_are_summed_up(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, options = tmp_path / "run", [*ONE, "--folds", "3"]
    assert main(["train", "--data", str(data), "--out", str(run), *options, "--fold", "1"]) == 0
    assert "1 of 3 folds are trained" in capsys.readouterr().out
    assert [path.name for path in sorted(run.glob("fold-*"))] == ["fold-1"]
    assert main(["train", "--data", str(data), "--out", str(tmp_path / "all"), *options]) == 0
    run = tmp_path / "all"
    images = rows(run / "per_image.csv")
    assert len(images) == 12 and len({row["name"] for row in images}) == 12
    summary = {row["metric"]: row for row in rows(run / "summary.csv")}
    dices = [float(row["dice"]) for row in images if row["dice"] not in ("", "nan")]
    by_fold = [
        np.mean([float(row["dice"]) for row in images if row["fold"] == str(fold)])
        for fold in range(3)
    ]
    assert float(summary["dice"]["image_mean"]) == pytest.approx(np.mean(dices))
    assert float(summary["dice"]["fold_mean"]) == pytest.approx(np.mean(by_fold))
    assert float(summary["dice"]["fold_sd"]) == pytest.approx(np.std(by_fold, ddof=1))
    counts = {key: sum(int(row[key]) for row in images) for key in ("tp", "fp", "fn")}
    assert float(summary["dice"]["pooled"]) == pytest.approx(
        2 * counts["tp"] / (2 * counts["tp"] + counts["fp"] + counts["fn"])
    )
    for fold in range(3):
        card = (run / f"fold-{fold}" / "best" / "README.md").read_text(encoding="utf-8")
        assert f"fold {fold} of 3" in card
        assert (run / f"fold-{fold}" / "best" / "model.safetensors").exists() and (
            run / f"fold-{fold}" / "config.json"
        ).exists()
    assert "n = 12 test images of 12" in capsys.readouterr().out
    for path in (run / "fold-2").iterdir():
        if path.name in ("summary.json", "per_image.csv"):
            path.unlink()
    assert main(["train", "--resume", str(run)]) == 0
    assert len(rows(run / "per_image.csv")) == 12


def test_a_used_out_is_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "precious.txt").write_text("keep")
    assert main(["train", "--data", str(data), "--out", str(tmp_path), *ONE]) == 2
    assert "is in use" in capsys.readouterr().err and [
        path.name for path in tmp_path.iterdir()
    ] == ["precious.txt"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--size", "16"], "--size must be at least 32"),
        (["--batch-size", "1"], "--batch-size must be at least 2"),
        (["--epochs", "0"], "--epochs must be at least 1"),
        (["--lr", "0"], "--lr must be finite and > 0"),
        (["--lr", "nan"], "--lr must be finite and > 0"),
        (["--lr", "fast"], "invalid float value"),
        (["--momentum", "1"], r"--momentum must be in [0, 1)"),
        (["--val-fraction", "1"], "--val-fraction must be between 0 and 1"),
        (["--folds", "1"], "--folds must be 0 or at least 2"),
        (["--folds", "3", "--fold", "3"], "--fold must be below the number of folds"),
        (["--fold", "0"], "--fold needs --folds"),
        (["--seed", "-1"], "--seed must be at least 0"),
        (["--subset", "odd"], "invalid choice"),
        (["--folds", "40"], "cannot be split into 40 folds"),
        (["--batch-size", "64"], "do not fill one batch of 64"),
        (["--clip", "-1"], "--clip must be finite and > 0"),
        (["--patience", "0"], "--patience must be at least 1"),
        (["--workers", "-1"], "--workers must be at least 0"),
        (["--window", "4"], "--window must be an odd integer"),
        (["--ridge", "0"], "--ridge must be finite and > 0"),
        (["--refine-strides", "8", "8"], "free of duplicates"),
        (["--refine-strides", "2"], "some of (4, 8, 16, 32)"),
        (["--entropy-scale", "bits"], "invalid choice"),
        (["--encoder", "resnet20"], "invalid choice"),
        (["--in-channels", "2"], "--in-channels must be 1 or 3"),
        (["--scheduler", "linear"], "invalid choice"),
        (["--device", "cuda:9"], "--device cuda:9: cannot be used here"),
        (["--device", "abacus"], "--device abacus: cannot be used here"),
        (["--device", "meta"], "--device meta: cannot be used here"),
        (["--device", "hpu"], "--device hpu: cannot be used here"),
        (["--resume", ""], "--resume was given an empty name"),
        (["--encoder-weights", "absent.pth"], "absent.pth: no such file"),
        (["--cache", "disk"], "--cache-dir must be given"),
        (["--splits", "absent"], "train.txt"),
        (["--layout", "dicom"], "layout 'dicom' is unknown"),
    ],
    ids=str,
)
def test_impossible_values(
    flags: list[str], message: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--data", str(data), "--out", str(tmp_path / "run"), *ONE, *flags]) == 2
    shown = capsys.readouterr().err
    assert message in shown and "Traceback" not in shown and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--fold", "0"], "--fold needs --folds"),
        (["--folds", "50"], "cannot be split into 50 folds"),
        (["--splits", "absent"], "train.txt"),
        (["--subset", "curated"], "subset curated is empty"),
        (["--batch-size", "100"], "8 training images do not fill one batch of 100"),
    ],
    ids=str,
)
def test_bad_usage_leaves_no_run_of_phantoms(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", *TINY, *"--phantom-train 8 --phantom-val 3 --phantom-test 2".split()]
    (tmp_path / "empty").mkdir()
    for run in (tmp_path / "runs" / "new", tmp_path / "empty"):
        assert main([*command, "--out", str(run), *flags]) == 2
        shown = capsys.readouterr().err
        assert message in shown and "Traceback" not in shown
    assert [path.name for path in tmp_path.iterdir()] == ["empty"] and not list(
        (tmp_path / "empty").iterdir()
    )


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "data", 10, seed=6)
    try:
        for folder in ("images", "masks"):
            (data / folder / "p3.png").rename(data / folder / os.fsdecode(b"caf\xe9.png"))
        data = data.rename(tmp_path / os.fsdecode(b"donn\xe9es"))
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    run = tmp_path / "run"
    assert main(["train", "--data", str(data), "--out", str(run), *ONE]) == 0
    (fold,) = Splits.load(run / "splits.json").folds
    assert "caf%E9" in {name for role in fold for name in role}
    assert {row["name"] for row in rows(run / "per_image.csv")} == set(fold.val)
    assert "donn%E9es" in (run / "summary.txt").read_text(encoding="utf-8")
    assert main(["train", "--resume", str(run)]) == 0


@pytest.mark.extended
def test_a_damaged_fold_is_named(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert (
        main(["train", "--data", str(data), "--out", str(run), *ONE, "--folds", "2", "--fold", "1"])
        == 0
    )
    file = run / "fold-1" / "per_image.csv"
    whole = file.read_bytes()
    for spoilt in (b"\xff", b"role\ntest\n", whole.replace(b"test,", b"test,x,", 1)):
        file.write_bytes(spoilt)
        assert main(["train", "--resume", str(run)]) == 2
        assert f"{file}: missing or damaged" in capsys.readouterr().err
    (run / "fold-1" / "summary.json").unlink()
    assert main(["train", "--resume", str(run)]) == 0 and file.read_bytes() == whole


def test_fused_on_a_cpu_says_why(data: Path, tmp_path: Path) -> None:
    # A process of its own: in this one Triton may have been imported for its interpreter.
    code, _, err = train(
        "--data", data, "--out", tmp_path / "run", *ONE, "--fused", "--device", "cpu"
    )
    assert code == 2 and "need a CUDA or ROCm GPU" in err and not (tmp_path / "run").exists()


def test_missing_empty_and_unpaired_folders(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    spoilt = write_pairs(tmp_path / "spoilt", 8, seed=2)
    (spoilt / "masks" / "p3.png").rename(spoilt / "masks" / "q3.png")
    missized = write_pairs(tmp_path / "missized", 8, seed=2)
    cv2.imwrite(str(missized / "masks" / "p5.png"), np.zeros((10, 10), np.uint8))
    for folder, messages in (
        (tmp_path / "absent", ["no such folder"]),
        (tmp_path / "empty", ["empty"]),
        (spoilt, ["p3", "q3"]),
        (missized, ["p5", "10 x 10"]),
    ):
        assert main(["train", "--data", str(folder), "--out", str(tmp_path / "run"), *ONE]) == 2
        shown = capsys.readouterr().err
        assert (
            all(message in shown for message in messages)
            and "Traceback" not in shown
            and not (tmp_path / "run").exists()
        ), shown
    assert (
        main(["train", "--data", str(missized), "--out", str(tmp_path / "run"), *ONE, "--skip-bad"])
        == 0
    )
    assert "p5" in capsys.readouterr().out


def test_data_that_changed_is_refused_on_resume(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = write_pairs(tmp_path / "data", 8, seed=4)
    assert main(["train", "--data", str(copy), "--out", str(tmp_path / "run"), *ONE]) == 0
    for kind in ("images", "masks"):
        (copy / kind / "p1.png").rename(copy / kind / "new.png")
    assert main(["train", "--resume", str(tmp_path / "run")]) == 2
    assert "p1" in capsys.readouterr().err
