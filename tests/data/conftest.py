"""Fake data sets, written once a session; tests must not change them."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from intrasense_fast.data.fake import Planted, write_tree


@pytest.fixture(scope="session")
def trees(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str, bool], tuple[Path, list[Planted]]]:
    """(layout, broken) -> folder of a fake data set of 30 images, and what was planted in it."""
    base = tmp_path_factory.mktemp("fake")

    @cache
    def tree(layout: str, broken: bool) -> tuple[Path, list[Planted]]:
        root = base / f"{layout} {'broken' if broken else 'whole'}"
        return root, write_tree(layout, root, 30, size=96, seed=5, broken=broken)

    return tree
