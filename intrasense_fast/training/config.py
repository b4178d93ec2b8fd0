"""Every value of a run, each declared once: the paper's defaults, the named presets, and the
flags."""

import argparse
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from intrasense_fast.data.images import MAX_PIXELS
from intrasense_fast.data.reading import HELP, options_of
from intrasense_fast.data.torch_dataset import CACHES
from intrasense_fast.data.transforms import AUGMENTATIONS
from intrasense_fast.errors import UsageError
from intrasense_fast.fields import (
    Need,
    first_fault,
    flag_of,
    option,
    shown,
    type_fault,
)
from intrasense_fast.fields import add_flags as add_flags_of
from intrasense_fast.fields import given as given_of
from intrasense_fast.inference import MOST_SIZE
from intrasense_fast.networks import network_options
from intrasense_fast.networks.options import IN_CHANNELS, NetworkOptions, as_json

AMPS = ("off", "bf16", "fp16")
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
MOST_WORKERS, MOST_MINUTES = 256, 60 * 24 * 7

_AT_LEAST_0 = Need(lambda value: value >= 0, "at least 0")
_AT_LEAST_1 = Need(lambda value: value >= 1, "at least 1")
_FINITE_POSITIVE = Need(lambda value: 0 < value < math.inf, "finite and > 0")
_FINITE_NOT_NEGATIVE = Need(lambda value: 0 <= value < math.inf, "finite and >= 0")
_MOMENTUM = Need(lambda value: 0 <= value < 1, "in [0, 1)")
_SHARE = Need(lambda value: 0 < value < 1, "between 0 and 1")
_AT_LEAST_32 = Need(lambda value: value >= 32, f"at least 32 and at most {MOST_SIZE}")
_SIZE = Need(
    lambda value: value <= MOST_SIZE,
    f"at most {MOST_SIZE}: a network takes gigabytes for each image that is larger",
)
_WORKERS_AT_LEAST = Need(lambda value: value >= 0, f"at least 0 and at most {MOST_WORKERS}")
_WORKERS = Need(
    lambda value: value <= MOST_WORKERS,
    f"at most {MOST_WORKERS}: each is a process with its own memory, and systems refuse more",
)
_MINUTES = Need(
    lambda value: value is None or 0 < value <= MOST_MINUTES,
    f"above 0 and at most {MOST_MINUTES} (a week), or none",
)
_BATCH = Need(lambda value: value >= 2, "at least 2 (BatchNorm needs more than one image)")
_FOLDS = Need(lambda value: value is None or value == 0 or value >= 2, "0 or at least 2")
_FOLD = Need(lambda value: value is None or value >= 0, "at least 0")
_CLIP = Need(lambda value: value is None or 0 < value < math.inf, "finite and > 0, or none")
_DECAY = Need(lambda value: value is None or 0 < value < 1, "between 0 and 1, or none")
_PATIENCE = Need(lambda value: value is None or value >= 1, "at least 1, or none")
_SEED = Need(lambda value: 0 <= value < 2**32, "at least 0 and below 2**32")
_WEIGHTS = Need(lambda value: all(0 <= weight < math.inf for weight in value), "finite and >= 0")
_PAIRS = Need(lambda value: all("=" in pair for pair in value), "written NAME=VALUE")


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
        _FOLDS,
        shown_default="5 for BUSI, Dataset B, DDTI and BUS-BRA, else 0",
    )
    fold: int | None = option(None, "train this fold only, from 0", _FOLD)
    val_fraction: float = option(
        0.2, "share of the training images that select the checkpoint", _SHARE
    )
    phantom_train: int = option(600, "simulated images to train", _AT_LEAST_1)
    phantom_val: int = option(100, "simulated images to select on", _AT_LEAST_1)
    phantom_test: int = option(200, "simulated images to test", _AT_LEAST_1)


