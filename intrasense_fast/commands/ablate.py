"""`intrasense-fast ablate`: the five rows of Table 4, with and without its modules."""

import argparse
from dataclasses import fields

import torch

from intrasense_fast.commands.studies import add_study_arguments, run_study, seeds, shared_values
from intrasense_fast.fields import add_flags
from intrasense_fast.fields import given as given_of
from intrasense_fast.networks.options import NetworkOptions
from intrasense_fast.training.config import NetworkConfig
from intrasense_fast.training.study import ABLATED, Study, ablation

_OPTIONS = tuple(item.name for item in fields(NetworkOptions) if item.name not in ABLATED)
_WEIGHTS = "encoder_weights"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_study_arguments(parser)
    group = parser.add_argument_group("network, the same in all rows")
    add_flags(group, NetworkConfig, only=(*_OPTIONS, _WEIGHTS))


def run(args: argparse.Namespace) -> int:
    """Ablate; 0 when done, 1 where runs failed, 130 or 143 when a signal stopped and saved it.

    Raises:
        UsageError, DataError: bad usage or input.
    """
    return run_study(args, _study, (*_OPTIONS, _WEIGHTS))


def _study(args: argparse.Namespace) -> Study:
    return ablation(
        shared_values(args),
        given_of(NetworkOptions, args),
        weights=args.encoder_weights,
        seeds=seeds(args),
        gpu=torch.cuda.is_available(),
    )
