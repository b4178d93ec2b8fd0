"""save_pretrained and from_pretrained: exact, offline, and clear about what is wrong."""

import errno
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from intrasense_fast import IntraSenseNet
from intrasense_fast.networks.pretrained import read_config
from tests.support.networks import wake

FILES = ["README.md", "config.json", "model.safetensors"]
OPTIONS = {
    "encoder": "resnet18",
    "refine_strides": (32, 8),
    "window": 5,
    "ridge": 2.5,
    "decoder_channels": (16, 8, 8, 8, 8),
    "squeeze": "decoupled",
}


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
    assert sorted(file.name for file in path.iterdir()) == FILES
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
    assert all(
        torch.equal(value, loaded.state_dict()[key]) for key, value in net.state_dict().items()
    )


def test_numpys_arguments_are_saved_as_pythons(tmp_path: Path) -> None:
    given = {
        "in_channels": np.int64(3),
        "refine_strides": np.array([32]),
        "gcp": np.bool_(False),
        "window": np.int32(5),
        "ridge": np.float32(2.5),
        "decoder_channels": np.full(5, 8),
    }
    net = IntraSenseNet(**given, fused=np.bool_(False))
    net.save_pretrained(tmp_path / "net")
    config = IntraSenseNet.from_pretrained(tmp_path / "net").config
    plain = {
        "in_channels": 3,
        "refine_strides": [32],
        "gcp": False,
        "window": 5,
        "ridge": 2.5,
        "decoder_channels": [8] * 5,
    }
    for found in (net.config, config):
        assert {name: found[name] for name in given} == plain
    assert net.fused is False


def test_subclasses_round_trip(tmp_path: Path) -> None:
    class Mine(IntraSenseNet):
        pass

    Mine(**OPTIONS).save_pretrained(tmp_path / "net")
    assert type(Mine.from_pretrained(tmp_path / "net")) is Mine
    assert type(IntraSenseNet.from_pretrained(tmp_path / "net")) is IntraSenseNet


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_networks_of_another_dtype_keep_it(dtype: torch.dtype, tmp_path: Path) -> None:
    net = IntraSenseNet(**OPTIONS).to(dtype)
    for name in ("alike", "encoder of another"):
        net.save_pretrained(tmp_path / name)
        loaded = IntraSenseNet.from_pretrained(tmp_path / name).state_dict()
        for key, value in net.state_dict().items():
            assert torch.equal(value, loaded[key]) and value.dtype == loaded[key].dtype, key
        net.encoder.float()


def test_what_cannot_be_saved_leaves_the_network_before_it(
    saved: tuple[IntraSenseNet, Path],
) -> None:
    _, path = saved
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    other = IntraSenseNet(**OPTIONS)
    for extra in ({"split": {1, 2}}, {"seed": np.int64(3)}):
        with pytest.raises(TypeError, match=r"extra must be a dictionary .*not JSON serializable"):
            other.save_pretrained(path, extra, overwrite=True)
    other.decoder.to(torch.float8_e4m3fn)
    with pytest.raises(
        ValueError, match=r"it is torch\.float8_e4m3fn; convert the network with net\.to\(dtype\)"
    ):
        other.save_pretrained(path, overwrite=True)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before


