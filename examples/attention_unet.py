"""nonlocal_attention at the bottleneck of a U-Net that someone else wrote: two lines change there.

python examples/attention_unet.py [--size 64] compares it with softmax(Q K^T / sqrt(d)) V.
"""

import argparse

import torch
from torch import Tensor, nn

from intrasense_fast import fused_status
from intrasense_fast.functional import nonlocal_attention


class UNet(nn.Module):
    """Someone else's U-Net, three levels; its bottleneck is a list of blocks to add to."""

    def __init__(self, channels: int = 1, classes: int = 1, width: int = 16) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width]
        self.down = nn.ModuleList(
            [self.double(a, b) for a, b in zip([channels, *widths], widths, strict=False)]
        )
        self.bottleneck = nn.Sequential(self.double(widths[-1], 8 * width))
        self.up = nn.ModuleList([self.double(3 * each, each) for each in reversed(widths)])
        self.head = nn.Conv2d(width, classes, 1)

    @staticmethod
    def double(inputs: int, outputs: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for first in (inputs, outputs):
            layers += [nn.Conv2d(first, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
        return nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, channels, H, W), H and W multiples of 8 -> logits (B, classes, H, W)."""
        skips = []
        for block in self.down:
            skips.append(block(x))
            x = nn.functional.max_pool2d(skips[-1], 2)
        x = self.bottleneck(x)
        for block in self.up:
            x = nn.functional.interpolate(x, scale_factor=2.0, mode="bilinear")
            x = block(torch.cat([x, skips.pop()], 1))
        return self.head(x)


class NonLocal(nn.Module):
    """Attention over all positions of a map, with its residual (Eq. 1 to 3)."""

    def __init__(self, channels: int, depth: int) -> None:
        super().__init__()
        self.sizes = depth, depth, channels
        self.projection = nn.Conv2d(channels, sum(self.sizes), 1)

    def rows(self, x: Tensor) -> tuple[Tensor, ...]:
        """Query and key (B, N, depth), value and residual (B, N, C): views, no copies."""
        query, key, value = self.projection(x).flatten(2).transpose(1, 2).split(self.sizes, -1)
        return query, key, value, x.flatten(2).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> (B, C, H, W)."""
        features, _, _ = nonlocal_attention(*self.rows(x))
        return features.transpose(1, 2).reshape(x.shape)


def written_out(block: NonLocal, x: Tensor) -> Tensor:
    query, key, value, residual = block.rows(x)
    attention = torch.softmax(query @ key.transpose(1, 2) / query.shape[-1] ** 0.5, -1)
    return (attention @ value + residual).transpose(1, 2).reshape(x.shape)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--size", type=int, default=64, help="height and width of the image (default 64)"
    )
    size = parser.parse_args().size
    if size < 8 or size % 8:
        parser.error(f"--size must be a multiple of 8, at least 8, got {size}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    net = UNet()
    attention = NonLocal(channels=128, depth=16)
    net.bottleneck.append(attention)
    net = net.to(device).eval()
    image = torch.rand(2, 1, size, size, device=device)
    print(fused_status(image).reason)
    # What the block sees inside the network.
    seen: list[Tensor] = []
    attention.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].detach()))
    logits = net(image)
    logits.mean().backward()
    learns = all(p.grad is not None and p.grad.abs().sum() > 0 for p in attention.parameters())
    with torch.no_grad():
        difference = (attention(seen[0]) - written_out(attention, seen[0])).abs().max().item()
    print(f"logits {tuple(logits.shape)}, attention learns: {learns}")
    print(f"{seen[0].shape[-1]} x {seen[0].shape[-2]} positions: difference {difference:.1e}")


if __name__ == "__main__":
    main()
