"""TransUNet: its counts, its encoder against formulas and PyTorch's layers, its weights file."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, group_norm

from intrasense_fast.networks.encoder_weights import EncoderWeightsError
from intrasense_fast.networks.resnetv2 import HybridEncoder, StandardizedConv2d, Unit
from intrasense_fast.networks.transunet import TransUNet
from intrasense_fast.networks.vit import Layer, VisionTransformer
from intrasense_fast.networks.vit_weights import load_r50_vit_weights
from tests.support.compared_networks import count, count_built


def test_counts():
    assert count_built(TransUNet) == 105_322_001
    assert count_built(TransUNet, in_channels=3) == 105_322_001


def test_counts_of_the_parts():
    with torch.device("meta"):
        net = TransUNet()
    assert count(net.encoder) == 11_894_848
    assert count(net.transformer.layers) + count(net.transformer.norm) == 85_056_000
    assert count(net.transformer.embedding) == 1024 * 768 + 768
    assert net.transformer.position.shape == (1, 256, 768)
    assert (count(net.bridge), count(net.decoder), count(net.head)) == (3_539_968, 3_847_232, 145)


def test_shapes_at_256():
    with torch.device("meta"):
        net = TransUNet().train()
        x = torch.empty(2, 1, 256, 256)
        assert net(x).shape == net.eval()(x).shape == (2, 1, 256, 256)
        running, skips = net.encoder(torch.empty(2, 3, 256, 256))
    assert running.shape == (2, 1024, 16, 16)
    shapes = [(2, 512, 32, 32), (2, 256, 64, 64), (2, 64, 128, 128)]
    assert [tuple(skip.shape) for skip in skips] == shapes


def test_standardised_weights_have_mean_zero_and_variance_one(rng, seed):
    torch.manual_seed(seed)
    convolution = StandardizedConv2d(5, 4, 3, padding=1, bias=False).double()
    with torch.no_grad():
        convolution.weight.mul_(7).add_(3)
    weight = convolution.standardized()
    filters = weight.flatten(1)
    zeros, ones = torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    torch.testing.assert_close(filters.mean(1), zeros, rtol=0, atol=1e-12)
    torch.testing.assert_close((filters**2).mean(1), ones, rtol=0, atol=1e-4)
    raw = convolution.weight.detach().numpy().reshape(4, -1)
    wanted = (raw - raw.mean(1, keepdims=True)) / np.sqrt(raw.var(1, keepdims=True) + 1e-5)
    torch.testing.assert_close(filters, torch.from_numpy(wanted))
    x = torch.randn(1, 5, 4, 4, generator=rng, dtype=torch.float64)
    torch.testing.assert_close(convolution(x), conv2d(x, weight, padding=1))


@pytest.mark.parametrize("stride", (1, 2))
def test_first_unit_by_formula(stride: int, rng: torch.Generator):
    unit = Unit(64, 128, stride).double()
    x = torch.randn(2, 64, 5, 6, generator=rng, dtype=torch.float64)

    def normalised(x: Tensor, groups: int, eps: float) -> Tensor:
        return group_norm(x, groups, eps=eps)

    weights = [one.standardized() for one in (unit.conv1, unit.conv2, unit.conv3, unit.conv_proj)]
    y = normalised(conv2d(x, weights[0]), 32, 1e-6).clamp(min=0)
    y = normalised(conv2d(y, weights[1], stride=stride, padding=1), 32, 1e-6).clamp(min=0)
    y = normalised(conv2d(y, weights[2]), 32, 1e-6)
    shortcut = normalised(conv2d(x, weights[3], stride=stride), 128, 1e-5)
    torch.testing.assert_close(unit(x), (y + shortcut).clamp(min=0))


def test_only_the_skip_is_padded(rng):
    """At 64 pixels the pool gives 15 rows: the skip at 1/4 is padded, the next block is not."""
    encoder = HybridEncoder()
    seen = []
    encoder.blocks[1].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    with torch.no_grad():
        running, skips = encoder(torch.rand(1, 3, 64, 64, generator=rng))
    assert seen[0].shape == (1, 256, 15, 15) and running.shape == (1, 1024, 4, 4)
    quarter = skips[1]
    assert quarter.shape == (1, 256, 16, 16)
    assert torch.equal(quarter[..., :15, :15], seen[0])
    assert not quarter[..., 15, :].any() and not quarter[..., 15].any()
    assert skips[0].shape == (1, 512, 8, 8) and skips[0][..., -1, :].any()


def test_layer_equals_pytorchs(rng):
    own = Layer().double().eval()
    options = {"activation": "gelu", "layer_norm_eps": 1e-6, "norm_first": True}
    theirs = nn.TransformerEncoderLayer(768, 12, 3072, batch_first=True, **options).double().eval()
    attention = theirs.self_attn
    pairs = (
        (theirs.norm1, own.attention_norm),
        (theirs.norm2, own.mlp_norm),
        (theirs.linear1, own.fc1),
        (theirs.linear2, own.fc2),
        (attention.out_proj, own.out),
    )
    with torch.no_grad():
        for one, other in pairs:
            one.weight.copy_(other.weight)
            one.bias.copy_(other.bias)
        parts = (own.query, own.key, own.value)
        attention.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        attention.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
        tokens = torch.randn(2, 6, 768, generator=rng, dtype=torch.float64)
        torch.testing.assert_close(own(tokens), theirs(tokens))


def google_arrays(layers: int) -> dict[str, np.ndarray]:
    """R50+ViT-B_16.npz with fewer layers: Google's names and shapes, random values."""
    shapes: dict[str, tuple[int, ...]] = {
        "cls": (1, 1, 768),
        "head/kernel": (768, 3),
        "conv_root/kernel": (7, 7, 3, 64),
        "embedding/kernel": (1, 1, 1024, 768),
        "embedding/bias": (768,),
        "Transformer/posembed_input/pos_embedding": (1, 197, 768),
    }
    norms = {"gn_root": 64, "Transformer/encoder_norm": 768}
    in_channels = 64
    for block, (width, units) in enumerate(((64, 3), (128, 4), (256, 9)), start=1):
        for unit in range(1, units + 1):
            name = f"block{block}/unit{unit}"
            shapes[f"{name}/conv1/kernel"] = (1, 1, in_channels, width)
            shapes[f"{name}/conv2/kernel"] = (3, 3, width, width)
            shapes[f"{name}/conv3/kernel"] = (1, 1, width, 4 * width)
            norms |= {f"{name}/gn1": width, f"{name}/gn2": width, f"{name}/gn3": 4 * width}
            if unit == 1:
                shapes[f"{name}/conv_proj/kernel"] = (1, 1, in_channels, 4 * width)
                norms[f"{name}/gn_proj"] = 4 * width
            in_channels = 4 * width
    for layer in range(layers):
        name = f"Transformer/encoderblock_{layer}"
        norms |= {f"{name}/LayerNorm_0": 768, f"{name}/LayerNorm_2": 768}
        attention = f"{name}/MultiHeadDotProductAttention_1"
        for part in ("query", "key", "value"):
            shapes[f"{attention}/{part}/kernel"] = (768, 12, 64)
            shapes[f"{attention}/{part}/bias"] = (12, 64)
        shapes |= {f"{attention}/out/kernel": (12, 64, 768), f"{attention}/out/bias": (768,)}
        shapes[f"{name}/MlpBlock_3/Dense_0/kernel"] = (768, 3072)
        shapes[f"{name}/MlpBlock_3/Dense_0/bias"] = (3072,)
        shapes[f"{name}/MlpBlock_3/Dense_1/kernel"] = (3072, 768)
        shapes[f"{name}/MlpBlock_3/Dense_1/bias"] = (768,)
    for name, width in norms.items():
        shapes |= {f"{name}/scale": (width,), f"{name}/bias": (width,)}
    generator = np.random.default_rng()
    return {
        name: generator.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()
    }


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    return google_arrays(layers=1)


