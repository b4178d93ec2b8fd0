"""A training loop as segmentation libraries write it, with two of our operators in it: bce_dice as
the loss, and channel_decoupling in the decoder of a small U-Net that knows nothing of this package.

python examples/training_loop.py [--epochs 4] trains on simulated phantoms in seconds.
"""

import argparse

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from intrasense_fast.data.phantom import phantom
from intrasense_fast.functional import bce_dice, channel_decoupling

SIDE = 64


class Decoupling(nn.Module):
    """Suppress what all channels share and re-weight the channels: a block between two layers.

    It also keeps `terms`, the loss of Eq. 9 of its last forward.
    """

    def __init__(self, channels: int, reduction: int = 4) -> None:
        super().__init__()
        self.reduce = nn.Linear(channels, channels // reduction)
        self.expand = nn.Linear(channels // reduction, channels)
        self.terms = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> (B, C, H, W)."""
        features, rank_gap, distance = channel_decoupling(
            x, self.reduce.weight, self.reduce.bias, self.expand.weight, self.expand.bias
        )
        self.terms = (rank_gap + distance).mean()
        return features


def block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class SmallUNet(nn.Module):
    """Two levels: encoder, bottleneck, decoder with skips; the decoder decouples its channels."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.encoder = nn.ModuleList([block(1, width), block(width, 2 * width)])
        self.bottleneck = block(2 * width, 4 * width)
        self.decoder = nn.ModuleList([block(6 * width, 2 * width), block(3 * width, width)])
        self.decoupling = nn.ModuleList([Decoupling(2 * width), Decoupling(width)])
        self.head = nn.Conv2d(width, 1, 1)
        self.pool, self.up = nn.MaxPool2d(2), nn.Upsample(scale_factor=2, mode="bilinear")

    def forward(self, x: Tensor) -> Tensor:
        """x (B, 1, H, W), H and W multiples of 4 -> logits (B, 1, H, W)."""
        skips = []
        for layer in self.encoder:
            skips.append(layer(x))
            x = self.pool(skips[-1])
        x = self.bottleneck(x)
        for layer, decoupling in zip(self.decoder, self.decoupling, strict=True):
            x = decoupling(layer(torch.cat([self.up(x), skips.pop()], 1)))
        return self.head(x)


class TrainEpoch:
    """One pass over a loader, as the epoch runners of segmentation libraries make it."""

    def __init__(self, model: SmallUNet, optimizer: torch.optim.Optimizer, weight: float) -> None:
        self.model, self.optimizer, self.weight = model, optimizer, weight

    def run(self, loader: DataLoader) -> dict[str, float]:
        """Train, and return the mean loss and the mean Dice coefficient over the batches."""
        self.model.train()
        losses, scores = [], []
        for image, mask in loader:
            self.optimizer.zero_grad()
            bce, dice_loss = bce_dice(self.model(image), mask)
            terms = sum(each.terms for each in self.model.decoupling)
            loss = bce + dice_loss + self.weight * terms
            loss.backward()
            self.optimizer.step()
            losses.append(loss.item())
            scores.append(1 - dice_loss.item())
        return {"loss": sum(losses) / len(losses), "dice": sum(scores) / len(scores)}


def phantoms(count: int) -> TensorDataset:
    """Images float32 (N, 1, 64, 64) in [0, 1] with one lesion each, and masks of that shape."""
    pairs = [phantom(seed, SIDE, lesions=1, distractors=0) for seed in range(count)]
    images, masks = (
        torch.stack([torch.from_numpy(p[i])[None].float() for p in pairs]) for i in (0, 1)
    )
    return TensorDataset(images, masks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=4, help="passes over 16 images (default 4)")
    epochs = parser.parse_args().epochs
    if epochs < 1:
        parser.error(f"--epochs must be at least 1, got {epochs}")
    torch.manual_seed(0)
    model = SmallUNet()
    epoch = TrainEpoch(model, torch.optim.Adam(model.parameters(), 3e-3), weight=0.01)
    loader = DataLoader(phantoms(16), batch_size=4, shuffle=True)
    for number in range(1, epochs + 1):
        logs = epoch.run(loader)
        print(f"epoch {number}: loss {logs['loss']:.4f}, soft Dice {logs['dice']:.4f}")


if __name__ == "__main__":
    main()
