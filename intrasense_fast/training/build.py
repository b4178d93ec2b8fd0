"""The network of a run, and whether it can take the run's images, before anything is written."""

import torch
from torch import nn

from intrasense_fast.errors import UsageError, first_line
from intrasense_fast.networks import build_network
from intrasense_fast.networks.contract import set_fused
from intrasense_fast.networks.encoder_weights import EncoderWeightsError
from intrasense_fast.training.config import INTRASENSE, TrainConfig
from intrasense_fast.training.loss import loss_of


def network_of(config: TrainConfig) -> nn.Module:
    """The run's network with the random weights of its seed, or its encoder's pretrained ones.

    Raises:
        UsageError: an option that the network does not have, or outside its range.
        EncoderWeightsError: the encoder's weights cannot be found or do not fit.
    """
    torch.manual_seed(config.seed)
    try:
        arguments = config.model_arguments()
        if config.encoder_weights is not None:
            arguments["encoder_weights"] = config.encoder_weights
        net = build_network(config.network, **arguments)
    except EncoderWeightsError:
        raise
    except (ValueError, TypeError) as error:
        message = first_line(error)
        is_named = config.network in message or ":" not in config.network
        raise UsageError(message if is_named else f"{config.network}: {message}") from error
    set_fused(net, config.fused)
    return net


def check_network(config: TrainConfig) -> nn.Module:
    """Build the network, look for its loss, and pass one image of the run's size through it.

    On the meta device, which holds no values, unless there are weights to read or the network
    computes something that device cannot.

    Returns:
        The network, for its parameters to be counted; its values may not exist.

    Raises:
        UsageError: it cannot be built, has no such loss, or cannot take the size.
        EncoderWeightsError: the encoder's weights cannot be found or do not fit.
    """
    with torch.device("cpu" if config.encoder_weights else "meta"):
        net = network_of(config)
    loss_of(config, net)
    if config.network == INTRASENSE:
        return net  # takes every size that --size allows
    try:
        _forward(net, config)
    except (ValueError, TypeError) as error:
        raise _refused(config, error) from error
    except Exception:
        _check_for_real(config)
    return net


def _check_for_real(config: TrainConfig) -> None:
    net = network_of(config)
    try:
        _forward(net, config)
    except Exception as error:
        raise _refused(config, error) from error


def _forward(net: nn.Module, config: TrainConfig) -> None:
    tensor = next(net.parameters(), torch.zeros(()))
    image = torch.zeros(1, config.in_channels, config.size, config.size, device=tensor.device)
    net.eval()
    with torch.inference_mode():
        logits = net(image)
    wanted = (1, 1, config.size, config.size)
    if not isinstance(logits, torch.Tensor) or tuple(logits.shape) != wanted:
        shape = getattr(logits, "shape", None)
        came = type(logits).__name__ if shape is None else f"a tensor of shape {tuple(shape)}"
        raise ValueError(f"in eval mode it must return logits of shape {wanted}, got {came}")


def _refused(config: TrainConfig, error: Exception) -> UsageError:
    return UsageError(
        f"the network {config.network} cannot take images of {config.size} x {config.size} "
        f"(--size): {first_line(error)}"
    )
