"""The networks that train, predict and evaluate: a table of names, and two ways to one of them.

`build_network` makes a new network by its name, `load_network` reads one from a folder. What both
may be asked is in `contract`. Nothing is imported before it is asked for.
"""

import importlib
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from intrasense_fast.errors import first_line, nearest_of
from intrasense_fast.networks.contract import set_fused
from intrasense_fast.networks.hub import locate, named
from intrasense_fast.networks.libraries import is_library, library_factory
from intrasense_fast.networks.pretrained import CONFIG_FILE, load_folder, read_config, save_network

__all__ = [
    "build_network",
    "list_networks",
    "load_network",
    "network_options",
    "read_config",
    "register_network",
    "save_network",
]

# "module:Class", one line a network.
_NETWORKS = {
    "cmunet": "intrasense_fast.networks.cmunet:CMUNet",
    "eanet": "intrasense_fast.networks.eanet:EANet",
    "ebtnet": "intrasense_fast.networks.ebtnet:EBTNet",
    "emcad": "intrasense_fast.networks.emcad:EMCAD",
    "intrasense": "intrasense_fast.networks.intrasense:IntraSenseNet",
    "microsegnet": "intrasense_fast.networks.microsegnet:MicroSegNet",
    "rolling-unet": "intrasense_fast.networks.rolling_unet:RollingUNet",
    "transunet": "intrasense_fast.networks.transunet:TransUNet",
    "unet": "intrasense_fast.networks.unet:UNet",
    "unet-resnet50": "intrasense_fast.networks.unet_resnet50:UNetResNet50",
}
_registered: dict[str, str] = {}
# Arguments that are no part of what a network is: they are never stored.
_UNSTORED = ("encoder_weights", "fused")


def list_networks() -> list[str]:
    """The names that `build_network` takes, in alphabetical order."""
    return sorted({*_NETWORKS, *_registered})


def register_network(target: str, name: str | None = None) -> str:
    """Add a network from outside this package, so that folders that name it can be loaded: its code
    is trusted.

    Args:
        target: "module:factory", where factory(in_channels, num_classes, **options) makes an
            `nn.Module` of the contract; or a library's network, as for `build_network`.
        name: what it is called; by default `target` itself.

    Returns:
        The name.

    Raises:
        ValueError: there is no such module or factory, or the name is another network's.
    """
    _imported(target)
    chosen = target if name is None else name
    if chosen in _NETWORKS or _registered.get(chosen, target) != target:
        raise ValueError(f"{chosen}: is the name of another network; choose another one")
    _registered[chosen] = target
    return chosen


def build_network(
    name: str, in_channels: int = 1, num_classes: int = 1, **options: Any
) -> nn.Module:
    """A new network by its name.

    Args:
        name: one of `list_networks()`, "module:factory" of a network from outside, or a library's,
            such as "smp:Unet/resnet50", "monai:DynUNet" or "transformers:Segformer".
        in_channels: channels of the images.
        num_classes: channels of the logits.
        options: the network's own.

    Raises:
        ValueError: no such network, an option it does not have, or a value outside its range.
    """
    known = network_options(name)
    unknown = [option for option in options if known is not None and option not in known]
    if unknown:
        raise ValueError(
            f"{name} has no option {unknown[0]!r}{nearest_of(unknown[0], known or ())}; "
            f"it takes {', '.join(known or ()) or 'none'}"
        )
    net = _factory(name)(in_channels=in_channels, num_classes=num_classes, **options)
    if not isinstance(net, nn.Module):
        raise ValueError(f"{name}: made {type(net).__name__}, an nn.Module is needed")
    if not hasattr(net, "config"):
        stored = {key: value for key, value in options.items() if key not in _UNSTORED}
        net.config = {"in_channels": in_channels, "num_classes": num_classes, **stored}  # type: ignore[assignment]
    if not hasattr(net, "architecture"):
        net.architecture = name  # type: ignore[assignment]
    return net


def load_network(
    path: str | os.PathLike[str],
    *,
    fused: bool | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
) -> nn.Module:
    """Load any network from a folder written by `save_network`, or from the Hugging Face Hub, in
    eval mode, on the CPU.

    Code from outside this package is never imported because a file names it: register it first.

    Args:
        path: the folder with config.json and model.safetensors, or "owner/name" on the Hub; a
            folder of that name comes first (extra `hub`; see `hub.locate`).
        fused: for networks that have fused operators, as for `IntraSenseNet`.
        revision: branch, tag or commit on the Hub.
        local_files_only: take it from the Hub's cache alone.

    Raises:
        ValueError: the folder or a file is missing, damaged, or of a network that is not known
            here; or the Hub cannot give it.
    """
    located = locate(path, revision, local_files_only=local_files_only)
    with named(located):
        return _load_folder(located.folder, fused)


def _load_folder(path: Path, fused: bool | None) -> nn.Module:
    architecture = read_config(path)["architecture"]
    if architecture not in list_networks():
        file = os.path.join(path, CONFIG_FILE)
        if ":" in architecture:
            raise ValueError(
                f"{file}: names the network {architecture}, code from outside this package; if you "
                f"trust it, "
                f"give --network {architecture} (in Python: register_network)"
            )
        raise ValueError(f"{file}: {_unknown(architecture)}")
    if architecture == "intrasense":
        from intrasense_fast.networks.intrasense import IntraSenseNet

        return IntraSenseNet.from_pretrained(path, fused=fused)

    def build(arguments: dict[str, Any]) -> nn.Module:
        if stored := [key for key in _UNSTORED if key in arguments]:
            raise TypeError(f"{stored[0]}, which is never stored")
        return build_network(architecture, **arguments)

    net = load_folder(path, build)
    set_fused(net, fused)
    return net


def network_options(name: str) -> list[str] | None:
    """The names of a network's own options; None where it takes any.

    Raises:
        ValueError: no such network.
    """
    parameters = inspect.signature(_factory(name)).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    shared = ("self", "in_channels", "num_classes")
    return [parameter.name for parameter in parameters if parameter.name not in shared]


def _factory(name: str) -> Callable[..., Any]:
    target = _NETWORKS.get(name) or _registered.get(name)
    if target is None and ":" in name:
        target = name
    if target is None:
        raise ValueError(_unknown(name))
    return _imported(target)


def _imported(target: str) -> Callable[..., Any]:
    if is_library(target):
        return library_factory(target)
    module, _, factory = target.partition(":")
    if not module or not factory:
        raise ValueError(f"{target}: must be written module:factory, such as my_networks:MyNet")
    try:
        found = getattr(importlib.import_module(module), factory)
    except ImportError as error:
        raise ValueError(
            f"{target}: cannot be imported ({first_line(error)}); give a module on Python's path"
        ) from error
    except AttributeError as error:
        raise ValueError(f"{target}: the module {module} has no {factory}") from error
    return found


def _unknown(name: str) -> str:
    return (
        f"there is no network {name!r}{nearest_of(name, list_networks())}; "
        f"known: {', '.join(list_networks())}; one of your own is given as module:factory, "
        "one of a library as smp:Unet/resnet50, monai:DynUNet or transformers:Segformer"
    )
