"""Whether a file computes what the network does: both on the same images, at several sizes."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from intrasense_fast.errors import UsageError, first_line
from intrasense_fast.export.model import LOGITS, ExportedModel
from intrasense_fast.networks.contract import config_of

# How far a probability of the file may be from the network's.
TOLERANCE = 1e-4
SIZES = ((96, 64), (128, 160), (256, 256), (512, 384))
BATCHES = (1, 3, 16)
# A position whose entropy is this close to the threshold of Eq. 6 may fall on either side of it,
# and there the network itself jumps.
TIE = 1e-4
_MOST_TIES = 8

Runner = Callable[[Tensor], Tensor]


class Shape(NamedTuple):
    """Of images: how many, and their sides."""

    batch: int
    height: int
    width: int


class Checked(NamedTuple):
    """What a check found: shapes, the largest deviation of a probability, images drawn again."""

    shapes: tuple[Shape, ...]
    deviation: float
    ties: int


def all_shapes() -> list[Shape]:
    """Every size at every batch."""
    return [Shape(batch, *size) for size in SIZES for batch in BATCHES]


def few_shapes() -> list[Shape]:
    """Every size, and every batch at the smallest of them."""
    alone = [Shape(1, *size) for size in SIZES]
    return [*alone, *(Shape(batch, *SIZES[0]) for batch in BATCHES[1:])]


def check_file(
    model: ExportedModel, run: Runner, shapes: Sequence[Shape], *, tolerance: float = TOLERANCE
) -> Checked:
    """Run a file and its network on images of every shape.

    Args:
        model: the network, on the device where it is to be compared.
        run: the file: float32 (B, C, H, W) on the CPU -> (B, K, H, W).
        shapes: of the images.
        tolerance: of a probability.

    Raises:
        UsageError: the file cannot be run at a shape, or is off by more.
    """
    draw = torch.Generator().manual_seed(0)
    worst, ties = 0.0, 0
    for shape in shapes:
        images = _images(shape, config_of(model.net)["in_channels"], draw)
        deviations = _deviations(model, run, images, shape)
        for index in range(shape.batch):
            while deviations[index] > tolerance and ties < _MOST_TIES:
                if not _is_tie(model.net, images[index, None]):
                    break
                ties += 1
                images[index] = _images(Shape(1, *shape[1:]), images.shape[1], draw)[0]
                deviations = _deviations(model, run, images, shape)
        worst = max(worst, *deviations)
        if not worst <= tolerance:
            raise UsageError(
                f"the file is off by {worst:.2g} in probability at {_shown(shape)}, {tolerance:g} "
                "may be: nothing was written; please report it, with the checkpoint's config.json"
            )
    return Checked(tuple(shapes), worst, ties)


def _deviations(model: ExportedModel, run: Runner, images: Tensor, shape: Shape) -> list[float]:
    """The largest difference of a probability, of each image."""
    device = next(model.parameters()).device
    with torch.no_grad():
        wanted = model(images.to(device)).cpu()
    try:
        given = run(images)
    except Exception as error:  # each runtime has errors of its own
        raise UsageError(
            f"{model.net.architecture}: the file does not run at {_shown(shape)}: nothing was "
            f"written; take another --format, or another network ({first_line(error)})"
        ) from error
    if given.shape != wanted.shape:
        raise UsageError(
            f"the file gives {tuple(given.shape)} at {_shown(shape)}, the network "
            f"{tuple(wanted.shape)}: nothing was written"
        )
    if model.output == LOGITS:
        given, wanted = model.probabilities(given), model.probabilities(wanted)
    differences = (given.float() - wanted).abs().flatten(1).amax(1)
    # NaN on both sides is agreement of a broken network, which no file is for.
    return differences.nan_to_num(nan=torch.inf).tolist()


def _is_tie(net: nn.Module, image: Tensor) -> bool:
    """Whether a position of one image is undecided between whitened and not."""
    diagnose = getattr(net, "diagnose", None)
    if not callable(diagnose):
        return False
    parameter = next(net.parameters())
    maps = diagnose(image.to(parameter.device, parameter.dtype))
    return any(
        bool((each.entropy - net.gcp[str(stride)].threshold).abs().lt(TIE).any())  # type: ignore[index, union-attr]
        for stride, each in maps.items()
    )


def _images(shape: Shape, channels: int, draw: torch.Generator) -> Tensor:
    """Blotches with speckle, (B, channels, H, W) in [0, 1]."""
    blotches = torch.rand(shape.batch, 1, 8, 8, generator=draw)
    speckle = torch.rand(shape.batch, 1, *shape[1:], generator=draw)
    smooth = interpolate(blotches, tuple(shape[1:]), mode="bilinear")
    return (0.8 * smooth + 0.2 * speckle).expand(-1, channels, -1, -1).contiguous()


def _shown(shape: Shape) -> str:
    return f"{shape.batch} x {shape.height} x {shape.width}"
