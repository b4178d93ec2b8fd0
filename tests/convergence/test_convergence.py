"""Training with the kernels is training: step after step the same losses, and the same weights in the end."""

import copy

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("triton", reason="the kernels need Triton, which has wheels for Linux only")

from intrasense_fast.losses import IntraSenseLoss
from tests.support.networks import TinyRefinedNet, set_fused, wake

TOLERANCE = 1e-8


def train(net: nn.Module, images: Tensor, masks: Tensor, steps: int, *, fused: bool) -> list[dict[str, float]]:
    """Every step's loss and its terms."""
    loss = IntraSenseLoss(fused=fused)
    optimizer = torch.optim.RMSprop(net.parameters(), lr=1e-3, weight_decay=1e-8, momentum=0.9)
    history = []
    for step in range(steps):
        at = slice(2 * (step % 4), 2 * (step % 4) + 2)
        optimizer.zero_grad()
        total = loss(net(images[at]), masks[at])
        total.backward()
        optimizer.step()
        history.append({"loss": total.item(), **{name: term.item() for name, term in loss.terms.items()}})
    return history


@pytest.mark.usefixtures("guarded")
@pytest.mark.parametrize("steps", (8, pytest.param(50, marks=pytest.mark.slow)))
def test_training_with_the_kernels_is_training_without(steps, device, rng):
    if device.type == "cuda":
        pytest.skip("float64 runs eager on a GPU")
    torch.manual_seed(rng.initial_seed())
    fused = wake(TinyRefinedNet(fused=True), rng).double().train()
    plain = set_fused(copy.deepcopy(fused), False)
    masks = torch.zeros(8, 1, 16, 12, dtype=torch.float64)
    masks[:, :, 4:10, 5:9] = 1
    images = (0.4 * masks + 0.3 + 0.2 * torch.rand(masks.shape, generator=rng, dtype=masks.dtype)).clamp(0, 1)
    found, wanted = train(fused, images, masks, steps, fused=True), train(plain, images, masks, steps, fused=False)
    assert wanted[-1]["loss"] < wanted[0]["loss"]
    for step, (one, other) in enumerate(zip(found, wanted, strict=True)):
        for name, value in other.items():
            assert abs(one[name] - value) <= TOLERANCE * max(abs(value), 1e-3), f"{name} of step {step}"
    for (name, one), other in zip(fused.state_dict().items(), plain.state_dict().values(), strict=True):
        assert (one.double() - other.double()).norm() <= TOLERANCE * other.double().norm(), name
