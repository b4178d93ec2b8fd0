"""What every compared network must do, as checks that a network's own test file calls."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from intrasense_fast.data.phantom import phantom

Build = Callable[..., nn.Module]


def count(module: nn.Module) -> int:
    """Trainable parameters of a module."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def count_built(build: Build, **options: object) -> int:
    """Trainable parameters of a network built without memory for them."""
    with torch.device("meta"):
        return count(build(**options))


def giga_macs(build: Build, *, training: bool = True, **options: object) -> float:
    """10^9 multiply-adds of convolutions and matrix products in a forward of 256 x 256."""
    with torch.device("meta"):
        net = build(**options).train(training)
        x = torch.empty(1, options.get("in_channels", 1), 256, 256)
    with FlopCounterMode(display=False) as counter:
        net(x)
    return counter.get_total_flops() / 2e9


def assert_shapes_and_finite(
    build: Build, rng: torch.Generator, size: tuple[int, int] = (48, 32)
) -> None:
    """Logits in both modes, of three channels and two classes, and gradients everywhere."""
    torch.manual_seed(rng.initial_seed())
    net = build(in_channels=3, num_classes=2).train()
    x = torch.rand(2, 3, *size, generator=rng)
    target = (torch.rand(2, 2, *size, generator=rng) > 0.7).float()
    output = net(x)
    logits = output if isinstance(output, Tensor) else output.logits
    assert logits.shape == (2, 2, *size) and logits.dtype == torch.float32
    loss = net.own_loss(output, target)
    assert loss.shape == () and loss.isfinite()
    loss.backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, f"{name} is not in the graph"
        assert parameter.grad.isfinite().all(), name
    with torch.no_grad():
        logits = net.eval()(x)
    assert isinstance(logits, Tensor) and logits.shape == (2, 2, *size)
    assert logits.isfinite().all()


def assert_eval_is_a_function(
    build: Build, rng: torch.Generator, size: tuple[int, int] = (32, 48)
) -> None:
    """Batch 1 in eval mode: twice the same, the same in a batch, the same from a state dict."""
    torch.manual_seed(rng.initial_seed())
    net = build().train()
    batch = torch.rand(3, 1, *size, generator=rng)
    with torch.no_grad():
        net(batch)
        net.eval()
        alone = net(batch[:1])
        assert alone.shape == (1, 1, *size)
        assert torch.equal(alone, net(batch[:1]))
        torch.testing.assert_close(net(batch)[:1], alone, rtol=1e-4, atol=1e-4)
        other = build(**net.config).eval()
        assert not torch.equal(other(batch[:1]), alone)
        other.load_state_dict(net.state_dict())
        assert torch.equal(other(batch[:1]), alone)


def assert_bad_input_is_named(build: Build, multiple: int = 16) -> None:
    """Errors that say what came and what is needed, of the constructor and of a call."""
    name = type(build()).__name__
    for options in ({"in_channels": 2}, {"num_classes": 0}, {"num_classes": True}):
        ((option, value),) = options.items()
        with pytest.raises(ValueError, match=rf"{name}: {option} must be .*got {value!r}"):
            build(**options)
    net = build()
    for x, message in (
        (torch.rand(1, 3, 32, 32), r"needs x of shape \(B, 1, H, W\), got \(1, 3, 32, 32\)"),
        (torch.zeros(1, 1, 32, 32, dtype=torch.uint8), "needs floating-point x.*uint8"),
        (torch.rand(1, 1, 40, 32), f"needs H and W .*multiples of {multiple}, got 40 x 32"),
        (torch.rand(1, 1, 32, 0), f"needs H and W .*multiples of {multiple}, got 32 x 0"),
    ):
        with pytest.raises(ValueError, match=f"{name}: {message}"):
            net(x)
    with pytest.raises(TypeError, match=f"{name}: x must be a tensor, got list"):
        net([[0.5]])
    output = net(torch.rand(2, 1, 32, 32))
    with pytest.raises(ValueError, match=f"{name}: target must have the logits' shape"):
        net.own_loss(output, torch.zeros(2, 32, 32))


def dice_after_training(net: nn.Module, seed: int, *, size: int, steps: int, lr: float) -> float:
    """Mean Dice in eval mode over four phantoms after training on them; ends early at 0.97."""
    images, masks = _phantoms(seed, size)
    optimizer = torch.optim.Adam(net.parameters(), lr)
    dice = 0.0
    for step in range(1, steps + 1):
        net.train()
        optimizer.zero_grad()
        net.own_loss(net(images), masks).backward()
        optimizer.step()
        if step % 20 == 0 or step == steps:
            dice = _mean_dice(net, images, masks)
            print(f"step {step}: Dice {dice:.3f}")
            if dice > 0.97:
                break
    return dice


def _phantoms(seed: int, size: int) -> tuple[Tensor, Tensor]:
    pairs = [phantom((seed, index), size, lesions=1) for index in range(4)]
    images, masks = (
        torch.stack([torch.from_numpy(one) for one in kind]) for kind in zip(*pairs, strict=True)
    )
    return images.unsqueeze(1), masks.unsqueeze(1).float()


@torch.no_grad()
def _mean_dice(net: nn.Module, images: Tensor, masks: Tensor) -> float:
    predicted = (net.eval()(images) >= 0).float()
    overlap = (predicted * masks).sum((1, 2, 3))
    return (2 * overlap / (predicted + masks).sum((1, 2, 3))).mean().item()
