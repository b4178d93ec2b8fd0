"""What several checkpoints know of an image, and who may be asked."""

import pytest

from intrasense_fast.evaluation.known_images import askable, out_of_fold, overlap, seen


@pytest.mark.parametrize(
    "roles, wanted",
    [
        (("no", "no"), "no"),
        (("no", "val"), "val"),
        (("val", "train"), "train"),
        (("no", "unknown"), "unknown"),
        (("unknown", "val"), "val"),
    ],
)
def test_an_image_is_as_known_as_to_the_one_that_knows_it_best(
    roles: tuple[str, ...], wanted: str
) -> None:
    assert seen(roles) == wanted


def test_who_is_asked_and_what_is_said() -> None:
    roles = {
        "a": ("train", "no", "val"),
        "b": ("no", "no", "no"),
        "c": ("train", "val", "train"),
        "d": ("no", "train", "no"),
        "e": ("unknown", "no", "val"),
    }
    assert askable(roles) == {"a": [1], "b": [0, 1, 2], "c": [], "d": [0, 2], "e": [1]}
    said = out_of_fold(roles)
    assert "2 by 1 of them, 1 by 2 of them, 1 by 3 of them; 1 images are known to all" in said
    del roles["e"]
    assert overlap(roles, False).startswith("3 of the 4 images trained one of the checkpoints, 0")
    assert overlap({"b": roles["b"]}, False) == (
        "None of the 1 images trained or selected one of the checkpoints."
    )
