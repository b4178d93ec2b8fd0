"""EBT-Net: its counts, its blocks against plain formulas, its loss, and the common contract."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, gelu

from intrasense_fast.networks.contract import NetworkOutput
from intrasense_fast.networks.ebtnet import EBTNet, Fusion, TokenMixer
from intrasense_fast.networks.ebtnet_branches import DepthwiseBlock, SemanticDown, StripBlock
from tests.support.compared_networks import (
    assert_bad_input_is_named,
    assert_eval_is_a_function,
    assert_shapes_and_finite,
    count,
    count_built,
    dice_after_training,
    giga_macs,
)

NEVER_CALLED = 303_104


@pytest.mark.parametrize(
    ("options", "published"),
    (
        ({}, 5_531_921),
        ({"in_channels": 3}, 5_533_361),
        ({"image_size": 640}, 5_537_633),
        ({"in_channels": 3, "image_size": 640}, 5_539_073),
        ({"in_channels": 3, "image_size": 640, "num_classes": 4}, 5_541_008),
    ),
)
def test_counts(options: dict[str, int], published: int):
    """The published network less the block that it never calls."""
    assert count_built(EBTNet, **options) == published - NEVER_CALLED


def test_counts_of_the_parts():
    with torch.device("meta"):
        net = EBTNet()
        colour = EBTNet(3)
    assert [count(stage) for stage in net.detail] == [99_840, 235_200, 863_616]
    assert count(colour.detail[0]) == 100_992
    assert count(net.semantics.stem) == 8_520
    assert count(colour.semantics.stem) == 8_808
    assert [count(stage) for stage in net.semantics.stages] == [92_576, 347_968, 1_953_408]
    assert count(net.fusion) == 1_201_828
    assert count(net.head) == 147_841
    assert count(net.boosts) == 278_020
    assert count(net) - count(net.boosts) == 4_950_797


@pytest.mark.slow
def test_multiply_adds():
    assert giga_macs(EBTNet, in_channels=3, training=False) == pytest.approx(4.14, rel=0.02)


def test_shapes_at_256():
    with torch.device("meta"):
        net = EBTNet().train()
        output = net(torch.empty(2, 1, 256, 256))
        assert isinstance(output, NetworkOutput)
        maps = (output.logits, *output.auxiliary_logits)
        assert [tuple(logits.shape) for logits in maps] == [(2, 1, 256, 256)] * 5
        assert output.auxiliary_loss is None
        assert net.eval()(torch.empty(2, 1, 256, 256)).shape == (2, 1, 256, 256)


def standardised(x: Tensor) -> Tensor:
    """BatchNorm at its initial affine parameters, in training mode."""
    mean = x.mean((0, 2, 3), keepdim=True)
    variance = ((x - mean) ** 2).mean((0, 2, 3), keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt()


def test_strip_block_by_formula(rng):
    """Dilated kernels are written out as dense ones that are zero between their three weights."""
    block = StripBlock(2).double().train()
    x = torch.randn(2, 2, 5, 7, generator=rng, dtype=torch.float64)
    wanted = x
    layers = iter(block.layers)
    for dilation in (1, 6, 12, 18):
        across, down = next(layers), next(layers)
        side = 2 * dilation + 1
        wide = torch.zeros(2, 2, 1, side, dtype=torch.float64)
        wide[..., ::dilation] = across.weight.detach()
        tall = torch.zeros(2, 2, side, 1, dtype=torch.float64)
        tall[:, :, ::dilation] = down.weight.detach()
        wanted = conv2d(wanted, wide, across.bias, padding=(0, dilation))
        wanted = conv2d(wanted, tall, down.bias, padding=(dilation, 0))
        next(layers)
        wanted = gelu(wanted) if dilation in (1, 12) else standardised(wanted)
    torch.testing.assert_close(block(x), x + wanted)


@pytest.mark.parametrize("out_channels", (2, 4))
def test_depthwise_block_by_formula(out_channels: int, rng: torch.Generator):
    block = DepthwiseBlock(2, out_channels).double().train()
    x = torch.randn(2, 2, 6, 8, generator=rng, dtype=torch.float64)
    depthwise, _, widen, _, project = block.layers
    filtered = conv2d(x, depthwise.weight, depthwise.bias, padding=3, groups=2)
    if out_channels == 4:
        filtered = filtered[..., ::2, ::2]
    hidden = gelu(conv2d(standardised(filtered), widen.weight, widen.bias))
    wanted = conv2d(hidden, project.weight, project.bias)
    assert widen.weight.shape == (8, 2, 1, 1)
    torch.testing.assert_close(block(x), wanted if out_channels == 4 else x + wanted)


def test_semantic_down_adds_its_branch(rng):
    """With the main path's last BatchNorm at zero, GELU of the branch is left."""
    block = SemanticDown(2, 4).double().train()
    x = torch.randn(2, 2, 8, 6, generator=rng, dtype=torch.float64)
    nn.init.zeros_(block.main[-1].weight)
    assert block(x).shape == (2, 4, 4, 3)
    torch.testing.assert_close(block(x), gelu(block.branch(x)))


