"""How far a run is."""

from dataclasses import dataclass, field


@dataclass
class Position:
    """How far a run is: `epoch` and `step` are the next ones (from 0), `total` the steps made.

    The rest is what they found; `sums` belongs to the epoch that is being trained, see `EpochLog`.
    """

    epoch: int = 0
    step: int = 0
    total: int = 0
    best_dice: float = -1.0
    best_epoch: int = -1
    skipped: int = 0
    skipped_in_a_row: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    finished: bool = False
