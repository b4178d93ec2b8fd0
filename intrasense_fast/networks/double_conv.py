"""The block that most U-shaped networks are made of."""

from torch import nn


class DoubleConv(nn.Sequential):
    """Twice [3x3 convolution with bias, BatchNorm, ReLU]: (B, in, H, W) to (B, out, H, W).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the result.
        middle_channels: channels between the two; None = out_channels.
    """

    def __init__(
        self, in_channels: int, out_channels: int, middle_channels: int | None = None
    ) -> None:
        middle_channels = out_channels if middle_channels is None else middle_channels
        super().__init__(
            nn.Conv2d(in_channels, middle_channels, 3, padding=1),
            nn.BatchNorm2d(middle_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(middle_channels, out_channels, 3, padding=1),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )
