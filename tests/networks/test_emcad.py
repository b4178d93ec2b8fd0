"""EMCAD: its counts, its blocks against plain formulas, its loss, and the common contract."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from intrasense_fast.networks.contract import NetworkOutput
from intrasense_fast.networks.emcad import (
    EMCAD,
    ChannelAttention,
    EMCADDecoder,
    LargeKernelGate,
    MultiScaleConvolution,
    SpatialAttention,
    UpConvolution,
    shuffle_channels,
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

Small = partial(EMCAD, encoder="pvtv2_b0")


def test_counts():
    """Without the grey stem's 12 parameters for three channels: dead there in the original."""
    assert count_built(EMCAD) == 26_764_411
    assert count_built(EMCAD, in_channels=3) == 26_764_411 - 12
    assert count_built(Small) == 3_916_795
    assert count_built(Small, in_channels=3) == 3_916_795 - 12


def test_counts_of_the_parts():
    with torch.device("meta"):
        net = EMCAD()
        small = Small()
    assert net.stem is not None and count(net.stem) == 12
    assert count(net.encoder) == 24_849_856
    assert count(net.decoder) == 1_913_515
    parts = net.decoder
    assert [count(one) for one in parts.convolutions] == [1_093_632, 437_760, 76_800, 22_016]
    assert [count(one) for one in parts.ups] == [169_792, 44_608, 9_664]
    assert [count(one) for one in parts.gates] == [6_883, 2_755, 1_379]
    assert [count(one) for one in parts.channel_attentions] == [32_768, 12_800, 2_048, 512]
    assert count(parts.spatial_attention) == 98
    assert [count(head) for head in net.heads] == [513, 321, 129, 65]
    assert (count(small.encoder), count(small.decoder)) == (3_409_760, 506_507)
    assert sum(count(head) for head in small.heads) == 516


@pytest.mark.slow
def test_multiply_adds():
    assert giga_macs(EMCAD, in_channels=3) == pytest.approx(5.83, rel=0.02)


def test_shapes_at_256():
    with torch.device("meta"):
        net = EMCAD().train()
        output = net(torch.empty(2, 1, 256, 256))
        assert isinstance(output, NetworkOutput)
        assert {logits.shape for logits in (output.logits, *output.auxiliary_logits)} == {
            (2, 1, 256, 256)
        }
        assert len(output.auxiliary_logits) == 3 and output.auxiliary_loss is None
        assert net.eval()(torch.empty(2, 1, 256, 256)).shape == (2, 1, 256, 256)


def test_shuffle_is_index_arithmetic(rng):
    x = torch.randn(2, 12, 3, 2, generator=rng)
    shuffled = shuffle_channels(x, groups=6)
    assert shuffled.shape == x.shape
    for group in range(6):
        for member in range(2):
            assert torch.equal(shuffled[:, member * 6 + group], x[:, group * 2 + member])


def test_shuffle_with_a_channel_a_group_is_the_identity(rng):
    x = torch.randn(1, 5, 2, 2, generator=rng)
    assert torch.equal(shuffle_channels(x, groups=5), x)


def test_channel_attention_by_formula(rng):
    attention = ChannelAttention(32).double()
    x = torch.randn(2, 32, 3, 5, generator=rng, dtype=torch.float64)
    inner, outer = attention.reduce.weight[..., 0, 0], attention.expand.weight[..., 0, 0]
    pools = (x.flatten(2).mean(2), x.flatten(2).max(2).values)
    response = sum((pool @ inner.T).clamp(min=0) @ outer.T for pool in pools)
    torch.testing.assert_close(attention(x)[..., 0, 0], 1 / (1 + torch.exp(-response)))


def test_spatial_attention_by_formula(rng):
    attention = SpatialAttention().double()
    x = torch.randn(1, 4, 5, 6, generator=rng, dtype=torch.float64)
    pools = torch.zeros(2, 11, 12, dtype=torch.float64)
    pools[0, 3:8, 3:9], pools[1, 3:8, 3:9] = x[0].mean(0), x[0].max(0).values
    weight = attention.conv.weight[0].detach()
    for row in range(5):
        for column in range(6):
            response = (pools[:, row : row + 7, column : column + 7] * weight).sum()
            torch.testing.assert_close(attention(x)[0, 0, row, column], torch.sigmoid(response))


