"""A study: rows of networks, each trained with every seed on every fold of the same images."""

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from intrasense_fast.errors import UsageError
from intrasense_fast.fields import type_fault
from intrasense_fast.networks.options import NetworkOptions
from intrasense_fast.training import config as configuration
from intrasense_fast.training import presets
from intrasense_fast.training.config import INTRASENSE, RESUMABLE, TrainConfig, parsed_pair

COMPARE, ABLATE = "compare", "ablate"
PAPER, OWN = "paper", "own"
RECIPES = (PAPER, OWN)
SCRATCH = "scratch"
BASELINE = "baseline"
# Table 4: both modules off, GCP without and with whitening, CDR, both.
_ABLATION: dict[str, dict[str, Any]] = {
    BASELINE: {"gcp": False, "cdr": False},
    "gcp-dagger": {"gcp": True, "cdr": False, "entropy_normalization": False},
    "gcp": {"gcp": True, "cdr": False},
    "cdr": {"gcp": False, "cdr": True},
    "both": {"gcp": True, "cdr": True},
}
ABLATED = ("gcp", "cdr", "entropy_normalization")
_WEIGHTS = "encoder_weights"


@dataclass(frozen=True)
class Row:
    """A row of the tables: its label, the network and its options, and its encoder's weights.

    Attributes:
        name: the label, safe as the name of a file.
        network: as `build_network` takes it.
        options: the network's own.
        encoder: "scratch", or the file of pretrained weights.
        loss: "common" or "own".
    """

    name: str
    network: str
    options: Mapping[str, Any]
    encoder: str = SCRATCH
    loss: str = "common"

    def config(self, shared: TrainConfig) -> TrainConfig:
        """The values of a run of this row.

        Raises:
            UsageError: an option of IntraSense-Net that there is not, or that cannot be.
        """
        weights = None if self.encoder == SCRATCH else self.encoder
        values: dict[str, Any] = {"network": self.network, "loss": self.loss, _WEIGHTS: weights}
        if self.network == INTRASENSE:
            values |= _options_of_intrasense(self.options)
        else:
            pairs = (f"{name}={json.dumps(value)}" for name, value in self.options.items())
            values["network_options"] = tuple(pairs)
        config = replace(shared, **values)
        configuration.check(config)
        return config


@dataclass(frozen=True)
class Cell:
    """One run of a study."""

    row: Row
    seed: int
    fold: int

    @property
    def name(self) -> str:
        return f"{self.row.name}-s{self.seed}-f{self.fold}"


