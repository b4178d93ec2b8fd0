"""IntraSense-Net under MONAI's SlidingWindowInferer, for images larger than it was trained on.

python examples/sliding_window.py [--window 64] needs MONAI: pip install monai.
"""

import argparse

import torch
from torch import Tensor, nn

from intrasense_fast import IntraSenseNet
from intrasense_fast.data.phantom import phantom


def segment(net: nn.Module, image: Tensor, window: int, overlap: float = 0.25) -> Tensor:
    """Lesion probability of image (B, 1, H, W) in [0, 1], window by window, blended: (B, 1, H, W).

    The windows' logits are blended, and the sigmoid comes last.
    """
    from monai.inferers import SlidingWindowInferer

    inferer = SlidingWindowInferer(
        roi_size=(window, window), sw_batch_size=4, overlap=overlap, mode="gaussian"
    )
    with torch.inference_mode():
        return torch.sigmoid(inferer(image, net))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--window", type=int, default=64, help="side of a window (default 64)")
    window = parser.parse_args().window
    if window < 32:
        parser.error(f"--window must be at least 32, the smallest image it takes, got {window}")
    torch.manual_seed(0)
    # A trained one: IntraSenseNet.from_pretrained("RUN/best").
    net = IntraSenseNet(encoder="resnet18", decoder_channels=(32, 16, 8, 8, 8)).eval()
    picture, _ = phantom(0, (2 * window, 3 * window))
    image = torch.from_numpy(picture)[None, None]
    probability = segment(net, image, window)
    print(f"image {tuple(image.shape)}, probability {tuple(probability.shape)}")
    one = image[..., :window, :window]
    with torch.inference_mode():
        difference = (segment(net, one, window) - net(one).sigmoid()).abs().max().item()
    print(f"one window, with and without the inferer: largest difference {difference:.1e}")


if __name__ == "__main__":
    main()
