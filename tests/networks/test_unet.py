"""U-Net: its counts, and the contract of a compared network."""

from pathlib import Path
from typing import Any

import pytest
import torch

from intrasense_fast.networks import build_network
from intrasense_fast.networks.unet import UNet
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
    """34.5 M and 65.5 G of the notes; to the unit it is CMU-Net less its mixer and gates."""
    gates = 5_773_312 + 1_444_864 + 361_984 + 90_880
    assert count_built(UNet) == 49_931_201 - 7_734_272 - gates == 34_525_889
    assert count_built(UNet, in_channels=3) == 49_932_353 - 7_734_272 - gates
    assert giga_macs(UNet) == pytest.approx(65.5, rel=0.01)


def test_counts_of_the_parts():
    with torch.device("meta"):
        net = UNet()
    stages = [count(stage) for stage in net.encoder.stages]
    assert stages == [37_824, 221_952, 886_272, 3_542_016, 14_161_920]
    assert [count(up) for up in net.decoder.up] == [4_720_128, 1_180_416, 295_296, 73_920]
    assert [count(merge) for merge in net.decoder.merge] == [7_080_960, 1_771_008, 443_136, 110_976]
    assert count(net.head) == 65


def narrow(**options: Any) -> UNet:
    """The network at widths that cost nothing."""
    return UNet(**{"widths": (8, 12, 16, 20, 24), **options})


def test_shapes_and_gradients(rng):
    assert_shapes_and_finite(narrow, rng)


def test_eval_mode(rng):
    assert_eval_is_a_function(narrow, rng)


def test_bad_input():
    assert_bad_input_is_named(narrow)
    for widths in ((8, 8), 64, "abcde", (8, 8, 0, 8, 8), (8, 8, True, 8, 8), (8.0, 8, 8, 8, 8)):
        with pytest.raises(ValueError, match="UNet: widths must be 5 integers"):
            UNet(widths=widths)


@pytest.mark.slow
def test_overfits_four_phantoms(seed):
    """At a quarter of the paper's widths, so that it takes a minute."""
    torch.manual_seed(seed)
    net = UNet(widths=(16, 32, 64, 128, 256))
    assert dice_after_training(net, seed, size=32, steps=300, lr=1e-3) > 0.95


def test_the_cut_example_sees_its_two_shallow_maps_alone(monkeypatch, rng):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples"))
    cut = build_network("cut_unet:CutUNet", encoder="resnet18").eval()
    plain = build_network("unet-resnet50", encoder="resnet18").eval()
    plain.load_state_dict(cut.state_dict())
    x = torch.rand(2, 1, 64, 64, generator=rng)
    first = cut(x)
    assert first.shape == (2, 1, 64, 64) and first.isfinite().all()
    assert not torch.equal(first, plain(x))
    with torch.no_grad():
        for name, parameter in cut.encoder.named_parameters():
            if name.startswith(("layer2", "layer3", "layer4")):
                parameter.normal_(generator=rng)
    assert torch.equal(cut(x), first)
