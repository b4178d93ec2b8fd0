"""Other networks train, predict and evaluate as IntraSense-Net does: the plain U-Net, and one from
outside."""

import csv
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from intrasense_fast import networks
from intrasense_fast.cli import main
from intrasense_fast.networks import build_network, load_network, read_config
from intrasense_fast.training.config import TrainConfig
from intrasense_fast.training.loss import loss_of
from tests.model.test_networks import Toy
from tests.support.runs import write_pairs

OUTSIDE = "tests.model.test_networks:Toy"
SHORT = (
    "--size 32 --batch-size 4 --epochs 2 --lr 1e-3 --seed 3 --folds 0 --val-fraction 0.3 "
    "--device cpu"
).split()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("networks") / "data", 12, seed=1)


@pytest.fixture(autouse=True)
def none_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "_registered", {})


@pytest.mark.extended
def test_a_network_from_outside_trains_resumes_predicts_and_is_measured(
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = tmp_path / "run"
    common = ["train", "--data", str(data), "--network", OUTSIDE, *SHORT]
    options = ["--network-options", "width=4"]
    assert main([*common, *options, "--out", str(run), "--epochs", "1"]) == 0
    best = str(run / "best")
    assert f"next: intrasense-fast predict IMAGES --checkpoint {best} --out DIR" in (
        capsys.readouterr().out
    )
    config = read_config(best)
    assert config["architecture"] == OUTSIDE and config["arguments"]["width"] == 4
    with open(run / "metrics.csv", newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert float(row["train_edge_loss"]) > 0 and float(row["train_whitening"]) == 0
    assert float(row["kernel_norm"]) > 0 and not (run / "maps.png").exists()
    assert OUTSIDE in json.loads((run / "summary.json").read_text())
    # Another process has not been told to trust that code.
    monkeypatch.setattr(networks, "_registered", {})
    trusted = ["--network", OUTSIDE]
    for command in (
        ["train", "--resume", str(run), "--epochs", "2"],
        ["predict", str(data / "images"), "--checkpoint", best, "--out", str(tmp_path / "p")],
        ["evaluate", "--data", str(data), "--checkpoint", best, "--out", str(tmp_path / "e")],
    ):
        monkeypatch.setattr(networks, "_registered", {})
        assert main(command) == 2
        assert f"give --network {OUTSIDE}" in capsys.readouterr().err
        assert main([*command, *trusted]) == 0
    whole = tmp_path / "whole"
    assert main([*common, *options, "--out", str(whole)]) == 0
    one, other = (load_file(path / "last" / "model.safetensors") for path in (run, whole))
    assert one.keys() == other.keys() and all(one[key].equal(other[key]) for key in one)
    assert isinstance(load_network(best), Toy)


def test_the_plain_unet_trains(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = ["--network", "unet-resnet50", "--network-options", "decoder_channels=[8,8,8,8,8]"]
    arguments = ["train", "--data", str(data), "--out", str(run), *SHORT, "--epochs", "1", *flags]
    assert main(arguments) == 0
    assert read_config(run / "best")["architecture"] == "unet-resnet50"
    assert json.loads((run / "config.json").read_text())["config"]["network"] == "unet-resnet50"
    assert "unet-resnet50" in (run / "summary.txt").read_text()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--network", "unet-resnet"], "did you mean 'unet-resnet50'"),
        (["--network", "absent:Net"], "--network absent:Net: cannot be imported"),
        (["--network", "unet-resnet50", "--window", "5"], "--window is an option of the network"),
        (["--network", "unet-resnet50", "--network-options", "width=3"], "has no option 'width'"),
        (["--network", "unet-resnet50", "--network-options", "width"], "written NAME=VALUE"),
        (["--network", "intrasense", "--loss", "own"], "intrasense has no loss beside the common"),
        (
            ["--network", "unet", "--loss", "own", "--loss-weights", "1", "1", "1"],
            "--loss-weights are of the common loss",
        ),
        (["--network", "unet", "--size", "40"], "unet cannot take images of 40 x 40 (--size)"),
        (["--network-options", "window=3"], "--network-options is for other networks"),
        (["--network", OUTSIDE, "--encoder-weights", "x.pth"], "takes none"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_named(
    flags: list[str], message: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["train", "--data", str(data), "--out", str(run), *SHORT, *flags]) == 2
    shown = capsys.readouterr().err
    assert message in shown and "Traceback" not in shown and not run.exists()


def test_a_network_trains_with_its_own_loss(data: Path, tmp_path: Path) -> None:
    """U-Net's is half the cross-entropy and the mean of the images' Dice losses."""
    flags = ["--network", "unet", "--network-options", "widths=[2,2,2,2,4]", "--loss", "own"]
    common = ["train", "--data", str(data), *SHORT, "--epochs", "1", *flags]
    assert main([*common, "--out", str(tmp_path / "run")]) == 0
    lines = (tmp_path / "run" / "history.jsonl").read_text().splitlines()
    for line in map(json.loads, lines):
        # All images count alike in the one, all pixels in the other.
        assert abs(line["loss"] - 0.5 * line["bce"] - line["dice"]) < 0.05
        assert line["loss"] < 0.5 * line["bce"] + 1 and line["whitening"] == 0
    assert main(["train", "--resume", str(tmp_path / "run"), "--epochs", "2"]) == 0


def test_own_loss_is_the_networks_and_the_log_has_the_common_terms(rng: torch.Generator) -> None:
    config = TrainConfig(network="emcad", network_options=('encoder="pvtv2_b0"',), loss="own")
    net = build_network("emcad", encoder="pvtv2_b0")
    image = torch.rand(2, 1, 32, 32, generator=rng)
    target = (torch.rand(2, 1, 32, 32, generator=rng) > 0.7).float()
    output = net(image)
    loss = loss_of(config, net)
    total = loss(output, target)
    assert total.shape == () and torch.equal(total, net.own_loss(output, target))
    assert not list(loss.parameters())
    probability, truth = torch.sigmoid(output.logits.double()), target.double()
    bce = -(truth * probability.log() + (1 - truth) * (1 - probability).log()).mean()
    torch.testing.assert_close(loss.terms["bce"].double(), bce, rtol=1e-5, atol=1e-6)
    total.backward()
    assert all(torch.isfinite(one.grad).all() for one in net.parameters() if one.grad is not None)
