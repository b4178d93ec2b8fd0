"""Which table a GPU uses."""

import pytest

from intrasense_fast.kernels._common import configs


@pytest.mark.parametrize(
    "capability, name",
    [
        ((8, 0), "sm_80"),
        ((8, 6), "sm_86"),
        ((8, 7), "sm_80"),
        ((8, 9), "sm_89"),
        ((9, 0), "sm_90"),
        ((10, 0), "sm_100"),
        ((10, 3), "sm_100"),
        ((12, 0), "sm_120"),
        ((12, 1), "sm_120"),
        ((13, 0), "sm_86"),
    ],
)
def test_every_compute_capability_has_its_table(capability, name):
    assert configs._of_capability(*capability) == name
    assert name in configs.ARCHITECTURES and name in configs.SHARED_LIMIT


def test_rows_are_an_architectures_own_or_those_of_the_nearest():
    table = {"sm_80": "oldest", "sm_86": "narrow", "sm_90": "wide"}
    wanted = {"sm_89": "narrow", "sm_120": "narrow", "sm_100": "wide", "sm_80": "oldest"}
    assert {name: configs.rows_of(table, name) for name in wanted} == wanted
    assert configs.rows_of({"sm_80": "oldest"}, "sm_120") == "oldest"
    assert configs.rows_of(table | {"sm_120": "own"}, "sm_120") == "own"
    with pytest.raises(KeyError):
        configs.rows_of(table, "gfx942")
