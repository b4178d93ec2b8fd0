"""The plain U-Net on a ResNet: IntraSense-Net without GCP and CDR, as a network of its own."""

import os
from collections.abc import Sequence

from torch import Tensor

from intrasense_fast.fields import plain
from intrasense_fast.networks.decoder import UNetDecoder
from intrasense_fast.networks.encoder import ResNetEncoder
from intrasense_fast.networks.encoder_weights import load_encoder_weights
from intrasense_fast.networks.images import ResNetImages, cropped
from intrasense_fast.networks.options import DECODER_CHANNELS, ENCODER, checked_channels


class UNetResNet50(ResNetImages):
    """A U-Net whose encoder is a ResNet, by default ResNet-50; its weights are those of
    `IntraSenseNet(gcp=False, cdr=False)`.

    Args:
        in_channels: 1 or 3.
        num_classes: channels of the logits, one sigmoid each.
        encoder: "resnet18", "resnet34", "resnet50" or "resnet101".
        decoder_channels: output channels of the five decoder blocks, deepest first.
        encoder_weights: None, "imagenet", or a .pth / .safetensors file of the encoder's weights;
            see `load_encoder_weights`.

    Raises:
        ValueError: an argument of another type or outside its range.
        EncoderWeightsError: encoder weights that cannot be found, read or matched.
    """

    architecture = "unet-resnet50"

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 1,
        *,
        encoder: str = "resnet50",
        decoder_channels: Sequence[int] = (256, 128, 64, 32, 16),
        encoder_weights: str | os.PathLike[str] | None = None,
    ) -> None:
        channels, classes = checked_channels("UNetResNet50", in_channels, num_classes)
        if not ENCODER.fits(encoder):
            raise ValueError(f"UNetResNet50: encoder must be {ENCODER.text}, got {encoder!r}")
        widths = plain(decoder_channels)
        if not DECODER_CHANNELS.fits(widths):
            raise ValueError(
                f"UNetResNet50: decoder_channels must be {DECODER_CHANNELS.text}, got "
                f"{decoder_channels!r}"
            )
        super().__init__(channels)
        self.config = {
            "in_channels": channels,
            "num_classes": classes,
            "encoder": encoder,
            "decoder_channels": list(widths),
        }
        self.encoder = ResNetEncoder(channels, encoder)
        self.decoder = UNetDecoder(classes, widths, self.encoder.layout.channels)
        if encoder_weights is not None:
            load_encoder_weights(self.encoder, encoder_weights)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes, H, W) of images x (B, in_channels, H, W), in [0, 1], H and W >=
        32.

        Raises:
            TypeError: x is no tensor.
            ValueError: another shape or dtype; or training on one image whose deepest map is a
                single position.
        """
        height, width = self._check_input(x)
        return cropped(self.decoder(self.encoder(self._normalized(x))), height, width)
