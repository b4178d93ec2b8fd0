"""One network three ways, on the same masks: fused, eager, and eager in float64; and whether fused
is as good as eager."""

import contextlib
import copy
from collections.abc import Callable, Iterator
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

from intrasense_fast import IntraSenseNet
from intrasense_fast.kernels.entropy_whitening import eager
from intrasense_fast.losses import IntraSenseLoss
from tests.proof import budget
from tests.support.networks import set_fused

# A flipped mask changes the gradients of its whole window, so that the eager runs take fused's;
# they must agree beyond this.
CLEAR = 1e-3
WEIGHTS = (1.0, 1.0, 1.0)


class Run(NamedTuple):
    """logits and loss terms; gradients by parameter; masks by stride; scaled entropies by stride
    (eager runs only)."""

    outputs: dict[str, Tensor]
    gradients: dict[str, Tensor]
    masks: dict[int, Tensor]
    entropies: dict[int, Tensor]


@contextlib.contextmanager
def _forced(masks: dict[int, Tensor], entropies: dict[int, Tensor]) -> Iterator[None]:
    """Eager whitening takes `masks`, in the order of the strides, and leaves the entropies it would
    have judged by."""
    original, left = eager.scaled_entropy, iter(masks.items())

    def scaled_entropy(attended: Tensor, scale: str) -> Tensor:
        stride, mask = next(left)
        entropies[stride] = original(attended, scale)
        return torch.where(mask, -1.0, torch.inf)

    eager.scaled_entropy = scaled_entropy
    try:
        yield
    finally:
        eager.scaled_entropy = original


def run(
    net: IntraSenseNet,
    x: Tensor,
    target: Tensor,
    *,
    fused: bool,
    amp: bool,
    masks: dict[int, Tensor] | None = None,
) -> Run:
    """A training step of a copy of `net` without the update. masks: those that eager whitening must
    use."""
    net = set_fused(copy.deepcopy(net), fused).train()
    found: dict[int, Tensor] = {}
    entropies: dict[int, Tensor] = {}
    for stride, gcp in net.gcp.items():
        gcp.register_forward_hook(
            lambda _m, _i, out, stride=stride: found.update({int(stride): out[1]})
        )
    loss = IntraSenseLoss(WEIGHTS, fused=fused)
    with contextlib.ExitStack() as stack:
        if masks is not None:
            stack.enter_context(_forced(masks, entropies))
        stack.enter_context(torch.autocast(x.device.type, torch.bfloat16, enabled=amp))
        output = net(x)
    total = loss(output, target)
    total.backward()
    outputs = {
        "logits": output.logits,
        "total": total,
        "whitening_loss": output.whitening_loss,
        **loss.terms,
    }
    gradients = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    return Run({name: t.detach() for name, t in outputs.items()}, gradients, found, entropies)


def with_even_thresholds(
    draw: Callable[[], tuple[IntraSenseNet, Tensor, Tensor]],
) -> tuple[IntraSenseNet, Tensor, Tensor]:
    """A network, an image and a target by `draw`; half the positions are whitened wherever the
    network normalises.

    Where all entropies that a threshold meets are alike, no mask shows anything: another one is
    drawn. The choice looks at the float64 reference path alone.
    """
    for _ in range(20):
        net, x, target = draw()
        if _even_thresholds(net, x):
            return net, x, target
    raise AssertionError("20 networks in a row have entropies that are all alike")


