"""EA-Net: its counts, its parts against plain formulas, its loss, and the contract."""

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from intrasense_fast.networks.canny import canny
from intrasense_fast.networks.eanet import DilatedContext, EANet, EANetOutput, mask_edges
from intrasense_fast.networks.edge_stream import EdgeGate
from tests.support.compared_networks import (
    assert_bad_input_is_named,
    assert_eval_is_a_function,
    assert_shapes_and_finite,
    count,
    count_built,
    dice_after_training,
    giga_macs,
)
from tests.support.networks import wake

# Of the published count: the second copy of the attention, and a head of 64 -> 1.
DEAD = 1_709_314 + 65


def test_counts():
    assert count_built(EANet) == 31_045_689 - DEAD == 29_336_310
    assert count_built(EANet, in_channels=3) == 31_046_841 - DEAD == 29_337_462
    assert giga_macs(EANet) == pytest.approx(53.40, rel=0.01)


def test_counts_of_the_parts():
    with torch.device("meta"):
        net = EANet()
    assert count(net.encoder) == 20_023_232
    assert count(net.context) == 6_570_502 - 1_709_314


@pytest.fixture
def context(seed) -> DilatedContext:
    torch.manual_seed(seed)
    return DilatedContext(4).double().train()


def test_context_at_gamma_zero_is_its_last_convolution(context, rng):
    x = torch.randn(2, 4, 6, 7, generator=rng, dtype=torch.float64)
    assert context.gamma == 0
    assert torch.equal(context(x), context.out(x.clamp(min=0)))
    with torch.no_grad():
        context.gamma.fill_(0.5)
    assert not torch.allclose(context(x), context.out(x.clamp(min=0)))


def test_context_against_its_formulas(context, rng):
    """Dilated convolutions as dense ones of 5 x 5 and 9 x 9; both fusions share weights."""
    with torch.no_grad():
        context.gamma.fill_(0.7)
    x = torch.randn(2, 4, 6, 7, generator=rng, dtype=torch.float64)
    weight = context.shared.weight.detach()
    branches = []
    for dilation in (1, 2, 4):
        dense = torch.zeros(4, 4, 2 * dilation + 1, 2 * dilation + 1, dtype=torch.float64)
        dense[..., ::dilation, ::dilation] = weight
        bias = context.shared.bias if dilation == 1 else None
        branches.append(standardised(conv2d(x, dense, bias, padding=dilation)))

    def fuse(first: Tensor, second: Tensor) -> Tensor:
        both = torch.cat((first, second), 1)
        gate = 1 / (1 + torch.exp(-context.pixel_gate(both).clamp(min=0)))
        assert gate.min() >= 0.5
        y = context.attention[0](both).clamp(min=0)
        y = context.attention[2](y).clamp(min=0)
        share = torch.exp(context.attention[4](y))
        share = share / share.sum(1, keepdim=True)
        return share[:, [0]] * first + share[:, [1]] * second + context.mix(both * gate)

    fused = fuse(fuse(branches[0], branches[1]), branches[2])
    y = (0.7 * fused + 0.3 * x).clamp(min=0)
    wanted = standardised(conv2d(y, context.out[0].weight)).clamp(min=0)
    torch.testing.assert_close(context(x), wanted)


def standardised(x: Tensor) -> Tensor:
    """BatchNorm at its initial affine parameters, in training mode."""
    mean = x.mean((0, 2, 3), keepdim=True)
    return (x - mean) / (((x - mean) ** 2).mean((0, 2, 3), keepdim=True) + 1e-5).sqrt()


def test_edge_gate_against_its_formula(rng):
    gate = EdgeGate(3).double().train()
    x = torch.randn(2, 3, 5, 4, generator=rng, dtype=torch.float64)
    side = torch.randn(2, 1, 5, 4, generator=rng, dtype=torch.float64)
    inner, last = gate.gate[1], gate.gate[3]
    y = conv2d(standardised(torch.cat((x, side), 1)), inner.weight, inner.bias).clamp(min=0)
    share = 1 / (1 + torch.exp(-standardised(conv2d(y, last.weight, last.bias))))
    torch.testing.assert_close(gate(x, side), conv2d(x * (1 + share), gate.out.weight))


