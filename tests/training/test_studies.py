"""Studies: a grid of ordinary runs that survives every stop, names what failed, and refuses what
cannot be.
"""

import argparse
import json
import signal
from pathlib import Path

import pytest
from torch import Tensor, nn

from intrasense_fast.cli import main
from intrasense_fast.data.splits import Splits
from intrasense_fast.networks import list_networks
from intrasense_fast.training import config as configuration
from intrasense_fast.training import grid, presets, study_folder
from intrasense_fast.training.build import check_network
from intrasense_fast.training.config import TrainConfig
from intrasense_fast.training.execution import Ending
from intrasense_fast.training.step_guard import DIVERGED
from intrasense_fast.training.study import Cell, ablation, changes, comparison
from tests.support.runs import stop_grid

TOY = "tests.model.test_networks:Toy"
UNET = "unet,widths=[2,2,2,2,4]"
LABELS = ["Toy", "unet-widths-2-2-2-2-4"]
SHORT = (
    "--seeds 1 --size 32 --batch-size 2 --epochs 7 --device cpu --jobs 2 "
    "--phantom-train 6 --phantom-val 3 --phantom-test 3"
).split()


class Undefined(nn.Module):
    """A network whose logits are NaN."""

    def __init__(self, in_channels: int = 1, num_classes: int = 1) -> None:
        super().__init__()
        self.layer = nn.Conv2d(in_channels, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * float("nan")


UNDEFINED = f"{__name__}:Undefined"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with a network that diverges, never interrupted."""
    out = tmp_path_factory.mktemp("studies") / "whole"
    assert main(["compare", "--networks", TOY, UNET, UNDEFINED, *SHORT, "--out", str(out)]) == 1
    return out


def cell(out: Path, label: str) -> Path:
    return out / "cells" / f"{label}-s0-f0"


def test_a_study_is_a_grid_of_ordinary_runs(whole: Path) -> None:
    record = json.loads((whole / "study.json").read_text())
    assert record["kind"] == "compare" and record["recipe"] == "paper" and record["data"] is None
    assert [row["name"] for row in record["rows"][:2]] == LABELS
    assert record["rows"][1]["options"] == {"widths": [2, 2, 2, 2, 4]}
    assert record["rows"][0] | {"parameters": 0} == {
        "name": LABELS[0],
        "network": TOY,
        "options": {},
        "encoder": "scratch",
        "loss": "common",
        "parameters": 0,
    }
    # 3 filters of 3 x 3 and a bias, one of 1 x 1 over them and a bias.
    assert record["rows"][0]["parameters"] == 3 * 10 + 4
    assert (record["seeds"], record["folds"], record["reference"]) == ([0], [0], LABELS[0])
    splits = Splits.load(whole / "splits.json")
    assert [len(role) for role in splits.folds[0]] == [6, 3, 3]
    for label in LABELS:
        run = cell(whole, label)
        assert (run / "best" / "model.safetensors").exists() and not (run / "failed.txt").exists()
        assert Splits.load(run / "splits.json").digest == splits.digest
        rows = (run / "per_image.csv").read_text().splitlines()
        assert rows[0].startswith("role,name,case,label,") and len(rows) == 1 + 3 + 3
    times = json.loads((whole / "times.json").read_text())
    assert len(times) == 3 and min(times.values()) > 0
    images = (whole / "images.csv").read_text().splitlines()
    assert images[0] == "name,case,label,group,stratum" and len(images) == 1 + 12


@pytest.mark.extended
def test_a_cell_that_diverges_is_named_and_the_rest_go_on(
    whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (label,) = {path.name for path in (whole / "cells").iterdir()} - {
        f"{label}-s0-f0" for label in LABELS
    }
    assert (
        (whole / "cells" / label / "failed.txt").read_text().startswith("diverged: train: 20 steps")
    )
    before = {path: path.stat().st_mtime_ns for path in (whole / "cells").rglob("*")}
    for again in (
        ["--networks", TOY, UNET, UNDEFINED, *SHORT, "--out", str(whole)],
        ["--resume", str(whole)],
    ):
        assert main(["compare", *again]) == 1
        shown = capsys.readouterr().out
        assert f"{label}: diverged: " in shown and "2 of 3 runs are complete" in shown
    after = {path: path.stat().st_mtime_ns for path in (whole / "cells").rglob("*")}
    assert after == before


def test_how_a_run_failed_is_read_from_its_log(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"

    def told(code: int) -> str:
        return grid.failure_in_words(Ending(code, 1.0), tmp_path, log) or ""

    log.write_text(f"begins\ntrain: 20 {DIVERGED} (the last at step 20)\n")
    assert told(2).startswith("diverged: train: 20 steps")
    log.write_text("begins\ntrain: x.png: cannot be read\n\n")
    assert "failed: train: x.png: cannot be read" in told(2)
    assert "stopped by SIGTERM" in told(143) and "ended by signal 9" in told(-9)


@pytest.mark.extended
@pytest.mark.parametrize(
    "number",
    [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)],
    ids=lambda number: number.name,
)
def test_a_stopped_study_goes_on_to_the_same_bits(
    number: signal.Signals, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "study"
    arguments = ["compare", "--networks", TOY, UNET, *SHORT, "--out", str(out)]
    code, shown, errors = stop_grid(arguments, out, number)
    assert "Traceback" not in errors
    assert code == (130 if number == signal.SIGINT else -9), errors
    if number == signal.SIGINT:
        assert f"go on with: intrasense-fast compare --resume {out}" in shown
        assert main(["compare", "--resume", str(out)]) == 0
    else:
        assert main(arguments) == 0
    logs = "".join(path.read_text() for path in out.glob("logs/*.txt"))
    assert "intrasense-fast train --resume" in logs
    for label in LABELS:
        for name in ("per_image.csv", "metrics.csv"):
            found, wanted = cell(out, label) / name, cell(whole, label) / name
            assert found.read_bytes() == wanted.read_bytes(), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--networks", "unte"], "there is no network 'unte', did you mean 'unet'?"),
        (["--networks", "unet,width=3"], "unet has no option 'width', did you mean 'widths'?"),
        (["--networks", "intrasense,windw=3"], "no option 'windw', did you mean 'window'?"),
        (["--networks", "intrasense,window=4"], "--window must be an odd integer"),
        (["--networks", "intrasense,gcp=no"], 'gcp must be true or false, got "no"'),
        (["--networks", "unet", "unet"], "unet is named twice"),
        (["--networks", "eanet,encoder_weights=absent.pth"], "absent.pth: no such file"),
        (["--networks", "unet", "--size", "40"], "unet cannot take images of 40 x 40 (--size)"),
        (["--networks", "transunet", "--size", "40"], "image_size must be"),
        (["--networks", "os:getcwd"], "os:getcwd"),
        (["--networks", "unet", "--reference", "eanet"], "--reference must be one of unet"),
        (["--networks", "unet", "--seeds", "0"], "--seeds must be at least 1, got 0"),
        (["--networks", "unet", "--jobs", "0"], "--jobs must be at least 1, got 0"),
        (["--networks", "unet", "--batch-size", "1"], "--batch-size must be at least 2"),
        ([], "--networks must name the networks"),
        (["--resume", "study", "--size", "64"], "not allowed beside it: --out, --size"),
    ],
    ids=str,
)
def test_what_cannot_be_is_told_before_anything_is_written(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "study"
    assert main(["compare", *arguments, "--out", str(out)]) == 2
    shown = capsys.readouterr().err
    assert message in shown and "Traceback" not in shown and shown.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_another_study_is_refused_with_what_changed(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["compare", "--networks", TOY, UNET, *SHORT, "--epochs", "8", "--out", str(whole)]
    assert main(arguments) == 2
    shown = capsys.readouterr().err
    assert "epochs 7, now 8" in shown and "without Undefined" in shown
    (tmp_path / "notes.txt").write_text("mine")
    for command in (["--networks", TOY, "--out"], ["--resume"]):
        assert main(["compare", *command, str(tmp_path)]) == 2
    assert "in use" in capsys.readouterr().err and len(list(tmp_path.iterdir())) == 1


def test_a_dry_run_shows_the_runs_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["compare", "--networks", TOY, UNET, *SHORT, "--seeds", "3", "--recipe", "own"]
    assert main([*arguments, "--folds", "3", "--out", "study", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "18 runs: 2 networks x 3 seeds x 3 folds" in shown and "about" in shown
    unet = next(line for line in shown.splitlines() if line.startswith("unet")).split()
    toy = next(line for line in shown.splitlines() if line.startswith("Toy")).split()
    # The toy has no loss of its own, which the table says.
    assert unet[2:4] == ["own", "9"] and toy[2:4] == ["common", "9"]
    assert not list(tmp_path.iterdir())


def given_back(arguments: list[str]) -> TrainConfig:
    """The run that `train` makes of a cell's arguments."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out")
    configuration.add_flags(parser)
    return presets.resolve(configuration.given(parser.parse_args(arguments)), gpu=True)


def test_the_ablation_has_the_rows_of_table_4(tmp_path: Path) -> None:
    study = ablation(
        {"data": "d", "size": 64, "preset": "quick"},
        {"decoder_channels": (8, 8, 8, 8, 8)},
        weights="w.pth",
        seeds=2,
        gpu=False,
    )
    modules = {
        "baseline": (False, False, True),
        "gcp-dagger": (True, False, False),
        "gcp": (True, False, True),
        "cdr": (False, True, True),
        "both": (True, True, True),
    }
    assert study.reference == "baseline" and [row.name for row in study.rows] == list(modules)
    cells = study.cells(5)
    assert len(cells) == 5 * 2 * 5 and len({one.name for one in cells}) == len(cells)
    for one in cells:
        config = given_back(study_folder.arguments_of(tmp_path, study, one))
        assert (config.gcp, config.cdr, config.entropy_normalization) == modules[one.row.name]
        assert (config.seed, config.size, config.folds, config.epochs) == (one.seed, 64, 0, 2)
        assert config.decoder_channels == (8,) * 5 and config.encoder_weights == "w.pth"
        assert config.splits == str(tmp_path / "splits" / f"fold-{one.fold}.json")
        assert config.loss_weights == (1.0, 1.0, 1.0) and config.loss == "common"


def test_rows_differ_in_nothing_but_their_network(tmp_path: Path) -> None:
    networks = ["intrasense", "rolling-unet,size=S", "rolling-unet,size=L"]
    study = comparison(
        networks, {"data": "d", "lr": 0.5}, recipe="paper", seeds=1, reference=None, gpu=True
    )
    assert study.reference == "intrasense" and study.shared.folds == 5
    configs = [
        given_back(study_folder.arguments_of(tmp_path, study, Cell(row, 0, 1))).as_dict()
        for row in study.rows
    ]
    for config in configs[1:]:
        differing = {name for name, value in config.items() if configs[0][name] != value}
        assert differing == {"network", "network_options"}
    assert configs[2]["network_options"] == ['size="L"']
    assert changes(study, study.from_record(json.loads(json.dumps(study.record())))) == []


@pytest.mark.parametrize("name", list_networks())
def test_every_network_takes_the_size_of_its_run(name: str) -> None:
    config = TrainConfig(network=name, size=64)
    assert check_network(config) is not None
    assert config.model_arguments().get("image_size", 64) == 64
