"""Rolling-Unet: its counts, its rolls against a loop, its blocks, and the contract."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d

from intrasense_fast.networks.rolling_unet import (
    SIZES,
    FeatureIncentiveBlock,
    Lo2Block,
    RollingUNet,
    roll_columns,
    roll_rows,
)
from tests.support.compared_networks import (
    assert_bad_input_is_named,
    assert_eval_is_a_function,
    assert_shapes_and_finite,
    count,
    count_built,
    dice_after_training,
    giga_macs,
)

# In the official counts, each Lo2 block holds a LayerNorm that it never uses.
PUBLISHED = {
    "S": (1_782_897, 1_783_185, 1_024, 2.10),
    "M": (7_097_825, 7_098_401, 2_048, 8.27),
    "L": (28_323_777, 28_324_929, 4_096, 32.85),
}


@pytest.mark.parametrize("size", SIZES)
def test_counts(size):
    grey, rgb, dead, macs = PUBLISHED[size]
    assert count_built(RollingUNet, size=size) == grey - dead
    assert count_built(RollingUNet, size=size, in_channels=3) == rgb - dead
    # The published figure adds the norms, which the counter leaves out: most at S, where they weigh
    # most.
    assert giga_macs(RollingUNet, size=size, in_channels=3) == pytest.approx(macs, rel=0.02)


def test_counts_of_the_parts():
    with torch.device("meta"):
        net = RollingUNet(size="M")
    assert [count(part) for part in (net.conv1, net.conv2, net.conv3)] == [9_696, 55_680, 221_952]
    blocks = [count(block.conv) for block in (net.fi1, net.fi2, net.fi3)]
    norms = [count(block.norm) for block in (net.fi1, net.fi2, net.fi3)]
    assert [a + b for a, b in zip(blocks, norms, strict=True)] == [295_680, 1_181_184, 1_180_416]
    lo2 = [count(block) for block in (net.lo2_encoder, net.lo2_bottleneck, net.lo2_decoder)]
    assert lo2 == [596_224 - 2 * 256, 2_372_096 - 2 * 512, 596_224 - 2 * 256]
    norms = [count(norm) for norm in (net.norm_encoder, net.norm_bottleneck, net.norm_decoder)]
    assert norms == [512, 1_024, 512]
    assert [count(layer) for layer in net.narrow[:2]] == [295_040, 256]
    decoder = [count(part) for part in (net.decode3, net.decode2, net.decode1, net.head)]
    assert decoder == [221_760, 55_584, 13_968, 17]


def rolled(x: Tensor, sign: int, axis: int) -> Tensor:
    """Channel by channel, on (B, H, W, C)."""
    channels = [torch.roll(x[..., i], sign * i, axis) for i in range(x.shape[-1])]
    return torch.stack(channels, -1)


@pytest.mark.parametrize("shape", [(2, 5, 3, 11), (1, 4, 4, 4), (2, 1, 6, 3), (1, 7, 2, 1)])
@pytest.mark.parametrize("sign", [1, -1])
def test_rolls_are_those_of_a_loop(shape, sign, rng):
    x = torch.randn(shape, generator=rng)
    assert torch.equal(roll_rows(x, sign), rolled(x, sign, 1))
    assert torch.equal(roll_columns(x, sign), rolled(x, sign, 2))


def test_gradient_of_a_roll_rolls_back(rng):
    x = torch.randn(2, 5, 3, 11, generator=rng, requires_grad=True)
    upstream = torch.randn(2, 5, 3, 11, generator=rng)
    roll_rows(x, 1).backward(upstream)
    assert torch.equal(x.grad, rolled(upstream, -1, 1))


def test_lo2_block_against_its_formulas(rng):
    block = Lo2Block(6).double().train()
    x = torch.randn(2, 5, 3, 6, generator=rng, dtype=torch.float64)

    def linear(layer: torch.nn.Linear, x: Tensor) -> Tensor:
        return torch.einsum("bhwc,dc->bhwd", x, layer.weight) + layer.bias

    def gelu(x: Tensor) -> Tensor:
        return x * 0.5 * (1 + torch.erf(x / 2**0.5))

    u = gelu(linear(block.fc1, rolled(x, 1, 1)))
    first = linear(block.fc2, rolled(u, 1, 2)) + x
    u = gelu(linear(block.fc3, rolled(x, -1, 2)))
    second = linear(block.fc4, rolled(u, 1, 1)) + x
    both = torch.cat((first, second), -1)
    deviation = (both.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    long_range = x + linear(block.fc5, (both - both.mean(-1, keepdim=True)) / deviation)
    local = conv2d(
        x.permute(0, 3, 1, 2), block.depthwise.weight, block.depthwise.bias, padding=1, groups=6
    )
    local = conv2d(local, block.pointwise.weight, block.pointwise.bias).clamp(min=0)
    spread = (local.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
    local = ((local - local.mean((0, 2, 3), keepdim=True)) / spread).permute(0, 2, 3, 1)
    wanted = linear(block.fc6, torch.cat((long_range, local), -1))
    torch.testing.assert_close(block(x), wanted)


def test_feature_block_normalises_after_gelu(rng):
    block = FeatureIncentiveBlock(3, 8).double()
    tokens = block(torch.randn(2, 3, 6, 5, generator=rng, dtype=torch.float64))
    assert tokens.shape == (2, 6, 5, 8)
    torch.testing.assert_close(tokens.mean(-1), torch.zeros(2, 6, 5, dtype=torch.float64))


def test_dropout_lies_in_the_bottleneck_alone():
    for size, rate in (("S", 0.1), ("M", 0.2), ("L", 0.3)):
        with torch.device("meta"):
            net = RollingUNet(size=size)
        rates = [
            block.dropout.p for block in (net.lo2_encoder, net.lo2_bottleneck, net.lo2_decoder)
        ]
        assert rates == [0.0, rate, 0.0]


def test_initial_values(seed):
    torch.manual_seed(seed)
    net = RollingUNet(size="M")
    weight = net.lo2_bottleneck.fc5.weight
    assert weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert net.fi1.conv.weight.std().item() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.02)
    assert net.lo2_encoder.depthwise.weight.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.1)
    assert not net.lo2_encoder.fc1.bias.any() and not net.fi2.conv.bias.any()


def test_shapes_and_gradients(rng):
    assert_shapes_and_finite(RollingUNet, rng)


def test_eval_mode(rng):
    assert_eval_is_a_function(RollingUNet, rng)


def test_bad_input():
    assert_bad_input_is_named(lambda **options: RollingUNet(size="S", **options))
    for size in ("XL", "m", 2, None, []):
        with pytest.raises(ValueError, match=r"RollingUNet: size must be one of \('S', 'M', 'L'\)"):
            RollingUNet(size=size)


@pytest.mark.slow
def test_overfits_four_phantoms(seed):
    torch.manual_seed(seed)
    assert dice_after_training(RollingUNet(), seed, size=32, steps=300, lr=1e-3) > 0.95
