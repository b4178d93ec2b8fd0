"""Tiles: their weights add up to one, and what is blended is what every tile says."""

import numpy as np
import pytest

from intrasense_fast.inference.tiles import fits, tiled, windows


def test_weights_add_up_to_one_at_every_pixel(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cases = [(1, 1), (64, 64), (65, 64), (96, 64), (1000, 64), (31, 64)]
    cases += [(int(rng.integers(1, 900)), int(rng.integers(2, 200))) for _ in range(30)]
    for length, tile in cases:
        total = np.zeros(length)
        places = windows(length, tile)
        for start, weights in places:
            assert weights.shape == (min(length, tile),) and (weights > 0).all()
            total[start : start + len(weights)] += weights
        np.testing.assert_allclose(total, 1, atol=1e-6)
        starts = [start for start, _ in places]
        assert starts[0] == 0 and starts[-1] + min(length, tile) == length
        # Neighbours share half of a tile, up to rounding.
        assert np.diff(starts).max(initial=0) <= max(1, (tile + 1) // 2)
    for length, tile in ((0, 8), (8, 0)):
        with pytest.raises(ValueError, match="windows: needs pixels"):
            windows(length, tile)


@pytest.mark.parametrize("shape", [(50, 130), (200, 40), (97, 97)])
def test_an_answer_for_each_pixel_alone_is_blended_to_itself(
    shape: tuple[int, int], seed: int
) -> None:
    image = np.random.default_rng(seed).random(shape).astype(np.float32)
    at_once: list[int] = []

    def predict(parts: list[np.ndarray]) -> list[np.ndarray | None]:
        at_once.append(len(parts))
        assert all(max(part.shape) <= 64 for part in parts)
        return [part**2 for part in parts]

    found = tiled(predict, image, 64, batch=3)
    assert found is not None and found.shape == shape and found.dtype == np.float32
    np.testing.assert_allclose(found, image**2, atol=1e-6)
    assert max(at_once) <= 3
    assert not fits(shape, 64) and fits((64, 12), 64)


def test_blending_is_smooth_between_tiles_that_disagree() -> None:
    calls = iter(range(100))
    found = tiled(
        lambda parts: [np.full(part.shape, next(calls) % 2, np.float32) for part in parts],
        np.zeros((32, 400), np.float32),
        32,
        batch=4,
    )
    assert found is not None
    assert found.min() == 0 and found.max() == 1
    # A squared sine over 32 pixels rises by at most pi / 32 from one to the next.
    assert np.abs(np.diff(found, axis=1)).max() < 1.2 * np.pi / 32


def test_a_tile_that_fails_fails_the_image() -> None:
    image = np.zeros((40, 100), np.float32)
    assert tiled(lambda parts: [None for _ in parts], image, 32, batch=2) is None