def _even_thresholds(net: IntraSenseNet, x: Tensor) -> bool:
    """Set every threshold of Eq. 6 to the middle of the entropies that it meets; False where they
    have none."""
    left, original = iter([gcp for gcp in net.gcp.values() if gcp.normalize]), eager.scaled_entropy
    spread = []

    def scaled_entropy(attended: Tensor, scale: str) -> Tensor:
        entropy, gcp = original(attended, scale), next(left)
        # An image whose entropies are all alike has none by this scale.
        ordered = entropy[entropy.isfinite()].sort().values
        middle = len(ordered) // 2
        spread.append(len(ordered) > 1 and bool(ordered[middle - 1] < ordered[middle]))
        if not spread[-1]:
            return entropy
        before, gcp.threshold = gcp.threshold, float(ordered[middle - 1 : middle + 1].mean())
        return entropy - gcp.threshold + before

    eager.scaled_entropy = scaled_entropy
    try:
        with torch.no_grad():
            twin = set_fused(net, False).train()
            state = copy.deepcopy(twin.state_dict())
            twin.double()(x.double())
            net.float().load_state_dict(state)
    finally:
        eager.scaled_entropy = original
    return all(spread)


def assert_equivalent(net: IntraSenseNet, x: Tensor, target: Tensor, *, amp: bool) -> str:
    """Outputs, loss terms and every parameter's gradient of the fused network err at most twice as
    much as eager's.

    An error is relative to the float64 tensor's norm, of gradients to that of all of a module's.
    Eager's error in one small tensor is a matter of luck: its median over all counts too, and so do
    the operators' own bounds in float32, half a rounding in bfloat16. Returns the figures.
    """
    fused = run(net, x, target, fused=True, amp=amp)
    low = run(net, x, target, fused=False, amp=amp, masks=fused.masks)
    truth = run(
        copy.deepcopy(net).double(), x.double(), target, fused=False, amp=False, masks=fused.masks
    )
    _assert_masks(net, fused, low, truth, amp)
    worst = {}
    rounding = torch.finfo(torch.bfloat16).eps / 2
    for part, least in (
        ("outputs", rounding if amp else budget.FORWARD),
        ("gradients", rounding if amp else budget.BACKWARD),
    ):
        actual, eager_, expected = (getattr(r, part) for r in (fused, low, truth))
        assert actual.keys() == eager_.keys() == expected.keys()
        largest = max(t.norm().item() for t in expected.values())
        floor = 1.0 if part == "outputs" else 1e-6 * largest
        for name, t in actual.items():
            budget.check_form(t, eager_[name], name)
            assert t.isfinite().all(), name
        actual, eager_, expected = (
            _joined(tensors) if part == "gradients" else tensors
            for tensors in (actual, eager_, expected)
        )
        errors = {
            n: tuple(budget.error(one[n], expected[n], least=floor) for one in (actual, eager_))
            for n in actual
        }
        usual = median(e for _, e in errors.values())
        for name, (mine, theirs) in errors.items():
            allowed = max(2 * max(theirs, usual), least)
            assert mine <= allowed, (
                f"{name}: error {mine:.2e} > {allowed:.2e}, eager's {theirs:.2e}"
            )
        name = max(errors, key=lambda n: errors[n][0])
        worst[part] = f"{part} {errors[name][0]:.1e} (eager {errors[name][1]:.1e}) at {name}"
    return "; ".join(worst.values())


def _joined(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    """One vector a module: the gradient of a lone bias is a sum that may cancel to nothing but
    rounding."""
    members: dict[str, list[Tensor]] = {}
    for name, t in gradients.items():
        members.setdefault(name.rpartition(".")[0], []).append(t.flatten())
    return {name: torch.cat(tensors) for name, tensors in members.items()}


def _assert_masks(net: IntraSenseNet, fused: Run, low: Run, truth: Run, amp: bool) -> None:
    for stride, entropy in truth.entropies.items():
        threshold = net.gcp[str(stride)].threshold
        wanted, mask = entropy < threshold, fused.masks[stride]
        assert 0 < mask.sum() < mask.numel(), f"stride {stride}: the mask shows nothing"
        flipped = mask != wanted
        if amp:
            theirs = (low.entropies[stride] < threshold) != wanted
            assert flipped.sum() <= 2 * theirs.sum() + max(2, mask.numel() // 20), (
                f"stride {stride}: {int(flipped.sum())} flipped"
            )
        else:
            assert not (flipped & ((entropy - threshold).abs() >= CLEAR)).any(), f"stride {stride}"
