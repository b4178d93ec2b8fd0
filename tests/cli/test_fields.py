"""An option is declared once: its flag, its error and its place in config.json follow."""

import argparse
import math
from dataclasses import MISSING, dataclass, fields

import numpy as np
import pytest

from intrasense_fast import IntraSenseNet
from intrasense_fast.errors import UsageError
from intrasense_fast.fields import (
    Need,
    add_flags,
    as_flags,
    first_fault,
    given,
    number,
    option,
    plain,
)
from intrasense_fast.networks.options import NetworkOptions
from intrasense_fast.training import config as configuration
from intrasense_fast.training.config import TrainConfig, completed


@dataclass(frozen=True)
class Options:
    """One of each kind."""

    width: int = option(3, "columns", Need(lambda value: value > 0, "positive"))
    share: float | None = option(None, "of something, or none", shown_default="none")
    kind: str = option("round", "form", choices=("round", "square"))
    wide: bool = option(False, "doubled")
    sizes: tuple[int, ...] = option((1, 2), "several")


def parsed(*arguments: str) -> dict[str, object]:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_flags(parser, Options)
    return given(Options, parser.parse_args(list(arguments)))


def test_flags_follow_the_fields() -> None:
    assert parsed() == {}
    flags = "--width 5 --share 0.5 --kind square --wide --sizes 4 5 6".split()
    wanted = {"width": 5, "share": 0.5, "kind": "square", "wide": True, "sizes": (4, 5, 6)}
    assert parsed(*flags) == wanted
    assert parsed("--share", "none", "--no-wide") == {"share": None, "wide": False}
    parser = argparse.ArgumentParser(prog="x")
    add_flags(parser, Options)
    shown = " ".join(parser.format_help().split())
    assert "columns (default 3)" in shown and "several (default 1 2)" in shown
    assert "of something, or none (default none)" in shown and "{round,square}" in shown


def test_the_first_fault_is_told() -> None:
    assert first_fault(Options()) is None
    assert first_fault(Options(width=0, kind="oval")) == ("width", "positive")
    assert first_fault(Options(kind="oval")) == ("kind", "one of round, square")


def test_values_become_plain() -> None:
    assert plain(np.array([1, 2])) == (1, 2) and type(plain(np.int64(3))) is int
    assert plain(np.bool_(True)) is True and plain("text") == "text"
    assert number(10**400) == math.inf and math.isnan(number("10")) and math.isnan(number(True))


def test_every_option_of_the_network_reaches_flag_constructor_and_record() -> None:
    parser = argparse.ArgumentParser()
    configuration.add_flags(parser)
    flags = {action.dest for action in parser._actions}
    record = TrainConfig().as_dict()
    for item in fields(NetworkOptions):
        assert item.metadata["meaning"] and item.name in flags and item.name in record
    with_defaults = IntraSenseNet(refine_strides=(), decoder_channels=(8,) * 5)
    assert set(with_defaults.config) == {
        "in_channels",
        "num_classes",
        *(item.name for item in fields(NetworkOptions)),
    }


def test_old_records_are_read_and_their_runs_stay_what_they_were() -> None:
    new = TrainConfig().as_dict()
    old = {
        key: value
        for key, value in new.items()
        if key not in ("network", "network_options", "module_norm", "channels_last")
    }
    read = TrainConfig.from_dict(old)
    assert (read.network, read.network_options) == ("intrasense", ())
    assert read.module_norm == "none" and read.channels_last is None
    assert completed(old) == read.as_dict()
    assert TrainConfig.from_dict(new) == TrainConfig()
    with pytest.raises(UsageError, match="window must be an integer, got true"):
        TrainConfig.from_dict(new | {"window": True})
    with pytest.raises(UsageError, match="unknown or missing values heads"):
        TrainConfig.from_dict(new | {"heads": 4})


def test_every_value_of_a_run_has_a_default_and_a_flag() -> None:
    parser = argparse.ArgumentParser()
    configuration.add_flags(parser)
    flags = {action.dest for action in parser._actions}
    for item in fields(TrainConfig):
        assert item.default is not MISSING and item.name in flags


def test_values_become_flags_that_give_them_back() -> None:
    values = {
        "data": "-my data",
        "skip_bad": True,
        "gcp": False,
        "clip": None,
        "patience": 3,
        "lr": 2.5e-05,
        "refine_strides": (),
        "decoder_channels": (8, 8, 8, 4, 4),
        "network_options": ("widths=[4, 8]", "size=S"),
        "loss_weights": (1.0, 0.5, 0.0),
        "seed": 2**32 - 1,
    }
    parser = argparse.ArgumentParser()
    configuration.add_flags(parser)
    assert configuration.given(parser.parse_args(as_flags(TrainConfig, values))) == values
