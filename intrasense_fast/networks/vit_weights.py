"""Google's R50+ViT-B/16 for TransUNet's encoder: its names and layouts (notes, section 3)."""

import math
import os
import re

from torch import Tensor, nn
from torch.nn import functional as F

from intrasense_fast.networks.resnetv2 import HybridEncoder
from intrasense_fast.networks.vit import VisionTransformer
from intrasense_fast.networks.weight_files import load_checked, read_arrays, weights_path

NEEDED = (
    "Google's ImageNet-21k R50+ViT-B_16.npz "
    "(storage.googleapis.com/vit_models/imagenet21k/R50+ViT-B_16.npz)"
)

_POSITION = "Transformer/posembed_input/pos_embedding"
_LEFT_OUT = ("head/", "pre_logits/", "cls")
_LAYER_PARTS = {
    "attention_norm": "LayerNorm_0",
    "query": "MultiHeadDotProductAttention_1/query",
    "key": "MultiHeadDotProductAttention_1/key",
    "value": "MultiHeadDotProductAttention_1/value",
    "out": "MultiHeadDotProductAttention_1/out",
    "mlp_norm": "LayerNorm_2",
    "fc1": "MlpBlock_3/Dense_0",
    "fc2": "MlpBlock_3/Dense_1",
}
_TRANSFORMER_PARTS = {"embedding": "embedding", "norm": "Transformer/encoder_norm"}


def load_r50_vit_weights(
    encoder: HybridEncoder, transformer: VisionTransformer, source: str | os.PathLike[str]
) -> None:
    """Load both halves from the .npz; positions are interpolated linearly to the own grid.

    The class token, its position and the classifier are left out; every other array must be there
    and fit.

    Raises:
        TypeError: source is no path.
        EncoderWeightsError: the file is missing, damaged, or of another network.
    """
    path = weights_path(source, NEEDED)
    arrays = read_arrays(path, NEEDED)
    both = nn.ModuleDict({"encoder": encoder, "transformer": transformer})
    own_names = {_google_name(key): key for key in both.state_dict()}
    tokens = transformer.position.shape[1]
    weights = {
        own_names.get(name, name): _own_layout(name, array, tokens)
        for name, array in arrays.items()
        if not name.startswith(_LEFT_OUT)
    }
    load_checked(both, weights, path, NEEDED)


def _google_name(key: str) -> str:
    """The array of the .npz that holds a tensor of our state dict."""
    if key == "transformer.position":
        return _POSITION
    *modules, leaf = key.split(".")
    is_norm = modules[-1].startswith("gn") or modules[-1].endswith("norm")
    if leaf == "weight":
        leaf = "scale" if is_norm else "kernel"
    return f"{_google_part('.'.join(modules))}/{leaf}"


def _google_part(module: str) -> str:
    if unit := re.fullmatch(r"encoder\.blocks\.(\d)\.(\d)\.(\w+)", module):
        return f"block{int(unit[1]) + 1}/unit{int(unit[2]) + 1}/{unit[3]}"
    if layer := re.fullmatch(r"transformer\.layers\.(\d+)\.(\w+)", module):
        return f"Transformer/encoderblock_{layer[1]}/{_LAYER_PARTS[layer[2]]}"
    half, name = module.split(".")
    return name if half == "encoder" else _TRANSFORMER_PARTS[name]


def _own_layout(name: str, array: Tensor, tokens: int) -> Tensor:
    """Inputs-first kernels become outputs-first, heads are joined; the rest waits for the check."""
    if name == _POSITION:
        return _positions(array, tokens)
    if not name.endswith("/kernel"):
        return array.flatten()
    if array.dim() == 4:
        return array.permute(3, 2, 0, 1)
    if array.dim() == 3:
        array = array.flatten(0, 1) if name.endswith("/out/kernel") else array.flatten(1)
    return array.T if array.dim() == 2 else array


def _positions(array: Tensor, tokens: int) -> Tensor:
    """(1, 1 + n n, C) -> (1, tokens, C), without the class token's."""
    side = math.isqrt(max(array.shape[1] - 1, 0)) if array.dim() == 3 else 0
    if side == 0 or 1 + side * side != array.shape[1]:
        return array
    grid = array[:, 1:].transpose(1, 2).unflatten(-1, (side, side))
    own_side = math.isqrt(tokens)
    grid = F.interpolate(grid, (own_side, own_side), mode="bilinear", align_corners=True)
    return grid.flatten(2).transpose(1, 2)