def test_google_weights_are_loaded(arrays: dict[str, np.ndarray], tmp_path: Path):
    np.savez(tmp_path / "weights.npz", **arrays)
    encoder, transformer = HybridEncoder(), VisionTransformer(side=4, layers=1)
    load_r50_vit_weights(encoder, transformer, tmp_path / "weights.npz")

    def given(name: str) -> Tensor:
        return torch.from_numpy(arrays[name])

    root = given("conv_root/kernel")
    assert torch.equal(encoder.conv_root.weight[5, 2], root[:, :, 2, 5])
    unit = encoder.blocks[2][8]
    assert torch.equal(unit.conv2.weight[7, 9], given("block3/unit9/conv2/kernel")[:, :, 9, 7])
    assert torch.equal(unit.gn2.weight, given("block3/unit9/gn2/scale"))
    assert torch.equal(encoder.blocks[1][0].gn_proj.bias, given("block2/unit1/gn_proj/bias"))
    embedding = given("embedding/kernel")[0, 0]
    assert torch.equal(transformer.embedding.weight[..., 0, 0], embedding.T)
    layer, name = transformer.layers[0], "Transformer/encoderblock_0"
    assert torch.equal(layer.mlp_norm.weight, given(f"{name}/LayerNorm_2/scale"))
    assert torch.equal(layer.fc1.weight, given(f"{name}/MlpBlock_3/Dense_0/kernel").T)
    attention = f"{name}/MultiHeadDotProductAttention_1"
    tokens = torch.randn(2, 768)
    heads = torch.einsum("nc,chd->nhd", tokens, given(f"{attention}/key/kernel"))
    heads = heads + given(f"{attention}/key/bias")
    torch.testing.assert_close(layer.key(tokens), heads.flatten(1), rtol=1e-4, atol=1e-3)
    joined = torch.einsum("nhd,hdc->nc", heads, given(f"{attention}/out/kernel"))
    wanted = joined + given(f"{attention}/out/bias")
    torch.testing.assert_close(layer.out(heads.flatten(1)), wanted, rtol=1e-3, atol=1e-1)