def test_a_disk_that_fills_up_while_it_is_flushed_leaves_the_network_before_it(
    saved: tuple[IntraSenseNet, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    _, path = saved
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device"):
        IntraSenseNet(**OPTIONS).save_pretrained(path, overwrite=True)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before


@pytest.mark.parametrize("failing", FILES[1:])
def test_interrupted_renames_leave_no_mixed_pair(
    failing: str, saved: tuple[IntraSenseNet, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    net, path = saved
    rename = os.replace

    def interrupted(source: Path, target: Path) -> None:
        if target.name == failing:
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        IntraSenseNet(**OPTIONS).save_pretrained(path, overwrite=True)
    with pytest.raises(ValueError, match=r"it needs config\.json"):
        IntraSenseNet.from_pretrained(path)
    monkeypatch.undo()
    net.save_pretrained(path, overwrite=True)
    IntraSenseNet.from_pretrained(path)
    assert sorted(file.name for file in path.iterdir()) == FILES


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


def test_weights_of_another_configuration(
    saved: tuple[IntraSenseNet, Path], tmp_path: Path
) -> None:
    IntraSenseNet(**{**OPTIONS, "refine_strides": (16,)}).save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").rename(saved[1] / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"disagree on cdr\.32\.expand\.bias \(missing\).* copy both files again"
    ):
        IntraSenseNet.from_pretrained(saved[1])


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        (
            "decoder.head.bias",
            lambda w: w.to(torch.float8_e4m3fn),
            r"head\.bias must be .*, it is torch\.float8_e4m3fn",
        ),
        (
            "input_mean",
            lambda w: w.int(),
            r"disagree on input_mean \(\(1, 1, 1, 1\) int32 for \(1, 1, 1, 1\) float32\)",
        ),
        (
            "encoder.bn1.num_batches_tracked",
            lambda w: w.float(),
            r"num_batches_tracked \(\(\) float32 for \(\) int64\)",
        ),
        (
            "decoder.head.bias",
            lambda w: w.expand(2).clone(),
            r"head\.bias \(\(2,\) float32 for \(1,\) float32\)",
        ),
    ],
)
def test_tensors_of_another_kind_are_named(
    key: str, change: Callable, message: str, saved: tuple[IntraSenseNet, Path]
) -> None:
    weights = load_file(saved[1] / "model.safetensors")
    save_file({**weights, key: change(weights[key])}, saved[1] / "model.safetensors")
    with pytest.raises(ValueError, match=rf"{re.escape(str(saved[1]))}.*{message}.*again"):
        IntraSenseNet.from_pretrained(saved[1])


def test_weights_of_no_float_at_all_are_named(saved: tuple[IntraSenseNet, Path]) -> None:
    weights = load_file(saved[1] / "model.safetensors")
    save_file({key: value.int() for key, value in weights.items()}, saved[1] / "model.safetensors")
    with pytest.raises(ValueError, match=r"disagree on .*int32 for .*and \d+ more"):
        IntraSenseNet.from_pretrained(saved[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"refine_strides": [32.0]}, r"refine_strides must be some of"),
        ({"refine_strides": None}, r"refine_strides must be some of"),
        ({"refine_strides": {"8": [[]]}}, r"refine_strides must be some of"),
        ({"decoder_channels": [10**12] * 5}, "no network that can be built"),
        ({"decoder_channels": [2**30] * 5}, "no network that can be built"),
        ({"num_classes": 10**30}, "num_classes must be an integer >= 1"),
        ({"ridge": "10"}, "ridge must be finite"),
        ({"encoder_weights": "imagenet"}, "arguments this version does not know.*encoder_weights"),
        ({"fused": True}, "arguments this version does not know.*fused"),
    ],
    ids=str,
)
def test_arguments_of_no_network_are_named(
    arguments: dict, message: str, saved: tuple[IntraSenseNet, Path]
) -> None:
    file = saved[1] / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "arguments": {**config["arguments"], **arguments}}))
    with pytest.raises(ValueError, match=rf"{re.escape(str(file))}: .*{message}.* again"):
        IntraSenseNet.from_pretrained(saved[1])


def test_missing_and_damaged_files_are_named(
    saved: tuple[IntraSenseNet, Path], tmp_path: Path
) -> None:
    _, path = saved
    with pytest.raises(ValueError, match="no such folder"):
        IntraSenseNet.from_pretrained(tmp_path / "absent")
    (tmp_path / "run" / "best").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"did you mean .*best"):
        IntraSenseNet.from_pretrained(tmp_path / "run")
    config = json.loads((path / "config.json").read_text())
    for content, message in (
        ("{", r"config\.json: damaged"),
        ("[" * 100_000, r"config\.json: damaged"),
        ("1" * 5000, r"config\.json: damaged"),
        (json.dumps({"architecture": "UNet"}), "describes no intrasense, its .* is UNet"),
        (json.dumps({}), "describes no network"),
        (json.dumps({"architecture": "IntraSenseNet"}), 'has no "arguments"'),
        (
            json.dumps({**config, "arguments": {**config["arguments"], "heads": 4}}),
            "does not know.*heads",
        ),
    ):
        (path / "config.json").write_text(content)
        with pytest.raises(ValueError, match=message):
            IntraSenseNet.from_pretrained(path)
    (path / "config.json").write_text(json.dumps(config))
    (path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no model\.safetensors"):
        IntraSenseNet.from_pretrained(path)


def test_a_network_of_before_module_norm_gives_the_same_bits(tmp_path: Path, seed: int) -> None:
    torch.manual_seed(seed)
    options = {"refine_strides": (16, 32), "decoder_channels": (16, 8, 8, 8, 8)}
    net = wake(IntraSenseNet(**options, module_norm="none")).eval()
    net.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["arguments"]["module_norm"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = IntraSenseNet.from_pretrained(tmp_path)
    x = torch.rand(2, 1, 64, 64)
    with torch.no_grad():
        assert loaded.config["module_norm"] == "none" and torch.equal(loaded(x), net(x))
    assert "module_norm" not in config["arguments"]
    assert not any("norm" in key for key in loaded.gcp.state_dict())
