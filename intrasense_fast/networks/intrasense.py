"""IntraSense-Net: ResNet encoder, GCP and CDR at the refined strides, U-Net decoder."""

import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from intrasense_fast.kernels.runtime import exporting, fused_status, transforming, use_fused
from intrasense_fast.networks.contract import evaluating
from intrasense_fast.networks.decoder import UNetDecoder
from intrasense_fast.networks.encoder import STRIDES, ResNetEncoder
from intrasense_fast.networks.encoder_weights import load_encoder_weights
from intrasense_fast.networks.health import StrideHealth
from intrasense_fast.networks.hub import locate, named, push_network
from intrasense_fast.networks.images import ResNetImages, cropped
from intrasense_fast.networks.options import (
    NetworkOptions,
    as_json,
    checked_channels,
    checked_fused,
    checked_options,
)
from intrasense_fast.networks.pretrained import load_folder, save_network
from intrasense_fast.networks.refine import ChannelDecoupling, GlobalLocalPerception, RefinementMaps

Observer = Callable[[int, nn.Module, Tensor], None]


class IntraSenseOutput(NamedTuple):
    """What the network returns in training mode: logits (B, num_classes, H, W), and L_IW of Eq. 9,
    a scalar."""

    logits: Tensor
    whitening_loss: Tensor


class OperatorPath(NamedTuple):
    """Which path an operator of the network takes ("fused", "eager" or "unavailable"), and why."""

    path: str
    reason: str


