"""One run: train on one role, select on another, checkpoint every epoch, stop and go on exactly."""

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from intrasense_fast.console import progress
from intrasense_fast.data.torch_dataset import ResumableSampler, SegmentationDataset
from intrasense_fast.errors import UsageError, first_line
from intrasense_fast.networks.health import faults
from intrasense_fast.networks.selftest import SelfTestError, check_selftest
from intrasense_fast.signals import Children, Stopped, StopRequest, collected
from intrasense_fast.training import checkpoint
from intrasense_fast.training.config import RESUMABLE, TrainConfig, completed
from intrasense_fast.training.distributed import ALONE, Ranks
from intrasense_fast.training.epoch_log import EpochLog, add_step
from intrasense_fast.training.graphed import GraphedStep
from intrasense_fast.training.interruptions import InterruptedRun, Wholeness, interruption
from intrasense_fast.training.loggers import AllLoggers, LoggerFactory, loggers_of
from intrasense_fast.training.parts import Batches
from intrasense_fast.training.position import Position
from intrasense_fast.training.run_clock import RunClock
from intrasense_fast.training.selection import health, validate
from intrasense_fast.training.state import Optimisation, position_of
from intrasense_fast.training.step import TrainingStep
from intrasense_fast.training.step_guard import diverged, has_diverged


def steps_of(images: int, batch_size: int) -> int:
    """Steps of an epoch.

    Raises:
        UsageError: there is none.
    """
    if images < batch_size:
        raise UsageError(
            f"{images} training images do not fill one batch of {batch_size}; lower --batch-size"
        )
    return images // batch_size


