"""Inputs and comparisons shared by the tests of channel_decoupling."""

import torch

from intrasense_fast.functional import channel_decoupling
from intrasense_fast.kernels.channel_decoupling.eager import eager
from intrasense_fast.kernels.channel_decoupling.reference import channel_decoupling as reference
from tests.proof import budget

OUTPUTS = ("reweighted", "rank_gap", "distance")
INPUTS = ("d_features", "d_reduce_weight", "d_reduce_bias", "d_expand_weight", "d_expand_bias")
SQUEEZES = ("input", "decoupled")


def mlp(channels, reduced, rng, device, dtype=torch.float32):
    shapes = ((reduced, channels), (reduced,), (channels, reduced), (channels,))
    return [
        (torch.randn(shape, generator=rng) / shape[-1] ** 0.5).to(device, dtype) for shape in shapes
    ]


def tensors(shape, rng, device, dtype=torch.float32, reduced=3, mean=0.5):
    """The operator's five tensors; the MLP's are float32, or float64 for a float64 map."""
    weights = torch.float64 if dtype == torch.float64 else torch.float32
    features = (torch.randn(shape, generator=rng) + mean).to(device, dtype)
    return [features, *mlp(shape[1], reduced, rng, device, weights)]


def gradients(inputs, rng):
    batch = inputs[0].shape[0]
    return [
        torch.randn(shape, generator=rng).to(inputs[0])
        for shape in (inputs[0].shape, (batch,), (batch,))
    ]


def with_gradients(function, inputs, grads, **options):
    inputs = [t.detach().requires_grad_() for t in inputs]
    outputs = function(*inputs, **options)
    return outputs, torch.autograd.grad(
        outputs, inputs, [g.to(o.dtype) for g, o in zip(grads, outputs, strict=True)]
    )


def three(inputs, grads, ridge=10.0, squeeze="input"):
    """(outputs, gradients) of the kernels, of eager in the same dtype, of float64's reference."""
    options = {"ridge": ridge, "squeeze": squeeze}
    return (
        with_gradients(channel_decoupling, inputs, grads, fused=True, **options),
        with_gradients(eager, inputs, grads, **options),
        with_gradients(reference, [t.double() for t in inputs], grads, **options),
    )


def compare(inputs, rng, *, grads=None, **options):
    """Fused against float64 within the dtype's budget; a gradient also beside the largest one."""
    grads = gradients(inputs, rng) if grads is None else grads
    fused, low, truth = three(inputs, grads, **options)
    dtype = inputs[0].dtype
    for name, actual, plain, expected in zip(OUTPUTS, fused[0], low[0], truth[0], strict=True):
        scale = inputs[0] if name == "reweighted" else None
        if dtype.itemsize == 2 and name == "reweighted":
            budget.assert_within_budget(actual, plain, expected, name, scale=scale)
        else:
            bound = (
                budget.FLOAT64 if dtype == torch.float64 else 5e-6 if name == "reweighted" else 1e-5
            )
            budget.assert_close(
                actual, expected, bound, name, scale=scale, absolute=name != "reweighted"
            )
    least = 1e-2 * max(g.norm().item() for g in truth[1])
    for name, actual, plain, expected in zip(INPUTS, fused[1], low[1], truth[1], strict=True):
        if actual.dtype.itemsize == 2:
            budget.assert_within_budget(actual, plain, expected, name)
        else:
            bound = 1e-9 if dtype == torch.float64 else 1e-4 if name == "d_features" else 5e-4
            budget.assert_close(actual, expected, bound, name, least=least)
