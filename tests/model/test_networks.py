"""The table of networks and the contract: names, options, the plain U-Net, saving and loading, and
code from outside."""

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from intrasense_fast import IntraSenseNet, IntraSenseOutput, networks
from intrasense_fast.losses import IntraSenseLoss
from intrasense_fast.networks import (
    build_network,
    list_networks,
    load_network,
    network_options,
    register_network,
    save_network,
)
from intrasense_fast.networks.contract import NetworkOutput, as_output, scalars_of

SLIM = (8, 8, 8, 8, 8)


class ToyOutput(NamedTuple):
    logits: Tensor
    edge_loss: Tensor


class Toy(nn.Module):
    """A network from outside: one convolution, an auxiliary loss, a figure for the log, and a
    tensor that is not saved."""

    def __init__(self, in_channels: int = 1, num_classes: int = 1, width: int = 3) -> None:
        super().__init__()
        self.first = nn.Conv2d(in_channels, width, 3, padding=1)
        self.last = nn.Conv2d(width, num_classes, 1)
        self.register_buffer("scale", torch.tensor(2.0), persistent=False)

    def forward(self, x: Tensor) -> ToyOutput | Tensor:
        logits = self.last(self.first(x).relu() * self.scale)
        return ToyOutput(logits, logits.abs().mean()) if self.training else logits

    def scalars(self) -> dict[str, Tensor]:
        return {"kernel_norm": self.first.weight.detach().norm()}


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    module = ModuleType("somebodys_networks")
    module.Toy = Toy  # type: ignore[attr-defined]
    module.nothing = lambda **_: "no network"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "somebodys_networks", module)
    monkeypatch.setattr(networks, "_registered", {})
    yield "somebodys_networks:Toy"


def test_every_name_builds_with_its_defaults() -> None:
    names = list_networks()
    assert {"intrasense", "unet-resnet50"} <= set(names) and names == sorted(names)
    with torch.device("meta"):
        assert isinstance(build_network("intrasense"), IntraSenseNet)
        plain = build_network("unet-resnet50", 3, 2)
    assert plain.config["in_channels"] == 3 and plain.config["num_classes"] == 2


def test_unknown_names_and_options_tell_the_nearest() -> None:
    for name, message in (
        ("unet-resnet", "no network 'unet-resnet', did you mean 'unet-resnet50'"),
        ("intrasens", "did you mean 'intrasense'"),
        ("absent_module:Net", "absent_module:Net: cannot be imported"),
        ("json:Net", "the module json has no Net"),
        (":Net", "must be written module:factory"),
    ):
        with pytest.raises(ValueError, match=message):
            build_network(name)
    with pytest.raises(ValueError, match=r"has no option 'decoder_channel', did you mean"):
        build_network("unet-resnet50", decoder_channel=SLIM)
    with pytest.raises(ValueError, match=r"decoder_channels must be five integers"):
        build_network("unet-resnet50", decoder_channels=(8,))
    with pytest.raises(TypeError, match=r"no option 'heads'; known: encoder, refine_strides"):
        IntraSenseNet(heads=4)


def test_the_plain_unet_is_intrasense_without_its_modules(seed: int, tmp_path: Path) -> None:
    torch.manual_seed(seed)
    whole = IntraSenseNet(gcp=False, cdr=False, decoder_channels=SLIM)
    torch.manual_seed(seed)
    plain = build_network("unet-resnet50", decoder_channels=SLIM)
    assert list(plain.state_dict()) == list(whole.state_dict())
    x = torch.rand(2, 1, 40, 70)
    assert torch.equal(plain(x), whole(x).logits)
    plain.load_state_dict(whole.state_dict())
    assert torch.equal(plain.eval()(x), whole.eval()(x))
    save_network(plain, tmp_path / "net")
    assert json.loads((tmp_path / "net" / "config.json").read_text())["architecture"] == (
        "unet-resnet50"
    )
    loaded = load_network(tmp_path / "net")
    assert type(loaded) is type(plain) and not loaded.training
    assert torch.equal(loaded(x), plain(x))
    with pytest.raises(ValueError, match=r"describes no intrasense.*load_network"):
        IntraSenseNet.from_pretrained(tmp_path / "net")


