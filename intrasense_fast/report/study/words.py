"""What the report says in words: the protocol, what is missing, and what the paper prints."""

from collections.abc import Sequence
from typing import Any

from intrasense_fast.report.study.folder import Study

_TITLES = {
    "compare": "Comparison of networks (the form of the paper's Tables 1 to 3)",
    "ablate": "Ablation (the form of the paper's Table 4)",
}
_CONFIG = ("size", "batch_size", "epochs", "lr", "momentum", "weight_decay", "scheduler", "augment")


def title(study: Study) -> str:
    return _TITLES.get(study.kind, f"Study: {study.kind}")


def protocol(study: Study, failed: Sequence[str]) -> list[str]:
    """How the figures came about; `failed` are parts of the report that could not be made."""
    config = _shared(study)
    values = ", ".join(
        f"{name.replace('_', ' ')} {config[name]}" for name in _CONFIG if name in config
    )
    groups = len(set(study.groups.values()))
    lesion = int(study.lesion().sum())
    record = study.record
    lines = [
        f"Data: {record.get('data') or 'simulated phantoms'} "
        f"({record.get('layout', 'layout not recorded')}); "
        f"{len(study.names)} tested images, {lesion} with a lesion seen in a finished cell, in "
        f"{groups} groups "
        f"({study.group_source}).",
        f"Grid: {len(study.labels)} networks, {len(study.folds)} folds, seeds "
        f"{', '.join(map(str, study.seeds))}. "
        "All networks share the splits, images, augmentation, epochs and seeds; the seed changes "
        "the "
        "initial weights and the order of the images, not the splits.",
        f"Recipe: {record.get('recipe', 'not recorded')}. Values: {values or 'not recorded'}.",
        "Every figure is measured on the image's own grid. The headline is the mean over images "
        "with a "
        "lesion (averaged over seeds); the pooled figure, from the pixels of all images together, "
        "stands beside it. "
        "Images without a lesion enter only the table of normal images. A distance is undefined "
        "where a mask is "
        "empty: such images leave it, which favours networks that miss lesions.",
        "Intervals: groups (patients, near-duplicate clusters), seeds and both are drawn with "
        "replacement; the "
        "three variances are corrected for their small number and combined, and a t quantile with "
        "Satterthwaite's "
        "degrees of freedom gives the interval. With one seed they do not hold the chance of "
        "training; training "
        "sets of different folds overlap, which no interval here accounts for.",
        f"Made by commit {record.get('commit') or 'unknown'}, "
        f"{record.get('created', 'date not recorded')}, "
        f"{_versions(record.get('versions', {}))}.",
    ]
    if study.role != "test":
        lines.append(
            "There are no test images: checkpoints were selected on the images measured here, so "
            "these figures "
            "are optimistic."
        )
    if record.get("data") is None:
        lines.append("Phantom scores are not clinical scores.")
    return [*lines, *failed]


def missing(study: Study) -> list[str]:
    """A line for every cell that is not done."""
    return [f"{cell.name}: {cell.fault}" for cell in study.cells if not cell.done]


def without_results(study: Study) -> str:
    """In place of the figures of a study none of whose cells is done."""
    return (
        f"There are no figures: none of the {len(study.cells)} cells is done, each is listed with "
        "its reason. Mend the cause and resume the study; what diverged stays until its folder "
        "is removed."
    )


def printed(study: Study) -> list[str]:
    """What the repository's documents state of the paper's figures for these data; they enter no
    ranking."""
    is_busi = study.record.get("layout") == "busi"
    if study.kind != "compare" or not is_busi:
        return [
            "No figure of the paper is set beside these: none for these data is on record here."
        ]
    return [
        "As printed in the paper, and in no ranking with ours: U-Net on BUSI has Dice 52.19 % in "
        "the "
        "text and 66.72 % in its Table 2. The paper contradicts itself here, and swaps the "
        "citations "
        "of BUSI and Dataset B. Its splits, epochs and schedule are not given, so its figures do "
        "not "
        "compare with these.",
    ]


def _shared(study: Study) -> dict[str, Any]:
    config = study.record.get("config")
    if isinstance(config, dict):
        return config
    cell = next((cell for cell in study.cells if cell.done), None)
    return {} if cell is None else cell.record().get("config", {})


def _versions(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items()) or "no versions"