@dataclass(frozen=True)
class OptimisationConfig:
    """How a network is trained: `size` in pixels, `lr` and `weight_decay` as in
    torch.optim.RMSprop, `patience` in epochs.
    """

    size: int = option(256, "side of the square images in pixels", _AT_LEAST_32, _SIZE)
    batch_size: int = option(4, "images a step, of all processes together", _BATCH)
    accumulate: int = option(
        1,
        "micro-batches of a batch, to save memory; BatchNorm and the Dice loss see one at a time",
        _AT_LEAST_1,
        metavar="N",
    )
    sync_batchnorm: bool = option(
        True, "with several processes BatchNorm sees the batch of all, not its own part"
    )
    epochs: int = option(100, "times that every training image is seen", _AT_LEAST_1)
    lr: float = option(1e-4, "learning rate of RMSprop", _FINITE_POSITIVE)
    momentum: float = option(0.9, "of RMSprop", _MOMENTUM)
    weight_decay: float = option(1e-8, "of RMSprop", _FINITE_NOT_NEGATIVE)
    scheduler: str = option("none", "of the learning rate", choices=SCHEDULERS)
    clip: float | None = option(None, "largest gradient norm, or none", _CLIP, shown_default="none")
    patience: int | None = option(
        None,
        "stop after so many epochs without a better Dice, or none",
        _PATIENCE,
        shown_default="none",
    )
    ema: float | None = option(
        None,
        "average the weights with this decay a step, such as 0.999: the average is validated and "
        "is best/; or none",
        _DECAY,
        metavar="DECAY",
        shown_default="none",
    )
    augment: str = option(
        "paper",
        "paper: flips and rotations; us: no vertical flips, small rotations",
        choices=AUGMENTATIONS,
    )
    amp: str = option("off", "automatic mixed precision", choices=AMPS)
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
        _WORKERS_AT_LEAST,
        _WORKERS,
    )
    save_every: float | None = option(
        None,
        "save within an epoch too, after so many minutes, or none",
        _MINUTES,
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
    seed: int = option(0, "of everything drawn", _SEED)
    loss: str = option(
        "common",
        "common: cross-entropy and Dice on every output; own: what the network's authors train "
        "with",
        choices=LOSSES,
    )
    loss_weights: tuple[float, float, float] = option(
        (1.0, 1.0, 1.0), "of cross-entropy, Dice and auxiliary losses such as L_IW", _WEIGHTS
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
        (), "options of a network other than intrasense", _PAIRS, metavar="NAME=VALUE"
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


_PRESET_VALUES: dict[str, dict[str, Any]] = {
    "paper": {},
    # Trains the whole network within ten minutes on two cores.
    "cpu-small": {
        "size": 96,
        "batch_size": 8,
        "epochs": 8,
        "lr": 1e-3,
        "momentum": 0.0,
        "scheduler": "onecycle",
        "augment": "us",
        "phantom_train": 360,
        "phantom_val": 60,
        "phantom_test": 100,
    },
    # Writes every file within seconds; promises nothing about Dice.
    "quick": {
        "size": 64,
        "batch_size": 4,
        "epochs": 2,
        "lr": 1e-3,
        "momentum": 0.0,
        "scheduler": "onecycle",
        "augment": "us",
        "phantom_train": 16,
        "phantom_val": 6,
        "phantom_test": 8,
    },
}


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


def resolve(given: Mapping[str, Any], *, gpu: bool) -> TrainConfig:
    """The preset's values, replaced by those given, checked.

    Without data and without a GPU (or on the device cpu) the preset is cpu-small.

    Raises:
        UsageError: an impossible value, or an option of another network.
    """
    preset = given.get("preset")
    if preset is None:
        on_gpu = gpu and given.get("device") != "cpu"
        preset = "paper" if given.get("data") or on_gpu else "cpu-small"
    config = TrainConfig(**{**_PRESET_VALUES[preset], **given, "preset": preset})
    check(config)
    _check_network(config, given)
    return config


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


def _check_network(config: TrainConfig, given: Mapping[str, Any]) -> None:
    """Refuse options that the chosen network or its own loss does not have."""
    if config.loss == "own" and "loss_weights" in given:
        raise UsageError("--loss-weights are of the common loss; leave them or --loss own out")
    try:
        known = network_options(config.network)
    except ValueError as error:
        raise UsageError(f"--network {error}") from error
    if config.network == INTRASENSE:
        if config.network_options:
            raise UsageError(
                "--network-options is for other networks; those of intrasense are flags, such as "
                "--window 5"
            )
        return
    foreign = [item.name for item in fields(NetworkOptions) if item.name in given]
    if foreign:
        raise UsageError(
            f"{flag_of(foreign[0])} is an option of the network intrasense; "
            f"give {config.network} its own with --network-options NAME=VALUE"
        )
    if config.encoder_weights and known is not None and "encoder_weights" not in known:
        raise UsageError(f"--encoder-weights: the network {config.network} takes none")


def parsed_pair(pair: str) -> tuple[str, Any]:
    """NAME=VALUE, the value as JSON where it is JSON, else as text."""
    name, _, text = pair.partition("=")
    try:
        return name, json.loads(text)
    except ValueError:
        return name, text
