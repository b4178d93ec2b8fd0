"""ResNet-18, 34, 50 and 101 against torchvision's structure, written here from its description, and
the networks that stand on them."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import batch_norm, conv2d, max_pool2d

from intrasense_fast import IntraSenseNet
from intrasense_fast.networks import build_network, load_network, save_network
from intrasense_fast.networks.encoder import ENCODERS, ResNetEncoder
from intrasense_fast.networks.encoder_weights import EncoderWeightsError, load_encoder_weights
from intrasense_fast.training.config import TrainConfig
from tests.support.seeded_weights import seeded_image, seeded_weights

SLIM = (8, 8, 8, 8, 8)
# Blocks of layer1 to layer4, and the kernel sizes of a block's convolutions.
BLOCKS = {
    "resnet18": ((2, 2, 2, 2), (3, 3)),
    "resnet34": ((3, 4, 6, 3), (3, 3)),
    "resnet50": ((3, 4, 6, 3), (1, 3, 1)),
    "resnet101": ((3, 4, 23, 3), (1, 3, 1)),
}
# torchvision's parameters of three-channel networks less those of fc, and keys less fc's two.
COUNTS = {
    "resnet18": (11_176_512, 120),
    "resnet34": (21_284_672, 216),
    "resnet50": (23_508_032, 318),
    "resnet101": (42_500_160, 624),
}
STATISTICS = ("weight", "bias", "running_mean", "running_var")


def shapes_of(name: str) -> dict[str, list[int]]:
    """torchvision's keys and shapes without fc."""
    shapes: dict[str, list[int]] = {}

    def add(conv: str, norm: str, incoming: int, outgoing: int, side: int) -> int:
        shapes[f"{conv}.weight"] = [outgoing, incoming, side, side]
        shapes.update({f"{norm}.{key}": [outgoing] for key in STATISTICS})
        shapes[f"{norm}.num_batches_tracked"] = []
        return outgoing

    blocks, sides = BLOCKS[name]
    width = add("conv1", "bn1", 3, 64, 7)
    for layer in range(4):
        for block in range(blocks[layer]):
            prefix, narrow, incoming = f"layer{layer + 1}.{block}", 64 * 2**layer, width
            outgoing = narrow if len(sides) == 2 else 4 * narrow
            for index, side in enumerate(sides):
                last = index == len(sides) - 1
                names = f"{prefix}.conv{index + 1}", f"{prefix}.bn{index + 1}"
                width = add(*names, width, outgoing if last else narrow, side)
            if block == 0 and (incoming != outgoing or layer > 0):
                add(f"{prefix}.downsample.0", f"{prefix}.downsample.1", incoming, outgoing, 1)
    return shapes