def test_folders_of_before_networks_had_names_load(seed: int, tmp_path: Path) -> None:
    torch.manual_seed(seed)
    net = IntraSenseNet(refine_strides=(32,), decoder_channels=SLIM, module_norm="none").eval()
    net.save_pretrained(tmp_path / "net")
    file = tmp_path / "net" / "config.json"
    config = json.loads(file.read_text())
    assert config["architecture"] == "intrasense"
    del config["arguments"]["module_norm"]
    file.write_text(json.dumps(config | {"architecture": "IntraSenseNet"}))
    x = torch.rand(2, 1, 64, 64)
    for loaded in (load_network(tmp_path / "net"), IntraSenseNet.from_pretrained(tmp_path / "net")):
        assert isinstance(loaded, IntraSenseNet) and loaded.config["module_norm"] == "none"
        assert torch.equal(loaded(x), net(x))


def test_code_from_outside_is_never_imported_because_a_file_names_it(
    toy: str, tmp_path: Path, seed: int
) -> None:
    torch.manual_seed(seed)
    net = build_network(toy, width=5).eval()
    assert net.config == {"in_channels": 1, "num_classes": 1, "width": 5}
    save_network(net, tmp_path / "net")
    with pytest.raises(ValueError, match=r"code from outside.*if you trust it.*register_network"):
        load_network(tmp_path / "net")
    assert register_network(toy) == toy and toy in list_networks()
    x = torch.rand(2, 1, 9, 7)
    assert torch.equal(load_network(tmp_path / "net")(x), net(x))
    with pytest.raises(ValueError, match="is the name of another network"):
        register_network(toy, "intrasense")
    with pytest.raises(ValueError, match=r"made str, an nn\.Module is needed"):
        build_network("somebodys_networks:nothing")
    assert network_options(toy) == ["width"]


def test_outputs_of_every_kind_are_one(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 1, 8, 8, generator=generator)
    loss = torch.tensor(0.25)
    assert as_output(logits).losses == {}
    assert as_output(IntraSenseOutput(logits, loss)).losses == {"whitening": loss}
    assert as_output(ToyOutput(logits, loss)).losses == {"edge": loss}
    for wrong in ((logits, loss), "logits", ToyOutput(logits, 0.25)):  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="needs a tensor of logits"):
            as_output(wrong)
    target = (torch.rand(2, 1, 8, 8, generator=generator) > 0.5).float()
    measured = IntraSenseLoss((1, 2, 3))
    plain = measured(logits, target)
    assert (
        measured.terms.keys() == {"bce", "dice", "whitening"} and measured.terms["whitening"] == 0
    )
    total = measured(ToyOutput(logits, loss), target)
    assert measured.terms.keys() == {"bce", "dice", "whitening", "edge"}
    torch.testing.assert_close(total, plain + 3 * loss)
    coarse = NetworkOutput(logits, (logits, logits), None)
    torch.testing.assert_close(measured(coarse, target), plain + 3 * plain)
    assert measured.terms.keys() == {"bce", "dice", "whitening", "heads"}
    small = NetworkOutput(logits, (torch.zeros(2, 1, 4, 4),))
    assert measured(small, target) > plain + 3 * math.log(2)


def test_scalars_are_optional() -> None:
    net = Toy()
    assert scalars_of(net)["kernel_norm"] == net.first.weight.norm()
    assert scalars_of(nn.Identity()) == {}
    whole = IntraSenseNet(refine_strides=(32,), decoder_channels=SLIM).eval()
    whole(torch.rand(1, 1, 64, 64))
    assert scalars_of(whole) == {"masked_fraction_32": whole.masked_fraction[32]}


def test_a_network_that_does_not_say_how_it_was_built_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="build it with build_network"):
        save_network(Toy(), tmp_path / "net")
    assert not (tmp_path / "net").exists()
