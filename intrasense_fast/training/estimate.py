"""How long a study will take: a step and a forward of each network, measured."""

import time
from typing import NamedTuple

import torch

from intrasense_fast.training.build import network_of
from intrasense_fast.training.config import TrainConfig
from intrasense_fast.training.interruptions import Wholeness
from intrasense_fast.training.position import Position
from intrasense_fast.training.step import TrainingStep


class Pace(NamedTuple):
    """Seconds of a training step of one batch, and of a forward of one image in eval mode."""

    step: float
    image: float

    def of_run(self, config: TrainConfig, train: int, val: int, test: int) -> float:
        """Seconds of a run on so many images: its epochs with their selection, and its results."""
        steps = config.epochs * (train // config.batch_size)
        images = config.epochs * val + val + test
        return steps * self.step + images * self.image


def pace(config: TrainConfig, device: torch.device) -> Pace:
    """Measure a network on random images: its second step, and a forward.

    Args:
        config: of the run.
        device: where it will run.
    """
    step = TrainingStep(network_of(config), config, device, steps=10**6, whole=Wholeness())
    shape = (config.batch_size, config.in_channels, config.size, config.size)
    image = torch.rand(shape, device=device)
    mask = (image[:, :1] > 0.5).float()
    step.net.train()
    seconds = 0.0
    for _ in range(2):
        began = _now(device)
        step(image, mask, Position())
        seconds = _now(device) - began
    step.net.eval()
    with torch.inference_mode(), step.autocast():
        began = _now(device)
        step.net(image)
    return Pace(seconds, (_now(device) - began) / config.batch_size)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
