"""Order and chance that are the same on every machine: plain Python, and sums that every version
rounds alike."""

import hashlib
import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence

Row = tuple[str, str, str]


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Sort key in which "benign (2)" precedes "benign (10)", whatever the locale, the file system
    or the Unicode form."""
    name = unicodedata.normalize("NFC", name)
    parts: list[str | int] = [
        int(part) if index % 2 else part for index, part in enumerate(re.split("([0-9]+)", name))
    ]
    return parts, name


def deal(
    rows: Sequence[Row], fractions: Sequence[float], seed: Sequence[int], least: int = 1
) -> list[list[Row]]:
    """Whole groups into bins, each to the bin whose strata it brings closest to their share;
    `least` groups or more a bin.

    Args:
        rows: (name, group, stratum) of every image; `least` groups a bin or more. In a stratum
            "class, size" what stands before the comma is balanced too, for strata of a few images
            leave much to chance.
        fractions: of the images that each bin should hold.
        seed: of the order in which equally large groups are dealt out.

    Returns:
        The rows of each bin, in natural order of their names.
    """
    members: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        members[row[1]].append(row)
    # Large groups first, while every bin still has room; equal ones in an order drawn from the seed
    # and their names.
    drawn = {
        key: hashlib.sha256(f"{tuple(seed)} {key}".encode(errors="surrogateescape")).digest()
        for key in members
    }
    ordered = sorted(members, key=lambda key: (-len(members[key]), drawn[key]))
    totals = _strata(rows)
    filled: list[Counter[str]] = [Counter() for _ in fractions]
    bins: list[list[Row]] = [[] for _ in fractions]
    lacking = [least] * len(bins)
    for position, key in enumerate(ordered):
        group = _strata(members[key])
        short = [i for i, groups in enumerate(lacking) if groups > 0]
        candidates = (
            short if len(ordered) - position <= sum(lacking[i] for i in short) else range(len(bins))
        )

        def cost(i: int, group: Counter[str] = group) -> tuple[float, float, int]:
            def excess(stratum: str, extra: int) -> float:
                share = (filled[i][stratum] + extra) / (fractions[i] * totals[stratum]) - 1
                return share * share * fractions[i]

            strain = math.fsum(
                excess(stratum, count) - excess(stratum, 0) for stratum, count in group.items()
            )
            return round(strain, 9), round(len(bins[i]) / fractions[i], 9), i

        chosen = min(candidates, key=cost)
        lacking[chosen] -= 1
        filled[chosen] += group
        bins[chosen] += members[key]
    return [sorted(content, key=lambda row: natural_key(row[0])) for content in bins]


def _strata(rows: Sequence[Row]) -> Counter[str]:
    """How many rows are in each stratum, and in each class: the strata that agree before the
    comma."""
    return Counter(part for row in rows for part in {row[2], row[2].split(",")[0]})
