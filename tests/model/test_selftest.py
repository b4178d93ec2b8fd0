"""Damage of a checkpoint is found before the first prediction: a bit, NaN, a broken operator, a
file that is not what its checksums say."""

import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from intrasense_fast import IntraSenseNet
from intrasense_fast.cli import main
from intrasense_fast.inference import open_segmenter
from intrasense_fast.networks import build_network, load_network, refine
from intrasense_fast.networks.checksums import write_checksums
from intrasense_fast.networks.selftest import SelfTestError, check_selftest, write_selftest
from intrasense_fast.training.checkpoint import save_best
from tests.support.networks import wake

SLIM = {"encoder": "resnet18", "refine_strides": (16, 32), "decoder_channels": (8, 8, 8, 8, 8)}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(7)
    run = tmp_path_factory.mktemp("selftest")
    save_best(run, wake(IntraSenseNet(**SLIM)).eval(), {"image_size": 64})
    return run / "best"


@pytest.fixture
def best(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "best"))


@pytest.fixture
def tiny(tmp_path: Path, seed: int) -> tuple[nn.Module, Path]:
    """A network of another name, and its checkpoint."""
    torch.manual_seed(seed)
    net = build_network("unet", widths=[2, 2, 2, 2, 4]).eval()
    save_best(tmp_path, net, {"image_size": 32})
    return net, tmp_path / "best"


def reseal(folder: Path) -> None:
    """Sound checksums of whatever the folder holds."""
    (folder / "checksums.json").unlink()
    write_checksums(folder)


