"""What a finished run shows: tables, one row an image, curves, overlays and maps."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from intrasense_fast.console import progress
from intrasense_fast.data.inputs import record_chunks
from intrasense_fast.data.opening import sha256_of
from intrasense_fast.data.records import Sample, SegmentationData
from intrasense_fast.data.torch_dataset import SegmentationDataset
from intrasense_fast.data.transforms import resize_image, resize_mask
from intrasense_fast.errors import UsageError
from intrasense_fast.evaluation import Watch, evaluate_samples
from intrasense_fast.files import write_text
from intrasense_fast.inference import predict_probabilities
from intrasense_fast.inference.calibration import PixelCounts, calibrated, write_calibration
from intrasense_fast.metrics import Summary, image_metrics, summarize
from intrasense_fast.networks import load_network
from intrasense_fast.networks.cards import CARD_FILE
from intrasense_fast.networks.contract import config_of
from intrasense_fast.networks.pretrained import WEIGHTS_FILE
from intrasense_fast.report.curves import save_curves
from intrasense_fast.report.maps import (
    RefinementItem,
    StrideMaps,
    positions_to_show,
    save_refinement_maps,
)
from intrasense_fast.report.overlays import (
    WORST_TO_BEST,
    OverlayItem,
    drawn_size,
    save_overlays,
    worst_to_best,
)
from intrasense_fast.report.tables import comparison_table, summary_table, write_csv
from intrasense_fast.training import logs
from intrasense_fast.training.baselines import Predictor, fit_baselines
from intrasense_fast.training.card import write_run_card
from intrasense_fast.training.checkpoint import BEST
from intrasense_fast.training.config import INTRASENSE, TrainConfig

_AT_A_TIME = 8
_DRAWN = 8
_MAPPED = 3
# What tables call the networks; the others by their own names.
_TITLES = {INTRASENSE: "IntraSense-Net"}


def write_results(
    run: Path,
    config: TrainConfig,
    data: SegmentationData,
    roles: dict[str, list[int]],
    train: SegmentationDataset,
    device: torch.device,
    say: Callable[[str], None],
) -> None:
    """Measure RUN/best on the selection and test images, on their own grids, and write every table
    and picture; fit the checkpoint's calibration on the selection images.

    Args:
        roles: places in `data` of the images of "train", "val" and "test"; "test" may be empty:
            then the selection images make the table, which says so.

    Raises:
        UsageError: RUN/best is missing or damaged.
    """
    try:
        net = load_network(run / BEST, fused=config.fused).to(device)
    except ValueError as error:
        raise UsageError(f"{error}; the results need the selected checkpoint") from error
    baselines = fit_baselines(train)
    shown = "test" if roles["test"] else "val"
    title = _TITLES.get(config.network, config.network)
    rows: dict[str, list[dict[str, Any]]] = {title: [], **{name: [] for name in baselines}}
    counts = PixelCounts()
    selection = _measured(
        net,
        data,
        roles["val"],
        config.size,
        "selection",
        rows if shown == "val" else {},
        baselines,
        counts.add,
    )
    test = _measured(net, data, roles["test"], config.size, "test", rows, baselines)
    write_csv(run / "per_image.csv", [*selection, *test])
    calibration = calibrated(counts, sha256_of(run / BEST / WEIGHTS_FILE))
    write_calibration(run / BEST, calibration)
    summaries = {name: summarize(found) for name, found in rows.items()}
    text = _text(summaries, config, data, shown, len(roles[shown]))
    text += f"\n\n{calibration.line()}"
    # No rows: metrics.csv was lost or damaged after the last epoch.
    if epochs := logs.read_epochs(run):
        save_curves(run / "curves.png", epochs)
    _draw(run, net, data, roles[shown], rows[title], config)
    write_text(run / "summary.txt", text + "\n")
    summary = _json(summaries, shown)
    groups = {record.name: record.group for record in data.records}
    if not write_run_card(run, groups, json.loads(summary)):
        say(f"{run / BEST / CARD_FILE}: is yours and is kept; the run's own card is not written")
    # summary.json comes last: it marks a run whose results are complete.
    write_text(run / "summary.json", summary + "\n")
    say(text)
    names = "config.json metrics.csv history.jsonl per_image.csv summary.txt".split()
    names += "curves.png overlays.png maps.png".split()
    say(
        f"\n{', '.join(name for name in names if (run / name).exists())}, best/ and last/ are in "
        f"{run}"
    )


def _measured(
    net: nn.Module,
    data: SegmentationData,
    indices: Sequence[int],
    size: int,
    role: str,
    rows: dict[str, list[dict[str, Any]]],
    baselines: dict[str, Predictor],
    watch: Watch | None = None,
) -> list[dict[str, Any]]:
    """One row an image; `rows` of the network and of each baseline grow by these images, where
    there are such rows. `watch` is shown each probability."""
    own = []
    records = [data.records[index] for index in indices]
    with progress(len(records), role, "image", leave=False) as bar:
        for chunk in record_chunks(records, _AT_A_TIME, data.options.max_pixels):
            samples = [data.load(record).sample for record in chunk]
            measured = evaluate_samples(net, samples, size, watch=watch)
            found = [{"role": role, **row} for row in measured]
            own += found
            if rows:
                rows[next(iter(rows))] += found
                for name, predict in baselines.items():
                    rows[name] += [
                        image_metrics(predict(sample.image), sample.mask) for sample in samples
                    ]
            bar.update(len(chunk))
    return own


def _text(
    summaries: dict[str, Summary],
    config: TrainConfig,
    data: SegmentationData,
    shown: str,
    count: int,
) -> str:
    simulated = config.data is None
    source = (
        "simulated phantoms"
        if simulated
        else f"{config.data} ({data.layout}, subset {config.subset})"
    )
    role = "test" if shown == "test" else "selection"
    title = (
        f"{count} {role} images of {source}, trained at {config.size} x {config.size}, "
        "measured on the original grid"
    )
    parts = [summary_table(next(iter(summaries.values())), title), "", comparison_table(summaries)]
    if shown != "test":
        parts += [
            "",
            "There are no test images: the checkpoint was selected on the images above, so these "
            "figures are optimistic.",
        ]
    if simulated:
        parts += ["", "Phantom scores are not clinical scores."]
    return "\n".join(parts)


def _json(summaries: dict[str, Summary], shown: str) -> str:
    role = "test" if shown == "test" else "selection"
    return json.dumps(
        {"role": role, **{name: summary.as_dict() for name, summary in summaries.items()}}, indent=1
    )


def _draw(
    run: Path,
    net: nn.Module,
    data: SegmentationData,
    indices: Sequence[int],
    rows: Sequence[dict[str, Any]],
    config: TrainConfig,
) -> None:
    """Overlays from the worst to the best, and where the network whitens in the last of them."""
    places = [indices[i] for i in worst_to_best(rows, _DRAWN)]
    items = []
    for place in places:
        sample = data[place]
        (probability,) = predict_probabilities(net, [sample.image], config.size)
        items.append(
            drawn_size(OverlayItem(sample.name, sample.image, sample.mask, probability > 0.5))
        )
    save_overlays(run / "overlays.png", items, title=WORST_TO_BEST)
    if config.network == INTRASENSE and config.gcp and config.refine_strides:
        maps = [_refinement(net, data[place], config.size) for place in places[-_MAPPED:]]
        save_refinement_maps(run / "maps.png", maps, config.entropy_scale)


def _refinement(net: nn.Module, sample: Sample, size: int) -> RefinementItem:
    """An image at the network's size, and what GCP does to it."""
    image = resize_image(sample.image, size)
    truth = resize_mask(sample.mask, size) > 0.5
    positions = positions_to_show(truth)
    x = torch.from_numpy(image)[None, None].expand(1, config_of(net)["in_channels"], -1, -1)
    maps = net.diagnose(x.to(next(net.parameters()).device), positions)  # type: ignore[operator]
    shown = {
        stride: StrideMaps(*(each[0].float().cpu().numpy() for each in found))
        for stride, found in maps.items()
    }
    return RefinementItem(sample.name, image, truth, positions, shown)
