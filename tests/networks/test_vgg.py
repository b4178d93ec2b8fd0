"""VGG-19's weights: torchvision's keys and shapes, from a local file or not at all."""

import hashlib

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from intrasense_fast.networks import vgg
from intrasense_fast.networks.eanet import EANet
from intrasense_fast.networks.vgg import VGG19Encoder, load_vgg19_weights
from intrasense_fast.networks.weight_files import EncoderWeightsError

# Places of the convolutions in torchvision's `features`, with their input and output channels.
CONVOLUTIONS = {
    0: (3, 64),
    2: (64, 64),
    5: (64, 128),
    7: (128, 128),
    10: (128, 256),
    12: (256, 256),
    14: (256, 256),
    16: (256, 256),
    19: (256, 512),
    21: (512, 512),
    23: (512, 512),
    25: (512, 512),
    28: (512, 512),
    30: (512, 512),
    32: (512, 512),
    34: (512, 512),
}


@pytest.fixture
def weights() -> dict[str, Tensor]:
    """A state dict of VGG-19 of one number a tensor: small as a file, whatever its shape."""
    content = {}
    for index, (incoming, outgoing) in CONVOLUTIONS.items():
        weight, bias = torch.tensor(index / 7 + 1), torch.tensor(-index / 7 - 1)
        content[f"features.{index}.weight"] = weight.expand(outgoing, incoming, 3, 3)
        content[f"features.{index}.bias"] = bias.expand(outgoing)
    content["classifier.0.weight"] = torch.tensor(1.0).expand(4096, 25088)
    return content


@pytest.fixture(scope="module")
def encoder() -> VGG19Encoder:
    return VGG19Encoder()


def test_maps(encoder):
    maps = encoder(torch.rand(1, 1, 48, 32))
    shapes = [(64, 48, 32), (128, 24, 16), (256, 12, 8), (512, 6, 4), (512, 3, 2)]
    assert [tuple(found.shape[1:]) for found in maps] == shapes
    # He's weights keep the signal through sixteen layers.
    assert 0.05 < maps[-1].std() < 5


@pytest.mark.parametrize("in_channels", [1, 3])
def test_all_but_the_first_convolution_are_loaded(in_channels, weights, tmp_path):
    torch.save(weights, tmp_path / "vgg19.pth")
    encoder = VGG19Encoder(in_channels)
    first = encoder.features[0].weight.clone()
    load_vgg19_weights(encoder, tmp_path / "vgg19.pth")
    assert torch.equal(encoder.features[0].weight, first)
    for index in list(CONVOLUTIONS)[1:]:
        layer = encoder.features[index]
        assert torch.equal(layer.weight, weights[f"features.{index}.weight"])
        assert torch.equal(layer.bias, weights[f"features.{index}.bias"])


def test_a_network_takes_a_safetensors_file(weights, tmp_path):
    del weights["classifier.0.weight"]
    dense = {key: value.contiguous() for key, value in weights.items()}
    save_file(dense, tmp_path / "vgg19.safetensors")
    net = EANet(encoder_weights=tmp_path / "vgg19.safetensors")
    assert torch.equal(net.encoder.features[34].bias, dense["features.34.bias"])
    assert net.config == {"in_channels": 1, "num_classes": 1}


def test_misfits_are_named_and_nothing_is_loaded(encoder, weights, tmp_path):
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    del weights["features.7.bias"]
    weights["features.12.weight"] = weights["features.12.weight"][:, :8]
    weights["features.40.weight"] = torch.zeros(3)
    torch.save(weights, tmp_path / "other.pth")
    with pytest.raises(EncoderWeightsError) as error:
        load_vgg19_weights(encoder, tmp_path / "other.pth")
    for part in ("features.7.bias", "features.12.weight", "features.40.weight", vgg.VGG19_URL):
        assert part in str(error.value)
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())


def test_missing_and_damaged_files_say_where_it_comes_from(encoder, tmp_path):
    (tmp_path / "broken.pth").write_bytes(b"PK\3\4 nothing")
    for name, message in (("none.pth", "no such file"), ("broken.pth", "cannot be read")):
        with pytest.raises(EncoderWeightsError, match=f"{name}: {message}.*{vgg.VGG19_URL}"):
            load_vgg19_weights(encoder, tmp_path / name)
    with pytest.raises(TypeError, match="encoder_weights must be None"):
        load_vgg19_weights(encoder, 3)


def test_imagenet_is_the_file_of_the_hub_cache(encoder, weights, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(EncoderWeightsError, match=f"vgg19-dcbb9e9d.pth: no such.*{vgg.VGG19_URL}"):
        load_vgg19_weights(encoder, "imagenet")
    file = tmp_path / "checkpoints" / "vgg19-dcbb9e9d.pth"
    file.parent.mkdir()
    torch.save(weights, file)
    with pytest.raises(EncoderWeightsError, match=r"SHA-256 begins with .* not dcbb9e9d"):
        load_vgg19_weights(encoder, "imagenet")
    monkeypatch.setattr(vgg, "_SHA256", hashlib.sha256(file.read_bytes()).hexdigest())
    load_vgg19_weights(encoder, "imagenet")
    assert torch.equal(encoder.features[2].bias, weights["features.2.bias"])
