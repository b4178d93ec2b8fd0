"""Every value of a run: the paper's defaults, the named presets, and the command line."""

import argparse
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from types import NoneType, UnionType
from typing import Any, get_args, get_origin

from intrasense_fast.data.torch_dataset import CACHES
from intrasense_fast.data.transforms import AUGMENTATIONS
from intrasense_fast.errors import UsageError
from intrasense_fast.kernels.channel_decoupling.api import SQUEEZES
from intrasense_fast.kernels.entropy_whitening.api import ENTROPY_SCALES
from intrasense_fast.networks.options import MODULE_NORMS, PLACEMENTS, REFINABLE_STRIDES

AMPS = ("off", "bf16", "fp16")
SCHEDULERS = ("none", "plateau", "cosine", "onecycle")
SUBSETS = ("all", "lesions", "deduplicated", "curated")
PRESETS = ("paper", "cpu-small", "quick")
_CHOICES = {
    "subset": SUBSETS,
    "scheduler": SCHEDULERS,
    "augment": AUGMENTATIONS,
    "amp": AMPS,
    "cache": CACHES,
    "placement": PLACEMENTS,
    "entropy_scale": ENTROPY_SCALES,
    "squeeze": SQUEEZES,
    "module_norm": MODULE_NORMS,
    "preset": PRESETS,
}
# What may be given beside --resume.
RESUMABLE = ("epochs", "workers", "device")
# What runs had that began before these options.
_BEFORE: dict[str, Any] = {"module_norm": "none", "channels_last": None}