def captured(module: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """(first input, output) of every later call of a module."""
    calls: list[tuple[Tensor, Tensor]] = []
    module.register_forward_hook(lambda _, inputs, output: calls.append((inputs[0], output)))
    return calls


@pytest.mark.parametrize("channels", [1, 3])
def test_edges_are_cannys_of_the_image_in_bytes(channels, seed):
    torch.manual_seed(seed)
    image = np.full((32, 48), 40, np.uint8)
    image[8:20, 12:30] = 190
    net = EANet(in_channels=channels).eval()
    calls = captured(net.edge_mix)
    x = torch.from_numpy(image / 255).float().expand(1, channels, 32, 48)
    with torch.no_grad():
        net(x)
    ((both, _),) = calls
    wanted = cv2.Canny(image, 10, 100)
    assert wanted.any()
    np.testing.assert_array_equal(both[0, 1].numpy(), wanted)


def test_canny_is_a_sound_operator():
    images = torch.arange(2 * 33 * 32).reshape(2, 33, 32).to(torch.uint8)
    torch.library.opcheck(
        canny, (images, 10.0, 100.0), test_utils=("test_schema", "test_faketensor")
    )
    assert canny(images[:0], 10.0, 100.0).shape == (0, 33, 32)
    # A view whose rows are not contiguous is the same image.
    assert torch.equal(
        canny(images[..., ::2], 10.0, 100.0), canny(images[..., ::2].clone(), 10.0, 100.0)
    )


def test_the_loop_goes_on_from_the_prediction_before(seed, rng):
    torch.manual_seed(seed)
    net = wake(EANet(), rng).double().train()
    features = [captured(part) for part in (net.decode2, net.decode3, net.decode4, net.context)]
    edges = [captured(part) for part in net.edge_maps]
    with torch.no_grad():
        output = net(torch.rand(2, 1, 32, 32, generator=rng, dtype=torch.float64))
    joined, context = features[2][0][0], features[3][0][1]
    # Aligned corners: the doubled map has the corners of the map, behind the skip's channels.
    torch.testing.assert_close(joined[:, 512:, ::3, ::3], context)
    assert output.auxiliary_loss is None and len(output.auxiliary_logits) == 4
    p = output.logits
    for level in range(1, 5):
        # Bilinear halving without aligned corners is the mean of 2 x 2, and of the inner 2 x 2 of
        # larger cells.
        p = p.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).mean((3, 5))
        inner = slice(2 ** (level - 1) - 1, 2 ** (level - 1) + 1)
        cells = edges[level][0][1].unflatten(3, (-1, 2**level)).unflatten(2, (-1, 2**level))
        edge = cells[:, :, :, inner][..., inner].mean((3, 5))
        background = 1 - torch.sigmoid(p)
        head = net.heads[level]
        joined = torch.cat((features[level - 1][0][1] * background, edge), 1)
        p = conv2d(joined, head.weight, head.bias) + p
        full = nn.Upsample(scale_factor=2**level, mode="bilinear", align_corners=False)(p)
        torch.testing.assert_close(output.auxiliary_logits[level - 1], full)


def test_mask_edges_are_of_the_union():
    masks = torch.zeros(2, 2, 32, 32)
    masks[0, 0, 4:20, 4:20] = 1
    masks[0, 1, 10:28, 12:30] = 1
    edges = mask_edges(masks)
    assert edges.shape == (2, 1, 32, 32) and not edges[1].any()
    union = masks[0].amax(0).numpy().astype(np.uint8) * 255
    np.testing.assert_array_equal(edges[0, 0].numpy(), cv2.Canny(union, 30, 100) // 255)
    assert edges.any()


@pytest.mark.parametrize("weighted", [True, False])
def test_own_loss_against_numpy(weighted, rng):
    from scipy.ndimage import uniform_filter

    target = torch.zeros(2, 1, 48, 48)
    target[0, 0, 10:30, 5:25] = 1
    target[1, 0, 20:40, 20:44] = 1
    maps = [torch.randn(2, 1, 48, 48, generator=rng, dtype=torch.float64) for _ in range(6)]
    output = EANetOutput(maps[0], tuple(maps[1:5]), None, maps[5])

    def bce(logits: np.ndarray, y: np.ndarray) -> np.ndarray:
        p = 1 / (1 + np.exp(-logits))
        return -(y * np.log(p) + (1 - y) * np.log(1 - p))

    y = target[:, 0].double().numpy()
    edges = np.stack([cv2.Canny((one * 255).astype(np.uint8), 30, 100) / 255 for one in y])
    wanted = bce(maps[5][:, 0].numpy(), edges).mean()
    for logits in maps[:5]:
        for z, one in zip(logits[:, 0].numpy(), y, strict=True):
            average = uniform_filter(one, 31, mode="constant")
            weight = 1 + 5 * np.abs(average - one) if weighted else np.ones_like(one)
            p = 1 / (1 + np.exp(-z))
            dice = 1 - (2 * (p * one).sum() + 1e-5) / (p.sum() + one.sum() + 1e-5)
            wanted += 0.5 * ((weight * bce(z, one)).sum() / weight.sum() + dice)
    # A network that is not built: the loss looks at the output alone.
    loss = EANet.own_loss(None, output, target, boundary_weighted=weighted)
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(wanted, rel=1e-10)


def test_own_loss_needs_the_output_of_training_mode():
    logits = torch.zeros(1, 1, 32, 32)
    with pytest.raises(TypeError, match="EANetOutput of training mode, got Tensor"):
        EANet.own_loss(None, logits, logits)


def test_shapes_and_gradients(rng):
    assert_shapes_and_finite(EANet, rng)


def test_eval_mode(rng):
    assert_eval_is_a_function(EANet, rng)


def test_bad_input():
    assert_bad_input_is_named(EANet)


@pytest.mark.slow
def test_overfits_four_phantoms(seed):
    torch.manual_seed(seed)
    assert dice_after_training(EANet(), seed, size=32, steps=300, lr=1e-4) > 0.95
