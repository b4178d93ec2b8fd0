"""What the selection images say after an epoch: loss, Dice, and the health of the modules."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
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
    step: TrainingStep, images: SegmentationDataset, stop_if_asked: Callable[[], object]
) -> tuple[float, float]:
    """The common loss, whichever trains, and mean Dice over the images with a lesion, on the
    network's grid: those of one process, with several too.

    Raises:
        UsageError: no image has a lesion.
    """
    net = step.candidate.eval()
    loss = IntraSenseLoss(step.config.loss_weights, fused=step.config.fused)
    size, ranks = step.config.batch_size, step.ranks
    # Whole batches in turn: the loss of a batch is no mean over its images.
    everything = list(range(len(images)))
    batches = [everything[first : first + size] for first in range(0, len(images), size)]
    loader = DataLoader(
        images,
        batch_sampler=batches[ranks.rank :: ranks.world],
        num_workers=step.config.workers,
        generator=torch.Generator(),
    )
    # Statistics that are not synchronised.
    ranks.share(list(net.buffers()))
    found: list[tuple[float, int, list[float]]] = []
    shown = ranks.bar(iterable=loader, leave=False)
    for batch in progress(len(loader), "selection", "batch", **shown):
        image, mask = batch["image"].to(step.device), batch["mask"].to(step.device)
        with step.autocast():
            logits = _logits(step, net, image)
        found.append((float(loss(logits, mask)), len(image), _dice_of_lesions(logits, mask)))
        stop_if_asked()
    for _ in range(len(found), math.ceil(len(batches) / ranks.world)):
        stop_if_asked()
    everyone = ranks.all(found)
    found = [everyone[i % ranks.world][i // ranks.world] for i in range(len(batches))]
    dices = [dice for _, _, of_batch in found for dice in of_batch]
    if not dices:
        raise UsageError(
            "none of the selection images has a lesion: give more data, or another "
            "--val-fraction or --seed"
        )
    losses = [(value, count) for value, count, _ in found]
    return _mean(losses), sum(dices) / len(dices)


def health(step: TrainingStep, images: SegmentationDataset) -> dict[int, StrideHealth]:
    """Of a few images, the same in every epoch."""
    chosen = range(0, len(images), max(1, len(images) // HEALTH_IMAGES))[:HEALTH_IMAGES]
    batch = torch.stack([images[index]["image"] for index in chosen]).to(step.device)
    with step.autocast():
        return health_of(step.candidate, batch)


def _logits(step: TrainingStep, net: nn.Module, image: Tensor) -> Tensor:
    """Of a batch, no more images at a time than training has."""
    parts = step.ranks.world * step.config.accumulate
    if parts == 1:
        return net(image)
    share = max(1, step.config.batch_size // parts)
    return torch.cat([net(part) for part in image.split(share)])


def _dice_of_lesions(logits: Tensor, mask: Tensor) -> list[float]:
    """Dice of each image whose mask (B, K, H, W) is not empty."""
    prediction, truth = logits > 0, mask > 0.5
    both = (prediction & truth).sum((1, 2, 3)).double()
    areas = prediction.sum((1, 2, 3)) + truth.sum((1, 2, 3))
    lesion = truth.sum((1, 2, 3)) > 0
    return (2 * both / areas)[lesion].tolist()


def _mean(pairs: Sequence[tuple[float, int]]) -> float:
    return sum(value * count for value, count in pairs) / sum(count for _, count in pairs)
