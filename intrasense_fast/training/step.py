"""One step of training: forward, loss, backward, clipping, optimizer, schedule."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR, ReduceLROnPlateau

from intrasense_fast.networks.contract import scalars_of
from intrasense_fast.training.averaging import WeightAverage
from intrasense_fast.training.config import TrainConfig
from intrasense_fast.training.epoch_log import step_values
from intrasense_fast.training.interruptions import Wholeness
from intrasense_fast.training.loss import loss_of
from intrasense_fast.training.position import Position
from intrasense_fast.training.state import Optimisation
from intrasense_fast.training.step_guard import StepGuard

_AMP = {"bf16": torch.bfloat16, "fp16": torch.float16}


class TrainingStep:
    """Trains one network a step at a time.

    Args:
        net: moved to `device`, in the run's memory format.
        steps: of the whole run, for the schedule.
        whole: told while a step changes the run's state.

    Attributes:
        net, optimisation, loss: what it trains, with what, by which loss.
        average: of its weights, with --ema, or None.
    """

    def __init__(
        self,
        net: nn.Module,
        config: TrainConfig,
        device: torch.device,
        *,
        steps: int,
        whole: Wholeness,
    ) -> None:
        self.config, self.device, self._whole = config, device, whole
        # Undecided in runs that began before the option.
        last = device.type == "cuda" if config.channels_last is None else config.channels_last
        memory_format = torch.channels_last if last else torch.preserve_format
        self.net = net.to(device, memory_format=memory_format)  # type: ignore[call-overload]
        self.optimisation = _optimisation(self.net, config, device, steps)
        self.loss = loss_of(config, self.net)
        self._guard = StepGuard(self.net)
        self.average = None if config.ema is None else WeightAverage(self.net, config.ema)

    @property
    def candidate(self) -> nn.Module:
        """The network that is validated and becomes best/: the average where there is one."""
        return self.net if self.average is None else self.average.net

    def __call__(self, image: Tensor, mask: Tensor, position: Position) -> dict[str, float]:
        """Make one step.

        Args:
            image: (B, C, H, W) float32, on any device.
            mask: (B, K, H, W) float32 in {0, 1}.
            position: counts the steps that are skipped because they are not finite.

        Returns:
            The values of its line in the history.
        """
        optimizer, schedule, scaler = self.optimisation
        self._guard.begin()
        rate = optimizer.param_groups[0]["lr"]
        with self._guard.undone():
            image = image.to(self.device, non_blocking=True)
            mask = mask.to(self.device, non_blocking=True)
            with self.autocast():
                output = self.net(image)
            total = self.loss(output, mask)
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(total).backward()
        with self._whole.changing():
            scaler.unscale_(optimizer)
            norm = nn.utils.clip_grad_norm_(
                self.net.parameters(),
                self.config.clip if self.config.clip is not None else math.inf,
            )
            finite = self._guard.accept(total, norm, position)
            if finite:
                scaler.step(optimizer)
                if self.average is not None:
                    self.average.update(self.net)
            if self.config.amp == "fp16":
                scaler.update()
            if schedule is not None and self.config.scheduler != "plateau":
                schedule.step()
        values = step_values(total, self.loss.terms, norm, scalars_of(self.net))
        return {**values, "learning_rate": rate, "skipped": float(not finite)}

    def autocast(self) -> torch.autocast:
        """The precision of the run's forward passes."""
        enabled = self.config.amp != "off"
        return torch.autocast(self.device.type, _AMP.get(self.config.amp), enabled=enabled)


def _optimisation(
    net: nn.Module, config: TrainConfig, device: torch.device, steps: int
) -> Optimisation:
    optimizer = torch.optim.RMSprop(
        net.parameters(),
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
    )
    scaler = torch.amp.GradScaler(device.type, enabled=config.amp == "fp16")
    schedule: Any = None
    if config.scheduler == "onecycle":
        schedule = OneCycleLR(
            optimizer, max_lr=config.lr, total_steps=steps + 1, cycle_momentum=False
        )
    elif config.scheduler == "cosine":
        schedule = CosineAnnealingLR(optimizer, T_max=steps)
    elif config.scheduler == "plateau":
        schedule = ReduceLROnPlateau(optimizer, mode="max", factor=0.5, patience=5)
    return Optimisation(optimizer, schedule, scaler)
