"""The health record against hand-computed numbers, and dead modules told by name."""

import math

import pytest
import torch

from intrasense_fast import IntraSenseNet
from intrasense_fast.networks.health import (
    StrideHealth,
    attention_rows,
    decoupling_health,
    faults,
    perception_health,
)
from tests.support.networks import wake

SMALL = {"refine_strides": (16, 32), "decoder_channels": (16, 8, 8, 8, 8)}


def test_numbers_of_perception_by_hand() -> None:
    # Two positions; the first image attends to one of them, the second to both alike.
    query = torch.tensor([[[100.0], [100.0]], [[0.0], [0.0]]])
    key = torch.tensor([[[1.0], [0.0]], [[1.0], [0.0]]])
    value = torch.tensor([[[2.0], [4.0]], [[2.0], [4.0]]])
    x = torch.ones(2, 2, 1)
    gate = torch.tensor([[[0.001, 0.5]], [[0.999, 0.5]]])
    mask = torch.tensor([[[True, False]], [[True, True]]])
    numbers = perception_health(query, key, value, x, gate, mask)
    # Rows: one-hot (entropy 0) and uniform (log 2). A V: 2, 2, 3, 3.
    assert numbers["attention_entropy"] == pytest.approx(0.5)
    assert numbers["attention_gain"] == pytest.approx(math.sqrt((4 + 4 + 9 + 9) / 4))
    assert numbers["gate_saturated"] == 0.5
    # Variances between the images, n - 1 below: 0.998^2 / 2 and 0.
    assert numbers["gate_deviation"] == pytest.approx(math.sqrt(0.998**2 / 2 / 2))
    assert numbers["masked_share"] == 0.75
    assert numbers["mask_agreement"] == 0.5


def test_numbers_of_decoupling_by_hand() -> None:
    numbers = decoupling_health(torch.tensor([[0.0, 0.5], [0.4, 0.5]]))
    assert numbers["dead_channels"] == 0.25
    assert numbers["weight_deviation"] == pytest.approx(math.sqrt(0.4**2 / 2 / 2))


def test_one_image_and_one_position_have_no_deviation_and_no_entropy() -> None:
    one = torch.ones(1, 1, 1)
    numbers = perception_health(one, one, one, one, one, one > 0)
    unknown = {name for name, value in numbers.items() if math.isnan(value)}
    assert unknown == {"attention_entropy", "gate_deviation", "mask_agreement"}
    assert StrideHealth(**numbers).faults() == []


def test_attention_in_chunks_equals_attention_whole(
    monkeypatch: pytest.MonkeyPatch, rng: torch.Generator
) -> None:
    from intrasense_fast.networks import health

    query, key, value = (torch.randn(2, 37, 5, generator=rng) for _ in range(3))
    whole = health._attention(query, key, value)
    monkeypatch.setattr(health, "CHUNK", 2 * 37 * 4)
    parts = health._attention(query, key, value)
    for one, other in zip(parts, whole, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other)
    rows = attention_rows(query, key)
    torch.testing.assert_close(rows.sum(-1), torch.ones(2, 37))
    torch.testing.assert_close(whole[1], rows @ value)


@pytest.mark.parametrize("squeeze", ["input", "decoupled"])
def test_the_weights_are_those_that_the_operator_applies(squeeze: str, seed: int) -> None:
    torch.manual_seed(seed)
    net = wake(IntraSenseNet(squeeze=squeeze, gcp=False, refine_strides=(8,))).double().train()
    cdr = net.cdr["8"]
    for _ in range(3):
        net(torch.rand(4, 1, 64, 64, dtype=torch.float64))
    features = torch.rand(2, 512, 8, 8, dtype=torch.float64)
    cdr.eval()
    weighted, _ = cdr(features)
    weights = cdr.weights(features)
    with torch.no_grad():
        cdr.expand.weight.zero_()
        cdr.expand.bias.zero_()
    halved, _ = cdr(features)
    assert weights.shape == (2, 512)
    assert (weighted - 2 * halved * weights[:, :, None, None]).norm() <= 1e-9 * weighted.norm()
    assert weights.std(0).mean() > 1e-3


def test_health_leaves_the_network_as_it_was(seed: int) -> None:
    torch.manual_seed(seed)
    net = wake(IntraSenseNet(**SMALL)).train()
    net.encoder.layer1.eval()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    fractions = net.masked_fraction
    modes = [module.training for module in net.modules()]
    health = net.health(torch.rand(3, 1, 64, 64))
    assert list(health) == [16, 32]
    assert all(isinstance(value, float) for record in health.values() for value in record)
    assert modes == [module.training for module in net.modules()]
    assert net.masked_fraction is fractions
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_each_death_is_told_with_its_stride_and_cause(seed: int) -> None:
    torch.manual_seed(seed)
    x = torch.rand(4, 1, 64, 64)
    net = IntraSenseNet(**SMALL).eval()
    with torch.no_grad():
        net.gcp["16"].gate.bias.fill_(-100.0)
        net.gcp["32"].projection_norm.weight.fill_(1e4)
        net.cdr["16"].expand.bias.fill_(-100.0)
        net.cdr["32"].expand.weight.zero_()
    words = faults(net.health(x))
    for stride, cause in (
        (16, "the gate is a fixed pattern (100 % of it 0 or 1"),
        (16, "100 % of the channels are switched off"),
        (32, "attention is one-hot"),
        (32, "times x: the map itself is drowned"),
        (32, "the channel weights ignore the image"),
    ):
        assert any(line.startswith(f"stride {stride}: ") and cause in line for line in words), cause


@pytest.mark.parametrize("options", [{"gcp": False}, {"cdr": False}, {"gcp": False, "cdr": False}])
def test_absent_modules_have_no_numbers(options: dict[str, bool]) -> None:
    health = IntraSenseNet(**SMALL, **options).health(torch.rand(2, 1, 32, 32))
    assert list(health) == ([16, 32] if options != {"gcp": False, "cdr": False} else [])
    for record in health.values():
        assert math.isnan(record.masked_share) == ("gcp" in options)
        assert math.isnan(record.dead_channels) == ("cdr" in options)
    assert faults(health) == []


def test_running_statistics_are_those_of_a_mixture(rng: torch.Generator) -> None:
    from intrasense_fast.networks.refine import RunningStandardization

    norm = RunningStandardization(3).double()
    batches = [torch.randn(4, 3, generator=rng, dtype=torch.float64) + i for i in range(4)]
    for batch in batches:
        norm.learn(batch)
    # The first ten batches count alike: these are the mean and the variance of all images.
    together = torch.cat(batches)
    torch.testing.assert_close(norm.running_mean, together.mean(0))
    torch.testing.assert_close(norm.running_var, together.var(0, correction=0))
    norm.learn(torch.empty(0, 3, dtype=torch.float64))
    torch.testing.assert_close(norm.running_mean, together.mean(0))


def test_diagnose_refuses_a_position_outside() -> None:
    with pytest.raises(ValueError, match=r"position \(64, 0\) lies outside an image of 64 x 64"):
        IntraSenseNet(**SMALL).diagnose(torch.rand(1, 1, 64, 64), [(64, 0)])


def test_training_on_one_position_is_refused_with_a_frozen_encoder_too() -> None:
    net = IntraSenseNet().train()
    net.encoder.eval()
    with pytest.raises(ValueError, match=r"net\.gcp\.eval\(\)"):
        net(torch.rand(1, 1, 32, 32))
    net.gcp.eval()
    assert net(torch.rand(1, 1, 32, 32)).logits.isfinite().all()
