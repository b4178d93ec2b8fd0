"""What torch.hub loads: torch.hub.load("owner/repository", "intrasensenet")."""

import sys as _sys
import types as _types
from pathlib import Path as _Path

dependencies = ["torch", "numpy", "cv2", "safetensors", "tqdm"]

_root = _Path(__file__).resolve().parent
if not (_root / "intrasense_fast" / "kernels").is_dir():
    # An archive unpacked without symbolic links, as torch.hub does it.
    _kernels = _types.ModuleType("intrasense_fast.kernels")
    _kernels.__path__ = [str(_root / "kernels")]
    _sys.modules.setdefault("intrasense_fast.kernels", _kernels)


def intrasensenet(pretrained_folder=None, **options):
    """IntraSense-Net for ultrasound segmentation.

    Args:
        pretrained_folder: of a trained checkpoint, such as RUN/best, or "owner/name" on the Hugging
            Face Hub; None = a new network.
        options: of `IntraSenseNet`, or, beside a folder, of `IntraSenseNet.from_pretrained`.

    Raises:
        ValueError: the folder holds no sound checkpoint, or an option is outside its range.
        TypeError: an option that there is not.
    """
    from intrasense_fast import IntraSenseNet

    if pretrained_folder is None:
        return IntraSenseNet(**options)
    return IntraSenseNet.from_pretrained(pretrained_folder, **options)
