"""Weights anyone can draw again from names and shapes alone, so that a fixture need not hold
them."""

import zlib

import numpy as np


def seeded_weights(shapes: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """float32 weights of a ResNet by key: convolutions of unit gain, BatchNorm values away from
    their defaults."""
    weights = {}
    for key, shape in shapes.items():
        rng = np.random.default_rng(zlib.crc32(key.encode()))
        if key.endswith("num_batches_tracked"):
            value = np.zeros(shape, np.int64)
        elif len(shape) == 4:
            value = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        elif key.endswith(("running_var", "weight")):
            value = rng.uniform(0.5, 1.0, shape)
        else:
            value = rng.standard_normal(shape) * 0.1
        weights[key] = value if value.dtype == np.int64 else value.astype(np.float32)
    return weights


def seeded_image(channels: int, height: int, width: int) -> np.ndarray:
    """(1, channels, height, width) float32, standard normal: the fixture's input."""
    return (
        np.random.default_rng(50).standard_normal((1, channels, height, width)).astype(np.float32)
    )
