"""A trained network at work: read from a folder, put on a device, and asked for lesion
probabilities.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from intrasense_fast.data.opening import sha256_of
from intrasense_fast.data.reading import stored_levels
from intrasense_fast.data.transforms import resize_image, resize_probability
from intrasense_fast.errors import UsageError, first_line
from intrasense_fast.inference.calibration import Calibration, read_calibration
from intrasense_fast.networks import load_network, read_config
from intrasense_fast.networks.checksums import CHECKSUM_FILE
from intrasense_fast.networks.contract import config_of, evaluating, health_of
from intrasense_fast.networks.health import StrideHealth
from intrasense_fast.networks.pretrained import WEIGHTS_FILE
from intrasense_fast.networks.selftest import SELFTEST_FILE, SelfTestError, check_selftest
from intrasense_fast.precision import BF16, OFF, autocast

AMPS = (OFF, BF16)
SMALLEST_SIZE, MOST_SIZE = 32, 8192
NOT_FINITE = (
    "the network's output is NaN or infinite: no answer; take another checkpoint, or --no-fused"
)


class NotFiniteError(ValueError):
    """The network's output for an image is NaN or infinite; the message names the image."""


@dataclass(frozen=True)
class Segmenter:
    """A network with one class, on its device.

    `size` is the side in pixels of the square that it sees, `levels` the value of white of the
    images that it was trained on (--levels), or None; `weights_sha256` the digest of the file that
    its weights come from, in hexadecimal, `remark` what the checkpoint could not be checked for,
    `amp` the precision that it works in, "off" or "bf16", `calibration` what was fitted on its
    selection images, or None, `augment` the augmentation that it was trained with, or None where
    that is not recorded.
    """

    net: nn.Module
    size: int
    levels: int | None = None
    weights_sha256: str = ""
    remark: str = ""
    amp: str = OFF
    calibration: Calibration | None = None
    augment: str | None = None

    @property
    def temperature(self) -> float:
        """What divides its logits; 1 without calibration."""
        return 1.0 if self.calibration is None else self.calibration.temperature


def predict_probabilities(
    net: nn.Module, images: Sequence[np.ndarray], size: int, amp: str = OFF
) -> list[np.ndarray]:
    """Lesion probability of each image, on the image's own grid.

    Arguments and errors as in `probability_maps`, and:

    Returns:
        One float32 (H, W) in [0, 1] an image.

    Raises:
        NotFiniteError: the network's output for an image is NaN or infinite.
    """
    maps = probability_maps(net, images, size, amp)
    failed = [index for index, probability in enumerate(maps) if probability is None]
    if failed:
        raise NotFiniteError(f"predict: image {failed[0]}: {NOT_FINITE}")
    return [probability for probability in maps if probability is not None]


def probability_maps(
    net: nn.Module,
    images: Sequence[np.ndarray],
    size: int,
    amp: str = OFF,
    flip: Sequence[int] = (),
) -> list[np.ndarray | None]:
    """Lesion probability of each image, on the image's own grid; None where the network fails.

    It is that of the network alone: no calibration is applied.

    Args:
        net: a network with one class, on any device; it runs in eval mode, and the mode of each of
            its modules is put back. Several threads may use one network at a time.
        images: float32 (H, W) in [0, 1], each of its own size.
        size: side in pixels of the square the network sees.
        amp: "off", or "bf16", products in bfloat16 by automatic mixed precision.
        flip: axes of (H, W) that the network sees turned round; the answer is turned back.

    Returns:
        One float32 (H, W) in [0, 1] an image, None where a logit is NaN or infinite.

    Raises:
        ValueError: the network has several classes, or an image has non-finite pixels.
    """
    classes = config_of(net)["num_classes"]
    if classes != 1:
        raise ValueError(f"predict: needs a network with one class, this one has {classes}")
    if not images:
        return []
    for i, image in enumerate(images):
        if not np.isfinite(image).all():
            raise ValueError(
                f"predict: image {i} has pixels that are NaN or infinite; repair it first"
            )
    batch = _batch(net, images, size)
    with evaluating(net), torch.inference_mode(), autocast(amp, batch.device):
        seen = batch.flip([axis + 2 for axis in flip]) if flip else batch
        logits = net(seen).float()[:, 0]
        finite = torch.isfinite(logits).flatten(1).all(dim=1).tolist()
        answers = torch.sigmoid(logits)
        maps = (answers.flip([axis + 1 for axis in flip]) if flip else answers).cpu().numpy()
    return [
        resize_probability(probability, image.shape) if sound else None
        for probability, sound, image in zip(maps, finite, images, strict=True)
    ]