def standardised(x: Tensor) -> Tensor:
    """BatchNorm at its initial affine parameters, in training mode."""
    mean = x.mean((0, 2, 3), keepdim=True)
    variance = ((x - mean) ** 2).mean((0, 2, 3), keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt()


def test_multi_scale_convolution_by_formula(rng):
    block = MultiScaleConvolution(3).double().train()
    x = 4 * torch.randn(2, 3, 6, 5, generator=rng, dtype=torch.float64)
    widened = standardised(conv2d(x, block.widen[0].weight)).clamp(0, 6)
    total = torch.zeros_like(widened)
    for scale, size in zip(block.scales, (1, 3, 5), strict=True):
        filtered = conv2d(widened, scale[0].weight, padding=size // 2, groups=6)
        total = total + standardised(filtered).clamp(0, 6)
    shuffled = total[:, [0, 2, 4, 1, 3, 5]]
    wanted = x + standardised(conv2d(shuffled, block.project[0].weight))
    torch.testing.assert_close(block(x), wanted)


def test_gate_by_formula(rng):
    gate = LargeKernelGate(4).double().train()
    up, skip = (torch.randn(2, 4, 5, 6, generator=rng, dtype=torch.float64) for _ in range(2))
    responses = []
    for part, x in ((gate.gating, up), (gate.skip, skip)):
        halves = [
            conv2d(
                x[:, 2 * i : 2 * i + 2],
                part[0].weight[i : i + 1],
                part[0].bias[i : i + 1],
                padding=1,
            )
            for i in range(2)
        ]
        responses.append(standardised(torch.cat(halves, 1)))
    agreed = (responses[0] + responses[1]).clamp(min=0)
    weight = torch.sigmoid(standardised(conv2d(agreed, gate.weight[0].weight, gate.weight[0].bias)))
    torch.testing.assert_close(gate(up, skip), skip * weight)


def test_up_convolution_doubles_by_repetition(rng):
    up = UpConvolution(3, 2).double().train()
    x = torch.randn(2, 3, 4, 3, generator=rng, dtype=torch.float64)
    repeated = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    filtered = conv2d(repeated, up.depthwise[0].weight, padding=1, groups=3)
    wanted = conv2d(standardised(filtered).clamp(min=0), up.project.weight, up.project.bias)
    assert up(x).shape == (2, 2, 8, 6)
    torch.testing.assert_close(up(x), wanted)


def test_decoder_starts_from_a_narrow_normal():
    for name, parameter in EMCADDecoder((16, 32, 64, 128)).named_parameters():
        if parameter.dim() == 4 and parameter.numel() > 1000:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.15), name


def test_own_loss_is_the_sum_over_fifteen_subsets(rng):
    maps = [torch.randn(2, 1, 4, 5, generator=rng, dtype=torch.float64) for _ in range(4)]
    target = (torch.rand(2, 1, 4, 5, generator=rng) > 0.5).double()
    wanted = 0.0
    for members in range(1, 16):
        logits = sum(one for bit, one in enumerate(maps) if members >> bit & 1)
        p = 1 / (1 + torch.exp(-logits))
        cross_entropy = -(target * p.log() + (1 - target) * (1 - p).log()).mean()
        dice = 1 - 2 * (p * target).sum() / (p.sum() + target.sum())
        wanted = wanted + 0.3 * cross_entropy + 0.7 * dice
    output = NetworkOutput(maps[0], tuple(maps[1:]))
    with torch.device("meta"):
        net = Small()
    torch.testing.assert_close(net.own_loss(output, target), wanted)


def test_heads_lie_at_the_strides(rng):
    """The heads' inputs, deepest first: strides 32, 16, 8 and 4."""
    net = Small().train()
    seen = []
    for head in net.heads:
        head.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape))
    net(torch.rand(2, 1, 64, 32, generator=rng))
    assert seen == [(2, 256, 2, 1), (2, 160, 4, 2), (2, 64, 8, 4), (2, 32, 16, 8)]


def test_shapes_and_gradients(rng):
    assert_shapes_and_finite(Small, rng, size=(64, 32))


def test_gradients_reach_the_grey_stem(rng):
    net = Small().train()
    target = torch.ones(2, 1, 32, 64)
    net.own_loss(net(torch.rand(2, 1, 32, 64, generator=rng)), target).backward()
    assert net.stem is not None
    for parameter in net.stem.parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all()


def test_eval_mode(rng):
    assert_eval_is_a_function(Small, rng, size=(32, 64))


def test_bad_input():
    assert_bad_input_is_named(Small, multiple=32)
    with pytest.raises(ValueError, match=r"encoder must be one of .*got 'pvtv2_b9'"):
        EMCAD(encoder="pvtv2_b9")
    with pytest.raises(TypeError, match="own_loss needs the NetworkOutput of training mode"):
        Small().own_loss(torch.zeros(1, 1, 32, 32), torch.zeros(1, 1, 32, 32))
    with pytest.raises(ValueError, match="single position at stride 32"):
        Small().train()(torch.rand(1, 1, 32, 32))


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ("pvtv2_b0", "pvtv2_b2"))
def test_overfits_four_phantoms(encoder: str, seed: int):
    torch.manual_seed(seed)
    net: nn.Module = EMCAD(encoder=encoder)
    assert dice_after_training(net, seed, size=64, steps=300, lr=5e-4) > 0.95
