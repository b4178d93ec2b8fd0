"""Which images of a batch are whose: processes and micro-batches share it evenly."""

from collections.abc import Iterator, Sequence

from torch.utils.data import Sampler

from intrasense_fast.errors import UsageError
from intrasense_fast.training.distributed import Ranks


def check_parts(batch_size: int, accumulate: int, world: int, *, synced: bool, size: int) -> None:
    """Refuse a batch that the processes and micro-batches cannot share evenly.

    Args:
        batch_size: images a step.
        accumulate: micro-batches a step.
        world: processes.
        synced: whether BatchNorm sees the images of all processes.
        size: side of the images in pixels.

    Raises:
        UsageError: what is needed.
    """
    micro, parts = batch_size // accumulate, accumulate * world
    named = f"--batch-size {batch_size}"
    named += f" in {accumulate} micro-batches" if accumulate > 1 else ""
    named += f" for {world} processes" if world > 1 else ""
    if batch_size % parts:
        near = parts * max(1, round(batch_size / parts))
        raise UsageError(
            f"{named}: the batch must be a multiple of {parts}, so that all have as many images; "
            f"give --batch-size {near}, or other numbers of processes or micro-batches"
        )
    if micro < 2:
        raise UsageError(
            f"{named}: leaves one image a micro-batch, and BatchNorm needs more; give a smaller "
            "--accumulate"
        )
    if parts > 1 and micro == world and not synced:
        raise UsageError(
            f"{named}: leaves one image a process, and BatchNorm alone needs more; leave "
            "--no-sync-batchnorm out, or start fewer processes"
        )
    if world > 1 and micro == world and size <= 32:
        raise UsageError(
            f"{named}: leaves one image of {size} pixels a process, a single position for the "
            "deepest layers; give a larger --batch-size or --size"
        )


def part_of(batch: Sequence[int], ranks: Ranks, accumulate: int) -> list[int]:
    """The images of a batch that are this process's: its share of each micro-batch in turn."""
    micro = len(batch) // accumulate
    share = micro // ranks.world
    starts = (first + ranks.rank * share for first in range(0, len(batch), micro))
    return [image for start in starts for image in batch[start : start + share]]


class Batches(Sampler[list[int]]):
    """The part of one process of every whole batch that a sampler gives; what is left over at the
    end is dropped.

    Args:
        images: their order.
        batch_size: images of a whole batch.
        ranks: which process this is.
        accumulate: micro-batches of a batch.
    """

    def __init__(
        self, images: Sampler[int], batch_size: int, ranks: Ranks, accumulate: int
    ) -> None:
        self.images, self.batch_size = images, batch_size
        self.ranks, self.accumulate = ranks, accumulate

    def __iter__(self) -> Iterator[list[int]]:
        order = list(self.images)
        for first in range(0, len(order) - self.batch_size + 1, self.batch_size):
            yield part_of(order[first : first + self.batch_size], self.ranks, self.accumulate)

    def __len__(self) -> int:
        return len(self.images) // self.batch_size  # type: ignore[arg-type]