class IntraSenseNet(ResNetImages):
    """IntraSense-Net for ultrasound segmentation.

    Input (B, in_channels, H, W), values in [0, 1], H and W at least 32; normalisation and padding
    to a multiple of 32 happen inside. In training mode the network returns an `IntraSenseOutput`,
    in eval mode the logits (B, num_classes, H, W).

    Args:
        in_channels: 1 or 3.
        num_classes: channels of the logits, one sigmoid each.
        options: the fields of `NetworkOptions`, by keyword; each says there what it means and may
            be.
        encoder_weights: None, "imagenet", or a .pth / .safetensors file of the encoder's weights;
            see `load_encoder_weights`.
        fused: True = the Triton kernels or a FusedUnavailableError at the call; False = eager; None
            = the kernels where they can run. No parameter depends on it, so that a checkpoint
            serves both.

    Attributes:
        encoder: the ResNet, with torchvision's names.
        masked_fraction: {stride: fraction of positions whitened in the last forward}, detached
            scalars; NaN after B = 0.
        fused: as the argument; setting it sets every operator of the network.

    Raises:
        TypeError: an option that there is not.
        ValueError: an argument of another type or outside its range.
        EncoderWeightsError: encoder weights that cannot be found, read or matched.
    """

    architecture = "intrasense"
    freezing = "net.encoder.eval() and net.gcp.eval()"

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 1,
        *,
        encoder_weights: str | os.PathLike[str] | None = None,
        fused: bool | None = None,
        **options: Any,
    ) -> None:
        channels, classes = checked_channels("IntraSenseNet", in_channels, num_classes)
        chosen: NetworkOptions = checked_options("IntraSenseNet", options)
        super().__init__(channels)
        self.config = {
            "in_channels": channels,
            "num_classes": classes,
            **as_json(chosen),
        }
        self._fused = checked_fused(fused)
        self.placement = chosen.placement
        self.encoder = ResNetEncoder(channels, chosen.encoder)
        perception = {
            "norm": chosen.module_norm,
            "normalize": chosen.entropy_normalization,
            "entropy_scale": chosen.entropy_scale,
            "threshold": chosen.entropy_threshold,
            "window": chosen.window,
            "fused": self._fused,
        }
        decoupling = {
            "norm": chosen.module_norm,
            "ridge": chosen.ridge,
            "squeeze": chosen.squeeze,
            "alpha": chosen.alpha,
            "beta": chosen.beta,
            "fused": self._fused,
        }
        self.gcp = nn.ModuleDict()
        self.cdr = nn.ModuleDict()
        widths = dict(zip(STRIDES, self.encoder.layout.channels, strict=True))
        for stride in sorted(chosen.refine_strides):
            width = widths[stride]
            if chosen.gcp:
                self.gcp[str(stride)] = GlobalLocalPerception(width, **perception)  # type: ignore[arg-type]
            if chosen.cdr:
                self.cdr[str(stride)] = ChannelDecoupling(width, **decoupling)  # type: ignore[arg-type]
        self.decoder = UNetDecoder(classes, chosen.decoder_channels, self.encoder.layout.channels)
        self.masked_fraction: dict[int, Tensor] = {}
        if encoder_weights is not None:
            load_encoder_weights(self.encoder, encoder_weights)

    @property
    def fused(self) -> bool | None:
        return self._fused

    @fused.setter
    def fused(self, fused: bool | None) -> None:
        self._fused = checked_fused(fused)
        for module in self._refinements():
            module.fused = self._fused  # type: ignore[assignment]

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Networks that were pickled before `fused` was a property hold it as an attribute.
        super().__setstate__({"_fused": state.get("fused"), **state})

    def forward(self, x: Tensor) -> IntraSenseOutput | Tensor:
        """Segment a batch.

        Args:
            x: (B, in_channels, H, W), floating point, values in [0, 1], H and W >= 32; cast to the
                network's dtype.

        Returns:
            IntraSenseOutput(logits, whitening_loss) in training mode, logits (B, num_classes, H, W)
            in eval mode.

        Raises:
            TypeError: x is no tensor.
            ValueError: another shape or dtype; or training on one image whose deepest map is a
                single position.
            FusedUnavailableError: fused=True where the kernels cannot run; the network is as it
                was.
        """
        height, width = self._check_input(x)
        maps, losses = self._refined_maps(self._normalized(x))
        logits = cropped(self.decoder(maps), height, width)
        if not self.training:
            return logits
        zero = logits.new_zeros((), dtype=torch.promote_types(logits.dtype, torch.float32))
        return IntraSenseOutput(logits, sum(losses, zero) / max(1, len(losses)))

    def scalars(self) -> dict[str, Tensor]:
        """For the log of a run: "masked_fraction_STRIDE" of every refined stride with GCP, of the
        last forward."""
        return {
            f"masked_fraction_{stride}": value for stride, value in self.masked_fraction.items()
        }

    def diagnose(
        self, x: Tensor, positions: Sequence[tuple[int, int]] = ()
    ) -> dict[int, RefinementMaps]:
        """What GCP sees at each refined stride: {stride: maps}, each (B, H / stride, W / stride).

        Runs in eval mode and leaves the network's mode and `masked_fraction` as they were.

        Args:
            x: as for the network; padded positions are included.
            positions: (row, column) in pixels of x whose rows of attention (Eq. 2) are wanted.

        Raises:
            ValueError: a position outside x.
        """
        height, width = self._check_input(x)
        for row, column in positions:
            if not (0 <= row < height and 0 <= column < width):
                raise ValueError(
                    f"IntraSenseNet: position ({row}, {column}) lies outside an image of {height} "
                    f"x {width}"
                )
        maps: dict[int, RefinementMaps] = {}

        def record(stride: int, module: nn.Module, features: Tensor) -> None:
            if isinstance(module, GlobalLocalPerception):
                places = [(row // stride, column // stride) for row, column in positions]
                maps[stride] = module.maps(features, places)

        self._observe(x, record)
        return maps

    def health(self, x: Tensor) -> dict[int, StrideHealth]:
        """Whether GCP and CDR are alive at each refined stride: {stride: numbers}; `faults()` of
        each says it in words.

        Runs in eval mode and leaves the network as it was. A batch of 8 different images tells
        most.

        Args:
            x: as for the network; padded positions are included.
        """
        numbers: dict[int, dict[str, float]] = {}

        def record(stride: int, module: nn.Module, features: Tensor) -> None:
            numbers.setdefault(stride, {}).update(module.health(features))  # type: ignore[operator]

        self._observe(x, record)
        return {stride: StrideHealth(**values) for stride, values in numbers.items()}

    def fused_report(self) -> dict[str, OperatorPath]:
        """Which path each operator of this network takes on the device and in the dtype its
        parameters now have, and why."""
        status = fused_status(self.input_mean)  # type: ignore[arg-type]
        operators = ["nonlocal_attention", "entropy_whitening"] if len(self.gcp) else []
        operators += ["channel_decoupling"] if len(self.cdr) else []
        if self.fused is False:
            path, reason = "eager", "fused=False was asked for"
        elif self.fused:
            path, reason = ("fused" if status.available else "unavailable"), status.reason
        elif status.available and self.input_mean.device.type != "cuda":
            path, reason = (
                "eager",
                f"fused=None stays eager on a CPU; fused=True would use the {status.reason}",
            )
        else:
            path, reason = ("fused" if status.available else "eager"), status.reason
        return dict.fromkeys(operators, OperatorPath(path, reason))

    def save_pretrained(
        self,
        path: str | os.PathLike[str],
        extra: dict[str, Any] | None = None,
        *,
        overwrite: bool = False,
    ) -> None:
        """Write `config.json` and `model.safetensors` into a folder, both, or neither if something
        cannot be written; then README.md, a minimal model card. A README.md that is not ours is
        kept, with a warning.

        Args:
            path: the folder; created if missing.
            extra: more JSON values for config.json, beside the network's own, for instance
                {"image_size": 256}.
            overwrite: replace a network already there.

        Raises:
            FileExistsError: the folder holds a network and `overwrite` is False.
            TypeError: `extra` holds what JSON cannot.
            ValueError: a tensor of the network is of a dtype that no layer computes in, such as an
                8-bit float.
        """
        save_network(self, path, extra, overwrite=overwrite, card=True)

    def push_to_hub(
        self,
        repository: str,
        extra: dict[str, Any] | None = None,
        *,
        revision: str | None = None,
        private: bool | None = None,
        message: str = "Upload of IntraSense-Net",
    ) -> str:
        """Upload the network with a minimal card to the Hugging Face Hub (extra `hub`).

        The checkpoint of a run goes there with its own card, checksums and self-test through
        `networks.hub.push_checkpoint("RUN/best", repository)`.

        Args:
            repository: "owner/name"; made if missing.
            extra: as in `save_pretrained`.
            revision: branch to write to; None = the main branch.
            private: whether a repository that is made is private; None = as the owner's default.
            message: of the commit.

        Returns:
            The address of the commit.

        Raises:
            ValueError: no such name, no permission, no way there, or huggingface_hub is missing.
        """
        return push_network(
            self, repository, extra, revision=revision, private=private, message=message
        )

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        *,
        fused: bool | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
    ) -> "IntraSenseNet":
        """Load a network from a folder written by `save_pretrained`, or from the Hugging Face Hub
        (extra `hub`), in eval mode, on the CPU. Of a folder nothing is downloaded.

        Args:
            path: the folder with config.json and model.safetensors, or "owner/name" on the Hub; a
                folder of that name comes first.
            fused: as for the constructor; it is never stored.
            revision: branch, tag or commit on the Hub; None = the main branch.
            local_files_only: take it from the Hub's cache alone, as HF_HUB_OFFLINE=1 does.

        Raises:
            ValueError: the folder or a file is missing, damaged, or of another network; or the Hub
                cannot give it.
        """
        fused = checked_fused(fused)

        def build(arguments: dict[str, Any]) -> "IntraSenseNet":
            if "encoder_weights" in arguments or "fused" in arguments:
                raise TypeError("encoder_weights and fused are never stored")
            return cls(**completed_arguments(arguments), fused=fused)

        located = locate(path, revision, local_files_only=local_files_only)
        with named(located):
            return load_folder(located.folder, build, only=cls.architecture)

    @torch.no_grad()
    def _observe(self, x: Tensor, observer: Observer) -> None:
        """Show `observer` every module of the refined strides with its input, in eval mode."""
        with evaluating(self):
            self._check_input(x)
            self._refined_maps(self._normalized(x), observer)

    def _refined_maps(
        self, x: Tensor, observer: Observer | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        if self._refinements():
            # Before the encoder: its BatchNorm learns from every image that it sees.
            use_fused(self.fused, x, "IntraSenseNet")
        maps, losses, fractions = [], [], {}
        for stride in STRIDES:
            x = self.encoder.stage(stride, x)
            refined = x
            if str(stride) in self.gcp:
                perception: GlobalLocalPerception = self.gcp[str(stride)]  # type: ignore[assignment]
                refined, mask = perception(x)
                fractions[stride] = mask.float().mean()
                if observer is not None:
                    observer(stride, perception, x)
            if str(stride) in self.cdr:
                if observer is not None:
                    observer(stride, self.cdr[str(stride)], refined)
                refined, loss = self.cdr[str(stride)](refined, terms=self.training)
                losses.append(loss)
            maps.append(refined)
            if self.placement == "trunk":
                x = refined
        recorded = torch.compiler.is_exporting() or exporting() or transforming()
        if observer is None and not recorded:
            self.masked_fraction = fractions
        return maps, losses

    def _refinements(self) -> list[nn.Module]:
        return [*self.gcp.values(), *self.cdr.values()]

    def _at_the_deepest(self) -> list[nn.Module]:
        return [*super()._at_the_deepest(), *([self.gcp["32"]] if "32" in self.gcp else [])]


def completed_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    """Stored arguments with those of options that did not exist when they were stored."""
    return {"module_norm": "none", "encoder": "resnet50"} | arguments


def _signature() -> inspect.Signature:
    """The constructor's signature with every option spelt out, for `help` and for editors."""
    written = inspect.signature(IntraSenseNet.__init__)
    parameters = [p for p in written.parameters.values() if p.kind is not p.VAR_KEYWORD]
    first = [p for p in parameters if p.kind is not p.KEYWORD_ONLY]
    last = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
    options = [
        inspect.Parameter(
            item.name, inspect.Parameter.KEYWORD_ONLY, default=item.default, annotation=item.type
        )
        for item in fields(NetworkOptions)
    ]
    return written.replace(parameters=[*first, *options, *last])


IntraSenseNet.__init__.__signature__ = _signature()  # type: ignore[attr-defined]