def features_of(name: str, weights: dict[str, Tensor], x: Tensor) -> list[Tensor]:
    """The maps at strides 2 to 32 of an eval-mode forward, from the keys alone."""

    def normalised(conv: str, norm: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = weights[f"{conv}.weight"]
        x = conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        scale, shift, mean, variance = (weights[f"{norm}.{key}"] for key in STATISTICS)
        return batch_norm(x, mean, variance, scale, shift)

    blocks, sides = BLOCKS[name]
    maps = [normalised("conv1", "bn1", x, 2).relu()]
    x = max_pool2d(maps[0], 3, 2, 1)
    for layer in range(4):
        for block in range(blocks[layer]):
            prefix, stride = f"layer{layer + 1}.{block}", 2 if layer > 0 and block == 0 else 1
            strided = len(sides) - 2
            branch = x
            for index in range(len(sides)):
                names = f"{prefix}.conv{index + 1}", f"{prefix}.bn{index + 1}"
                branch = normalised(*names, branch, stride if index == strided else 1)
                branch = branch if index == len(sides) - 1 else branch.relu()
            if f"{prefix}.downsample.0.weight" in weights:
                x = normalised(f"{prefix}.downsample.0", f"{prefix}.downsample.1", x, stride)
            x = (x + branch).relu()
        maps.append(x)
    return maps


def weights_of(name: str) -> dict[str, Tensor]:
    return {key: torch.from_numpy(value) for key, value in seeded_weights(shapes_of(name)).items()}


@pytest.mark.parametrize("name", BLOCKS)
def test_keys_shapes_and_counts_are_torchvisions(name: str) -> None:
    with torch.device("meta"):
        encoder = ResNetEncoder(3, name)
    own = {key: list(value.shape) for key, value in encoder.state_dict().items()}
    assert own == shapes_of(name)
    assert (sum(one.numel() for one in encoder.parameters()), len(own)) == COUNTS[name]


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        pytest.param("resnet34", marks=pytest.mark.extended),
        pytest.param("resnet101", marks=pytest.mark.extended),
    ],
)
def test_features_are_those_of_the_description(name: str) -> None:
    encoder, weights = ResNetEncoder(3, name).double().eval(), weights_of(name)
    encoder.load_state_dict(weights)
    x = torch.from_numpy(seeded_image(3, 32, 64)).double()
    with torch.no_grad():
        maps = encoder(x)
        wanted = features_of(name, {key: one.double() for key, one in weights.items()}, x)
    assert tuple(one.shape[1] for one in maps) == ENCODERS[name].channels
    assert [tuple(one.shape[2:]) for one in maps] == [(32 // s, 64 // s) for s in (2, 4, 8, 16, 32)]
    for features, expected in zip(maps, wanted, strict=True):
        assert expected.norm() > 1
        torch.testing.assert_close(features, expected, rtol=1e-9, atol=1e-9)


def test_widths_follow_the_encoder(seed: int, rng: torch.Generator, tmp_path: Path) -> None:
    torch.manual_seed(seed)
    net = IntraSenseNet(encoder="resnet18", refine_strides=(4, 8, 16, 32), decoder_channels=SLIM)
    channels = {"4": 64, "8": 128, "16": 256, "32": 512}
    assert {stride: gcp.channels for stride, gcp in net.gcp.items()} == channels
    assert net.decoder.blocks[0].conv1.in_channels == 512 + 256
    output = net(torch.rand(2, 1, 40, 64, generator=rng))
    assert output.logits.shape == (2, 1, 40, 64) and output.logits.dtype == torch.float32
    (output.logits.mean() + output.whitening_loss).backward()
    assert all(one.grad is not None and one.grad.isfinite().all() for one in net.parameters())
    net.eval().save_pretrained(tmp_path / "net")
    stored = json.loads((tmp_path / "net" / "config.json").read_text())
    assert stored["arguments"]["encoder"] == "resnet18"
    x = torch.rand(1, 1, 64, 32, generator=rng)
    assert torch.equal(IntraSenseNet.from_pretrained(tmp_path / "net")(x), net(x))


def test_the_plain_unet_takes_an_encoder(seed: int, rng: torch.Generator, tmp_path: Path) -> None:
    torch.manual_seed(seed)
    plain = build_network("unet-resnet50", encoder="resnet18", decoder_channels=SLIM)
    torch.manual_seed(seed)
    whole = IntraSenseNet(encoder="resnet18", gcp=False, cdr=False, decoder_channels=SLIM)
    x = torch.rand(2, 1, 32, 64, generator=rng)
    assert torch.equal(plain(x), whole(x).logits)
    save_network(plain.eval(), tmp_path / "net")
    assert torch.equal(load_network(tmp_path / "net")(x), plain(x))
    with pytest.raises(ValueError, match=r"encoder must be one of resnet18, .*, got 'resnet20'"):
        build_network("unet-resnet50", encoder="resnet20")
    with pytest.raises(ValueError, match=r"encoder must be one of resnet18, .*, got 18"):
        IntraSenseNet(encoder=18)


@pytest.mark.parametrize("network", ["intrasense", "unet-resnet50"])
def test_what_was_stored_without_an_encoder_is_a_resnet50(network: str, tmp_path: Path) -> None:
    save_network(build_network(network, decoder_channels=SLIM), tmp_path / "net")
    file = tmp_path / "net" / "config.json"
    stored = json.loads(file.read_text())
    assert stored["arguments"].pop("encoder") == "resnet50"
    file.write_text(json.dumps(stored))
    assert load_network(tmp_path / "net").encoder.layout is ENCODERS["resnet50"]
    run = TrainConfig(network=network).as_dict()
    assert run.pop("encoder") == "resnet50"
    assert TrainConfig.from_dict(run).encoder == "resnet50"


def test_weights_of_each_encoder_load_from_its_own_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    weights = weights_of("resnet18")
    torch.save(weights | {"fc.weight": torch.zeros(1000, 512)}, cache / "resnet18-f37072fd.pth")
    net = IntraSenseNet(3, encoder="resnet18", encoder_weights="imagenet")
    own = net.encoder.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in own.items())


def test_each_encoder_asks_for_torchvisions_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(url: str, *args: object, **kwargs: object) -> None:
        raise OSError(f"no way to {url}")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", unreachable)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name, title, file in (
        ("resnet18", "ResNet-18", "resnet18-f37072fd.pth"),
        ("resnet34", "ResNet-34", "resnet34-b627a593.pth"),
        ("resnet50", "ResNet-50", "resnet50-11ad3fa6.pth"),
        ("resnet101", "ResNet-101", "resnet101-cd907fc2.pth"),
    ):
        with torch.device("meta"):
            encoder = ResNetEncoder(3, name)
        url = f"https://download.pytorch.org/models/{file}"
        with pytest.raises(EncoderWeightsError, match=rf"no way to {url}.*with {title}'s keys"):
            load_encoder_weights(encoder, "imagenet")
        with pytest.raises(EncoderWeightsError, match=f"no such file.*of {title}, or"):
            load_encoder_weights(encoder, tmp_path / "absent.pth")


# Every key of ResNet-18 is in ResNet-34's file, and every key of ResNet-50 in ResNet-101's.
@pytest.mark.parametrize(("given", "wanted"), [("resnet34", "resnet18"), ("resnet18", "resnet34")])
def test_the_file_of_another_resnet_is_refused(given: str, wanted: str, tmp_path: Path) -> None:
    torch.save(weights_of(given), tmp_path / "weights.pth")
    encoder = ResNetEncoder(3, wanted)
    before = encoder.layer1[0].conv1.weight.clone()
    titles = ENCODERS[given].title, ENCODERS[wanted].title
    with pytest.raises(
        EncoderWeightsError,
        match=rf'holds {titles[0]}\'s weights and the encoder is {titles[1]}.*encoder="{given}"',
    ):
        load_encoder_weights(encoder, tmp_path / "weights.pth")
    assert torch.equal(encoder.layer1[0].conv1.weight, before)