def test_token_mixer_by_formula(rng, seed):
    torch.manual_seed(seed)
    mixer = TokenMixer(4).double()
    x = torch.randn(2, 128, 4, 4, generator=rng, dtype=torch.float64)
    first, _, second = mixer.channel_gate
    hidden = gelu(x.flatten(2).max(2).values @ first.weight[..., 0, 0].T + first.bias)
    gated = x * torch.sigmoid(hidden @ second.weight[..., 0, 0].T + second.bias)[..., None, None]
    places = (gated + mixer.position).max(1, keepdim=True).values
    gate = conv2d(places, mixer.spatial_gate.weight, mixer.spatial_gate.bias, padding=3)
    torch.testing.assert_close(mixer(x), gated * torch.sigmoid(gate))


def test_fusion_by_formula(rng):
    """With both mixers the identity: left = d + up(s), right = up(s + pooled d)."""
    fusion = Fusion(64).double().train()
    fusion.detail_mixer = fusion.semantic_mixer = nn.Identity()
    detail = torch.randn(2, 128, 8, 8, generator=rng, dtype=torch.float64)
    semantics = torch.randn(2, 128, 2, 2, generator=rng, dtype=torch.float64)
    up = nn.Upsample(scale_factor=4, mode="bilinear")
    pooled = detail.unflatten(-1, (2, 4)).unflatten(-3, (2, 4)).mean((-3, -1))
    both = detail + up(semantics) + up(semantics + pooled)
    wanted = standardised(conv2d(both, fusion.merge[0].weight, padding=1))
    torch.testing.assert_close(fusion(detail, semantics), wanted)


def test_positions_are_resized_for_other_sizes(rng):
    net = EBTNet(image_size=64).eval()
    with torch.no_grad():
        x = torch.rand(1, 1, 32, 96, generator=rng)
        logits = net(x)
        net.fusion.detail_mixer.position += 3.0
        assert logits.shape == (1, 1, 32, 96)
        assert not torch.equal(net(x), logits)


def test_normalisation_happens_inside():
    net = EBTNet(image_size=32).eval()
    seen = []
    net.detail.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    with torch.no_grad():
        net(torch.full((1, 1, 32, 32), 0.46))
    torch.testing.assert_close(seen[0], torch.ones(1, 1, 32, 32))


def test_own_loss_is_the_sum_of_five_cross_entropies(rng):
    maps = [torch.randn(2, 2, 4, 5, generator=rng, dtype=torch.float64) for _ in range(5)]
    target = (torch.rand(2, 2, 4, 5, generator=rng) > 0.5).double()
    wanted = 0.0
    for logits in maps:
        p = 1 / (1 + torch.exp(-logits))
        wanted = wanted - (target * p.log() + (1 - target) * (1 - p).log()).mean()
    with torch.device("meta"):
        net = EBTNet()
    loss = net.own_loss(NetworkOutput(maps[0], tuple(maps[1:])), target.bool())
    torch.testing.assert_close(loss, wanted)


def test_shapes_and_gradients(rng):
    assert_shapes_and_finite(EBTNet, rng, size=(64, 32))


def test_eval_mode(rng):
    assert_eval_is_a_function(EBTNet, rng, size=(32, 64))


def test_bad_input():
    assert_bad_input_is_named(EBTNet, multiple=32)
    for image_size in (0, 40, 64.0, True):
        with pytest.raises(ValueError, match="EBTNet: image_size must be an integer >= 32"):
            EBTNet(image_size=image_size)
    with pytest.raises(ValueError, match="single position at stride 32"):
        EBTNet().train()(torch.rand(1, 1, 32, 32))


@pytest.mark.slow
def test_overfits_four_phantoms(seed):
    torch.manual_seed(seed)
    net = EBTNet(image_size=64)
    assert dice_after_training(net, seed, size=64, steps=300, lr=1e-3) > 0.95
