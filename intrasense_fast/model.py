"""IntraSense-Net: ResNet-50 encoder, GCP and CDR at the refined strides, U-Net decoder."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from intrasense_fast.decoder import UNetDecoder
from intrasense_fast.encoder import CHANNELS, STRIDES, ResNet50Encoder, load_encoder_weights
from intrasense_fast.errors import first_line
from intrasense_fast.health import StrideHealth
from intrasense_fast.kernels.runtime import fused_status, use_fused
from intrasense_fast.options import checked_fused, checked_options
from intrasense_fast.pretrained import CONFIG_FILE, read_config, read_weights, write_folder
from intrasense_fast.refine import ChannelDecoupling, GlobalLocalPerception, RefinementMaps

Observer = Callable[[int, nn.Module, Tensor], None]

_SMALLEST = 32
_MEAN = {1: (0.449,), 3: (0.485, 0.456, 0.406)}
_STD = {1: (0.226,), 3: (0.229, 0.224, 0.225)}


class IntraSenseOutput(NamedTuple):
    """What the network returns in training mode: logits (B, num_classes, H, W), and L_IW of Eq. 9, a scalar."""

    logits: Tensor
    whitening_loss: Tensor


class OperatorPath(NamedTuple):
    """Which path an operator of the network takes ("fused", "eager" or "unavailable"), and why."""

    path: str
    reason: str


class IntraSenseNet(nn.Module):
    """IntraSense-Net for ultrasound segmentation.

    Input (B, in_channels, H, W), values in [0, 1], H and W at least 32; normalisation and padding to a multiple of 32 happen
    inside. In training mode the network returns an `IntraSenseOutput`, in eval mode the logits (B, num_classes, H, W).

    Args:
        in_channels: 1 or 3.
        num_classes: channels of the logits, one sigmoid each.
        refine_strides: where GCP and CDR act: any of 4, 8, 16, 32, each once; may be empty.
        placement: "skips" = only what the decoder receives is refined; "trunk" = the next encoder stage also continues from it.
        gcp: global-local collaborative perception (Eq. 1-7).
        cdr: channel decoupling and re-weighting (Eq. 8-12), and its loss term.
        entropy_normalization: False = GCP without Eq. 6-7 (Table 4's GCP-dagger).
        entropy_scale: what Eq. 6 compares with its threshold: "score", "relative", "max" or "nats".
        entropy_threshold: tau of Eq. 6, >= 0.
        window: side of the whitening window of Eq. 7 in positions, odd.
        ridge: regularisation of Eq. 8, > 0.
        squeeze: what Eq. 10 averages: "input" or "decoupled".
        alpha: weight of the rank gap in Eq. 9.
        beta: weight of the distance in Eq. 9.
        decoder_channels: output channels of the five decoder blocks, deepest first.
        module_norm: "batch" = GCP and CDR hold the normalisations that keep them alive in training; "none" = the letter of
            Eq. 1, 4 and 11. Checkpoints of before the option load as "none".
        encoder_weights: None, "imagenet", or a .pth / .safetensors file of ResNet-50 weights; see `load_encoder_weights`.
        fused: True = the Triton kernels or a FusedUnavailableError at the call; False = eager; None = the kernels where they
            can run. No parameter depends on it, so that a checkpoint serves both.

    Attributes:
        encoder: the ResNet-50, with torchvision's names.
        masked_fraction: {stride: fraction of positions whitened in the last forward}, detached scalars; NaN after B = 0.
        fused: as the argument; setting it sets every operator of the network.

    Raises:
        ValueError: an argument of another type or outside its range.
        EncoderWeightsError: encoder weights that cannot be found, read or matched.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 1,
        *,
        refine_strides: Sequence[int] = (8, 16, 32),
        placement: str = "skips",
        gcp: bool = True,
        cdr: bool = True,
        entropy_normalization: bool = True,
        entropy_scale: str = "score",
        entropy_threshold: float = 0.5,
        window: int = 7,
        ridge: float = 10.0,
        squeeze: str = "input",
        alpha: float = 0.01,
        beta: float = 0.01,
        decoder_channels: Sequence[int] = (256, 128, 64, 32, 16),
        module_norm: str = "batch",
        encoder_weights: str | os.PathLike[str] | None = None,
        fused: bool | None = None,
    ) -> None:
        super().__init__()
        self.config = config = checked_options(
            in_channels=in_channels,
            num_classes=num_classes,
            refine_strides=refine_strides,
            placement=placement,
            gcp=gcp,
            cdr=cdr,
            entropy_normalization=entropy_normalization,
            entropy_scale=entropy_scale,
            entropy_threshold=entropy_threshold,
            window=window,
            ridge=ridge,
            squeeze=squeeze,
            alpha=alpha,
            beta=beta,
            decoder_channels=decoder_channels,
            module_norm=module_norm,
        )
        self._fused = checked_fused(fused)
        self.placement = config["placement"]
        self.register_buffer(
            "input_mean", torch.tensor(_MEAN[config["in_channels"]]).view(1, -1, 1, 1)
        )
        self.register_buffer(
            "input_std", torch.tensor(_STD[config["in_channels"]]).view(1, -1, 1, 1)
        )
        self.encoder = ResNet50Encoder(config["in_channels"])
        perception = {
            "norm": config["module_norm"],
            "normalize": config["entropy_normalization"],
            "entropy_scale": config["entropy_scale"],
            "threshold": config["entropy_threshold"],
            "window": config["window"],
        }
        decoupling = {name: config[name] for name in ("ridge", "squeeze", "alpha", "beta")}
        decoupling["norm"] = config["module_norm"]
        self.gcp = nn.ModuleDict()
        self.cdr = nn.ModuleDict()
        for stride in sorted(config["refine_strides"]):
            channels = CHANNELS[STRIDES.index(stride)]
            if config["gcp"]:
                self.gcp[str(stride)] = GlobalLocalPerception(
                    channels, fused=self._fused, **perception
                )
            if config["cdr"]:
                self.cdr[str(stride)] = ChannelDecoupling(channels, fused=self._fused, **decoupling)
        self.decoder = UNetDecoder(config["num_classes"], config["decoder_channels"])
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
            x: (B, in_channels, H, W), floating point, values in [0, 1], H and W >= 32; cast to the network's dtype.

        Returns:
            IntraSenseOutput(logits, whitening_loss) in training mode, logits (B, num_classes, H, W) in eval mode.

        Raises:
            TypeError: x is no tensor.
            ValueError: another shape or dtype; or training on one image whose deepest map is a single position.
            FusedUnavailableError: fused=True where the kernels cannot run; the network is as it was.
        """
        height, width = self._check_input(x)
        maps, losses = self._refined_maps(self._normalized(x))
        logits = self.decoder(maps)[..., :height, :width]
        if not self.training:
            return logits
        zero = logits.new_zeros((), dtype=torch.promote_types(logits.dtype, torch.float32))
        return IntraSenseOutput(logits, sum(losses, zero) / max(1, len(losses)))

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
                    f"IntraSenseNet: position ({row}, {column}) lies outside an image of {height} x {width}"
                )
        maps: dict[int, RefinementMaps] = {}

        def record(stride: int, module: nn.Module, features: Tensor) -> None:
            if isinstance(module, GlobalLocalPerception):
                places = [(row // stride, column // stride) for row, column in positions]
                maps[stride] = module.maps(features, places)

        self._observe(x, record)
        return maps

    def health(self, x: Tensor) -> dict[int, StrideHealth]:
        """Whether GCP and CDR are alive at each refined stride: {stride: numbers}; `faults()` of each says it in words.

        Runs in eval mode and leaves the network as it was. A batch of 8 different images tells most.

        Args:
            x: as for the network; padded positions are included.
        """
        numbers: dict[int, dict[str, float]] = {}

        def record(stride: int, module: nn.Module, features: Tensor) -> None:
            numbers.setdefault(stride, {}).update(module.health(features))  # type: ignore[operator]

        self._observe(x, record)
        return {stride: StrideHealth(**values) for stride, values in numbers.items()}

    def fused_report(self) -> dict[str, OperatorPath]:
        """Which path each operator of this network takes on the device and in the dtype its parameters now have, and why."""
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
        """Write `config.json` and `model.safetensors` into a folder: both, or neither if something cannot be written.

        Args:
            path: the folder; created if missing.
            extra: more JSON values for config.json, beside the network's own, for instance {"image_size": 256}.
            overwrite: replace a network already there.

        Raises:
            FileExistsError: the folder holds a network and `overwrite` is False.
            TypeError: `extra` holds what JSON cannot.
            ValueError: a tensor of the network is of a dtype that no layer computes in, such as an 8-bit float.
        """
        write_folder(path, self.config, self.state_dict(), extra, overwrite=overwrite)

    @classmethod
    def from_pretrained(
        cls, path: str | os.PathLike[str], *, fused: bool | None = None
    ) -> "IntraSenseNet":
        """Load a network from a folder written by `save_pretrained`, in eval mode, on the CPU. Nothing is downloaded.

        Args:
            path: the folder with config.json and model.safetensors.
            fused: as for the constructor; it is never stored.

        Raises:
            ValueError: the folder or a file is missing, damaged, or of another network.
        """
        file = Path(path) / CONFIG_FILE
        # Networks that were saved before the option had no normalisations.
        arguments = {"module_norm": "none"} | read_config(path)["arguments"]
        fused = checked_fused(fused)
        try:
            if "encoder_weights" in arguments:
                raise TypeError("encoder_weights, which is never stored")
            with torch.device("meta"):
                net = cls(**arguments, fused=fused)
        except TypeError as error:
            raise ValueError(
                f"{file}: arguments this version does not know ({first_line(error)}); update this package or copy it again"
            ) from error
        except (ValueError, RuntimeError, OverflowError) as error:
            raise ValueError(
                f"{file}: describes no network that can be built ({first_line(error)}); copy the checkpoint again"
            ) from error
        weights = read_weights(path, net.state_dict())
        # Tensors inside the file are not aligned, and other alignments choose other CPU kernels with other last bits.
        net.load_state_dict({key: value.clone() for key, value in weights.items()}, assign=True)
        return net.eval()

    @torch.no_grad()
    def _observe(self, x: Tensor, observer: Observer) -> None:
        """Show `observer` every module of the refined strides with its input, in eval mode."""
        modes = [(module, module.training) for module in self.modules()]
        try:
            self.eval()
            self._check_input(x)
            self._refined_maps(self._normalized(x), observer)
        finally:
            for module, mode in modes:
                module.training = mode

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
                refined, loss = self.cdr[str(stride)](refined)
                losses.append(loss)
            maps.append(refined)
            if self.placement == "trunk":
                x = refined
        if observer is None and not torch.compiler.is_exporting():
            self.masked_fraction = fractions
        return maps, losses

    def _refinements(self) -> list[nn.Module]:
        return [*self.gcp.values(), *self.cdr.values()]

    def _learns_at_the_deepest(self) -> bool:
        """Does a BatchNorm at stride 32 take its statistics from the batch?"""
        deepest = [self.encoder.layer4]
        if "32" in self.gcp:
            deepest.append(self.gcp["32"])
        norms = [m for module in deepest for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
        return any(norm.training for norm in norms)

    def _normalized(self, x: Tensor) -> Tensor:
        x = x.to(self.input_mean.dtype)  # type: ignore[arg-type]
        height, width = x.shape[-2:]
        # No remainder of a negative number: torch.compile cannot take it into a graph of any size.
        right, below = (
            (side + STRIDES[-1] - 1) // STRIDES[-1] * STRIDES[-1] - side for side in (width, height)
        )
        # Not torch's replicate padding: where algorithms must be deterministic, torch.compile of 2.11 cannot trace that.
        x = torch.cat((x, x[..., -1:].expand(*x.shape[:-1], right)), -1)
        x = torch.cat((x, x[..., -1:, :].expand(*x.shape[:-2], below, x.shape[-1])), -2)
        return (x - self.input_mean) / self.input_std  # type: ignore[operator]

    def _check_input(self, x: Tensor) -> tuple[int, int]:
        channels = self.config["in_channels"]
        if not isinstance(x, Tensor):
            raise TypeError(
                f"IntraSenseNet: x must be a tensor, got {type(x).__name__}; use torch.as_tensor"
            )
        if x.dim() != 4 or x.shape[1] != channels:
            raise ValueError(
                f"IntraSenseNet: needs x of shape (B, {channels}, H, W), got {tuple(x.shape)}"
            )
        if not x.dtype.is_floating_point:
            raise ValueError(
                f"IntraSenseNet: needs floating-point x in [0, 1], got {x.dtype}; divide 8-bit images by 255"
            )
        batch, _, height, width = x.shape
        if height < _SMALLEST or width < _SMALLEST:
            raise ValueError(
                f"IntraSenseNet: needs H and W >= {_SMALLEST}, got {height} x {width}; enlarge or pad the images"
            )
        alone = batch == 1 and max(height, width) <= STRIDES[-1]
        if alone and self._learns_at_the_deepest():
            raise ValueError(
                f"IntraSenseNet: training on one image of {height} x {width} leaves BatchNorm a single "
                "position at stride 32; use a larger batch or larger images, or freeze the BatchNorms "
                "there with net.encoder.eval() and net.gcp.eval()"
            )
        return height, width
