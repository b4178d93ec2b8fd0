"""Every value of a run, each declared once: the paper's defaults, and the flags."""

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from intrasense_fast.data.images import MAX_PIXELS
from intrasense_fast.data.reading import HELP, options_of
from intrasense_fast.data.torch_dataset import CACHES
from intrasense_fast.data.transforms import AUGMENTATIONS
from intrasense_fast.errors import UsageError
from intrasense_fast.fields import add_flags as add_flags_of
from intrasense_fast.fields import (
    first_fault,
    flag_of,
    option,
    shown,
    type_fault,
)
from intrasense_fast.fields import given as given_of
from intrasense_fast.networks import network_options
from intrasense_fast.networks.options import IN_CHANNELS, NetworkOptions, as_json
from intrasense_fast.precision import BF16, FP16, OFF
from intrasense_fast.training import needs

AMPS = (OFF, BF16, FP16)
LOSSES = ("common", "own")
SCHEDULERS = ("none", "plateau", "cosine", "onecycle")
SUBSETS = ("all", "lesions", "deduplicated", "curated")
PRESETS = ("paper", "cpu-small", "quick")
INTRASENSE = "intrasense"
FILES, TENSORBOARD = "files", "tensorboard"
LOGS = (FILES, TENSORBOARD)
_IMAGE_SIZE = "image_size"
# What may be given beside --resume.
RESUMABLE = ("epochs", "workers", "device", "save_every", "log", "cuda_graph")
# What runs had that began before these options.
_BEFORE: dict[str, Any] = {
    "module_norm": "none",
    "encoder": "resnet50",
    "channels_last": None,
    "network": INTRASENSE,
    "network_options": [],
    "max_pixels": MAX_PIXELS,
    "levels": None,
    "mask_values": None,
    "pairs": None,
    "loss": "common",
    "save_every": None,
    "ema": None,
    "log": FILES,
    "cuda_graph": False,
    "accumulate": 1,
    "sync_batchnorm": True,
}


@dataclass(frozen=True)
class DataConfig:
    """Where the images come from, and which of them train, select and test; `phantom_*` count
    simulated ones, without `data`.
    """

    data: str | None = option(
        None, "folder of a data set in any known layout; without it phantoms are simulated"
    )
    layout: str = option("auto", "how the folder is organised")
    skip_bad: bool = option(False, "leave files out that cannot be used, and list them")
    max_pixels: int = option(MAX_PIXELS, HELP["max_pixels"], metavar="N", shown_default="")
    levels: int | None = option(None, HELP["levels"], metavar="N", shown_default="")
    mask_values: str | None = option(None, HELP["mask_values"], metavar="VALUES", shown_default="")
    pairs: tuple[str, ...] | None = option(
        None, HELP["pairs"], type=str, nargs=2, metavar=("IMAGE", "MASK"), shown_default=""
    )
    subset: str = option(
        "all",
        "which images: all, lesions (no normal images), deduplicated (one of each near-duplicate), "
        "curated (BUSI)",
        choices=SUBSETS,
    )
    splits: str | None = option(
        None, "your own splits.json, or a folder with train.txt, val.txt and test.txt"
    )
    folds: int | None = option(
        None,
        "cross-validation folds; 0 = one split",
        needs.FOLDS,
        shown_default="5 for BUSI, Dataset B, DDTI and BUS-BRA, else 0",
    )
    fold: int | None = option(None, "train this fold only, from 0", needs.FOLD)
    val_fraction: float = option(
        0.2, "share of the training images that select the checkpoint", needs.SHARE
    )
    phantom_train: int = option(600, "simulated images to train", needs.AT_LEAST_1)
    phantom_val: int = option(100, "simulated images to select on", needs.AT_LEAST_1)
    phantom_test: int = option(200, "simulated images to test", needs.AT_LEAST_1)


