"""Trained networks at work: opened, put together, calibrated, and asked for probabilities."""

from intrasense_fast.inference.segmenter import (
    AMPS,
    MOST_SIZE,
    NOT_FINITE,
    SMALLEST_SIZE,
    NotFiniteError,
    Segmenter,
    default_device,
    network_health,
    open_segmenter,
    predict_probabilities,
    probability_maps,
    usable_device,
)

__all__ = [
    "AMPS",
    "MOST_SIZE",
    "NOT_FINITE",
    "SMALLEST_SIZE",
    "NotFiniteError",
    "Segmenter",
    "default_device",
    "network_health",
    "open_segmenter",
    "predict_probabilities",
    "probability_maps",
    "usable_device",
]