@dataclass(frozen=True)
class TrainConfig:
    """One run. Defaults are the paper's values; where it is silent, those of equations.md and this package.

    Sizes in pixels, `lr` and `weight_decay` as in torch.optim.RMSprop, `clip` a gradient norm or None, `patience` in epochs
    or None; `phantom_*` are numbers of simulated images, used without `data`.
    """

    data: str | None = None
    layout: str = "auto"
    skip_bad: bool = False
    subset: str = "all"
    splits: str | None = None
    folds: int | None = None
    fold: int | None = None
    val_fraction: float = 0.2
    phantom_train: int = 600
    phantom_val: int = 100
    phantom_test: int = 200
    size: int = 256
    batch_size: int = 4
    epochs: int = 100
    lr: float = 1e-4
    momentum: float = 0.9
    weight_decay: float = 1e-8
    scheduler: str = "none"
    clip: float | None = None
    patience: int | None = None
    augment: str = "paper"
    amp: str = "off"
    channels_last: bool | None = None
    fused: bool | None = None
    device: str = "auto"
    workers: int = 0
    cache: str = "memory"
    cache_dir: str | None = None
    seed: int = 0
    encoder_weights: str | None = None
    loss_weights: tuple[float, float, float] = (1.0, 1.0, 1.0)
    in_channels: int = 1
    gcp: bool = True
    cdr: bool = True
    entropy_normalization: bool = True
    refine_strides: tuple[int, ...] = (8, 16, 32)
    placement: str = "skips"
    entropy_scale: str = "score"
    entropy_threshold: float = 0.5
    window: int = 7
    ridge: float = 10.0
    squeeze: str = "input"
    alpha: float = 0.01
    beta: float = 0.01
    decoder_channels: tuple[int, ...] = (256, 128, 64, 32, 16)
    module_norm: str = "batch"
    preset: str = "paper"

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrainConfig":
        """The run that `as_dict` described.

        Raises:
            UsageError: a value is missing, unknown or of another type; ranges are left to `check`.
        """
        known: dict[str, Any] = {field.name: field.type for field in fields(cls)}
        values = completed(values)
        if set(values) != set(known):
            odd = ", ".join(sorted(set(values) ^ set(known)))
            raise UsageError(f"was written by another version: unknown or missing values {odd}")
        plain: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        for key, value in plain.items():
            if not _fits(value, known[key]):
                raise UsageError(
                    f"{key} must be {_described(known[key])}, got {json.dumps(value)}; put it right"
                )
        return cls(**plain)

    def model_arguments(self) -> dict[str, Any]:
        """The constructor's arguments of IntraSenseNet, without the encoder's weights."""
        names = (
            "in_channels gcp cdr entropy_normalization refine_strides placement entropy_scale entropy_threshold window ridge "
            "squeeze alpha beta decoder_channels module_norm fused"
        )
        return {name: getattr(self, name) for name in names.split()}


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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Every flag of `train`; one that is not given stays None and takes the preset's value."""

    def flag(name: str, kind: Any = None, help: str = "", **options: Any) -> None:
        field = name.strip("-").replace("-", "_")
        default = TrainConfig.__dataclass_fields__[field].default
        note = "" if default is None else f" (default {_shown(default)})"
        if kind is argparse.BooleanOptionalAction:
            options["action"] = kind
        elif kind is not None:
            options["type"] = kind
        if field in _CHOICES:
            options["choices"] = _CHOICES[field]
        group.add_argument(name, default=None, help=help + note, **options)

    group = parser.add_argument_group("data")
    flag(
        "--data", str, "folder of a data set in any known layout; without it phantoms are simulated"
    )
    flag("--layout", str, "how the folder is organised")
    flag(
        "--skip-bad",
        argparse.BooleanOptionalAction,
        "leave files out that cannot be used, and list them",
    )
    flag(
        "--subset",
        str,
        "which images: all, lesions (no normal images), deduplicated (one of each near-duplicate), curated (BUSI)",
    )
    flag("--splits", str, "your own splits.json, or a folder with train.txt, val.txt and test.txt")
    flag(
        "--folds",
        int,
        "cross-validation folds; 0 = one split (default 5 for BUSI, Dataset B, DDTI and BUS-BRA, else 0)",
    )
    flag("--fold", int, "train this fold only, from 0")
    flag("--val-fraction", float, "share of the training images that select the checkpoint")
    for role in ("train", "val", "test"):
        flag(
            f"--phantom-{role}",
            int,
            f"simulated images to {'select on' if role == 'val' else role}",
        )
    group = parser.add_argument_group("training")
    flag("--size", int, "side of the square images in pixels")
    flag("--batch-size", int)
    flag("--epochs", int)
    flag("--lr", float, "learning rate of RMSprop")
    flag("--momentum", float)
    flag("--weight-decay", float)
    flag("--scheduler", str)
    flag("--clip", _optional(float), "largest gradient norm, or none (default none)")
    flag(
        "--patience",
        _optional(int),
        "stop after so many epochs without a better Dice, or none (default none)",
    )
    flag("--augment", str, "paper: flips and rotations; us: no vertical flips, small rotations")
    flag("--loss-weights", float, "of cross-entropy, Dice and L_IW", nargs=3)
    flag("--amp", str, "automatic mixed precision")
    flag(
        "--channels-last",
        argparse.BooleanOptionalAction,
        "memory format of the network (default: on a GPU, and with --amp bf16 on a CPU)",
    )
    flag(
        "--fused",
        argparse.BooleanOptionalAction,
        "Triton kernels or eager operators (default: kernels where they can run)",
    )
    flag("--device", str, "auto, cpu, cuda, cuda:1 ...")
    flag("--workers", int, "processes that load images; results do not depend on it")
    flag("--cache", str, "keep decoded and resized images")
    flag("--cache-dir", str, "folder for --cache disk")
    flag("--seed", int)
    group = parser.add_argument_group("network")
    flag("--encoder-weights", str, '"imagenet", or a .pth or .safetensors file of ResNet-50')
    flag("--in-channels", int, "1, or 3 equal channels")
    flag("--gcp", argparse.BooleanOptionalAction, "global-local collaborative perception")
    flag("--cdr", argparse.BooleanOptionalAction, "channel decoupling and re-weighting")
    flag("--entropy-normalization", argparse.BooleanOptionalAction, "whitening inside GCP")
    flag("--refine-strides", int, "where GCP and CDR act", nargs="*")
    flag("--placement", str)
    flag("--entropy-scale", str)
    flag("--entropy-threshold", float)
    flag("--window", int, "side of the whitening window")
    flag("--ridge", float)
    flag("--squeeze", str)
    flag("--alpha", float)
    flag("--beta", float)
    flag("--decoder-channels", int, nargs=5)
    flag(
        "--module-norm",
        str,
        "normalisation inside GCP and CDR; none: the equations' letter, which does not stay alive",
    )
    parser.add_argument(
        "--preset",
        choices=PRESETS,
        help="values for what is not given (default paper; cpu-small without --data and a GPU)",
    )


def resolve(args: argparse.Namespace, *, gpu: bool) -> TrainConfig:
    """The preset's values, replaced by what the command line gives, checked.

    Without --data and without a GPU (or with --device cpu) the preset is cpu-small; --quick is the preset quick.

    Raises:
        UsageError: an impossible value.
    """
    given = {
        field.name: getattr(args, field.name)
        for field in fields(TrainConfig)
        if getattr(args, field.name, None) is not None
    }
    preset = given.pop("preset", None)
    if getattr(args, "quick", False):
        if preset not in (None, "quick"):
            raise UsageError(f"--quick and --preset {preset} exclude each other")
        preset = "quick"
    if preset is None:
        preset = (
            "paper" if given.get("data") or (gpu and given.get("device") != "cpu") else "cpu-small"
        )
    given = {
        key: tuple(value) if isinstance(value, list) else value for key, value in given.items()
    }
    given = {
        key: None if value == "none" and key in ("clip", "patience") else value
        for key, value in given.items()
    }
    config = replace(TrainConfig(**{**_PRESET_VALUES[preset], **given}), preset=preset)
    check(config)
    return config


