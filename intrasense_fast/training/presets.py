"""The named presets, and what a run's values are where some are given."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from intrasense_fast.errors import UsageError
from intrasense_fast.fields import flag_of
from intrasense_fast.networks import network_options
from intrasense_fast.networks.options import NetworkOptions
from intrasense_fast.training.config import INTRASENSE, TrainConfig, check

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
