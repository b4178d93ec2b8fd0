"""What training, checkpoints, prediction and reports may ask of a network, whichever it is.

A network is an `nn.Module` for images (B, in_channels, H, W) in [0, 1] that returns logits (B,
num_classes, H, W) in eval mode. In training mode it returns logits, or a NamedTuple with the field
`logits`, auxiliary losses (scalars, or None, in fields whose names end in `_loss`), and perhaps
`auxiliary_logits`, further heads that learn the same target. Two attributes describe it, and
`build_network` sets those that its class leaves out: `architecture`, its name in the table, and
`config`, the arguments that build it again, as JSON holds them.

It may offer `own_loss(output, target)`, a scalar that its authors train with, from the output of
training mode; `scalars()`, the figures of its last forward for the log; `health(x)`, a record of
how its parts fare; an attribute `fused`, where it has fused operators; and an attribute
`host_work`, the words for what it computes on the host in every training step, which no CUDA graph
can hold.
"""

import contextlib
import threading
import weakref
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from intrasense_fast.networks.health import StrideHealth

_LOSS = "_loss"


class NetworkOutput(NamedTuple):
    """The output in training mode: logits at the input's resolution, and what else is trained.

    Attributes:
        logits: (B, num_classes, H, W), what eval mode returns.
        auxiliary_logits: further logits (B, num_classes, h, w), at the input's or other
            resolutions.
        auxiliary_loss: a scalar to add to the loss, or None.
    """

    logits: Tensor
    auxiliary_logits: tuple[Tensor, ...] = ()
    auxiliary_loss: Tensor | None = None


def check_output(network: str, output: Any) -> None:
    """Raise a TypeError unless output is the `NetworkOutput` of training mode."""
    if not isinstance(output, NetworkOutput):
        raise TypeError(
            f"{network}: own_loss needs the NetworkOutput of training mode, "
            f"got {type(output).__name__}; call net.train() before the forward pass"
        )


class Outcome(NamedTuple):
    """Any network's output in one form.

    Attributes:
        logits: (B, num_classes, H, W).
        heads: further logits (B, num_classes, h, w) that are trained on the same target.
        losses: auxiliary losses by name, scalars.
    """

    logits: Tensor
    heads: tuple[Tensor, ...]
    losses: dict[str, Tensor]


def as_output(output: Any) -> Outcome:
    """Whatever a network of the contract returns, in one form; an `IntraSenseOutput` has the loss
    "whitening".

    Raises:
        TypeError: `output` is no tensor, and no NamedTuple of logits with auxiliary logits or
            losses.
    """
    if isinstance(output, Tensor):
        return Outcome(output, (), {})
    names = [name for name in getattr(output, "_fields", ()) if name.endswith(_LOSS)]
    logits, heads = getattr(output, "logits", None), getattr(output, "auxiliary_logits", ())
    given = {name.removesuffix(_LOSS): getattr(output, name) for name in names}
    losses = {name: loss for name, loss in given.items() if loss is not None}
    are_tensors = all(isinstance(tensor, Tensor) for tensor in (*heads, *losses.values()))
    if not isinstance(logits, Tensor) or not names or not are_tensors:
        raise TypeError(
            "needs a tensor of logits, or the output of a network in training mode: a NamedTuple "
            "of tensors, for "
            "IntraSenseNet the tensors logits and whitening_loss, "
            f"got {type(output).__name__}; for an output without auxiliary losses pass its logits"
        )
    return Outcome(logits, tuple(heads), losses)


def scalars_of(net: nn.Module) -> dict[str, Tensor]:
    """The figures of the last forward that a network has for the log: detached scalars by name;
    often none.
    """
    scalars = getattr(net, "scalars", None)
    return scalars() if callable(scalars) else {}


def health_of(net: nn.Module, x: Tensor) -> dict[int, StrideHealth]:
    """How the parts of a network fare on a batch x, by stride; nothing where it does not say."""
    health = getattr(net, "health", None)
    return health(x) if callable(health) else {}


def set_fused(net: nn.Module, fused: bool | None) -> None:
    """Choose the path of a network's fused operators; a network without any has nothing to
    choose."""
    if hasattr(net, "fused"):
        net.fused = fused  # type: ignore[assignment]


class _Modes:
    """The modes of networks that are being evaluated, for all threads."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        # Network -> how many blocks evaluate it, and the modes of its modules before the first.
        self.held: weakref.WeakKeyDictionary[nn.Module, list[Any]] = weakref.WeakKeyDictionary()


_modes = _Modes()


@contextlib.contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Eval mode while the block runs; afterwards every module is in its own mode again.

    Several threads may be in such blocks of one network: the last one puts the modes back.
    """
    with _modes.lock:
        if net not in _modes.held:
            _modes.held[net] = [0, [(module, module.training) for module in net.modules()]]
            net.eval()
        _modes.held[net][0] += 1
    try:
        yield
    finally:
        with _modes.lock:
            _modes.held[net][0] -= 1
            count, modes = _modes.held[net]
            if not count:
                del _modes.held[net]
                for module, mode in modes:
                    module.training = mode


def config_of(net: nn.Module) -> Mapping[str, Any]:
    """The arguments that build a network again.

    Raises:
        TypeError: it was not built by `build_network`, and its class keeps none.
    """
    config = getattr(net, "config", None)
    if not isinstance(config, Mapping) or not isinstance(getattr(net, "architecture", None), str):
        raise TypeError(
            f"{type(net).__name__}: has no `architecture` and `config`; build it with "
            f"build_network(name, ...)"
        )
    return config