def check(config: TrainConfig, label: Callable[[str], str] | None = None) -> None:
    """Refuse values outside their range; `label` says where a value came from, by default its flag.

    Raises:
        UsageError: an impossible value.
    """

    def require(fits: bool, name: str, needed: str) -> None:
        if not fits:
            value = getattr(config, name)
            raise UsageError(f"{(label or flag_of)(name)} must be {needed}, got {_shown(value)}")

    for name, choices in _CHOICES.items():
        require(getattr(config, name) in choices, name, f"one of {', '.join(choices)}")
    require(config.size >= 32, "size", "at least 32")
    for name in ("epochs", "phantom_train", "phantom_val", "phantom_test"):
        require(getattr(config, name) >= 1, name, "at least 1")
    require(
        config.batch_size >= 2, "batch_size", "at least 2 (BatchNorm needs more than one image)"
    )
    for name in ("lr", "ridge"):
        require(0 < getattr(config, name) < math.inf, name, "finite and > 0")
    require(0 <= config.momentum < 1, "momentum", "in [0, 1)")
    require(0 <= config.weight_decay < math.inf, "weight_decay", "finite and >= 0")
    require(0 < config.val_fraction < 1, "val_fraction", "between 0 and 1")
    require(
        config.folds is None or config.folds == 0 or config.folds >= 2, "folds", "0 or at least 2"
    )
    require(config.fold is None or config.fold >= 0, "fold", "at least 0")
    require(config.clip is None or 0 < config.clip < math.inf, "clip", "finite and > 0, or none")
    require(config.patience is None or config.patience >= 1, "patience", "at least 1, or none")
    require(config.workers >= 0, "workers", "at least 0")
    require(0 <= config.seed < 2**32, "seed", "at least 0 and below 2**32")
    require(all(0 <= w < math.inf for w in config.loss_weights), "loss_weights", "finite and >= 0")
    require(config.in_channels in (1, 3), "in_channels", "1 or 3")
    require(
        set(config.refine_strides) <= set(REFINABLE_STRIDES),
        "refine_strides",
        f"some of {_shown(REFINABLE_STRIDES)}",
    )
    require(
        len(set(config.refine_strides)) == len(config.refine_strides),
        "refine_strides",
        "free of duplicates",
    )
    require(0 <= config.entropy_threshold < math.inf, "entropy_threshold", "finite and >= 0")
    require(
        config.window >= 1 and config.window % 2 == 1, "window", "an odd number, such as 3, 5 or 7"
    )
    require(abs(config.alpha) < math.inf, "alpha", "finite")
    require(abs(config.beta) < math.inf, "beta", "finite")
    widths = config.decoder_channels
    require(
        len(widths) == 5 and all(width >= 1 for width in widths),
        "decoder_channels",
        "five numbers >= 1",
    )
    require(
        config.cache != "disk" or config.cache_dir is not None,
        "cache_dir",
        "given with --cache disk",
    )


def completed(values: Mapping[str, Any]) -> dict[str, Any]:
    """A run's values with those of options that did not exist when it began."""
    return {**_BEFORE, **values}


def flag_of(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _fits(value: Any, kind: Any) -> bool:
    """Is a value of the type of its field? An integer is a number too, true and false are none."""
    if isinstance(kind, UnionType):
        return any(_fits(value, each) for each in get_args(kind))
    if get_origin(kind) is tuple:
        items = get_args(kind)
        wanted = (
            items[:1] * len(value) if isinstance(value, tuple) and items[-1] is Ellipsis else items
        )
        return (
            isinstance(value, tuple)
            and len(value) == len(wanted)
            and all(map(_fits, value, wanted))
        )
    return type(value) in ((int, float) if kind is float else (kind,))


def _described(kind: Any) -> str:
    if isinstance(kind, UnionType):
        return " or ".join(map(_described, get_args(kind)))
    if get_origin(kind) is tuple:
        return f"a list, each {_described(get_args(kind)[0])}"
    return {
        int: "an integer",
        float: "a number",
        str: "text",
        bool: "true or false",
        NoneType: "null",
    }[kind]


def _optional(kind: type) -> Any:
    def parse(text: str) -> Any:
        return "none" if text.lower() == "none" else kind(text)

    parse.__name__ = kind.__name__
    return parse


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