@dataclass(frozen=True)
class Study:
    """What was asked for; the folds are known once the images are split.

    Attributes:
        kind: "compare" or "ablate".
        recipe: "paper" or "own".
        shared: the values of every run, but for its row, its seed and its fold.
        rows: one a network.
        seeds: of the runs.
        reference: the label of the row that others are compared with.
    """

    kind: str
    recipe: str
    shared: TrainConfig
    rows: tuple[Row, ...]
    seeds: tuple[int, ...]
    reference: str

    def cells(self, folds: int) -> list[Cell]:
        """Every run, rows changing fastest: a study that is stopped early has all of them."""
        return [
            Cell(row, seed, fold)
            for seed in self.seeds
            for fold in range(folds)
            for row in self.rows
        ]

    def record(self) -> dict[str, Any]:
        """What study.json holds of it."""
        rows = [
            {
                "name": row.name,
                "network": row.network,
                "options": dict(row.options),
                "encoder": row.encoder,
                "loss": row.loss,
            }
            for row in self.rows
        ]
        return {
            "kind": self.kind,
            "data": self.shared.data,
            "recipe": self.recipe,
            "rows": rows,
            "seeds": list(self.seeds),
            "reference": self.reference,
            "config": self.shared.as_dict(),
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Study":
        """The study of a study.json.

        Raises:
            UsageError: a value is missing or of another kind.
        """
        try:
            names = [item.name for item in fields(Row)]
            rows = tuple(Row(**{name: row[name] for name in names}) for row in record["rows"])
            return cls(
                record["kind"],
                record["recipe"],
                TrainConfig.from_dict(record["config"]),
                rows,
                tuple(record["seeds"]),
                record["reference"],
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"is damaged, or not the record of a study ({error!r})") from error


def comparison(
    networks: Sequence[str],
    given: Mapping[str, Any],
    *,
    recipe: str,
    seeds: int,
    reference: str | None,
    gpu: bool,
) -> Study:
    """The study of Tables 1 to 3.

    Args:
        networks: each NAME or NAME,OPTION=VALUE,...; the option encoder_weights names a file.
        given: values of `TrainConfig` that all runs share.
        recipe: "paper" = the common loss, "own" = each network's own.
        seeds: how many, from the given seed on.
        reference: a label; None = intrasense where it is compared, else the first.
        gpu: is there one?

    Raises:
        UsageError: an impossible value, or a network named twice.
    """
    rows = tuple(map(_row, networks))
    labels = [row.name for row in rows]
    if len(set(labels)) < len(labels):
        rows = tuple(_row(text, whole=True) for text in networks)
        labels = [row.name for row in rows]
    twice = next((name for name in labels if labels.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"--networks: {twice} is named twice; leave one out, or give it options")
    if reference is None:
        reference = INTRASENSE if INTRASENSE in labels else labels[0]
    elif reference not in labels:
        raise UsageError(f"--reference must be one of {', '.join(labels)}, got {reference}")
    shared = presets.resolve(_with_folds(given), gpu=gpu)
    return Study(COMPARE, recipe, shared, rows, _seeds(shared, seeds), reference)


def ablation(
    given: Mapping[str, Any],
    options: Mapping[str, Any],
    *,
    weights: str | None,
    seeds: int,
    gpu: bool,
) -> Study:
    """The study of Table 4: its five rows, with these options of IntraSense-Net in all of them.

    Args:
        given: values of `TrainConfig` that all runs share.
        options: of IntraSense-Net, but for ABLATED.
        weights: the encoder's weights, or None.
        seeds: how many, from the given seed on.
        gpu: is there one?

    Raises:
        UsageError: an impossible value.
    """
    plain = {
        name: list(value) if isinstance(value, tuple) else value for name, value in options.items()
    }
    encoder = SCRATCH if weights is None else weights
    rows = tuple(Row(name, INTRASENSE, plain | own, encoder) for name, own in _ABLATION.items())
    shared = presets.resolve(_with_folds(given), gpu=gpu)
    return Study(ABLATE, PAPER, shared, rows, _seeds(shared, seeds), BASELINE)


def changes(before: Study, now: Study) -> list[str]:
    """What differs between two studies, a line a value; how they are computed does not count."""
    then, new = before.record(), now.record()
    then_config, new_config = then.pop("config"), new.pop("config")
    free = [name for name in RESUMABLE if name != "epochs"]
    pairs = [(key, then[key], new[key]) for key in new if key not in ("rows", "data")]
    pairs += [(key, then_config[key], new_config[key]) for key in new_config if key not in free]
    lines = [
        f"{key} {json.dumps(old)}, now {json.dumps(value)}"
        for key, old, value in pairs
        if old != value
    ]
    old_rows, rows = ({row["name"]: row for row in each["rows"]} for each in (then, new))
    lines += [f"without {name}" for name in old_rows if name not in rows]
    lines += [f"with {name} new" for name in rows if name not in old_rows]
    both = [name for name in rows if name in old_rows]
    lines += [f"other options of {name}" for name in both if rows[name] != old_rows[name]]
    if not lines and list(rows) != list(old_rows):
        lines.append("another order of networks")
    return lines


def _row(text: str, *, whole: bool = False) -> Row:
    """NAME,OPTION=VALUE,...: values are JSON where they are, else text.

    The label has the factory of module:factory alone, or all of it where it is `whole`.
    """
    network, *pairs = re.split(r",(?=[A-Za-z_]\w*=)", text)
    options = dict(map(parsed_pair, pairs))
    weights = options.pop(_WEIGHTS, None)
    parts = [network if whole else network.rpartition(":")[2]]
    parts += [f"{name}-{value}" for name, value in options.items()]
    parts += [] if weights is None else ["pretrained"]
    label = "-".join(re.sub(r"[^A-Za-z0-9._]+", "-", part).strip("-") for part in parts)
    if not network or not label:
        raise UsageError(f"--networks must be NAME or NAME,OPTION=VALUE, got {text!r}")
    return Row(label, network, options, SCRATCH if weights is None else str(weights))


def _with_folds(given: Mapping[str, Any]) -> dict[str, Any]:
    """Five folds where neither folds nor splits are given: there must be test images."""
    has_splits = given.get("data") is None or given.get("splits") is not None
    return dict(given) if has_splits else {"folds": 5, **given}


def _seeds(shared: TrainConfig, count: int) -> tuple[int, ...]:
    if count < 1:
        raise UsageError(f"--seeds must be at least 1, got {count}")
    return tuple(range(shared.seed, shared.seed + count))


def _options_of_intrasense(options: Mapping[str, Any]) -> dict[str, Any]:
    values = {
        key: tuple(value) if isinstance(value, list) else value for key, value in options.items()
    }
    known = [item.name for item in fields(NetworkOptions)]
    unknown = next((name for name in values if name not in known), None)
    if unknown is not None:
        near = difflib.get_close_matches(unknown, known, 1)
        hint = f", did you mean {near[0]!r}?" if near else f"; it takes {', '.join(known)}"
        raise UsageError(f"{INTRASENSE} has no option {unknown!r}{hint}")
    fault = type_fault(NetworkOptions, values)
    if fault is not None:
        raise UsageError(f"{INTRASENSE}: {fault}")
    return values