class Trainer:
    """Trains one network in one run folder.

    Args:
        run: the run folder; it exists.
        config: every value.
        train: augmented dataset.
        val: the images that select the checkpoint.
        extra: JSON values for the checkpoints' config.json, for instance image_size and the splits'
            digest.
        beside: name -> text of files that stand beside the network in every checkpoint.
        stop: asked after every step; it need not be given, SIGINT and SIGTERM are collected while
            `fit` runs.
        say: prints a line.
        loggers: make loggers of its figures, beside those that the config asks for.
        ranks: the processes that train the network together; the first one writes.
    """

    def __init__(
        self,
        run: Path,
        config: TrainConfig,
        train: SegmentationDataset,
        val: SegmentationDataset,
        *,
        device: torch.device,
        extra: dict[str, Any],
        beside: Mapping[str, str] | None = None,
        stop: StopRequest | None = None,
        say: Callable[[str], None] = print,
        loggers: Sequence[LoggerFactory] = (),
        ranks: Ranks = ALONE,
    ) -> None:
        self.run, self.config, self.train, self.val = run, config, train, val
        self.device, self.extra, self.beside = device, extra, beside
        self.stop, self.say, self.ranks = stop or StopRequest(), say, ranks
        self.steps = steps_of(len(train), config.batch_size)
        self.position = Position()
        self._whole, self._last_save = Wholeness(), time.monotonic()
        self.sampler = ResumableSampler(len(train), seed=config.seed)
        self.logger = loggers_of(run, config, say, loggers) if ranks.is_first else AllLoggers([])
        self._clock = RunClock(self.steps, config.epochs)

    def start(self, net: nn.Module) -> None:
        """Begin with this network."""
        kind = GraphedStep if self.config.cuda_graph else TrainingStep
        self.training_step = kind(
            net,
            self.config,
            self.device,
            steps=self.steps * self.config.epochs,
            whole=self._whole,
            ranks=self.ranks,
        )

    @property
    def net(self) -> nn.Module:
        """The network that is trained."""
        return self.training_step.net

    @property
    def optimisation(self) -> Optimisation:
        """What changes its weights."""
        return self.training_step.optimisation

    def restore(self) -> None:
        """Go on from RUN/last, or from RUN/previous where last is damaged; logs are cut back to it.

        Raises:
            CheckpointError: neither can be used.
            UsageError: the checkpoint is of another configuration, or the network gives other
                logits here than when it was saved.
        """
        config = self.config
        restored = checkpoint.load_last(self.run, fused=config.fused, say=self.say, take=self._take)
        # --epochs may have been raised since the run finished.
        self.position.finished = self.position.epoch >= config.epochs or self._out_of_patience()
        self.logger.cut(self.position.total, self.position.epoch)
        self.say(
            f"going on from {restored.path}: epoch {self.position.epoch + 1}, step "
            f"{self.position.step} of {self.steps}"
        )

    def fit(self) -> None:
        """Train to the end.

        Raises:
            Stopped: SIGINT, SIGTERM or SIGUSR1 asked to stop; the run is saved.
            DivergedError: 20 steps in a row were not finite.
            InterruptedRun: memory is full, or a process that loads images died; the run is saved
                where its state was whole.
        """
        self._last_save = time.monotonic()
        self._clock.begin()
        with collected(self.stop), _reproducible(), contextlib.closing(self.logger):
            self.ranks.begin(self.net, asdict(self.position))
            for kind in self.training_step.unsynchronised:
                self.say(f"warning: {kind} sees the images of one process: it is not synchronised")
            while not self.position.finished:
                failure = self._epoch()
                # Not in the handler of the error, which holds the memory of its step.
                if failure is not None:
                    self._give_up(failure)

    def _epoch(self) -> str | None:
        """Train an epoch; what ended it from outside, in words."""
        try:
            self._train_epoch()
            self._finish_epoch()
        except Exception as error:
            failure = interruption(error)
            if failure is None:
                raise
            return failure
        return None

    def _give_up(self, failure: str) -> None:
        # The others may be anywhere: nothing more is exchanged.
        self.ranks.leave()
        left = checkpoint.what_is_left(self.run)
        if self._whole.holds and self.stop:
            # A signal to all processes of the run ends those that load images too.
            if self.ranks.world > 1:
                self.say(f"\n{failure}")
            self._stop()
        if self._whole.holds and self.ranks.is_first:
            try:
                self._save()
                left = f"The run is saved, at step {self.position.total}"
            except (UsageError, MemoryError, RuntimeError) as error:
                left = f"It could not be saved ({first_line(error)}). {left}"
        raise InterruptedRun(f"{failure}. {left}")

    def _take(self, restored: checkpoint.Restored) -> None:
        state = restored.state
        try:
            TrainConfig.from_dict(state["config"])
        except UsageError as error:
            raise TypeError(str(error)) from error
        self._check_same(restored.path, state)
        self.start(restored.net)
        self._check_operators(restored.path)
        self.optimisation.take(state)
        if self.training_step.average is not None:
            self.training_step.average.take(state["average"])
        self.position = position_of(state, self.steps)
        torch.set_rng_state(state["rng"])

    def _check_same(self, path: Path, state: dict[str, Any]) -> None:
        values = [("splits", state["extra"].get("splits"), self.extra.get("splits"))]
        then_values = completed(state["config"])
        values += [
            (name, then_values.get(name), value) for name, value in self.config.as_dict().items()
        ]
        changed = [
            f"{name} = {then}, now {now}"
            for name, then, now in values
            if then != now and name not in RESUMABLE
        ]
        if changed:
            raise UsageError(
                f"{path}: was made with {'; '.join(changed)}. Put config.json and the data back, "
                f"or start a new run"
            )

    def _check_operators(self, path: Path) -> None:
        """Refuse to train where this device or the kernels compute something else than the
        checkpoint says."""
        if self.device.type == "cpu" and not self.config.fused:
            return  # checked when it was read
        try:
            check_selftest(self.net, path, fused=self.config.fused)
        except SelfTestError as error:
            raise UsageError(str(error)) from error

    def _train_epoch(self) -> None:
        position, config = self.position, self.config
        self.train.set_epoch(position.epoch)
        self.sampler.set_position(position.epoch, position.step * config.batch_size)
        loader = DataLoader(
            self.train,
            batch_sampler=Batches(self.sampler, config.batch_size, self.ranks, config.accumulate),
            num_workers=config.workers,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),
        )
        self.net.train()
        title = f"epoch {position.epoch + 1}/{config.epochs}"
        shown = self.ranks.bar(leave=False)
        with progress(self.steps, title, "step", initial=position.step, **shown) as bar:
            if position.step < self.steps:
                batches, children = iter(loader), Children()
                with children.watched():
                    for batch in batches:
                        with children.held():
                            self._step(batch, bar)

    def _step(self, batch: dict[str, Tensor], bar: Any) -> None:
        position = self.position
        self.ranks.seed(self.config.seed, position.total)
        values = self.training_step(batch["image"], batch["mask"], position)
        with self._whole.changing():
            position.step += 1
            position.total += 1
            self._record(values)
        self._clock.step()
        bar.set_postfix(self._shown(values), refresh=False)
        bar.update()
        minutes = self.config.save_every
        due = minutes is not None and time.monotonic() - self._last_save >= 60 * minutes
        if self._stop_if_asked(due):
            self._save()

    def _shown(self, values: dict[str, float]) -> dict[str, str]:
        """What stands behind the bar of an epoch, whose own time it shows itself."""
        shown = {"loss": f"{values['loss']:.3f}", "Dice": f"{1 - values['dice']:.3f}"}
        seconds = self._clock.left(self.position.epoch, self.position.step)
        return shown if seconds is None else {**shown, "run": tqdm.format_interval(seconds)}

    def _record(self, values: dict[str, float]) -> None:
        position = self.position
        line = {"step": position.total, "epoch": position.epoch + 1}
        self.logger.log_step(
            line | {key: value if math.isfinite(value) else None for key, value in values.items()}
        )
        if values["skipped"]:
            if has_diverged(position):
                self._save()
                self.ranks.wait()
                raise diverged(self.run, position)
            return
        add_step(position, values)

    def _finish_epoch(self) -> None:
        position, config = self.position, self.config
        if not (self.run / checkpoint.LAST).exists():
            # Before metrics.csv and best/: where these stand without a checkpoint, it was lost, and
            # no kill came before it.
            self._save()
        val_loss, val_dice = validate(self.training_step, self.val, self._stop_if_asked)
        log = EpochLog(position, val_loss, val_dice, health(self.training_step, self.val))
        with self._whole.changing():
            self.logger.log_epoch(log.row())
            if config.scheduler == "plateau":
                self.optimisation.schedule.step(val_dice)
            better = val_dice > position.best_dice
            if better:
                position.best_dice, position.best_epoch = val_dice, position.epoch
            position.epoch += 1
            position.step, position.sums = 0, {}
            position.finished = position.epoch >= config.epochs or self._out_of_patience()
            if better:
                about = self.extra | {"epoch": position.epoch, "val_dice": val_dice}
                candidate = self.training_step.candidate
                self.ranks.on_first(checkpoint.save_best, self.run, candidate, about, self.beside)
            self._save()
        self._clock.epoch()
        seconds = None if position.finished else self._clock.left(position.epoch, 0)
        self.say(log.line(config.epochs, best=better, left=seconds))
        for fault in faults(log.health):
            self.say(f"warning: {fault}")

    def _stop_if_asked(self, due: bool = False) -> bool:
        """Stop where any process was asked to; whether a save is due in any."""
        number, due_somewhere = self.ranks.most(self.stop.signal_number, due)
        if number:
            self.stop.signal_number = number
            self._stop()
        return bool(due_somewhere)

    def _stop(self) -> None:
        self._save()
        self.say("\nstopped and saved")
        self.ranks.wait()
        raise Stopped(self.stop.signal_number)

    def _save(self) -> None:
        # Before the checkpoint: a run that goes on from it repeats none of these figures.
        self.logger.flush()
        self.ranks.on_first(self._save_last)
        self._last_save = time.monotonic()

    def _save_last(self) -> None:
        state = {
            "position": asdict(self.position),
            **self.optimisation.state(),
            "rng": torch.get_rng_state(),
            "extra": self.extra,
            "config": self.config.as_dict(),
        }
        if self.training_step.average is not None:
            state["average"] = self.training_step.average.state()
        about = self.extra | {"epoch": self.position.epoch}
        checkpoint.save_last(self.run, self.net, state, about, self.beside)

    def _out_of_patience(self) -> bool:
        position, patience = self.position, self.config.patience
        return patience is not None and position.epoch - 1 - position.best_epoch >= patience


def _reproducible() -> contextlib.AbstractContextManager[None]:
    """cuDNN chooses algorithms that give the same bits every time, while this lasts."""
    return torch.backends.cudnn.flags(
        enabled=True,
        benchmark=False,
        deterministic=True,
        allow_tf32=torch.backends.cudnn.allow_tf32,
    )