def flip(file: Path, place: int, bit: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1 << bit
    file.write_bytes(content)


def predict(checkpoint: Path, folder: Path, *flags: str) -> int:
    image = folder / "image.png"
    cv2.imwrite(str(image), np.arange(48 * 40, dtype=np.uint8).reshape(48, 40))
    out = folder / f"out{len(list(folder.iterdir()))}"
    command = ["predict", str(image), "--checkpoint", str(checkpoint), "--out", str(out), *flags]
    return main(command)


def test_a_checkpoint_carries_its_test_and_passes_it(original: Path) -> None:
    names = ["checksums.json", "config.json", "model.safetensors", "selftest.safetensors"]
    assert sorted(file.name for file in original.iterdir()) == names
    with safe_open(original / "selftest.safetensors", "pt") as file:
        about, x, logits = file.metadata(), file.get_tensor("input"), file.get_tensor("logits")
    assert x.shape == logits.shape == (1, 1, 64, 64) and about["device"] == "cpu"
    assert 0 < float(about["tolerance_same"]) <= 0.05
    assert 0.02 <= float(about["tolerance_other"]) <= 0.25
    with torch.inference_mode():
        net = IntraSenseNet.from_pretrained(original)
    assert net.masked_fraction == {} and check_selftest(net, original)
    with torch.no_grad():
        torch.testing.assert_close(net(x), logits, rtol=1e-4, atol=1e-5)
    # Loaded where nothing is recorded, it trains all the same.
    net.train()(torch.rand(2, 1, 32, 32)).logits.sum().backward()
    assert all(value.grad is not None for value in net.decoder.parameters())


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "selftest.safetensors"])
def test_a_flipped_bit_is_found(
    name: str,
    tiny: tuple[nn.Module, Path],
    tmp_path: Path,
    seed: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, best = tiny
    file = best / name
    flip(file, seed % file.stat().st_size, seed % 8)
    with pytest.raises(ValueError, match=re.escape(str(best))):
        load_network(best)
    assert predict(best, tmp_path) == 2
    shown = capsys.readouterr().err
    assert f"--checkpoint {best}" in shown and not (tmp_path / "out1").exists()
    file.unlink()
    with pytest.raises(ValueError, match=name):
        load_network(best)


def test_a_flipped_bit_with_sound_checksums_is_found(tiny: tuple[nn.Module, Path]) -> None:
    """The highest bit of an exponent, as bad memory flips it before the checksum is made."""
    net, path = tiny
    weights = load_file(path / "model.safetensors")
    name, _ = list(net.named_parameters())[-1]
    weights[name].view(torch.int32)[0] ^= 1 << 30
    assert name.endswith("bias") and torch.isfinite(weights[name]).all()
    save_file(weights, path / "model.safetensors")
    reseal(path)
    with pytest.raises(SelfTestError, match=r"best: the self-test failed: logits on cpu that are"):
        load_network(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(
    value: float, tiny: tuple[nn.Module, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, path = tiny
    weights = load_file(path / "model.safetensors")
    name = next(name for name in weights if name.endswith("weight"))
    weights[name].view(-1)[-1] = value
    save_file(weights, path / "model.safetensors")
    reseal(path)
    assert predict(path, tmp_path) == 2
    assert f"{name} holds NaN or infinite values" in capsys.readouterr().err
    # Without checksums and self-test, as an old checkpoint is.
    for file in ("checksums.json", "selftest.safetensors"):
        (path / file).unlink()
    with pytest.raises(ValueError, match=f"{name} holds NaN or infinite values"):
        load_network(path)


def test_a_broken_operator_is_found(best: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = refine.channel_decoupling

    def broken(features: torch.Tensor, *rest: object, **options: object) -> tuple:
        found, *terms = honest(features, *rest, **options)
        return (found.flip(1), *terms)

    monkeypatch.setattr(refine, "channel_decoupling", broken)
    with pytest.raises(SelfTestError, match=r"or the operators compute something else here"):
        load_network(best)


@pytest.mark.extended
def test_a_broken_kernel_is_found(best: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels pass within their tolerance, and are refused when they do not."""
    from intrasense_fast.kernels.runtime import fused_status

    status = fused_status(torch.zeros(1))
    if not status.available:
        pytest.skip(f"the kernels do not run here: {status.reason}")
    assert open_segmenter(best, device="cpu", fused=True).remark == ""
    honest = refine.entropy_whitening

    def broken(features: torch.Tensor, *rest: object, **options: object) -> tuple:
        found, mask = honest(features, *rest, **options)
        return (found.flip(1) if options.get("fused") else found), mask

    monkeypatch.setattr(refine, "entropy_whitening", broken)
    load_network(best)
    with pytest.raises(ValueError, match=r"--checkpoint .*the self-test failed.*--no-fused"):
        open_segmenter(best, device="cpu", fused=True)


def test_old_checkpoints_predict_with_a_remark(
    tiny: tuple[nn.Module, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, path = tiny
    assert predict(path, tmp_path) == 0 and "has no" not in capsys.readouterr().err
    for file in ("checksums.json", "selftest.safetensors"):
        (path / file).unlink()
    assert predict(path, tmp_path) == 0
    assert f"warning: {path}: has no checksums.json and no selftest.safetensors" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"../config.json": "%s"}' % ("0" * 64), "is no name of a file in this folder"),
        ('{"/etc/passwd": "%s"}' % ("0" * 64), "is no name of a file in this folder"),
        ('{"a\\\\b": "%s"}' % ("0" * 64), "is no name of a file in this folder"),
        ('{"..": "%s"}' % ("0" * 64), "is no name of a file in this folder"),
        ('{"config.json": "%s"}' % ("g" * 64), "must hold a SHA-256"),
        ('{"config.json": 3}', "must hold a SHA-256"),
        ("[" * 10**5, r"checksums\.json is damaged"),
        ("{", r"checksums\.json is damaged"),
        ("\x00\udcff", r"checksums\.json is damaged"),
    ],
    ids=lambda x: str(x)[:16],
)
def test_checksums_hold_digests_of_plain_names(
    content: str, message: str, tiny: tuple[nn.Module, Path]
) -> None:
    _, path = tiny
    (path / "checksums.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=message):
        load_network(path)


def test_writing_a_self_test_leaves_no_trace(best: Path, tmp_path: Path) -> None:
    net = IntraSenseNet.from_pretrained(best).train()
    net.encoder.eval()
    net.masked_fraction = {}
    net.fused = None
    modes = [module.training for module in net.modules()]
    before = {key: value.clone() for key, value in net.state_dict().items()}
    state = torch.get_rng_state()
    write_selftest(net, tmp_path, 64)
    assert check_selftest(net, tmp_path)
    assert torch.equal(state, torch.get_rng_state()) and net.masked_fraction == {}
    assert modes == [module.training for module in net.modules()] and net.fused is None
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_a_network_saved_over_a_checkpoint_is_no_damage(tiny: tuple[nn.Module, Path]) -> None:
    from intrasense_fast.networks import save_network

    net, path = tiny
    with torch.no_grad():
        for value in net.parameters():
            value.mul_(2)
    save_network(net, path, {"image_size": 32}, overwrite=True)
    assert sorted(file.name for file in path.iterdir()) == ["config.json", "model.safetensors"]
    load_network(path)


def test_a_damaged_self_test_without_checksums(tiny: tuple[nn.Module, Path]) -> None:
    _, path = tiny
    (path / "checksums.json").unlink()
    file = path / "selftest.safetensors"
    whole = file.read_bytes()
    for content in (b"", whole[:50], whole[:-9], b"{" * 100):
        file.write_bytes(content)
        with pytest.raises(SelfTestError, match=r"selftest\.safetensors: is damaged"):
            load_network(path)
    save_file({"x": torch.zeros(1)}, file, {"format": "2"})
    with pytest.raises(SelfTestError, match="of another version"):
        load_network(path)
