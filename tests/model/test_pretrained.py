"""save_pretrained and from_pretrained: exact, offline, and clear about what is wrong."""

import json
from pathlib import Path

import pytest
import torch

from intrasense_fast import IntraSenseNet
from intrasense_fast.model import read_config
from tests.support.networks import wake

OPTIONS = {"refine_strides": (32, 8), "window": 5, "ridge": 2.5, "decoder_channels": (16, 8, 8, 8, 8), "squeeze": "decoupled"}


@pytest.fixture
def saved(tmp_path: Path) -> tuple[IntraSenseNet, Path]:
    net = wake(IntraSenseNet(**OPTIONS)).eval()
    net.save_pretrained(tmp_path / "net", {"image_size": 96})
    return net, tmp_path / "net"


def test_round_trip_is_exact(saved: tuple[IntraSenseNet, Path]) -> None:
    net, path = saved
    state = torch.get_rng_state()
    loaded = IntraSenseNet.from_pretrained(path, fused=False)
    assert torch.equal(state, torch.get_rng_state())
    assert loaded.config == net.config and loaded.fused is False and not loaded.training
    assert read_config(path)["image_size"] == 96
    assert sorted(file.name for file in path.iterdir()) == ["config.json", "model.safetensors"]
    x = torch.rand(1, 1, 70, 64)
    with torch.no_grad():
        assert torch.equal(loaded(x), net(x))
    assert all(p.requires_grad for p in loaded.parameters())
    loaded.train()(torch.rand(2, 1, 64, 64)).logits.sum().backward()


def test_encoder_weights_are_not_asked_for_again(tmp_path: Path) -> None:
    weights = {key: value for key, value in IntraSenseNet().encoder.state_dict().items()}
    torch.save(weights, tmp_path / "resnet.pth")
    IntraSenseNet(encoder_weights=tmp_path / "resnet.pth").save_pretrained(tmp_path / "net")
    (tmp_path / "resnet.pth").unlink()
    IntraSenseNet.from_pretrained(tmp_path / "net")


def test_channels_last_networks_are_saved(tmp_path: Path) -> None:
    net = IntraSenseNet(**OPTIONS).to(memory_format=torch.channels_last)
    net.save_pretrained(tmp_path / "net")
    loaded = IntraSenseNet.from_pretrained(tmp_path / "net")
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in net.state_dict().items())


def test_nothing_is_overwritten_unasked(saved: tuple[IntraSenseNet, Path]) -> None:
    net, path = saved
    before = (path / "model.safetensors").read_bytes()
    with pytest.raises(FileExistsError, match="overwrite=True"):
        IntraSenseNet(**OPTIONS).save_pretrained(path)
    assert (path / "model.safetensors").read_bytes() == before
    net.save_pretrained(path, overwrite=True)


def test_truncated_weights(saved: tuple[IntraSenseNet, Path]) -> None:
    file = saved[1] / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"model\.safetensors: damaged or truncated"):
        IntraSenseNet.from_pretrained(saved[1])


def test_weights_of_another_configuration(saved: tuple[IntraSenseNet, Path], tmp_path: Path) -> None:
    IntraSenseNet(**{**OPTIONS, "refine_strides": (16,)}).save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").rename(saved[1] / "model.safetensors")
    with pytest.raises(ValueError, match=r"disagree.*cdr\.16|disagree.*cdr\.32"):
        IntraSenseNet.from_pretrained(saved[1])


def test_missing_and_damaged_files_are_named(saved: tuple[IntraSenseNet, Path], tmp_path: Path) -> None:
    _, path = saved
    with pytest.raises(ValueError, match="no such folder"):
        IntraSenseNet.from_pretrained(tmp_path / "absent")
    (tmp_path / "run" / "best").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"did you mean .*best"):
        IntraSenseNet.from_pretrained(tmp_path / "run")
    config = json.loads((path / "config.json").read_text())
    for content, message in (
        ("{", r"config\.json: damaged"),
        (json.dumps({"architecture": "UNet"}), "describes no IntraSenseNet"),
        (json.dumps({"architecture": "IntraSenseNet"}), 'has no "arguments"'),
        (json.dumps({**config, "arguments": {**config["arguments"], "heads": 4}}), "does not know.*heads"),
    ):
        (path / "config.json").write_text(content)
        with pytest.raises(ValueError, match=message):
            IntraSenseNet.from_pretrained(path)
    (path / "config.json").write_text(json.dumps(config))
    (path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no model\.safetensors"):
        IntraSenseNet.from_pretrained(path)