@dataclass(frozen=True)
class OptimisationConfig:
    """How a network is trained: `size` in pixels, `lr` and `weight_decay` as in
    torch.optim.RMSprop, `patience` in epochs.
    """

    size: int = option(256, "side of the square images in pixels", needs.AT_LEAST_32, needs.SIZE)
    batch_size: int = option(4, "images a step, of all processes together", needs.BATCH)
    accumulate: int = option(
        1,
        "micro-batches of a batch, to save memory; BatchNorm and the Dice loss see one at a time",
        needs.AT_LEAST_1,
        metavar="N",
    )
    sync_batchnorm: bool = option(
        True, "with several processes BatchNorm sees the batch of all, not its own part"
    )
    epochs: int = option(100, "times that every training image is seen", needs.AT_LEAST_1)
    lr: float = option(1e-4, "learning rate of RMSprop", needs.FINITE_POSITIVE)
    momentum: float = option(0.9, "of RMSprop", needs.MOMENTUM)
    weight_decay: float = option(1e-8, "of RMSprop", needs.FINITE_NOT_NEGATIVE)
    scheduler: str = option("none", "of the learning rate", choices=SCHEDULERS)
    clip: float | None = option(
        None, "largest gradient norm, or none", needs.CLIP, shown_default="none"
    )
    patience: int | None = option(
        None,
        "stop after so many epochs without a better Dice, or none",
        needs.PATIENCE,
        shown_default="none",
    )
    ema: float | None = option(
        None,
        "average the weights with this decay a step, such as 0.999: the average is validated and "
        "is best/; or none",
        needs.DECAY,
        metavar="DECAY",
        shown_default="none",
    )
    augment: str = option(
        "paper",
        "paper: flips and rotations; us: no vertical flips, small rotations",
        choices=AUGMENTATIONS,
    )
    amp: str = option(OFF, "automatic mixed precision", choices=AMPS)
    channels_last: bool | None = option(
        None,
        "memory format of the network",
        shown_default="on a GPU, and with --amp bf16 on a CPU",
    )
    fused: bool | None = option(
        None, "Triton kernels or eager operators", shown_default="kernels where they can run"
    )
    cuda_graph: bool = option(
        False,
        "record a training step as CUDA graphs and replay it: the host no longer waits for Python; "
        "needs a GPU, and --amp off or bf16",
    )
    device: str = option("auto", "auto, cpu, cuda, cuda:1 ...")
    workers: int = option(
        0,
        "processes that load images; results do not depend on it",
        needs.WORKERS_AT_LEAST,
        needs.WORKERS,
    )
    save_every: float | None = option(
        None,
        "save within an epoch too, after so many minutes, or none",
        needs.MINUTES,
        metavar="MINUTES",
        shown_default="none",
    )
    log: str = option(
        FILES,
        "files: history.jsonl and metrics.csv; tensorboard: event files beside them",
        choices=LOGS,
    )
    cache: str = option("memory", "keep decoded and resized images", choices=CACHES)
    cache_dir: str | None = option(None, "folder for --cache disk")
    seed: int = option(0, "of everything drawn", needs.SEED)
    loss: str = option(
        "common",
        "common: cross-entropy and Dice on every output; own: what the network's authors train "
        "with",
        choices=LOSSES,
    )
    loss_weights: tuple[float, float, float] = option(
        (1.0, 1.0, 1.0), "of cross-entropy, Dice and auxiliary losses such as L_IW", needs.WEIGHTS
    )


@dataclass(frozen=True)
class NetworkConfig(NetworkOptions):
    """Which network is trained. Options of IntraSense-Net are flags; those of another network are
    pairs NAME=VALUE.
    """

    network: str = option(
        INTRASENSE,
        "a network by name, module:factory of your own, or a library's as monai:DynUNet",
        metavar="NAME",
    )
    network_options: tuple[str, ...] = option(
        (), "options of a network other than intrasense", needs.PAIRS, metavar="NAME=VALUE"
    )
    encoder_weights: str | None = option(
        None, '"imagenet", or a .pth or .safetensors file of the encoder'
    )
    in_channels: int = option(1, "1, or 3 equal channels", IN_CHANNELS)


@dataclass(frozen=True)
class TrainConfig(NetworkConfig, OptimisationConfig, DataConfig):
    """One run: its data, its optimisation and its network, in one flat record, as config.json holds
    it.

    Defaults are the paper's values; where it is silent, those of this package.
    """

    preset: str = option(
        "paper",
        "values for what is not given",
        choices=PRESETS,
        shown_default="paper; cpu-small without --data and a GPU",
    )

    def model_arguments(self) -> dict[str, Any]:
        """The network's arguments without the encoder's weights and `fused`."""
        if self.network == INTRASENSE:
            own = {item.name: getattr(self, item.name) for item in fields(NetworkOptions)}
        else:
            own = dict(map(parsed_pair, self.network_options))
            # Networks of one size are built for the images of the run.
            if _IMAGE_SIZE in (network_options(self.network) or ()):
                own = {_IMAGE_SIZE: self.size, **own}
        return {"in_channels": self.in_channels, **own}

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return as_json(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrainConfig":
        """The run that `as_dict` described, in this version or an earlier one.

        Raises:
            UsageError: a value is missing, unknown or of another type; ranges are left to `check`.
        """
        known = {item.name for item in fields(cls)}
        values = completed(values)
        if set(values) != known:
            odd = ", ".join(sorted(set(values) ^ known))
            raise UsageError(f"was written by another version: unknown or missing values {odd}")
        plain: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        fault = type_fault(cls, plain)
        if fault:
            raise UsageError(f"{fault}; put it right")
        return cls(**plain)


_GROUPS = {
    "data": DataConfig,
    "training": OptimisationConfig,
    "network": NetworkConfig,
}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Every flag of a run, by groups; one that is not given stays None and takes the preset's
    value.
    """
    for title, part in _GROUPS.items():
        add_flags_of(parser.add_argument_group(title), part)
    add_flags_of(parser, TrainConfig, only=("preset",))


def given(args: argparse.Namespace) -> dict[str, Any]:
    """The values of a run that the command line gives."""
    return given_of(TrainConfig, args)


def check(config: TrainConfig, label: Callable[[str], str] = flag_of) -> None:
    """Refuse values outside their range; `label` says where a value came from, by default its flag.

    Raises:
        UsageError: an impossible value.
    """
    options_of(config)
    fault = first_fault(config)
    if fault is None and config.cache == "disk" and config.cache_dir is None:
        fault = "cache_dir", "given with --cache disk"
    if fault is not None:
        name, needed = fault
        raise UsageError(f"{label(name)} must be {needed}, got {shown(getattr(config, name))}")


def completed(values: Mapping[str, Any]) -> dict[str, Any]:
    """A run's values with those of options that did not exist when it began."""
    return {**_BEFORE, **values}


def parsed_pair(pair: str) -> tuple[str, Any]:
    """NAME=VALUE, the value as JSON where it is JSON, else as text."""
    name, _, text = pair.partition("=")
    try:
        return name, json.loads(text)
    except ValueError:
        return name, text
