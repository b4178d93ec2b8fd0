"""One step of training: forward, loss, backward, clipping, optimizer, schedule."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR, ReduceLROnPlateau

from intrasense_fast.networks.contract import scalars_of
from intrasense_fast.precision import autocast
from intrasense_fast.training.averaging import WeightAverage
from intrasense_fast.training.config import TrainConfig
from intrasense_fast.training.distributed import ALONE, Ranks
from intrasense_fast.training.epoch_log import GRADIENT_NORM, step_numbers, step_values
from intrasense_fast.training.interruptions import Wholeness
from intrasense_fast.training.loss import loss_of
from intrasense_fast.training.position import Position
from intrasense_fast.training.state import Optimisation
from intrasense_fast.training.step_guard import StepGuard
from intrasense_fast.training.sync_norm import synchronise
from intrasense_fast.training.whole_batch import whole


class TrainingStep:
    """Trains one network a step at a time.

    Args:
        net: moved to `device`, in the run's memory format.
        steps: of the whole run, for the schedule.
        whole: told while a step changes the run's state.
        ranks: the processes that share each batch.

    Attributes:
        net, optimisation, loss: what it trains, with what, by which loss.
        average: of its weights, with --ema, or None.
        unsynchronised: kinds of BatchNorm that see the images of one process alone.
    """

    _autocast_cache = True

    def __init__(
        self,
        net: nn.Module,
        config: TrainConfig,
        device: torch.device,
        *,
        steps: int,
        whole: Wholeness,
        ranks: Ranks = ALONE,
    ) -> None:
        self.config, self.device, self._whole, self.ranks = config, device, whole, ranks
        # Undecided in runs that began before the option.
        last = device.type == "cuda" if config.channels_last is None else config.channels_last
        memory_format = torch.channels_last if last else torch.preserve_format
        self.net = net.to(device, memory_format=memory_format)  # type: ignore[call-overload]
        self.optimisation = _optimisation(self.net, config, device, steps)
        self.loss = loss_of(config, self.net)
        self.unsynchronised = synchronise(self.net, ranks, batchnorm=config.sync_batchnorm)
        self._guard = StepGuard(self.net)
        self.average = None if config.ema is None else WeightAverage(self.net, config.ema)

    @property
    def candidate(self) -> nn.Module:
        """The network that is validated and becomes best/: the average where there is one."""
        return self.net if self.average is None else self.average.net

    def __call__(self, image: Tensor, mask: Tensor, position: Position) -> dict[str, float]:
        """Make one step.

        Args:
            image: (B, C, H, W) float32, on any device: this process's part of the batch, one
                micro-batch after another.
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
            self.ranks.share(list(self.net.buffers()))
            numbers = self.ranks.add_gradients(self.net, self._backward(image, mask))
        with self._whole.changing():
            scaler.unscale_(optimizer)
            norm = self._clipped_norm()
            finite = self._guard.accept(numbers["loss"], norm, position)
            if finite:
                scaler.step(optimizer)
                if self.average is not None:
                    self.average.update(self.net)
            if self.config.amp == "fp16":
                scaler.update()
            if schedule is not None and self.config.scheduler != "plateau":
                schedule.step()
        values = step_values({**numbers, GRADIENT_NORM: norm})
        return {**values, "learning_rate": rate, "skipped": float(not finite)}

    def _backward(self, image: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Take the gradients of the loss, the mean over micro-batches; the numbers of the step."""
        parts = self.config.accumulate
        found: list[dict[str, Tensor]] = []
        for images, masks in zip(image.chunk(parts), mask.chunk(parts), strict=True):
            with self.autocast():
                output = self.net(images)
            loss = self.loss(whole(output, self.ranks), whole(masks, self.ranks))
            if not found:
                self.optimisation.optimizer.zero_grad(set_to_none=True)
            self.optimisation.scaler.scale(loss / parts).backward()
            found.append(step_numbers(loss, self.loss.terms, scalars_of(self.net)))
        if parts == 1:
            return found[0]
        return {name: torch.stack([one[name] for one in found]).mean() for name in found[0]}

    def autocast(self) -> torch.autocast:
        """The precision of the run's forward passes."""
        return autocast(self.config.amp, self.device, cache=self._autocast_cache)

    def _clipped_norm(self) -> Tensor:
        """The norm of all gradients together, which are clipped to the run's largest."""
        largest = math.inf if self.config.clip is None else self.config.clip
        return nn.utils.clip_grad_norm_(self.net.parameters(), largest)


def _optimisation(
    net: nn.Module, config: TrainConfig, device: torch.device, steps: int
) -> Optimisation:
    optimizer = torch.optim.RMSprop(
        net.parameters(),
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        # Its count of steps lies on the GPU then, where a graph can move it.
        capturable=config.cuda_graph and device.type == "cuda",
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
