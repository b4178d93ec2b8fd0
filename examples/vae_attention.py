"""The attention block of an image autoencoder, one head of d = C = 512, on nonlocal_attention.

python examples/vae_attention.py [--size 64] compares it with softmax(Q K^T / sqrt(d)) V.
"""

import argparse
import math

import torch
from torch import Tensor, nn

from intrasense_fast import fused_status
from intrasense_fast.functional import nonlocal_attention


class AttentionBlock(nn.Module):
    """GroupNorm, a projection to queries, keys and values, attention, projection, residual."""

    def __init__(self, channels: int = 512, groups: int = 32) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels)
        self.projection = nn.Linear(channels, 3 * channels)
        self.output = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> (B, C, H, W)."""
        rows = self.norm(x).flatten(2).transpose(1, 2)
        query, key, value = self.projection(rows).chunk(3, -1)
        # The block's own residual comes after the output projection, so attention gets none.
        attended, _, _ = nonlocal_attention(query, key, value, value.new_zeros(1).expand_as(value))
        return x + self.output(attended).transpose(1, 2).reshape(x.shape)


def written_out(block: AttentionBlock, x: Tensor) -> Tensor:
    rows = block.norm(x).flatten(2).transpose(1, 2)
    query, key, value = block.projection(rows).chunk(3, -1)
    attention = torch.softmax(query @ key.transpose(1, 2) / math.sqrt(query.shape[-1]), -1)
    return x + block.output(attention @ value).transpose(1, 2).reshape(x.shape)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--size", type=int, default=32, help="height and width of the latent map (default 32)"
    )
    size = parser.parse_args().size
    if size < 1:
        parser.error(f"--size must be at least 1, got {size}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    block, x = AttentionBlock().to(device), torch.randn(1, 512, size, size, device=device)
    print(fused_status(x).reason)
    with torch.no_grad():
        difference = (block(x) - written_out(block, x)).abs().max().item()
    print(f"{size} x {size} positions, d = C = 512: largest difference {difference:.1e}")


if __name__ == "__main__":
    main()
