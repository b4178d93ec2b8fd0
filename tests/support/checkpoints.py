"""Small trained-looking checkpoints."""

from pathlib import Path

import torch
from torch.nn.functional import interpolate

from intrasense_fast import IntraSenseNet
from tests.support.networks import wake


def tiny_checkpoint(path: Path, image_size: int | None = 32, **options: object) -> Path:
    """A network with random weights whose logits cross zero, saved as a run's best/ is."""
    torch.manual_seed(0)
    net = wake(
        IntraSenseNet(
            encoder="resnet18",
            refine_strides=(32,),
            decoder_channels=(16, 8, 8, 8, 8),
            **options,  # type: ignore[arg-type]
        )
    ).eval()
    with torch.no_grad():
        coarse = torch.rand(4, net.config["in_channels"], 8, 8)
        images = interpolate(coarse, size=(64, 64), mode="bilinear")
        net.decoder.head.bias -= net(images).median()
    net.save_pretrained(path, None if image_size is None else {"image_size": image_size})
    return path