def network_health(
    net: nn.Module, images: Sequence[np.ndarray], size: int, amp: str = OFF
) -> dict[int, StrideHealth]:
    """How the parts of a network fare on images as `predict_probabilities` takes them; see
    `health_of`.
    """
    batch = _batch(net, images, size)
    with autocast(amp, batch.device):
        return health_of(net, batch)


def _batch(net: nn.Module, images: Sequence[np.ndarray], size: int) -> Tensor:
    """(B, in_channels, size, size) on the network's device."""
    grey = torch.from_numpy(np.stack([resize_image(image, size) for image in images])).unsqueeze(1)
    channels, device = config_of(net)["in_channels"], next(net.parameters()).device
    return grey.expand(-1, channels, -1, -1).to(device)


def default_device() -> str:
    """A GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def usable_device(name: str) -> torch.device:
    """The device of that name, if numbers put on it can be read back.

    Raises:
        UsageError: it is unknown, not there, or holds no numbers.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError) as error:
        raise UsageError(
            f"--device {name}: cannot be used here ({first_line(error)}); try --device cpu"
        ) from error
    return device


def open_segmenter(
    checkpoint: str | Path,
    *,
    size: int | None = None,
    device: str | None = None,
    fused: bool | None = None,
    amp: str = OFF,
) -> Segmenter:
    """The network of a checkpoint on a device, ready for `predict_probabilities`.

    Args:
        checkpoint: folder with config.json and model.safetensors.
        size: side in pixels of the square the network sees; None = the checkpoint's image size.
        device: None = a GPU if there is one.
        fused: the Triton kernels, eager operators, or None, whichever can run.
        amp: "off", or "bf16": bfloat16 by automatic mixed precision, in channels_last.

    Raises:
        UsageError: one of them cannot be used; the message names its flag.
    """
    try:
        config = read_config(checkpoint)
        net = load_network(checkpoint, fused=fused)
    except ValueError as error:
        raise UsageError(f"--checkpoint {error}") from error
    classes = config_of(net)["num_classes"]
    if classes != 1:
        raise UsageError(
            f"--checkpoint {checkpoint}: has {classes} classes, a network with one class (lesion) "
            f"is needed"
        )
    side = size if size is not None else config.get("image_size")
    if side is None:
        raise UsageError(
            f"{checkpoint}/config.json has no image_size; give --size, the side the network was "
            f"trained at"
        )
    if type(side) is not int or not SMALLEST_SIZE <= side <= MOST_SIZE:
        source = "--size" if size is not None else f"{checkpoint}/config.json: image_size"
        advice = "" if size is not None else "; copy the checkpoint again, or give --size"
        raise UsageError(
            f"{source} must be an integer from {SMALLEST_SIZE} to {MOST_SIZE} (a network takes "
            f"gigabytes for each image that is larger), got {side!r}{advice}"
        )
    place = usable_device(device or default_device())
    layout = torch.channels_last if amp == BF16 else torch.preserve_format
    try:
        net.to(place, memory_format=layout)  # type: ignore[call-overload]
    except RuntimeError as error:
        raise UsageError(
            f"--device {place}: the network cannot be put there ({first_line(error)})"
        ) from error
    if fused:
        _check_fused(net)
    if fused or place.type != "cpu":
        try:
            check_selftest(net, checkpoint, fused=fused)
        except SelfTestError as error:
            raise UsageError(f"--checkpoint {error}") from error
    weights = sha256_of(Path(checkpoint) / WEIGHTS_FILE)
    augment = config.get("augment")
    return Segmenter(
        net,
        side,
        stored_levels(config),
        weights,
        _unchecked(Path(checkpoint)),
        amp,
        read_calibration(checkpoint, weights),
        augment if isinstance(augment, str) else None,
    )


def _unchecked(checkpoint: Path) -> str:
    """What a checkpoint cannot be checked for."""
    missing = [name for name in (CHECKSUM_FILE, SELFTEST_FILE) if not (checkpoint / name).exists()]
    if not missing:
        return ""
    return (
        f"{checkpoint}: has no {' and no '.join(missing)}: damage that leaves its files readable "
        "would go unseen; checkpoints of `train` have both"
    )


def _check_fused(net: nn.Module) -> None:
    report = getattr(net, "fused_report", None)
    paths = report().values() if callable(report) else ()
    unavailable = [path.reason for path in paths if path.path == "unavailable"]
    if unavailable:
        raise UsageError(f"--fused: {unavailable[0]}")
