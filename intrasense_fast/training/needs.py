"""What the values of a run must be, in the words of their errors."""

import math

from intrasense_fast.fields import Need
from intrasense_fast.inference import MOST_SIZE

MOST_WORKERS, MOST_MINUTES = 256, 60 * 24 * 7

AT_LEAST_0 = Need(lambda value: value >= 0, "at least 0")
AT_LEAST_1 = Need(lambda value: value >= 1, "at least 1")
FINITE_POSITIVE = Need(lambda value: 0 < value < math.inf, "finite and > 0")
FINITE_NOT_NEGATIVE = Need(lambda value: 0 <= value < math.inf, "finite and >= 0")
MOMENTUM = Need(lambda value: 0 <= value < 1, "in [0, 1)")
SHARE = Need(lambda value: 0 < value < 1, "between 0 and 1")
AT_LEAST_32 = Need(lambda value: value >= 32, f"at least 32 and at most {MOST_SIZE}")
SIZE = Need(
    lambda value: value <= MOST_SIZE,
    f"at most {MOST_SIZE}: a network takes gigabytes for each image that is larger",
)
WORKERS_AT_LEAST = Need(lambda value: value >= 0, f"at least 0 and at most {MOST_WORKERS}")
WORKERS = Need(
    lambda value: value <= MOST_WORKERS,
    f"at most {MOST_WORKERS}: each is a process with its own memory, and systems refuse more",
)
MINUTES = Need(
    lambda value: value is None or 0 < value <= MOST_MINUTES,
    f"above 0 and at most {MOST_MINUTES} (a week), or none",
)
BATCH = Need(lambda value: value >= 2, "at least 2 (BatchNorm needs more than one image)")
FOLDS = Need(lambda value: value is None or value == 0 or value >= 2, "0 or at least 2")
FOLD = Need(lambda value: value is None or value >= 0, "at least 0")
CLIP = Need(lambda value: value is None or 0 < value < math.inf, "finite and > 0, or none")
DECAY = Need(lambda value: value is None or 0 < value < 1, "between 0 and 1, or none")
PATIENCE = Need(lambda value: value is None or value >= 1, "at least 1, or none")
SEED = Need(lambda value: 0 <= value < 2**32, "at least 0 and below 2**32")
WEIGHTS = Need(lambda value: all(0 <= weight < math.inf for weight in value), "finite and >= 0")
PAIRS = Need(lambda value: all("=" in pair for pair in value), "written NAME=VALUE")
