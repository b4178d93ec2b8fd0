"""MicroSegNet: its counts, its loss against a loop over pixels, and the common contract."""

from functools import partial

import pytest
import torch
from torch import Tensor

from intrasense_fast.networks.contract import NetworkOutput
from intrasense_fast.networks.microsegnet import MicroSegNet
from tests.support.compared_networks import (
    assert_bad_input_is_named,
    assert_eval_is_a_function,
    assert_shapes_and_finite,
    count,
    count_built,
    dice_after_training,
    giga_macs,
)

Small = partial(MicroSegNet, image_size=32)


def test_counts():
    assert count_built(MicroSegNet) == 105_326_036
    assert count_built(MicroSegNet, in_channels=3) == 105_326_036
    assert count_built(MicroSegNet, image_size=224) == 105_279_956


def test_counts_of_the_heads():
    with torch.device("meta"):
        net = MicroSegNet()
    assert [count(head) for head in net.auxiliary_heads] == [2_305, 1_153, 577]


@pytest.mark.slow
def test_multiply_adds():
    assert giga_macs(MicroSegNet) == pytest.approx(38.54, rel=0.02)


def test_shapes_at_256():
    with torch.device("meta"):
        net = MicroSegNet().train()
        output = net(torch.empty(2, 1, 256, 256))
        assert isinstance(output, NetworkOutput)
        sides = [tuple(logits.shape) for logits in output.auxiliary_logits]
        assert sides == [(2, 1, side, side) for side in (32, 64, 128)]
        assert output.logits.shape == (2, 1, 256, 256) and output.auxiliary_loss is None
        assert net.eval()(torch.empty(2, 1, 256, 256)).shape == (2, 1, 256, 256)


def drawn_output(rng: torch.Generator) -> NetworkOutput:
    """Logits of one image of 16 x 16, and at 1/8, 1/4, 1/2."""
    *auxiliary, logits = (
        torch.randn(1, 1, side, side, generator=rng, dtype=torch.float64) for side in (2, 4, 8, 16)
    )
    return NetworkOutput(logits, tuple(auxiliary))


def mean_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    p = 1 / (1 + torch.exp(-logits))
    return -(target * p.log() + (1 - target) * (1 - p).log())


def resized_blocks(mask: Tensor, side: int) -> Tensor:
    """Bilinear reduction by hand: the mean of the four pixels around a centre, cut at 0.5."""
    factor = mask.shape[-1] // side
    if factor == 1:
        return mask
    middle = slice(factor // 2 - 1, factor // 2 + 1)
    blocks = mask.unflatten(-1, (side, factor)).unflatten(-3, (side, factor))
    return (blocks[..., middle, :, middle].mean((-3, -1)) >= 0.5).double()


@pytest.fixture
def net() -> MicroSegNet:
    with torch.device("meta"):
        return MicroSegNet(image_size=32)


def test_own_loss_is_the_sum_over_four_scales(net, rng):
    output = drawn_output(rng)
    target = (torch.rand(1, 1, 16, 16, generator=rng) > 0.5).double()
    wanted = 0.0
    for logits in (*output.auxiliary_logits, output.logits):
        wanted = (
            wanted + mean_cross_entropy(logits, resized_blocks(target, logits.shape[-1])).mean()
        )
    torch.testing.assert_close(net.own_loss(output, target), wanted)


def test_equal_annotations_give_a_tenth(net, rng):
    output = drawn_output(rng)
    target = torch.rand(1, 1, 16, 16, generator=rng) > 0.5
    plain = net.own_loss(output, target)
    torch.testing.assert_close(net.own_loss(output, target, target), 0.1 * plain)


def test_hard_pixels_weigh_four_times(net, rng):
    """Dilation by squares of 1, 2, 3, 4, from a loop over the pixels."""
    output = drawn_output(rng)
    expert, other = (
        (torch.rand(1, 1, 16, 16, generator=rng) > share).double() for share in (0.5, 0.6)
    )
    wanted = 0.0
    for side, logits in enumerate((*output.auxiliary_logits, output.logits), start=1):
        size = logits.shape[-1]
        target = resized_blocks(expert, size)
        different = (target != resized_blocks(other, size))[0, 0]
        hard = torch.zeros(size, size, dtype=torch.bool)
        for row in range(size):
            for column in range(size):
                top, left = row - side // 2, column - side // 2
                window = different[max(top, 0) : top + side, max(left, 0) : left + side]
                hard[row, column] = window.any()
        weight = torch.where(hard, 4.0, 1.0).double()
        loss = 0.5 * mean_cross_entropy(logits, target)[0, 0] * weight / 5
        wanted = wanted + loss.mean()
    torch.testing.assert_close(net.own_loss(output, expert, other), wanted)


def test_shapes_and_gradients(rng):
    assert_shapes_and_finite(Small, rng, size=(32, 32))


def test_eval_mode(rng):
    assert_eval_is_a_function(Small, rng, size=(32, 32))


def test_bad_input():
    assert_bad_input_is_named(Small)
    for image_size in (0, 16, 40, 64.0, True):
        with pytest.raises(ValueError, match="MicroSegNet: image_size must be an integer >= 32"):
            MicroSegNet(image_size=image_size)


def test_another_size_is_named(net):
    with pytest.raises(ValueError, match="built for images of 32 x 32, got 64 x 32"):
        net(torch.empty(1, 1, 64, 32, device="meta"))


def test_targets_of_another_shape_are_named(net, rng):
    output = drawn_output(rng)
    target = torch.zeros(1, 1, 16, 16)
    with pytest.raises(ValueError, match="MicroSegNet: target must have the logits' shape"):
        net.own_loss(output, target[0])
    with pytest.raises(ValueError, match=r"non_expert\): target must have the logits' shape"):
        net.own_loss(output, target, target[..., :8])


@pytest.mark.slow
def test_overfits_four_phantoms(seed):
    torch.manual_seed(seed)
    net = Small()
    assert dice_after_training(net, seed, size=32, steps=200, lr=1e-4) > 0.95
