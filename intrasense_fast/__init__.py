"""IntraSense-Net for ultrasound segmentation, with fused Triton operators."""

from intrasense_fast.kernels.runtime import (
    FusedStatus,
    FusedUnavailableError,
    fused_status,
)
from intrasense_fast.networks.intrasense import IntraSenseNet, IntraSenseOutput
from intrasense_fast.version import __version__

__all__ = [
    "FusedStatus",
    "FusedUnavailableError",
    "IntraSenseNet",
    "IntraSenseOutput",
    "__version__",
    "fused_status",
]
