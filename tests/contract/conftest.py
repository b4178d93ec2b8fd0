"""Every test here runs its kernels under the guard."""

import pytest


@pytest.fixture(autouse=True)
def _guarded(guarded: None) -> None:
    pass
