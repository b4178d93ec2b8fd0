"""Options that are declared once: a dataclass field that carries its meaning, its check and how its
flag looks.

Constructors, config.json, the flags of the command line and their errors are made from the fields
alone.
"""

import argparse
import json
import math
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from types import NoneType, UnionType
from typing import Any, get_args, get_origin

import numpy as np
from torch import Tensor

LARGEST_COUNT = 2**31


@dataclass(frozen=True)
class Need:
    """What a value must be: a test of the plain value, and the words for an error."""

    fits: Callable[[Any], bool]
    text: str


def option(
    default: Any,
    meaning: str = "",
    *needs: Need,
    choices: Sequence[str] = (),
    shown_default: str | None = None,
    **flag: Any,
) -> Any:
    """A dataclass field that is an option.

    Args:
        default: its value where nothing is given; tuples for lists.
        meaning: one line of help, for the flag and for the documentation.
        needs: what its value must be; the first that does not fit makes the error.
        choices: the values of a text option.
        shown_default: what help shows in place of the default.
        flag: more arguments of `add_argument`, such as metavar.
    """
    metadata = {
        "meaning": meaning,
        "needs": (one_of(choices), *needs) if choices else needs,
        "choices": tuple(choices),
        "shown_default": shown_default,
        "flag": flag,
    }
    return field(default=default, metadata=metadata)


def one_of(choices: Sequence[str]) -> Need:
    return Need(
        lambda value: isinstance(value, str) and value in choices, f"one of {', '.join(choices)}"
    )


def is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value < LARGEST_COUNT


def are_counts(value: Any) -> bool:
    return isinstance(value, tuple) and all(map(is_count, value))


def number(value: Any) -> float:
    """A real number as a float, infinite where it is too large for one; NaN for everything else."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf


def plain(value: Any) -> Any:
    """numpy's values, lists and other iterables as Python's numbers and tuples; the rest as it
    is."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes, Tensor)):
        return tuple(map(_plain_scalar, value))
    return _plain_scalar(value)


def first_fault(options: Any) -> tuple[str, str] | None:
    """The first option of a dataclass whose value does not fit: its name, and what it must be."""
    for item in fields(options):
        value = getattr(options, item.name)
        for need in item.metadata.get("needs", ()):
            if not need.fits(value):
                return item.name, need.text
    return None


def fits_type(value: Any, kind: Any) -> bool:
    """Is a value of the type of its field? An integer is a number too, true and false are none."""
    if isinstance(kind, UnionType):
        return any(fits_type(value, each) for each in get_args(kind))
    if get_origin(kind) is not tuple:
        return type(value) in ((int, float) if kind is float else (kind,))
    if not isinstance(value, tuple):
        return False
    items = get_args(kind)
    wanted = items[:1] * len(value) if items[-1] is Ellipsis else items
    return len(value) == len(wanted) and all(map(fits_type, value, wanted))


def described_type(kind: Any) -> str:
    if isinstance(kind, UnionType):
        return " or ".join(map(described_type, get_args(kind)))
    if get_origin(kind) is tuple:
        return f"a list, each {described_type(get_args(kind)[0])}"
    words = {int: "an integer", float: "a number", str: "text", bool: "true or false"}
    return {**words, NoneType: "null"}[kind]


def type_fault(options: type, values: Mapping[str, Any]) -> str | None:
    """What is wrong with the first of these values that is not of its field's type."""
    for item in fields(options):
        if item.name in values and not fits_type(values[item.name], item.type):
            value = json.dumps(values[item.name])
            return f"{item.name} must be {described_type(item.type)}, got {value}"
    return None


def flag_of(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def add_flags(
    parser: argparse._ActionsContainer, options: type, only: Sequence[str] | None = None
) -> None:
    """One flag a field of a dataclass of options; one that is not given stays None."""
    for item in fields(options):
        if only is None or item.name in only:
            parser.add_argument(flag_of(item.name), default=None, **_flag(item))


def given(options: type, args: argparse.Namespace) -> dict[str, Any]:
    """The options that the command line gives, as the dataclass takes them."""
    values = {}
    for item in fields(options):
        value = getattr(args, item.name, None)
        if value is None:
            continue
        if value == "none" and _is_optional_number(item.type):
            value = None
        values[item.name] = tuple(value) if isinstance(value, list) else value
    return values


def as_flags(options: type, values: Mapping[str, Any]) -> list[str]:
    """The command line that `given` reads back as these values of a dataclass of options."""
    arguments: list[str] = []
    for item in fields(options):
        if item.name not in values:
            continue
        value, flag = values[item.name], flag_of(item.name)
        if isinstance(value, bool):
            arguments.append(flag if value else flag_of(f"no_{item.name}"))
        elif isinstance(value, tuple):
            arguments += [flag, *map(str, value)]
        else:
            arguments.append(f"{flag}={'none' if value is None else value}")
    return arguments


def shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _plain_scalar(value: Any) -> Any:
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, numbers.Integral):
        return int(value)
    return value


def _flag(item: Field[Any]) -> dict[str, Any]:
    """The arguments of `add_argument` that a field's type and metadata ask for."""
    metadata = item.metadata
    default = metadata["shown_default"]
    if default is None and item.default is not None:
        default = shown(item.default)
    note = f" (default {default})" if default else ""
    flag: dict[str, Any] = {"help": (metadata["meaning"] + note).strip()}
    kinds = [kind for kind in get_args(item.type) or (item.type,) if kind is not NoneType]
    if get_origin(item.type) is tuple:
        items = get_args(item.type)
        flag |= {"type": items[0], "nargs": "*" if items[-1] is Ellipsis else len(items)}
    elif kinds == [bool]:
        flag["action"] = argparse.BooleanOptionalAction
    elif _is_optional_number(item.type):
        flag["type"] = _number_or_none(kinds[0])
    else:
        flag["type"] = kinds[0]
    if metadata["choices"]:
        flag["choices"] = metadata["choices"]
    return flag | metadata["flag"]


def _is_optional_number(kind: Any) -> bool:
    return isinstance(kind, UnionType) and bool({int, float} & set(get_args(kind)))


def _number_or_none(kind: type) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        return "none" if text.lower() == "none" else kind(text)

    parse.__name__ = kind.__name__
    return parse
