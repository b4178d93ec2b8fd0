"""What the selection images say after an epoch: loss, Dice, and the health of the modules."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from intrasense_fast.console import progress
from intrasense_fast.data.torch_dataset import SegmentationDataset
from intrasense_fast.errors import UsageError
from intrasense_fast.losses import IntraSenseLoss
from intrasense_fast.networks.contract import health_of
from intrasense_fast.networks.health import StrideHealth
from intrasense_fast.training.step import TrainingStep

HEALTH_IMAGES = 8


@torch.no_grad()
def validate(
    step: TrainingStep, images: SegmentationDataset, stop_if_asked: Callable[[], None]
) -> tuple[float, float]:
    """The common loss, whichever trains, and mean Dice over the images with a lesion, on the
    network's grid.

    Raises:
        UsageError: no image has a lesion.
    """
    net = step.candidate.eval()
    loss = IntraSenseLoss(step.config.loss_weights, fused=step.config.fused)
    loader = DataLoader(
        images,
        step.config.batch_size,
        num_workers=step.config.workers,
        generator=torch.Generator(),
    )
    losses, dices = [], []
    bar = progress(len(loader), "selection", "batch", iterable=loader, leave=False)
    for batch in bar:
        image, mask = batch["image"].to(step.device), batch["mask"].to(step.device)
        with step.autocast():
            logits = net(image)
        losses.append((float(loss(logits, mask)), len(image)))
        dices += _dice_of_lesions(logits, mask)
        stop_if_asked()
    if not dices:
        raise UsageError(
            "none of the selection images has a lesion: give more data, or another "
            "--val-fraction or --seed"
        )
    return _mean(losses), sum(dices) / len(dices)


def health(step: TrainingStep, images: SegmentationDataset) -> dict[int, StrideHealth]:
    """Of a few images, the same in every epoch."""
    chosen = range(0, len(images), max(1, len(images) // HEALTH_IMAGES))[:HEALTH_IMAGES]
    batch = torch.stack([images[index]["image"] for index in chosen]).to(step.device)
    with step.autocast():
        return health_of(step.candidate, batch)


def _dice_of_lesions(logits: Tensor, mask: Tensor) -> list[float]:
    """Dice of each image whose mask (B, K, H, W) is not empty."""
    prediction, truth = logits > 0, mask > 0.5
    both = (prediction & truth).sum((1, 2, 3)).double()
    areas = prediction.sum((1, 2, 3)) + truth.sum((1, 2, 3))
    lesion = truth.sum((1, 2, 3)) > 0
    return (2 * both / areas)[lesion].tolist()


def _mean(pairs: Sequence[tuple[float, int]]) -> float:
    return sum(value * count for value, count in pairs) / sum(count for _, count in pairs)
