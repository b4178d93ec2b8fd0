"""The processes that train one network together, as torchrun starts them; one alone is the same
with nothing to exchange.

Gradients are added up in one flat buffer, in the order of the parameters, after the backward pass:
the bits of a sum do not depend on when a gradient was ready, so a resumed run repeats them.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from intrasense_fast.errors import UsageError, first_line
from intrasense_fast.signals import is_dead_loader

T = TypeVar("T")
# Others wait while the first process measures its results; lost ones are found otherwise.
LONGEST_WAIT = timedelta(days=7)
_LOOK_SECONDS = 0.01


class LostProcess(UsageError):
    """Another process of the run cannot be reached: it ended, or its machine did."""


class Ranks:
    """This process among those of its run; `rank` 0 is the first, which alone writes and prints.

    Every method named so is called by all processes at the same place ("together").

    Args:
        rank, world: this process, and how many there are.
        local: its number on its machine.

    Attributes:
        broken: whether another one was lost, or this one leaves: nothing is exchanged any more.
        advice: what is saved and how to go on, in words, for the end of a lost run.
    """

    def __init__(self, rank: int = 0, world: int = 1, local: int = 0) -> None:
        self.rank, self.world, self.local = rank, world, local
        self.broken = False
        self.advice: Callable[[], str] = lambda: "Nothing is saved yet"
        self._gpus: Any = None
        self._handed_out = False

    def __reduce__(self) -> tuple[type["Ranks"], tuple[()]]:
        """What is sent elsewhere belongs to nobody yet."""
        return Ranks, ()

    def __deepcopy__(self, memo: object) -> "Ranks":
        """Layers hold it; a copy of a network belongs to the same processes."""
        return self

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def on_first(self, call: Callable[..., object], *arguments: Any, **options: Any) -> None:
        """Call it in the first process alone."""
        if self.is_first:
            call(*arguments, **options)

    def bar(self, **options: Any) -> dict[str, Any]:
        """These options of a progress bar, which only the first process shows."""
        return options if self.is_first else options | {"disable": True}

    def device(self, asked: str) -> str:
        """The name of the device of this process: with several, the GPU of its number.

        Raises:
            UsageError: one GPU for several processes, or fewer GPUs than processes.
        """
        if self.world == 1 or asked == "cpu":
            return asked
        if asked not in ("auto", "cuda"):
            raise UsageError(
                f"--device {asked}: each of {self.world} processes has a device of its own; leave "
                "--device out, or give cuda or cpu"
            )
        if not torch.cuda.is_available():
            return "cpu" if asked == "auto" else asked
        if self.local >= torch.cuda.device_count():
            raise UsageError(
                f"process {self.local} of this machine has no GPU, there are "
                f"{torch.cuda.device_count()}: start as many processes a machine, or give "
                "--device cpu"
            )
        return f"cuda:{self.local}"

    def use(self, device: torch.device) -> None:
        """Together: exchange what lies on this device."""
        if self.world > 1 and device.type == "cuda":
            torch.cuda.set_device(device)
            with self._exchange():
                self._gpus = dist.new_group(backend="nccl", timeout=LONGEST_WAIT)

    def seed(self, *numbers: int) -> None:
        """Begin a step's random numbers anew, for several processes: each has its own, which no
        checkpoint has to hold."""
        if self.world > 1:
            sequence = np.random.SeedSequence([*numbers, self.rank])
            torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1)))

    def leave(self) -> None:
        """Alone: exchange nothing any more; the others find this process lost."""
        self.broken = self.world > 1

    def wait(self) -> None:
        """Together: until all are here, or at once where one was lost. Signals are served
        meanwhile."""
        if self.world == 1 or self.broken:
            return
        with self._exchange():
            work = dist.all_reduce(torch.zeros(1), async_op=True)
            while not work.is_completed():
                time.sleep(_LOOK_SECONDS)
            work.wait()

    def agreed(self, value: T) -> T:
        """Together: the value of the first process."""
        if self.world == 1:
            return value
        self.wait()
        values = [value]
        with self._exchange():
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def hand_out(self, work: object) -> None:
        """From the first process, once: what the others `receive`."""
        self._handed_out = True
        self.agreed(work)

    def receive(self) -> Any:
        """What the first process hands out; None where it ended before."""
        return self.agreed(None)

    @contextlib.contextmanager
    def ending_together(self) -> Iterator[None]:
        """In the first process: an error before anything is handed out ends the others too."""
        try:
            yield
        except BaseException:
            if not self._handed_out:
                with contextlib.suppress(LostProcess):
                    self.hand_out(None)
                    # Until they have it: a process that ends resets its connections.
                    self.wait()
            raise

    def all(self, value: T) -> list[T]:
        """Together: the values of all processes, by rank."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        with self._exchange():
            dist.all_gather_object(values, value)
        return values

    def most(self, *numbers: int) -> tuple[int, ...]:
        """Together: the largest of each number."""
        if self.world == 1:
            return numbers
        largest = torch.tensor(numbers)
        with self._exchange():
            dist.all_reduce(largest, dist.ReduceOp.MAX)
        return tuple(largest.tolist())

    def gathered(self, tensor: Tensor) -> Tensor:
        """Together: (m, ...) of each process as (world * m, ...), by rank, without gradient."""
        if self.world == 1:
            return tensor
        # Bytes: backends do not know every dtype.
        own = tensor.contiguous().reshape(-1).view(torch.uint8)
        parts = [torch.empty_like(own) for _ in range(self.world)]
        with self._exchange():
            dist.all_gather(parts, own, group=self._group(own))
        rows = torch.cat(parts).view(tensor.dtype)
        return rows.view(self.world * tensor.shape[0], *tensor.shape[1:])

    def added(self, tensor: Tensor) -> Tensor:
        """Together: the sum over the processes, without gradient."""
        if self.world == 1:
            return tensor
        total = tensor.clone(memory_format=torch.contiguous_format)
        with self._exchange():
            dist.all_reduce(total, group=self._group(total))
        return total

    def add_gradients(self, net: nn.Module, numbers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Together: add up the gradients of a network's parameters; the means of these scalars.

        A parameter without a gradient in all processes has none afterwards.
        """
        if self.world == 1:
            return dict(numbers)
        parameters = [one for one in net.parameters() if one.requires_grad]
        there = torch.tensor([float(one.grad is not None) for one in parameters])
        there = self.added(there)
        with torch.no_grad():
            used = [one for one, count in zip(parameters, there.tolist(), strict=True) if count]
            for parameter in used:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            for dtype in dict.fromkeys(one.dtype for one in used):
                self._add_up([one.grad for one in used if one.dtype == dtype])  # type: ignore[misc]
            if not numbers:
                return {}
            means = self.added(torch.stack([one.double() for one in numbers.values()])) / self.world
        return dict(zip(numbers, means.unbind(), strict=True))

    def share(self, tensors: Sequence[Tensor]) -> None:
        """Together: give these tensors the values of the first process."""
        if self.world == 1 or not tensors:
            return
        with torch.no_grad():
            flat = torch.cat([one.reshape(-1).view(torch.uint8) for one in tensors])
            with self._exchange():
                dist.broadcast(flat, src=0, group=self._group(flat))
            sizes = [one.numel() * one.element_size() for one in tensors]
            for one, part in zip(tensors, flat.split(sizes), strict=True):
                # A copy begins at an address that every dtype can have.
                one.copy_(part.clone().view(one.dtype).view(one.shape))

    def begin(self, net: nn.Module, position: Mapping[str, Any]) -> None:
        """Together, before training: the first process's network, at the same place of the run.

        Raises:
            UsageError: a process went on from another checkpoint.
        """
        places = self.all({name: position[name] for name in ("epoch", "step", "total")})
        for rank, place in enumerate(places):
            if place != places[0]:
                raise UsageError(
                    f"process {rank} goes on from {place}, the first from {places[0]}: they must "
                    "see the same run folder; check that its disk is shared"
                )
        self.share([*net.parameters(), *net.buffers()])

    def _add_up(self, gradients: Sequence[Tensor]) -> None:
        total = self.added(torch.cat([one.reshape(-1) for one in gradients]))
        for one, part in zip(gradients, total.split([g.numel() for g in gradients]), strict=True):
            one.copy_(part.view(one.shape))

    def _group(self, tensor: Tensor) -> Any:
        return self._gpus if tensor.is_cuda else None

    @contextlib.contextmanager
    def _exchange(self) -> Iterator[None]:
        """Errors of the block say that a process was lost.

        Raises:
            LostProcess: the others cannot be reached.
        """
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            if is_dead_loader(error):
                raise
            self.broken = True
            raise LostProcess(
                f"another of the {self.world} processes of this run ended or was lost "
                f"({first_line(error)})"
            ) from error


ALONE = Ranks()
