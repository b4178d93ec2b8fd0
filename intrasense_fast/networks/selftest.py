"""A small input beside a network's weights, with the logits that the network gave for it when it
was saved: what finds damaged weights and broken operators before the first prediction.

The logits are those of the eager operators. How far others may be from them is measured when they
are written: the input is shaken by a thousandth, about what tensor cores round away, and what that
does to the logits is what another path or device may do.
"""

import copy
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import interpolate

from intrasense_fast.errors import first_line
from intrasense_fast.networks.contract import config_of, evaluating, set_fused
from intrasense_fast.networks.images import ResNetImages

SELFTEST_FILE = "selftest.safetensors"
# Networks that take every size are tested on images of this side.
_SIDE = 64
_SHAKEN = 1e-3
# Relative deviations (root mean square) that are never counted as faults, and the largest that is
# ever let pass: on the same kind of device with the same operators, and otherwise.
_SAME, _OTHER = (1e-3, 0.05), (0.02, 0.25)
STATISTICS = ("running_mean", "running_var")
_FORMAT = "1"


class SelfTestError(ValueError):
    """A network that does not give the logits it gave when it was saved."""


def write_selftest(net: nn.Module, folder: Path, image_size: int) -> None:
    """Write selftest.safetensors of a network; nothing where its logits are not finite.

    Args:
        net: on any device; it is left as it was.
        folder: an existing one.
        image_size: side of the images it is trained on.
    """
    side = min(_SIDE, image_size) if isinstance(net, ResNetImages) else image_size
    x = _input(config_of(net)["in_channels"], side)
    # One by one, as they are checked: batches of another size have other last bits.
    logits, shaken = (_logits(net, image, fused=False) for image in x.split(1))
    if not (torch.isfinite(logits).all() and torch.isfinite(shaken).all()):
        return
    sensitivity = _deviation(shaken, logits)
    same = min(max(_SAME[0], sensitivity / 3), _SAME[1])
    other = min(max(_OTHER[0], 4 * sensitivity), _OTHER[1])
    about = {
        "format": _FORMAT,
        "device": _device_of(net).type,
        "tolerance_same": f"{same:.3g}",
        "tolerance_other": f"{other:.3g}",
    }
    tensors = {"input": x[:1].contiguous(), "logits": logits.contiguous()}
    save_file(tensors, folder / SELFTEST_FILE, about)


def check_selftest(
    net: nn.Module, folder: str | os.PathLike[str], *, fused: bool | None = False
) -> bool:
    """Does a network give the logits it was saved with? False where the folder has no self-test.

    Args:
        net: on the device where it will work; it is left as it was.
        folder: of its checkpoint.
        fused: the operators to test, as for the network.

    Raises:
        SelfTestError: it does not, or selftest.safetensors is damaged.
    """
    file = Path(folder) / SELFTEST_FILE
    if not file.exists():
        return False
    x, expected, tolerances, device = _read(file)
    try:
        found = _logits(net, x, fused=fused)
    except (RuntimeError, ValueError, TypeError) as error:
        raise SelfTestError(
            f"{folder}: its self-test cannot be computed on {_device_of(net)} ({first_line(error)})"
        ) from error
    same = fused is False and _device_of(net).type == device == "cpu"
    tolerance = tolerances[0] if same else tolerances[1]
    if found.shape != expected.shape:
        raise SelfTestError(f"{file}: is of another network; copy the checkpoint again")
    deviation = _deviation(found, expected)
    if deviation <= tolerance:
        return True
    how = f"NaN or infinite logits on {_device_of(net)}"
    if torch.isfinite(found).all():
        how = (
            f"logits on {_device_of(net)} that are off by {deviation:.2g} of their size, "
            f"{tolerance:.2g} may be"
        )
    raise SelfTestError(
        f"{folder}: the self-test failed: {how}. The weights are not those that were saved, or the "
        "operators compute something else here: copy the checkpoint again, then try --no-fused "
        "(fused=False) or --device cpu"
    )


def check_finite(net: nn.Module, file: Path) -> None:
    """Raise a ValueError that names a weight, of those read from `file`, that is NaN or infinite.

    Of the buffers only BatchNorm's statistics: others may be infinite, or NaN until they are known.
    """
    weights: dict[str, Tensor] = dict(net.named_parameters())
    weights |= {name: one for name, one in net.named_buffers() if name.endswith(STATISTICS)}
    odd = [name for name, value in weights.items() if not torch.isfinite(value).all()]
    if odd:
        more = f" and {len(odd) - 1} more" if len(odd) > 1 else ""
        raise ValueError(
            f"{file}: {odd[0]}{more} holds NaN or infinite values: these weights cannot predict; "
            "take another checkpoint"
        )


def _read(file: Path) -> tuple[Tensor, Tensor, tuple[float, float], str]:
    try:
        with safe_open(file, "pt") as tensors:
            about = tensors.metadata() or {}
            if about.get("format") != _FORMAT:
                raise ValueError("of another version")
            tolerances = float(about["tolerance_same"]), float(about["tolerance_other"])
            x, logits = tensors.get_tensor("input"), tensors.get_tensor("logits")
            return x, logits, tolerances, about["device"]
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise SelfTestError(
            f"{file}: is damaged ({first_line(error)}); copy the checkpoint again"
        ) from error


def _input(channels: int, side: int) -> Tensor:
    """Two images (2, channels, side, side) in [0, 1]: blotches with speckle, and the same
    shaken."""
    draw = torch.Generator().manual_seed(0)
    blotches = torch.rand(1, 1, 8, 8, generator=draw)
    speckle = torch.rand(1, 1, side, side, generator=draw)
    image = 0.8 * interpolate(blotches, (side, side), mode="bilinear") + 0.2 * speckle
    shaken = image * (1 + _SHAKEN * torch.randn(image.shape, generator=draw))
    return torch.cat((image, shaken)).clamp(0, 1).expand(-1, channels, -1, -1)


@torch.no_grad()
def _logits(net: nn.Module, x: Tensor, *, fused: bool | None) -> Tensor:
    """Float32 logits on the CPU; the network, its modes and the random numbers are left as they
    were."""
    # What a forward notes on the network itself stays on the copy; parameters are shared.
    probe = copy.copy(net)
    device = _device_of(net)
    devices = [device] if device.type == "cuda" else []
    dtype = next((one.dtype for one in net.parameters() if one.is_floating_point()), x.dtype)
    before = getattr(net, "fused", None)
    with (
        evaluating(probe),
        torch.random.fork_rng(devices),
        torch.autocast(device.type, enabled=False),
    ):
        torch.manual_seed(0)
        set_fused(probe, fused)
        try:
            return probe(x.to(device, dtype)).float().cpu()
        finally:
            set_fused(probe, before)


def _deviation(found: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference, over that of what was expected; NaN where one is NaN."""
    size = expected.double().square().mean().sqrt().clamp_min(1e-6)
    return float((found.double() - expected.double()).square().mean().sqrt() / size)


def _device_of(net: nn.Module) -> torch.device:
    return next(net.parameters(), torch.zeros(())).device
