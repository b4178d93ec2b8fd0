"""A check runs once a signature, and never lets another signature pass for it."""

import pytest
import torch

from intrasense_fast.kernels._common import validation
from intrasense_fast.kernels._common.validation import once_a_signature


class _Own(torch.Tensor):
    pass


@pytest.fixture
def checked():
    seen = []

    @once_a_signature
    def check(tensor: torch.Tensor, option: object) -> None:
        seen.append((tuple(tensor.shape), tensor.dtype, option))
        if option == "bad":
            raise ValueError("bad")

    return check, seen


def test_a_signature_that_passed_is_not_checked_again(checked):
    check, seen = checked
    for _ in range(3):
        check(torch.zeros(2, 3), 1)
    check(torch.nn.Parameter(torch.ones(2, 3)), 1)
    assert len(seen) == 1


@pytest.mark.parametrize(
    "other",
    [
        (torch.zeros(3, 2), 1),
        (torch.zeros(2, 3).double(), 1),
        (torch.zeros(2, 3, device="meta"), 1),
        (torch.zeros(2, 3).to_sparse(), 1),
        (torch.zeros(2, 3), 2),
        (torch.zeros(2, 3), True),
        (torch.zeros(2, 3), 1.0),
    ],
    ids=("shape", "dtype", "device", "layout", "value", "bool", "float"),
)
def test_another_signature_is_checked(other, checked):
    check, seen = checked
    check(torch.zeros(2, 3), 1)
    check(*other)
    assert len(seen) == 2


def test_what_fails_or_cannot_be_remembered_is_checked_every_time(checked):
    check, seen = checked
    for _ in range(2):
        with pytest.raises(ValueError, match="bad"):
            check(torch.zeros(2), "bad")
        check(torch.zeros(2), ["unhashable"])
        check(torch.zeros(2).as_subclass(_Own), 1)
    assert len(seen) == 6


def test_memory_is_bounded(checked, monkeypatch):
    monkeypatch.setattr(validation, "MOST_SIGNATURES", 2)
    check, seen = checked
    for size in (1, 2, 3, 1):
        check(torch.zeros(size), 1)
    assert [shape for shape, *_ in seen] == [(1,), (2,), (3,), (1,)]
