"""The figures of a run as event files of TensorBoard, beside its own files.

RUN/tensorboard/steps counts in steps, RUN/tensorboard/epochs in epochs: each can be cut back at its
own position, whatever a kill left in it.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

FOLDER, STEPS, EPOCHS = "tensorboard", "steps", "epochs"
_POSITION = ("step", "epoch")


class TensorBoardLogger:
    """A `RunLogger`; nothing is written before the first figures, or the first cut.

    Args:
        run: the folder of the run, or of a fold.
    """

    def __init__(self, run: Path) -> None:
        self._folder = run / FOLDER
        self._writers: dict[str, SummaryWriter] = {}

    def cut(self, step: int, epoch: int) -> None:
        """TensorBoard's readers leave out what lies behind these positions in earlier files."""
        self.close()
        for part, number in ((STEPS, step), (EPOCHS, epoch)):
            if (self._folder / part).exists():
                self._writers[part] = SummaryWriter(str(self._folder / part), purge_step=number + 1)

    def log_step(self, values: Mapping[str, Any]) -> None:
        self._add(STEPS, values["step"], values)

    def log_epoch(self, values: Mapping[str, Any]) -> None:
        self._add(EPOCHS, values["epoch"], values)

    def flush(self) -> None:
        for writer in self._writers.values():
            writer.flush()

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()

    def _add(self, part: str, number: int, values: Mapping[str, Any]) -> None:
        if part not in self._writers:
            self._writers[part] = SummaryWriter(str(self._folder / part))
        for name, value in values.items():
            if name not in _POSITION and value is not None and math.isfinite(value):
                self._writers[part].add_scalar(name, value, number)
