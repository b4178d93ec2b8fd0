"""How long a study will take: a step and a forward of each network, measured."""

import time
from typing import NamedTuple

import torch

from intrasense_fast.training.build import network_of
from intrasense_fast.training.config import TrainConfig
from intrasense_fast.training.loss import loss_of

_AMP = {"bf16": torch.bfloat16, "fp16": torch.float16}


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
    net = network_of(config).to(device).train()
    loss = loss_of(config, net)
    shape = (config.batch_size, config.in_channels, config.size, config.size)
    image = torch.rand(shape, device=device)
    mask = (image[:, :1] > 0.5).float()
    optimizer = torch.optim.RMSprop(net.parameters(), lr=0.0)
    step = 0.0
    for _ in range(2):
        began = _now(device)
        with _autocast(config, device):
            output = net(image)
        optimizer.zero_grad(set_to_none=True)
        loss(output, mask).backward()
        optimizer.step()
        step = _now(device) - began
    net.eval()
    with torch.inference_mode(), _autocast(config, device):
        began = _now(device)
        net(image)
    return Pace(step, (_now(device) - began) / config.batch_size)


def _autocast(config: TrainConfig, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, _AMP.get(config.amp), enabled=config.amp != "off")


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
