"""Where a run's images come from, and which of them train, select and test."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from intrasense_fast.console import command_line, show
from intrasense_fast.data.duplicates import Duplicates, inspect_and_search, regrouped
from intrasense_fast.data.layouts import folds_of, read_dataset
from intrasense_fast.data.masks import MaskDecision
from intrasense_fast.data.order import natural_key
from intrasense_fast.data.phantom import write_phantom
from intrasense_fast.data.reading import options_of
from intrasense_fast.data.records import DataError, Finding, SegmentationData, accept
from intrasense_fast.data.splits import (
    Fold,
    Splits,
    fold_table,
    make_splits,
    parted_groups,
    read_splits,
    strata_of,
)
from intrasense_fast.data.subsets import choose
from intrasense_fast.training.config import TrainConfig

PHANTOMS = "data"
_PHANTOM_ROLES = ("train", "selection", "test")
_SMALLEST_PHANTOM = 128
_SHOWN_WARNINGS = 20


def open_source(run: Path, config: TrainConfig) -> tuple[SegmentationData, list[Finding]]:
    """The images of --data, or the phantoms in the run folder, every one decoded once, and what
    that showed.

    Raises:
        DataError: the folder or a file cannot be used; without `skip_bad`, every such file is
            named.
    """
    simulated = config.data is None
    data = (
        _phantoms(run / PHANTOMS)
        if simulated
        else read_dataset(str(config.data), config.layout, options_of(config))
    )
    if simulated:
        findings, duplicates = data.inspect(progress=True), Duplicates()
    else:
        findings, duplicates = inspect_and_search(data, progress=True)
    data = accept(regrouped(data.with_findings(findings), duplicates), skip_bad=config.skip_bad)
    _show_problems(data)
    data = choose(data, findings, duplicates, config.subset)
    found = {finding.record.name: finding for finding in findings}
    return data, [found[record.name] for record in data.records]


def simulate(run: Path, config: TrainConfig) -> None:
    """Write the phantoms of a run: RUN/data/train, /selection and /test, each with images/ and
    masks/."""
    counts = (config.phantom_train, config.phantom_val, config.phantom_test)
    show(
        f"simulating {counts[0]} phantoms to train on, {counts[1]} to select on and {counts[2]} to "
        f"test on"
    )
    for place, (role, count) in enumerate(zip(_PHANTOM_ROLES, counts, strict=True)):
        # Neighbouring seeds share no image.
        seed = len(_PHANTOM_ROLES) * config.seed + place
        write_phantom(
            run / PHANTOMS / role, count, size=max(config.size, _SMALLEST_PHANTOM), seed=seed
        )


def simulate_pool(folder: Path, config: TrainConfig) -> None:
    """Write the phantoms of all roles as one data set in the generic layout, for runs that share
    them."""
    count = config.phantom_train + config.phantom_val + config.phantom_test
    show(f"simulating {count} phantoms")
    write_phantom(folder, count, size=max(config.size, _SMALLEST_PHANTOM), seed=config.seed)


def split_pool(config: TrainConfig, names: Sequence[str]) -> Splits:
    """One split of a pool of phantoms by their order: to train, to select, to test."""
    ordered = sorted(names, key=natural_key)
    selection = config.phantom_train
    test = selection + config.phantom_val
    fold = Fold(tuple(ordered[:selection]), tuple(ordered[selection:test]), tuple(ordered[test:]))
    return Splits((fold,), {"phantoms": len(ordered), "seed": config.seed})


def split(config: TrainConfig, data: SegmentationData, findings: Sequence[Finding]) -> Splits:
    """The roles of every image, and their table on the screen: the user's splits, or --folds (5 for
    the published data sets).

    Raises:
        DataError: the data cannot be split so, or the user's splits do not match them.
    """
    names = [record.name for record in data.records]
    groups, strata = [record.group for record in data.records], strata_of(findings)
    if config.splits is not None:
        splits = read_splits(
            config.splits, names, groups, strata, val_fraction=config.val_fraction, seed=config.seed
        )
        for line in parted_groups(splits, dict(zip(names, groups, strict=True))):
            show(f"warning: {config.splits}, {line}")
        if config.folds not in (None, 0, len(splits.folds)):
            raise DataError(
                f"{config.splits} has {len(splits.folds)} folds, --folds asks for {config.folds}: "
                f"leave --folds out"
            )
    elif config.data is None and not config.folds:
        roles = (
            tuple(name for name in names if name.startswith(f"{role}/")) for role in _PHANTOM_ROLES
        )
        splits = Splits((Fold(*roles),), {"phantoms": len(names), "seed": config.seed})
    else:
        folds = folds_of(data.layout) if config.folds is None else config.folds
        splits = make_splits(
            names, groups, strata, folds=folds, val_fraction=config.val_fraction, seed=config.seed
        )
    show(f"n = {len(data)} images, subset {config.subset}, layout {data.layout}")
    show(
        fold_table(
            splits, dict(zip(names, groups, strict=True)), dict(zip(names, strata, strict=True))
        )
    )
    return splits


def check_folds(folds: Sequence[tuple[int, Fold]], findings: Sequence[Finding]) -> None:
    """Refuse folds that could not train or select a checkpoint, before anything is trained.

    Args:
        folds: (number, fold) of those that will be trained.
        findings: of every image.

    Raises:
        DataError: no image to train or select on shows a lesion.
    """
    areas = {finding.record.name: finding.area for finding in findings}
    for number, fold in folds:
        for role, names in (("training", fold.train), ("selection", fold.val)):
            if not any(areas[name] for name in names):
                raise DataError(
                    f"fold {number}: none of its {len(names)} {role} images shows a lesion: give "
                    "more data, or another --val-fraction, --seed or --splits"
                )


def _phantoms(folder: Path) -> SegmentationData:
    parts = [(role, read_dataset(folder / role, "generic")) for role in _PHANTOM_ROLES]
    records = [
        replace(
            record,
            name=f"{role}/{record.name}",
            case=f"{role}/{record.case}",
            group=f"{role}/{record.group}",
        )
        for role, part in parts
        for record in part.records
    ]
    problems = [problem for _, part in parts for problem in part.problems]
    return replace(
        parts[0][1],
        root=folder,
        layout="phantom",
        records=tuple(records),
        problems=tuple(problems),
        masks=MaskDecision(mask for record in records for mask in record.masks),
    )


def _show_problems(data: SegmentationData) -> None:
    """What was left out, all of it; of the other warnings the first few."""
    for line in data.joins:
        show(f"table: {line}")
    if data.masks is not None and data.masks.files:
        show(f"mask values: {data.masks.rule().describe()}")
    left_out = [problem for problem in data.problems if problem.message.startswith("left out")]
    others = [problem for problem in data.problems if problem not in left_out]
    for problem in [*left_out, *others[:_SHOWN_WARNINGS]]:
        show(str(problem))
    if len(others) > _SHOWN_WARNINGS:
        show(
            f"and {len(others) - _SHOWN_WARNINGS} more warnings: "
            f"{command_line('verify', data.root)}"
        )
