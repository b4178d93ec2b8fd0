"""A step of training as two CUDA graphs: gradients and numbers, then the optimizer."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from intrasense_fast.errors import UsageError
from intrasense_fast.training.capture import Capture, capture_on
from intrasense_fast.training.config import TrainConfig
from intrasense_fast.training.epoch_log import GRADIENT_NORM
from intrasense_fast.training.position import Position
from intrasense_fast.training.step import TrainingStep

# Steps that change the weights before one is recorded: kernels are compiled and chosen, and the
# optimizer has its averages.
WARM_STEPS = 3
# Schedules that move the rate at every step.
_MOVING = ("cosine", "onecycle")


class GraphedStep(TrainingStep):
    """`TrainingStep` whose work on the GPU is recorded once and replayed from then on.

    The first graph keeps BatchNorm's averages and makes the gradients, clipped, and the numbers of
    the step, which go to the host together; the second one is the optimizer, left out where the
    numbers are not finite. Images, masks, gradients and the learning rate lie where the recording
    found them. Under "cosine" and "onecycle" the optimizer reads the rate from the GPU; else it is
    part of the second graph, which is recorded again when the rate changes.

    Args:
        net, config, device, shared: as for `TrainingStep`.
        capture: how work is recorded; by default CUDA graphs on a GPU, and elsewhere calls that
            are repeated, which is for tests.

    Raises:
        UsageError: the network or the precision is one that no graph can hold.
    """

    _autocast_cache = False  # what it keeps would be made in one graph and read in another

    def __init__(
        self,
        net: nn.Module,
        config: TrainConfig,
        device: torch.device,
        *,
        capture: Capture | None = None,
        **shared: Any,
    ) -> None:
        check_graph(config, net)
        super().__init__(net, config, device, **shared)
        self._capture = capture or capture_on(device)
        self._warm = 0
        self._batch: tuple[Tensor, Tensor] | None = None
        self._names: list[str] = []
        self._gradients: Callable[[], Tensor] | None = None
        self._update: Callable[[], None] | None = None
        self._rate = torch.zeros((), device=device)
        self._recorded_rate = math.nan

    def __call__(self, image: Tensor, mask: Tensor, position: Position) -> dict[str, float]:
        """Make one step; arguments and result as `TrainingStep`'s, batches of one shape.

        Raises:
            ValueError: a batch of another shape than the first one.
            CaptureError: the step cannot be recorded.
        """
        optimizer, schedule, _ = self.optimisation
        rate = optimizer.param_groups[0]["lr"]
        with self._capture.running():
            numbers = self._make_gradients(*self._placed(image, mask))
            with self._whole.changing():
                finite = math.isfinite(numbers["loss"]) and math.isfinite(numbers[GRADIENT_NORM])
                if self._guard.judge(finite, position):
                    self._change_weights(rate)
                    if self.average is not None:
                        self.average.update(self.net)  # by calls: it asks what it has counted
                if schedule is not None and self.config.scheduler != "plateau":
                    schedule.step()
        return {**numbers, "learning_rate": rate, "skipped": float(not finite)}

    def _placed(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """A batch where the graphs read it."""
        if self._batch is None:
            self._batch = (
                torch.empty_like(image, device=self.device),
                torch.empty_like(mask, device=self.device),
            )
        for place, values in zip(self._batch, (image, mask), strict=True):
            if place.shape != values.shape:
                raise ValueError(
                    f"--cuda-graph: needs batches of one shape, the first was "
                    f"{tuple(place.shape)}, got {tuple(values.shape)}"
                )
            place.copy_(values, non_blocking=True)
        return self._batch

    def _make_gradients(self, image: Tensor, mask: Tensor) -> dict[str, float]:
        if self._gradients is None and self._warm >= WARM_STEPS:
            # Gradients that are there would be added to.
            self.optimisation.optimizer.zero_grad(set_to_none=True)
            self._gradients = self._capture.record(partial(self._computed, image, mask))
        if self._gradients is not None:
            numbers = self._gradients()
        else:
            with self._guard.undone():
                numbers = self._computed(image, mask)
        return dict(zip(self._names, numbers.tolist(), strict=True))

    def _computed(self, image: Tensor, mask: Tensor) -> Tensor:
        """The work of the first graph: (n,) float64, the numbers that `_names` names."""
        self._guard.begin()
        numbers = {**self._backward(image, mask), GRADIENT_NORM: self._clipped_norm()}
        self._names = list(numbers)
        return torch.stack([number.double() for number in numbers.values()])

    def _change_weights(self, rate: float) -> None:
        moving = self.config.scheduler in _MOVING
        if moving:
            self._rate.fill_(rate)
        if self._gradients is None:
            self._optimize()
            self._warm += 1
            return
        if self._update is None or not (moving or rate == self._recorded_rate):
            self._update = self._capture.record(self._optimize)
            self._recorded_rate = rate
        self._update()

    def _optimize(self) -> None:
        """The work of the second graph."""
        optimizer = self.optimisation.optimizer
        group = optimizer.param_groups[0]
        rate = group["lr"]
        if self.config.scheduler in _MOVING:
            group["lr"] = self._rate
        try:
            optimizer.step()
        finally:
            # Schedules and checkpoints know a number.
            group["lr"] = rate


def check_gpu(device: torch.device) -> None:
    """Refuse CUDA graphs where there is no GPU.

    Raises:
        UsageError: another device.
    """
    if device.type != "cuda":
        raise UsageError(
            f"--cuda-graph needs a GPU, and the device is {device}; leave it out, or give "
            "--no-cuda-graph beside --resume"
        )


def check_graph(config: TrainConfig, net: nn.Module) -> None:
    """Refuse what no CUDA graph can hold, whatever the device.

    Raises:
        UsageError: float16, whose scaler waits for the GPU, or a network that works on the host.
    """
    if config.amp == "fp16":
        raise UsageError(
            "--cuda-graph: --amp fp16 scales its loss by what it reads from the GPU at every step; "
            "give --amp bf16 or --amp off, or leave --cuda-graph out"
        )
    host_work = getattr(net, "host_work", None)
    if host_work:
        raise UsageError(
            f"--cuda-graph: the network {config.network} works on the host in every step "
            f"({host_work}); leave --cuda-graph out"
        )
