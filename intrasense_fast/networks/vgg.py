"""VGG-19 without BatchNorm as an encoder, with torchvision's names, and weights from a file."""

import os
from pathlib import Path

import torch
from torch import Tensor, nn

from intrasense_fast.networks.checksums import digest_of
from intrasense_fast.networks.weight_files import (
    EncoderWeightsError,
    load_checked,
    read_state_dict,
    weights_path,
)

VGG19_URL = "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth"
VGG19_WIDTHS = (64, 128, 256, 512, 512)

_DEPTHS = (2, 2, 4, 4, 4)
_SHA256 = "dcbb9e9d"
_NEW = ("features.0.weight", "features.0.bias")
_KEYS = "features.2.weight ... features.34.bias"
_NEEDED = f"torchvision's VGG-19 without BatchNorm (keys {_KEYS}), from {VGG19_URL}"


class VGG19Encoder(nn.Module):
    """VGG-19's convolutions (torchvision's `features` 0 to 35), with He's initial weights.

    Args:
        in_channels: channels of the image.
    """

    def __init__(self, in_channels: int = 1) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        self.ends: list[int] = []
        for depth, width in zip(_DEPTHS, VGG19_WIDTHS, strict=True):
            if layers:
                layers.append(nn.MaxPool2d(2))
            for _ in range(depth):
                layers += [nn.Conv2d(in_channels, width, 3, padding=1), nn.ReLU(inplace=True)]
                in_channels = width
            self.ends.append(len(layers))
        self.features = nn.Sequential(*layers)
        for layer in self.features:
            # PyTorch's default would shrink the signal by a million over sixteen layers without
            # BatchNorm.
            if isinstance(layer, nn.Conv2d) and not layer.weight.is_meta:
                nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> list[Tensor]:
        """Maps at strides 1, 2, 4, 8 and 16 with 64, 128, 256, 512 and 512 channels.

        Args:
            x: (B, in_channels, H, W), H and W multiples of 16.
        """
        maps = []
        for index, layer in enumerate(self.features, start=1):
            x = layer(x)
            if index in self.ends:
                maps.append(x)
        return maps


def load_vgg19_weights(encoder: VGG19Encoder, source: str | os.PathLike[str]) -> None:
    """Load ImageNet weights into every convolution but the first, which EA-Net draws anew.

    Args:
        encoder: its parameters are replaced.
        source: a .pth, .pt or .safetensors file with torchvision's keys (others such as
            `classifier` are dropped), or "imagenet": torchvision's file in the local torch hub
            cache, checked by its hash. Nothing is downloaded.

    Raises:
        EncoderWeightsError: the file is missing, damaged, or a key is missing, unknown or of
            another shape.
        TypeError: `source` is no path.
    """
    path = weights_path(_imagenet_file() if source == "imagenet" else source, _NEEDED)
    if source == "imagenet":
        _check_hash(path)
    content = read_state_dict(path, _NEEDED)
    own = encoder.state_dict()
    weights = {key: value for key, value in content.items() if key.startswith("features.")}
    weights.update({key: own[key] for key in _NEW})
    load_checked(encoder, weights, path, _NEEDED)


def _imagenet_file() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(VGG19_URL).name


def _check_hash(path: Path) -> None:
    digest = digest_of(path)
    if not digest.startswith(_SHA256):
        raise EncoderWeightsError(
            f"{path}: SHA-256 begins with {digest[:8]}, not {_SHA256}; "
            f"needed is {_NEEDED}: copy it again"
        )