def test_positions_are_interpolated_linearly(arrays: dict[str, np.ndarray], tmp_path: Path):
    """A plane over the 14 x 14 grid stays the same plane over 27 x 27."""
    rows, columns = torch.meshgrid(torch.arange(14.0), torch.arange(14.0), indexing="ij")
    plane = (2 * rows - columns).reshape(1, 196, 1).expand(-1, -1, 768)
    position = torch.cat((torch.full((1, 1, 768), 1e6), plane), 1).numpy()
    name = "Transformer/posembed_input/pos_embedding"
    np.savez(tmp_path / "weights.npz", **{**arrays, name: position})
    transformer = VisionTransformer(side=27, layers=1)
    load_r50_vit_weights(HybridEncoder(), transformer, tmp_path / "weights.npz")
    fine_rows, fine_columns = torch.meshgrid(
        torch.arange(27.0) / 2, torch.arange(27.0) / 2, indexing="ij"
    )
    wanted = (2 * fine_rows - fine_columns).reshape(1, 729, 1).expand(-1, -1, 768)
    torch.testing.assert_close(transformer.position.detach(), wanted, rtol=1e-4, atol=1e-4)


def test_weights_that_do_not_fit_change_nothing(arrays: dict[str, np.ndarray], tmp_path: Path):
    encoder, transformer = HybridEncoder(), VisionTransformer(side=4, layers=1)
    before = encoder.conv_root.weight.clone()
    missing = {name: one for name, one in arrays.items() if name != "gn_root/scale"}
    wrong = {
        r"encoder.gn_root.weight \(missing\)": missing,
        r"block4/unit1/conv1/kernel \(unknown\)": {
            **arrays,
            "block4/unit1/conv1/kernel": np.zeros((1, 1, 2, 2), np.float32),
        },
        "transformer.position": {
            **arrays,
            "Transformer/posembed_input/pos_embedding": np.zeros((1, 13, 768), np.float32),
        },
    }
    for message, content in wrong.items():
        np.savez(tmp_path / "wrong.npz", **content)
        with pytest.raises(EncoderWeightsError, match=message):
            load_r50_vit_weights(encoder, transformer, tmp_path / "wrong.npz")
        assert torch.equal(encoder.conv_root.weight, before)


def test_files_that_cannot_be_read(tmp_path: Path):
    encoder, transformer = HybridEncoder(), VisionTransformer(side=2, layers=1)
    (tmp_path / "broken.npz").write_bytes(b"PK no archive")
    np.save(tmp_path / "single.npy", np.zeros(3))
    np.savez(tmp_path / "pickled.npz", cls=np.array([{}], dtype=object))
    for name in ("broken.npz", "single.npy", "pickled.npz", "absent.npz"):
        with pytest.raises(EncoderWeightsError, match=rf"{name}.*R50\+ViT-B_16.npz"):
            load_r50_vit_weights(encoder, transformer, tmp_path / name)
    with pytest.raises(TypeError, match="encoder_weights must be None or the path of a file"):
        load_r50_vit_weights(encoder, transformer, 3)


def test_own_loss_is_the_mean_cross_entropy(rng):
    logits = torch.randn(2, 1, 4, 4, generator=rng, dtype=torch.float64)
    target = torch.rand(2, 1, 4, 4, generator=rng) > 0.5
    p = 1 / (1 + torch.exp(-logits))
    with torch.device("meta"):
        net = TransUNet(image_size=32)
    wanted = -torch.where(target, p, 1 - p).log().mean()
    torch.testing.assert_close(net.own_loss(logits, target), wanted)
