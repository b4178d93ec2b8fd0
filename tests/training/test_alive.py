"""GCP and CDR after sixty steps of training: alive at every stride, and dead without their
normalisations."""

import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

from intrasense_fast import IntraSenseNet
from intrasense_fast.data.phantom import phantom
from intrasense_fast.losses import IntraSenseLoss
from intrasense_fast.networks.health import StrideHealth, faults

STEPS, BATCH, IMAGES = 60, 4, 48

Parameters = Iterable[nn.Parameter]
RECIPES: dict[str, tuple[Callable[[Parameters], torch.optim.Optimizer], bool]] = {
    "cpu-small": (lambda parameters: torch.optim.RMSprop(parameters, lr=1e-3), True),
    "paper": (
        lambda parameters: torch.optim.RMSprop(
            parameters, lr=1e-4, momentum=0.9, weight_decay=1e-8
        ),
        False,
    ),
    "AdamW": (lambda parameters: torch.optim.AdamW(parameters, lr=1e-3), True),
    "SGD": (lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9), False),
}


def phantoms(seed: int, size: int) -> tuple[Tensor, Tensor]:
    pairs = [phantom((seed, i), size) for i in range(IMAGES)]
    images, masks = (
        np.stack(arrays)[:, None].astype(np.float32) for arrays in zip(*pairs, strict=True)
    )
    return torch.from_numpy(images), torch.from_numpy(masks)


def healths(
    recipe: str, size: int, seed: int, **options: object
) -> Iterator[dict[int, StrideHealth]]:
    """Of the last eight phantoms, after every 20 of STEPS steps on the others."""
    torch.manual_seed(seed)
    images, masks = phantoms(seed, size)
    net = IntraSenseNet(decoder_channels=(64, 32, 16, 16, 16), **options).train()  # type: ignore[arg-type]
    make, cycle = RECIPES[recipe]
    optimizer = make(net.parameters())
    schedule = OneCycleLR(optimizer, 1e-3, STEPS + 1, cycle_momentum=False) if cycle else None
    loss = IntraSenseLoss()
    for step in range(STEPS):
        batch = [(step * BATCH + i) % (IMAGES - 8) for i in range(BATCH)]
        optimizer.zero_grad()
        loss(net(images[batch]), masks[batch]).backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
        if (step + 1) % 20 == 0:
            yield net.health(images[-8:])


@pytest.mark.parametrize(
    ("recipe", "encoder", "size"),
    [
        ("cpu-small", "resnet18", 64),
        pytest.param("AdamW", "resnet18", 64, marks=pytest.mark.extended),
        pytest.param("SGD", "resnet18", 64, marks=pytest.mark.extended),
        pytest.param("paper", "resnet18", 64, marks=pytest.mark.extended),
        # 2048 channels on the four positions of stride 32 that 64 pixels leave do saturate at
        # times.
        pytest.param("paper", "resnet50", 96, marks=pytest.mark.slow),
    ],
)
def test_every_module_lives(recipe: str, encoder: str, size: int, seed: int) -> None:
    *_, health = healths(recipe, size, seed, encoder=encoder)
    assert list(health) == [8, 16, 32]
    assert all(math.isfinite(value) for record in health.values() for value in record)
    assert faults(health) == []


@pytest.mark.extended
def test_the_letter_dies(seed: int) -> None:
    records = healths("cpu-small", 64, seed, module_norm="none")
    # The first record with a fault: the rest of the steps would show the same.
    words = next(filter(None, map(faults, records)), [])
    assert any("attention is one-hot" in fault for fault in words)
    assert all(fault.startswith("stride ") for fault in words)
