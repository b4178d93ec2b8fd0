"""Training with the kernels is training: step after step the same losses, and the same weights in
the end."""

import copy

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("triton", reason="the kernels need Triton, which has wheels for Linux only")

from intrasense_fast.losses import IntraSenseLoss
from tests.support.networks import TinyRefinedNet, set_fused, wake

TOLERANCE = 1e-8


def lesions(rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Eight images with a brighter block, and the block, in float64."""
    masks = torch.zeros(8, 1, 16, 12, dtype=torch.float64)
    masks[:, :, 4:10, 5:9] = 1
    return (
        0.4 * masks + 0.3 + 0.2 * torch.rand(masks.shape, generator=rng, dtype=masks.dtype)
    ).clamp(0, 1), masks


def train(
    net: nn.Module,
    images: Tensor,
    masks: Tensor,
    steps: int,
    *,
    fused: bool,
    amp: torch.dtype | None = None,
) -> list[dict[str, float]]:
    """Every step's loss and its terms."""
    loss = IntraSenseLoss(fused=fused)
    optimizer = torch.optim.RMSprop(net.parameters(), lr=1e-3, weight_decay=1e-8, momentum=0.9)
    history = []
    for step in range(steps):
        at = slice(2 * (step % 4), 2 * (step % 4) + 2)
        optimizer.zero_grad()
        with torch.autocast(images.device.type, amp, enabled=amp is not None):
            output = net(images[at])
        total = loss(output, masks[at])
        total.backward()
        optimizer.step()
        history.append(
            {"loss": total.item(), **{name: term.item() for name, term in loss.terms.items()}}
        )
    return history


@pytest.mark.extended
@pytest.mark.usefixtures("guarded")
@pytest.mark.parametrize("steps", (8, pytest.param(50, marks=pytest.mark.slow)))
def test_training_with_the_kernels_is_training_without(steps, device, rng):
    if device.type == "cuda":
        pytest.skip("float64 runs eager on a GPU")
    torch.manual_seed(rng.initial_seed())
    fused = wake(TinyRefinedNet(fused=True), rng).double().train()
    plain = set_fused(copy.deepcopy(fused), False)
    images, masks = lesions(rng)
    found, wanted = (
        train(fused, images, masks, steps, fused=True),
        train(plain, images, masks, steps, fused=False),
    )
    assert wanted[-1]["loss"] < wanted[0]["loss"]
    for step, (one, other) in enumerate(zip(found, wanted, strict=True)):
        for name, value in other.items():
            assert abs(one[name] - value) <= TOLERANCE * max(abs(value), 1e-3), (
                f"{name} of step {step}"
            )
    for (name, one), other in zip(
        fused.state_dict().items(), plain.state_dict().values(), strict=True
    ):
        assert (one.double() - other.double()).norm() <= TOLERANCE * other.double().norm(), name


@pytest.mark.usefixtures("guarded")
@pytest.mark.parametrize(
    "amp", (None, torch.bfloat16, torch.float16), ids=("float32", "bfloat16", "float16")
)
@pytest.mark.parametrize("steps", (pytest.param(50, marks=pytest.mark.slow),))
def test_low_precision_training_strays_no_further_than_without_the_kernels(steps, amp, device, rng):
    """From float64's losses, by the mean over the steps: a mask flips in one path and not in the
    other."""
    torch.manual_seed(rng.initial_seed())
    fused = wake(TinyRefinedNet(fused=True), rng).to(device).train()
    plain, exact = (set_fused(copy.deepcopy(fused), False) for _ in range(2))
    images, masks = (t.to(device) for t in lesions(rng))
    truth = train(exact.double(), images, masks, steps, fused=False)
    images, masks = images.float(), masks.float()
    runs = [
        train(net, images, masks, steps, fused=f, amp=amp)
        for net, f in ((fused, True), (plain, False))
    ]
    mine, theirs = (
        sum(abs(a["loss"] / b["loss"] - 1) for a, b in zip(run, truth, strict=True)) / steps
        for run in runs
    )
    print(f"fused {mine:.1e}, eager {theirs:.1e}")
    assert runs[0][-1]["loss"] < runs[0][0]["loss"]
    assert mine <= max(2 * theirs, 1e-4 if amp is None else 2e-2)
