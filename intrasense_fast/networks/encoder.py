"""ResNet-50 v1.5 with torchvision's names, and the loading of its weights from a file or a local
cache."""

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from intrasense_fast.errors import first_line

STRIDES = (2, 4, 8, 16, 32)
CHANNELS = (64, 256, 512, 1024, 2048)

IMAGENET_URL = "https://download.pytorch.org/models/resnet50-11ad3fa6.pth"
# Names under which trainers wrap a ResNet; stripped from the front of every key, outermost first.
_PREFIXES = (
    "module.",
    "_orig_mod.",
    "state_dict.",
    "model.",
    "encoder.",
    "backbone.",
    "resnet.",
    "net.",
)
_CONTAINERS = ("state_dict", "model_state_dict", "model", "encoder", "backbone", "net")
_MATCHED_AT_LEAST = 0.95


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions beside a shortcut; the stride lies on the 3x3 (ResNet v1.5)."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int = 1) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.relu(self.bn3(self.conv3(x)) + shortcut)


class ResNet50Encoder(nn.Module):
    """ResNet-50 v1.5 without its classifier; the 318 keys of torchvision's `resnet50` without `fc`.

    Args:
        in_channels: 1 or 3.
    """

    def __init__(self, in_channels: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = _layer(64, 64, 3, 1)
        self.layer2 = _layer(256, 128, 4, 2)
        self.layer3 = _layer(512, 256, 6, 2)
        self.layer4 = _layer(1024, 512, 3, 2)
        draw_convolutions(self)

    def stage(self, stride: int, x: Tensor) -> Tensor:
        """The map at `stride` (2, 4, 8, 16 or 32) from the map before it; at stride 2 from the
        normalised image."""
        if stride == 2:
            return self.relu(self.bn1(self.conv1(x)))
        if stride == 4:
            return self.layer1(self.maxpool(x))
        return {8: self.layer2, 16: self.layer3, 32: self.layer4}[stride](x)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Feature maps at strides 2, 4, 8, 16 and 32, with 64, 256, 512, 1024 and 2048 channels.

        Args:
            x: (B, in_channels, H, W), normalised; H and W multiples of 32.
        """
        maps = []
        for stride in STRIDES:
            x = self.stage(stride, x)
            maps.append(x)
        return maps


def draw_convolutions(module: nn.Module) -> None:
    """He's initial weights for every convolution inside `module`."""
    for part in module.modules():
        # On the meta device there is nothing to draw, and the call would import torch._dynamo for
        # seconds.
        if isinstance(part, nn.Conv2d) and not part.weight.is_meta:
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")


def _layer(in_channels: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    first = Bottleneck(in_channels, width, stride)
    return nn.Sequential(
        first, *(Bottleneck(width * Bottleneck.expansion, width) for _ in range(blocks - 1))
    )


class EncoderWeightsError(ValueError):
    """Encoder weights that cannot be found, read or matched: the message says which and what to
    do."""


def load_encoder_weights(encoder: ResNet50Encoder, source: str | os.PathLike[str]) -> None:
    """Load ResNet-50 weights into `encoder`.

    Prefixes such as "module." or "encoder." are stripped and `fc.*` is dropped. A one-channel
    encoder takes the sum of a three-channel `conv1.weight` over RGB, so that a grey image gives
    what its three equal channels would.

    Args:
        encoder: its parameters and buffers are replaced.
        source: a .pth / .pt / .safetensors file with torchvision's or timm's keys, or "imagenet":
            torchvision's IMAGENET1K_V2 file from the local torch hub cache, downloaded only if it
            is missing there.

    Raises:
        EncoderWeightsError: the file is missing, damaged or no state dict; the download failed; or
            fewer than 95 % of the 265 keys other than `num_batches_tracked` match in name, shape
            and kind. Fewer mismatches are a warning that names them.
        TypeError: `source` is no path.
    """
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(
            f'encoder_weights must be None, "imagenet" or the path of a file, got {source!r}'
        )
    path = _imagenet_file() if source == "imagenet" else Path(source)
    weights = _torchvision_keys(_read(path))
    own = encoder.state_dict()
    conv1, own_conv1 = weights.get("conv1.weight"), own["conv1.weight"]
    if (
        conv1 is not None
        and own_conv1.shape[1] == 1
        and _fits(conv1, own_conv1.expand(-1, 3, -1, -1))
    ):
        weights["conv1.weight"] = conv1.to(own_conv1.dtype).sum(1, keepdim=True)
    counted = [key for key in own if not key.endswith("num_batches_tracked")]
    missing = [key for key in counted if key not in weights]
    misfits = [key for key in own if key in weights and not _fits(weights[key], own[key])]
    unmatched = {*missing, *misfits}.intersection(counted)
    if len(counted) - len(unmatched) < _MATCHED_AT_LEAST * len(counted):
        raise EncoderWeightsError(
            f"{path}: only {len(counted) - len(unmatched)} of ResNet-50's {len(counted)} keys "
            f"match; needed are torchvision's "
            f"names and shapes (conv1.weight, layer1.0.conv1.weight ...). "
            f"{_mismatch(missing, misfits, weights, own)}. "
            f"The file begins with: {_shortened(list(weights)[:5])}"
        )
    if missing or misfits:
        found = _mismatch(missing, misfits, weights, own)
        warnings.warn(
            f"{path}: some of the encoder stays at its initial values. {found}", stacklevel=2
        )
    encoder.load_state_dict(
        {key: weights[key] for key in own if key in weights and key not in misfits}, strict=False
    )


def _fits(given: Tensor, own: Tensor) -> bool:
    plain = given.layout == torch.strided and not (
        given.is_meta or given.is_quantized or given.is_complex()
    )
    return (
        plain and given.shape == own.shape and given.is_floating_point() == own.is_floating_point()
    )


def _mismatch(
    missing: list[str], misfits: list[str], weights: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> str:
    """What `load_state_dict` would say: the keys that are not in the file, and those that are there
    but do not fit."""
    shown = [f"{key} ({_described(weights[key])} for {_described(own[key])})" for key in misfits]
    parts = {"Not in the file": missing, "Of another shape or kind": shown}
    return ". ".join(f"{title}: {_shortened(keys)}" for title, keys in parts.items() if keys)


def _described(tensor: Tensor) -> str:
    layout = "" if tensor.layout == torch.strided else f" {tensor.layout}"
    return f"{tuple(tensor.shape)} {tensor.dtype}{layout}".replace("torch.", "")


def _imagenet_file() -> Path:
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(IMAGENET_URL).name
    if path.exists():
        return path
    try:
        torch.hub.load_state_dict_from_url(
            IMAGENET_URL, str(path.parent), "cpu", check_hash=True, weights_only=True
        )
    except (URLError, OSError, RuntimeError) as error:
        raise EncoderWeightsError(
            f'encoder_weights="imagenet": {path} does not exist and could not be downloaded '
            f"({error}). Offline: put "
            f"torchvision's {path.name} there, set TORCH_HOME to a cache that has it, pass "
            f"encoder_weights=FILE (.pth or "
            ".safetensors with ResNet-50's keys), or encoder_weights=None for random weights"
        ) from error
    return path


def _read(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise EncoderWeightsError(
            f'{path}: no such file; needed is a .pth or .safetensors of ResNet-50, or "imagenet"'
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    # What a damaged pickle does is anyone's guess: IndexError, KeyError, struct.error ...
    except Exception as error:
        raise EncoderWeightsError(
            f"{path}: cannot be read as weights, damaged or of another kind ({first_line(error)}); "
            f"needed is a .pth or "
            ".safetensors of ResNet-50: download or copy it again"
        ) from error
    for name in _CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        raise EncoderWeightsError(
            f"{path}: holds {type(content).__name__}, needed is a state dict {{name: tensor}}"
        )
    return content


def _torchvision_keys(content: Mapping[str, Any]) -> dict[str, Tensor]:
    weights = {}
    for key, value in content.items():
        while prefix := next((prefix for prefix in _PREFIXES if key.startswith(prefix)), None):
            key = key[len(prefix) :]
        if isinstance(value, Tensor) and not key.startswith("fc."):
            weights[key] = value
    return weights


def _shortened(keys: list[str]) -> str:
    more = f" ... and {len(keys) - 20} more" if len(keys) > 20 else ""
    return ", ".join(keys[:20]) + more
