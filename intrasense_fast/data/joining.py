"""Which image a name in a table or list means, though it differs by folder, ending, case or
zeros."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from intrasense_fast.data.listing import SUFFIXES


class Joined(NamedTuple):
    """What became of the entries of a table or list.

    Attributes:
        names: the image that each entry means, or None.
        loose: (entry, image) of those that differ by more than the ending.
        lost: entries without an image, or that could mean several.
        bare: images without an entry, in the order given.
    """

    names: list[str | None]
    loose: list[tuple[str, str]]
    lost: list[str]
    bare: list[str]

    @property
    def matched(self) -> int:
        return len(self.names) - len(self.lost)


def join(entries: Sequence[str], names: Iterable[str]) -> Joined:
    """Find the image of each entry.

    An entry that names an image to the letter means it. Else folders, then case, then leading zeros
    of numbers are disregarded, as far as exactly one image is left that no other entry names to the
    letter.

    Args:
        entries: names as a table or list gives them.
        names: of the images, unique, without endings.
    """
    names = list(names)
    indices = []
    for key in _KEYS:
        index: dict[str, list[str]] = defaultdict(list)
        for name in names:
            index[key(name)].append(name)
        indices.append(index)
    found = [_literal(entry, indices[0]) for entry in entries]
    taken = {name for name in found if name is not None}
    loose: list[tuple[str, str]] = []
    lost: list[str] = []
    for place, entry in enumerate(entries):
        if found[place] is not None:
            continue
        image = _loosely(entry, indices, taken)
        found[place] = image
        if image is None:
            lost.append(entry)
        else:
            loose.append((entry, image))
    met = set(found)
    return Joined(found, loose, lost, [name for name in names if name not in met])


def few(names: Sequence[str], shown: int = 5) -> str:
    """The first names of a list, and how many more there are."""
    more = f" ... and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def bare_name(text: str) -> str:
    """A name with "/" between folders, in one Unicode form, without a picture's ending."""
    text = unicodedata.normalize("NFC", text.strip()).replace("\\", "/").removeprefix("./")
    ending = next((suffix for suffix in SUFFIXES if text.casefold().endswith(suffix)), "")
    return text[: len(text) - len(ending)]


def _own(text: str) -> str:
    return text.rsplit("/", 1)[-1]


def _without_zeros(text: str) -> str:
    return re.sub(r"(?<![0-9])0+(?=[0-9])", "", text)


_KEYS: tuple[Callable[[str], str], ...] = (
    lambda text: text,
    _own,
    lambda text: _own(text).casefold(),
    lambda text: _without_zeros(_own(text).casefold()),
)


def _literal(entry: str, names: dict[str, list[str]]) -> str | None:
    for text in (unicodedata.normalize("NFC", entry.strip()), bare_name(entry)):
        if text in names:
            return text
    return None


def _loosely(entry: str, indices: Sequence[dict[str, list[str]]], taken: set[str]) -> str | None:
    bare = bare_name(entry)
    for key, index in zip(_KEYS[1:], indices[1:], strict=True):
        candidates = [name for name in index.get(key(bare), ()) if name not in taken]
        # Of an entry with folders, images in another folder are others.
        same_end = [name for name in candidates if _agree(name, bare)]
        candidates = same_end or candidates
        if candidates:
            return candidates[0] if len(candidates) == 1 else None
    return None


def _agree(name: str, bare: str) -> bool:
    """Do the folders of both, as far as both have some, say the same?"""
    own, other = name.split("/")[:-1], bare.split("/")[:-1]
    count = min(len(own), len(other))
    return count == 0 or own[-count:] == other[-count:]
