"""CMU-Net: its counts, its two blocks against plain formulas, and the contract."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from intrasense_fast.networks.cmunet import CMUNet, ConvMixerLayer, MultiScaleAttentionGate
from tests.support.compared_networks import (
    assert_bad_input_is_named,
    assert_eval_is_a_function,
    assert_shapes_and_finite,
    count,
    count_built,
    dice_after_training,
    giga_macs,
)


def test_counts():
    assert count_built(CMUNet) == 49_931_201
    assert count_built(CMUNet, in_channels=3) == 49_932_353
    assert giga_macs(CMUNet) == pytest.approx(91.03, rel=0.01)


def test_counts_of_the_parts():
    with torch.device("meta"):
        net, rgb = CMUNet(), CMUNet(in_channels=3)
    stages = [count(stage) for stage in net.encoder.stages]
    assert stages == [37_824, 221_952, 886_272, 3_542_016, 14_161_920]
    assert count(rgb.encoder.stages[0]) == 38_976
    assert count(net.mixer) == 7_734_272
    assert [count(gate) for gate in net.gates] == [90_880, 361_984, 1_444_864, 5_773_312]
    assert [count(up) for up in net.decoder.up] == [4_720_128, 1_180_416, 295_296, 73_920]
    assert [count(merge) for merge in net.decoder.merge] == [7_080_960, 1_771_008, 443_136, 110_976]
    assert count(net.head) == 65


def narrow(**options: Any) -> CMUNet:
    """The network at widths that cost nothing."""
    return CMUNet(**{"widths": (8, 12, 16, 20, 24), **options})


def standardised(x: Tensor) -> Tensor:
    """BatchNorm at its initial affine parameters, in training mode."""
    mean = x.mean((0, 2, 3), keepdim=True)
    variance = ((x - mean) ** 2).mean((0, 2, 3), keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt()


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / 2**0.5))


def test_mixer_layer_has_gelu_before_batchnorm(rng):
    layer = ConvMixerLayer(6, 7).double().train()
    x = torch.randn(2, 6, 9, 8, generator=rng, dtype=torch.float64)
    depthwise, pointwise = layer.depthwise[0], layer.pointwise[0]
    spatial = conv2d(x, depthwise.weight, depthwise.bias, padding=3, groups=6)
    mixed = x + standardised(gelu(spatial))
    wanted = standardised(gelu(conv2d(mixed, pointwise.weight, pointwise.bias)))
    torch.testing.assert_close(layer(x), wanted)


def test_gate_adds_what_it_lets_through(rng):
    gate = MultiScaleAttentionGate(4).double().train()
    x = torch.randn(2, 4, 7, 9, generator=rng, dtype=torch.float64)
    point, ordinary, dilated, vote = (
        part[0] for part in (gate.point, gate.ordinary, gate.dilated, gate.vote)
    )
    wide = torch.zeros(4, 4, 5, 5, dtype=torch.float64)
    wide[..., ::2, ::2] = dilated.weight.detach()
    scales = [
        conv2d(x, point.weight, point.bias),
        conv2d(x, ordinary.weight, ordinary.bias, padding=1),
        conv2d(x, wide, dilated.bias, padding=2),
    ]
    scales = torch.cat([standardised(scale) for scale in scales], 1).clamp(min=0)
    share = 1 / (1 + torch.exp(-standardised(conv2d(scales, vote.weight, vote.bias))))
    torch.testing.assert_close(gate(x), x * (1 + share))


def test_every_skip_passes_its_gate(seed, rng):
    class Closed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 0

    torch.manual_seed(seed)
    net = narrow().train()
    x = torch.rand(2, 1, 32, 32, generator=rng)
    for index in range(4):
        before = net(x)
        net.gates[index] = Closed()
        assert (before - net(x)).abs().max() > 1e-3, index


def test_shapes_and_gradients(rng):
    assert_shapes_and_finite(narrow, rng)


def test_eval_mode(rng):
    assert_eval_is_a_function(narrow, rng)


def test_bad_input():
    assert_bad_input_is_named(narrow)
    with pytest.raises(ValueError, match="CMUNet: widths must be 5 integers"):
        CMUNet(widths=(8, 8))


@pytest.mark.slow
def test_overfits_four_phantoms(seed):
    """At a quarter of the paper's widths, so that it takes a minute."""
    torch.manual_seed(seed)
    net = CMUNet(widths=(16, 32, 64, 128, 256))
    assert dice_after_training(net, seed, size=32, steps=300, lr=1e-3) > 0.95
