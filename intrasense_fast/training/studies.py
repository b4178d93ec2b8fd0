"""A study from its first check to its report."""

import importlib
from dataclasses import replace
from pathlib import Path

import torch

from intrasense_fast.console import command_line, show
from intrasense_fast.errors import UsageError
from intrasense_fast.files import exclusive
from intrasense_fast.inference import default_device, usable_device
from intrasense_fast.networks.encoder_weights import EncoderWeightsError
from intrasense_fast.training import study_folder
from intrasense_fast.training.build import check_network
from intrasense_fast.training.config import TrainConfig
from intrasense_fast.training.estimate import Pace, pace
from intrasense_fast.training.graphed import check_gpu, check_graph
from intrasense_fast.training.grid import Grid
from intrasense_fast.training.loss import OWN, has_own_loss
from intrasense_fast.training.place import Place
from intrasense_fast.training.run_clock import in_words
from intrasense_fast.training.study import PAPER, Row, Study

_REPORT = "intrasense_fast.report.study"


def begin(study: Study, out: Path, place: Place, *, dry_run: bool = False) -> int:
    """Train every run of a study that is not done yet, and write the report.

    Args:
        study: what is asked for.
        out: a new folder, or that of the same study.
        place: where its runs are trained.
        dry_run: only print the runs and how long they would take; nothing is written.

    Returns:
        0, or 1 where runs failed.

    Raises:
        UsageError, DataError, EncoderWeightsError: nothing was trained.
        Stopped: a signal; the runs are saved.
    """
    place.check()
    there = (out / study_folder.STUDY).exists()
    if not there:
        study_folder.check_free(out)
    study, parameters = _checked(study)
    if there:
        study_folder.check_same(out, study)
    if dry_run:
        _show_plan(study, parameters, place)
        return 0
    if not there:
        study_folder.create(out, study, parameters, place.threads())
    return resume(out, place)


def resume(out: Path, place: Place) -> int:
    """Go on with the study of a folder; see `begin`."""
    place.check()
    study, record = study_folder.read_study(out)
    with exclusive(out):
        cells = study.cells(len(record["folds"]))
        executor = place.executor(out, record["threads"])
        stop = "stops watching" if executor.outlives else "saves and stops"
        show(f"{len(cells)} runs in {out / study_folder.CELLS}; Ctrl-C {stop}")
        tasks = [study_folder.task_of(out, study, cell) for cell in cells]
        again = command_line(study.kind, "--resume", out, *place.flags())
        failures = Grid(out, tasks, executor, again, show).run()
        for name, reason in failures.items():
            show(f"{name}: {reason}")
        count = f"{len(cells) - len(failures)} of {len(cells)} runs are complete"
        show(f"{count}, in {out / study_folder.CELLS}")
        _report(out)
    return 1 if failures else 0


def report(out: Path) -> int:
    """Write the report of what has ended, while the rest may be at work.

    Raises:
        UsageError: it is no study, or nothing has ended.
    """
    _report(out)
    return 0


def _checked(study: Study) -> tuple[Study, dict[str, int]]:
    """The study with the loss of each row, and the parameters of its networks by label.

    Raises:
        UsageError, EncoderWeightsError: a network that cannot be built, or not for this size.
    """
    if study.shared.cuda_graph:
        check_gpu(_device(study.shared))
    rows, parameters = [], {}
    for row in study.rows:
        try:
            config = row.config(study.shared)
            net = check_network(config)
            if config.cuda_graph:
                check_graph(config, net)
        except EncoderWeightsError as error:
            raise EncoderWeightsError(f"{row.name}: {error}") from error
        except UsageError as error:
            raise UsageError(f"--networks: {error}") from error
        is_own = study.recipe != PAPER and has_own_loss(net)
        rows.append(replace(row, loss=OWN if is_own else row.loss))
        trained = (one.numel() for one in net.parameters() if one.requires_grad)
        parameters[row.name] = sum(trained)
    return replace(study, rows=tuple(rows)), parameters


def _device(shared: TrainConfig) -> torch.device:
    return usable_device(default_device() if shared.device == "auto" else shared.device)


def _show_plan(study: Study, parameters: dict[str, int], place: Place) -> None:
    shared = study.shared
    counts = [(shared.phantom_train, shared.phantom_val, shared.phantom_test)]
    if shared.data is not None:
        splits = study_folder.images_and_splits(study, shared)[2]
        counts = [(len(fold.train), len(fold.val), len(fold.test)) for fold in splits.folds]
    elif shared.folds:
        counts = _counts_of_folds(sum(counts[0]), shared.folds, shared.val_fraction)
    device = _device(shared)
    total, jobs = 0.0, place.jobs or 1
    show(f"{'network':<28}{'parameters':>12}{'loss':>8}{'runs':>6}{'a run':>10}  encoder")
    for row in study.rows:
        config = row.config(shared)
        seconds = _seconds_of_folds(pace(config, device), row, study, counts)
        runs = len(study.seeds) * len(counts)
        total += seconds * len(study.seeds)
        each = in_words(seconds / len(counts))
        show(
            f"{row.name:<28}{parameters[row.name]:>12,}{row.loss:>8}{runs:>6}{each:>10}  "
            f"{row.encoder}"
        )
    cells = study.cells(len(counts))
    show(
        f"{len(cells)} runs: {len(study.rows)} networks x {len(study.seeds)} seeds x {len(counts)} "
        f"folds, {shared.epochs} epochs at {shared.size} x {shared.size}, batch "
        f"{shared.batch_size}, on {device}"
    )
    show(
        f"about {in_words(total / jobs)} with {jobs} at a time, from one measured step of each on "
        "this machine; nothing was written"
    )


def _seconds_of_folds(
    measured: Pace, row: Row, study: Study, counts: list[tuple[int, int, int]]
) -> float:
    config = row.config(study.shared)
    return sum(measured.of_run(config, *count) for count in counts)


def _counts_of_folds(images: int, folds: int, val_fraction: float) -> list[tuple[int, int, int]]:
    """Images of each role in each fold, but for rounding."""
    test = images // folds
    val = round((images - test) * val_fraction)
    return [(images - test - val, val, test)] * folds


def _report(out: Path) -> None:
    try:
        report = importlib.import_module(_REPORT)
    except ModuleNotFoundError as error:
        if error.name != _REPORT:
            raise
        return
    for path in report.write_report(out):
        show(f"wrote {path}")
