"""PVTv2, the encoder of EMCAD: transformers with reduced keys and values (notes, section 6)."""

import os
import re

from torch import Tensor, nn
from torch.nn import functional as F

from intrasense_fast.networks.weight_files import load_checked, read_state_dict, weights_path

WIDTHS = {"pvtv2_b0": (32, 64, 160, 256), "pvtv2_b2": (64, 128, 320, 512)}
DEPTHS = {"pvtv2_b0": (2, 2, 2, 2), "pvtv2_b2": (3, 4, 6, 3)}
HEADS = (1, 2, 5, 8)
MLP_RATIOS = (8, 8, 4, 4)
REDUCTIONS = (8, 4, 2, 1)

_EPS = 1e-6
_DROP_PATH = 0.1
# The names of PVTv2's own release, and what timm calls the same tensors.
_RENAMED = (
    (r"^patch_embed1\.", lambda match: "patch_embed."),
    (r"^patch_embed(\d)\.", lambda match: f"stages.{int(match[1]) - 1}.downsample."),
    (r"^block(\d)\.", lambda match: f"stages.{int(match[1]) - 1}.blocks."),
    (r"^norm(\d)\.", lambda match: f"stages.{int(match[1]) - 1}.norm."),
    (r"\.dwconv\.dwconv\.", lambda match: ".dwconv."),
)


class PatchEmbedding(nn.Module):
    """Overlapping patches: a convolution with stride s, then LayerNorm over the channels.

    (B, a, H, W) -> (B, b, H/s, W/s).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2)
        self.norm = nn.LayerNorm(out_channels, eps=_EPS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(x)
        return _to_map(self.norm(_to_tokens(x)), (x.shape[-2], x.shape[-1]))


class ReducedAttention(nn.Module):
    """Queries from every token; keys and values from the reduced map.

    The map is reduced by a convolution whose kernel and stride are `reduction`.
    """

    def __init__(self, channels: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(channels, channels)
        self.kv = nn.Linear(channels, 2 * channels)
        self.proj = nn.Linear(channels, channels)
        self.sr: nn.Conv2d | None = None
        self.norm: nn.LayerNorm | None = None
        if reduction > 1:
            self.sr = nn.Conv2d(channels, channels, reduction, reduction)
            self.norm = nn.LayerNorm(channels, eps=_EPS)

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, N, C) -> (B, N, C), N = H W of `size`."""
        context = tokens
        if self.sr is not None and self.norm is not None:
            context = self.norm(_to_tokens(self.sr(_to_map(tokens, size))))
        query = self.q(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key, value = self.kv(context).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.proj(attended.transpose(1, 2).flatten(2))


class ConvolutionalMLP(nn.Module):
    """Linear, depthwise 3x3, GELU, linear, on tokens (B, N, C)."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        x = self.dwconv(_to_map(self.fc1(tokens), size))
        return self.fc2(F.gelu(_to_tokens(x)))


class Block(nn.Module):
    """Pre-norm attention and MLP, each with a residual that stochastic depth may drop per image."""

    def __init__(
        self, channels: int, heads: int, mlp_ratio: int, reduction: int, drop_path: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=_EPS)
        self.attn = ReducedAttention(channels, heads, reduction)
        self.norm2 = nn.LayerNorm(channels, eps=_EPS)
        self.mlp = ConvolutionalMLP(channels, mlp_ratio * channels)
        self.drop_path = drop_path

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        tokens = tokens + self._kept(self.attn(self.norm1(tokens), size))
        return tokens + self._kept(self.mlp(self.norm2(tokens), size))

    def _kept(self, residual: Tensor) -> Tensor:
        if not self.training or self.drop_path == 0:
            return residual
        keep = 1 - self.drop_path
        mask = residual.new_empty((residual.shape[0], 1, 1)).bernoulli_(keep)
        return residual * mask / keep


class Stage(nn.Module):
    """A patch embedding (the first stage's lies outside), blocks, LayerNorm."""

    def __init__(
        self,
        downsample: PatchEmbedding | None,
        channels: int,
        heads: int,
        mlp_ratio: int,
        reduction: int,
        drop_paths: list[float],
    ) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.ModuleList(
            Block(channels, heads, mlp_ratio, reduction, drop_path) for drop_path in drop_paths
        )
        self.norm = nn.LayerNorm(channels, eps=_EPS)

    def forward(self, x: Tensor) -> Tensor:
        if self.downsample is not None:
            x = self.downsample(x)
        size = (x.shape[-2], x.shape[-1])
        tokens = _to_tokens(x)
        for block in self.blocks:
            tokens = block(tokens, size)
        return _to_map(self.norm(tokens), size)


class PVTv2Encoder(nn.Module):
    """PVTv2 without classifier, with timm's names; B2 has 24,849,856 parameters, B0 3,409,760.

    Linear layers start from a truncated normal of 0.02 with zero bias (the notes leave it open),
    convolutions from PyTorch's initial values; stochastic depth grows linearly to 0.1.

    Args:
        variant: "pvtv2_b0" or "pvtv2_b2".
    """

    def __init__(self, variant: str = "pvtv2_b2") -> None:
        super().__init__()
        widths, depths = WIDTHS[variant], DEPTHS[variant]
        last = sum(depths) - 1
        drop_paths = [_DROP_PATH * block / last for block in range(last + 1)]
        self.patch_embed = PatchEmbedding(3, widths[0], 7, 4)
        self.stages = nn.ModuleList()
        for index, channels in enumerate(widths):
            downsample = PatchEmbedding(widths[index - 1], channels, 3, 2) if index else None
            first = sum(depths[:index])
            stage_drops = drop_paths[first : first + depths[index]]
            self.stages.append(
                Stage(
                    downsample,
                    channels,
                    HEADS[index],
                    MLP_RATIOS[index],
                    REDUCTIONS[index],
                    stage_drops,
                )
            )
        for module in self.modules():
            if isinstance(module, nn.Linear) and not module.weight.is_meta:
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Maps at strides 4, 8, 16 and 32 of x (B, 3, H, W), H and W multiples of 32."""
        x = self.patch_embed(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


def load_pvt_weights(encoder: PVTv2Encoder, source: str | os.PathLike[str], variant: str) -> None:
    """Load ImageNet-1k weights from a local .pth or .safetensors file.

    Its keys are timm's or those of PVTv2's own release.

    The classifier's (head.*) are left out; every other key and shape must fit.

    Raises:
        TypeError: source is no path.
        EncoderWeightsError: the file is missing, damaged, or of another network.
    """
    timm_name = variant.replace("pvtv2", "pvt_v2")
    needed = (
        f"{variant}'s ImageNet-1k state dict: timm's {timm_name} "
        f"(huggingface.co/timm/{timm_name}.in1k, model.safetensors) or the file of PVTv2's release"
    )
    path = weights_path(source, needed)
    weights = {}
    for key, value in read_state_dict(path, needed).items():
        for pattern, replacement in _RENAMED:
            key = re.sub(pattern, replacement, key)
        if not key.startswith("head."):
            weights[key] = value
    load_checked(encoder, weights, path, needed)


def _to_tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def _to_map(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    return tokens.transpose(1, 2).unflatten(-1, size)
