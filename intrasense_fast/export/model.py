"""What is exported: a network with its last step, and what the file says about it."""

import copy
import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from intrasense_fast.data.reading import stored_levels
from intrasense_fast.inference import Segmenter
from intrasense_fast.inference.calibration import LARGEST_LOGIT
from intrasense_fast.networks.contract import config_of
from intrasense_fast.networks.refine import ChannelDecoupling, GlobalLocalPerception
from intrasense_fast.provenance import TRAINED_ON, read_trained_on
from intrasense_fast.training import run_folder
from intrasense_fast.version import __version__

PROBABILITIES, LOGITS = "probabilities", "logits"
OUTPUTS = (PROBABILITIES, LOGITS)
INPUT = "image"
# Images of open size are multiples of it, where a format cannot pad them itself.
UNIT = 32


class ExportedModel(nn.Module):
    """A network in eval mode as the file holds it: normalisation inside, float32 in and out.

    Args:
        net: of the contract.
        output: "probabilities", or "logits", as the network gives them.
        temperature: of the probabilities.
    """

    def __init__(
        self, net: nn.Module, output: str = PROBABILITIES, temperature: float = 1.0
    ) -> None:
        super().__init__()
        self.net, self.output, self.temperature = net, output, temperature
        # Itself too: exporters put back the mode that they find.
        self.eval()

    def forward(self, image: Tensor) -> Tensor:
        """(B, num_classes, H, W) of images (B, in_channels, H, W) in [0, 1]."""
        parameter = next(self.net.parameters())
        logits = self.net(image.to(parameter.dtype)).float()
        return self.probabilities(logits) if self.output == PROBABILITIES else logits

    def probabilities(self, logits: Tensor) -> Tensor:
        """sigmoid(z / T) of logits z of any shape, as `tempered` makes it of probabilities."""
        if self.temperature == 1:
            return logits.sigmoid()
        return (logits.clamp(-LARGEST_LOGIT, LARGEST_LOGIT) / self.temperature).sigmoid()


def half_of(net: nn.Module) -> nn.Module:
    """A copy of a network in float16, but for what works on the operators' statistics, which are
    float32 in every precision."""
    half = copy.deepcopy(net).half()
    for module in half.modules():
        if isinstance(module, GlobalLocalPerception):
            module.gate_norm.float()
            module.gate.float()
        if isinstance(module, ChannelDecoupling):
            module.float()
    return half


def metadata_of(
    segmenter: Segmenter, checkpoint: Path, config: dict[str, Any], output: str
) -> dict[str, str]:
    """What every file carries: names and values as text, empty where the checkpoint does not say.

    Args:
        segmenter: the network of the checkpoint, with the calibration that the file is to have.
        checkpoint: its folder.
        config: its config.json.
        output: what the file gives.

    Raises:
        UsageError: trained_on.json is damaged.
    """
    net, calibration = segmenter.net, segmenter.calibration
    about = {
        "format": "1",
        "package": f"intrasense-fast {__version__}",
        "architecture": net.architecture,
        "input": f"{INPUT}: float32 (B, {config_of(net)['in_channels']}, H, W) in [0, 1]",
        "output": output,
        "image_size": config.get("image_size"),
        "threshold": config.get("threshold", 0.5),
        "threshold_tuned": calibration.threshold if calibration else None,
        "temperature": segmenter.temperature,
        "levels": stored_levels(config),
        "commit": run_folder.commit(),
        "weights_sha256": segmenter.weights_sha256,
        **_data_of(checkpoint),
    }
    return {name: "" if value is None else str(value) for name, value in about.items()}


def _data_of(checkpoint: Path) -> dict[str, Any]:
    """Which images trained the network: the digest of its trained_on.json, and how many."""
    trained_on = read_trained_on(checkpoint)
    if trained_on is None:
        return {"data_sha256": None, "training_images": None}
    digest = hashlib.sha256((checkpoint / TRAINED_ON).read_bytes()).hexdigest()
    return {"data_sha256": digest, "training_images": len(trained_on.train)}


def takes_any_size(net: nn.Module, size: int) -> bool:
    """Whether a network takes images of another size than `size`; those built for one say no."""
    other = 2 * UNIT if size != 2 * UNIT else 3 * UNIT
    parameter = next(net.parameters())
    channels = config_of(net)["in_channels"]
    image = torch.zeros(1, channels, other, other, device=parameter.device)
    try:
        with torch.no_grad():
            net(image.to(parameter.dtype))
    except (ValueError, RuntimeError):
        return False
    return True
