"""Networks of other libraries by name, such as smp:Unet/resnet50, monai:DynUNet and
transformers:Segformer.

A library is imported when one of its networks is asked for, not before. They start from scratch.
"""

import difflib
import importlib
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.functional import interpolate

from intrasense_fast.errors import first_line, nearest_of
from intrasense_fast.networks.contract import NetworkOutput

_SEMANTIC = "ForSemanticSegmentation"


class Library(NamedTuple):
    """A library.

    Attributes:
        module: where its networks are.
        package: what pip installs.
        pattern: how its networks are named here.
    """

    module: str
    package: str
    pattern: str


LIBRARIES = {
    "smp": Library(
        "segmentation_models_pytorch", "segmentation-models-pytorch", "smp:Unet/resnet50"
    ),
    "monai": Library("monai.networks.nets", "monai", "monai:DynUNet"),
    "transformers": Library("transformers", "transformers", "transformers:Segformer"),
}
# What MONAI's constructors require beyond the channels.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "monai:DynUNet": {
        "kernel_size": [3, 3, 3, 3, 3, 3],
        "strides": [1, 2, 2, 2, 2, 2],
        "upsample_kernel_size": [2, 2, 2, 2, 2],
    },
    "monai:UNet": {"channels": [32, 64, 128, 256, 512], "strides": [2, 2, 2, 2]},
    "monai:AttentionUnet": {"channels": [32, 64, 128, 256, 512], "strides": [2, 2, 2, 2]},
}


class LibraryNetwork(nn.Module):
    """A library's network under the contract of this package.

    Its output may be logits (B, K, H, W), an object with `.logits`, a list of logits, or a stack of
    them (B, D, K, H, W) as MONAI's deep supervision returns. The first are the logits, enlarged to
    the image where they are smaller; the others are auxiliary logits of training mode.

    Args:
        name: as `build_network` was given it.
        net: the library's network.
        config: the arguments that build it again.
    """

    def __init__(self, name: str, net: nn.Module, config: dict[str, Any]) -> None:
        super().__init__()
        self.architecture = name
        self.config = config
        self.net = net

    def forward(self, x: Tensor) -> Tensor | NetworkOutput:
        """Logits (B, K, H, W) of images x (B, C, H, W); with further heads in training mode a
        `NetworkOutput`.

        Raises:
            TypeError: the network returns something else.
        """
        logits, *heads = self._heads(self.net(x), x)
        if logits.shape[-2:] != x.shape[-2:]:
            logits = interpolate(logits, x.shape[-2:], mode="bilinear", align_corners=False)
        return NetworkOutput(logits, tuple(heads)) if self.training and heads else logits

    def _heads(self, output: Any, x: Tensor) -> list[Tensor]:
        output = getattr(output, "logits", output)
        heads: list[Any] = [output]
        if isinstance(output, Tensor) and output.dim() == 5:
            heads = list(output.unbind(1))
        elif isinstance(output, (list, tuple)):
            heads = list(output)
        wanted = (len(x), self.config["num_classes"])
        are_logits = (
            isinstance(head, Tensor) and head.dim() == 4 and tuple(head.shape[:2]) == wanted
            for head in heads
        )
        if not heads or not all(are_logits):
            came = ", ".join(map(_described, heads)) or "nothing"
            raise TypeError(
                f"{self.architecture}: needed are logits of shape ({wanted[0]}, {wanted[1]}, H, "
                f"W), alone, as .logits or in a list; it returned {came}; wrap it in a "
                "module:factory of your own"
            )
        return heads


def is_library(name: str) -> bool:
    """Does a network's name say that it comes from a library?"""
    return name.partition(":")[0] in LIBRARIES


def library_factory(name: str) -> Callable[..., LibraryNetwork]:
    """What makes a library's network: a callable (in_channels, num_classes, **options).

    Raises:
        ValueError: the library cannot be imported, or has no such network.
    """
    prefix, _, network = name.partition(":")
    library = LIBRARIES[prefix]
    architecture, _, encoder = network.partition("/")
    if not architecture or (bool(encoder) != (prefix == "smp")):
        raise ValueError(f"{name}: must be written as in {library.pattern}")
    module = _imported(name, library)
    cls = _network_class(name, module, architecture)

    def build(in_channels: int = 1, num_classes: int = 1, **options: Any) -> LibraryNetwork:
        if "encoder_weights" in options:
            raise ValueError(
                f"{name}: encoder_weights are not read into networks of libraries; leave them "
                "out, or load them in a module:factory of your own"
            )
        options = _DEFAULTS.get(f"{prefix}:{cls.__name__}", {}) | options
        try:
            net = _MAKERS[prefix](cls, encoder, in_channels, num_classes, options)
        # A library may raise anything; the line says what it was.
        except Exception as error:
            raise ValueError(f"{name}: cannot be built ({first_line(error)})") from error
        config = {"in_channels": in_channels, "num_classes": num_classes, **options}
        return LibraryNetwork(name, net, config)

    return build


def _imported(name: str, library: Library) -> ModuleType:
    try:
        return importlib.import_module(library.module)
    # A package that is there may fail in any way, as torchvision does beside another torch.
    except Exception as error:
        raise ValueError(
            f"{name}: needs the package {library.package}, which cannot be imported here "
            f"({first_line(error)}); install it with: pip install {library.package}"
        ) from error


def _network_class(name: str, module: ModuleType, architecture: str) -> type[nn.Module]:
    for candidate in (architecture, architecture + _SEMANTIC):
        cls = getattr(module, candidate, None)
        if inspect.isclass(cls) and issubclass(cls, nn.Module):
            return cls
    names = [each for each in dir(module) if each[0].isupper()]
    semantic = [each.removesuffix(_SEMANTIC) for each in names if each.endswith(_SEMANTIC)]
    near = difflib.get_close_matches(architecture, semantic or names, 1, 0.4)
    hint = f", did you mean {near[0]}?" if near else ""
    raise ValueError(f"{name}: {module.__name__} has no network {architecture}{hint}")


def _smp(
    cls: Any, encoder: str, in_channels: int, num_classes: int, options: dict[str, Any]
) -> nn.Module:
    return cls(
        encoder_name=encoder,
        encoder_weights=None,
        in_channels=in_channels,
        classes=num_classes,
        **options,
    )


def _monai(
    cls: Any, _: str, in_channels: int, num_classes: int, options: dict[str, Any]
) -> nn.Module:
    return cls(spatial_dims=2, in_channels=in_channels, out_channels=num_classes, **options)


def _transformers(
    cls: Any, _: str, in_channels: int, num_classes: int, options: dict[str, Any]
) -> nn.Module:
    known = inspect.signature(cls.config_class.__init__).parameters
    # The library itself would keep an option that there is not, and use it for nothing.
    unknown = next((option for option in options if option not in known), None)
    if unknown is not None:
        raise ValueError(f"no option {unknown!r}{nearest_of(unknown, known)}")
    channels = {"num_channels": in_channels} if "num_channels" in known else {}
    return cls(cls.config_class(num_labels=num_classes, **channels, **options))


_MAKERS: dict[str, Callable[..., nn.Module]] = {
    "smp": _smp,
    "monai": _monai,
    "transformers": _transformers,
}


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return type(value).__name__
