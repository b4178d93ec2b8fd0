"""Segment images with a trained network: `python -m intrasense_fast predict`, and the function behind it."""

import argparse
import os
import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from intrasense_fast.data.images import SUFFIXES, ImageError, read_image, write_png
from intrasense_fast.data.order import natural_key
from intrasense_fast.data.transforms import resize_image, resize_probability
from intrasense_fast.data.verify import show
from intrasense_fast.errors import UsageError, first_line
from intrasense_fast.files import legible
from intrasense_fast.health import StrideHealth
from intrasense_fast.networks.intrasense import IntraSenseNet, read_config
from intrasense_fast.report.figures import MAX_ROWS
from intrasense_fast.report.overlays import OverlayItem, overlay, save_overlays
from intrasense_fast.report.tables import write_csv

COLUMNS = (
    "image",
    "mask",
    "area",
    "left",
    "top",
    "width",
    "height",
    "mean_probability",
    "threshold",
)
_AT_A_TIME = 8
_MASK_NAME = re.compile(r"^(.+)_mask(_\d+)?$", re.IGNORECASE)


def predict_probabilities(
    net: IntraSenseNet, images: Sequence[np.ndarray], size: int
) -> list[np.ndarray]:
    """Lesion probability of each image, on the image's own grid.

    Args:
        net: a network with one class, on any device; it runs in eval mode, and its mode is put back.
        images: float32 (H, W) in [0, 1], each of its own size.
        size: side in pixels of the square the network sees.

    Returns:
        One float32 (H, W) in [0, 1] an image.

    Raises:
        ValueError: the network has several classes, or an image has non-finite pixels.
    """
    config, device = net.config, next(net.parameters()).device
    if config["num_classes"] != 1:
        raise ValueError(
            f"predict: needs a network with one class, this one has {config['num_classes']}"
        )
    if not images:
        return []
    for i, image in enumerate(images):
        if not np.isfinite(image).all():
            raise ValueError(
                f"predict: image {i} has pixels that are NaN or infinite; repair it first"
            )
    batch = torch.from_numpy(np.stack([resize_image(image, size) for image in images])).unsqueeze(1)
    training = net.training
    net.eval()
    try:
        with torch.inference_mode():
            logits = net(batch.expand(-1, config["in_channels"], -1, -1).to(device))
            maps = torch.sigmoid(logits.float())[:, 0].cpu().numpy()
    finally:
        net.train(training)
    return [
        resize_probability(found, image.shape) for found, image in zip(maps, images, strict=True)
    ]


def network_health(
    net: IntraSenseNet, images: Sequence[np.ndarray], size: int
) -> dict[int, StrideHealth]:
    """`net.health` of images as `predict_probabilities` takes them."""
    batch = torch.from_numpy(np.stack([resize_image(image, size) for image in images])).unsqueeze(1)
    device = next(net.parameters()).device
    return net.health(batch.expand(-1, net.config["in_channels"], -1, -1).to(device))


def add_checkpoint_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of every command that runs a checkpoint."""
    parser.add_argument(
        "--checkpoint",
        required=True,
        metavar="RUN/best",
        help="folder with config.json and model.safetensors",
    )
    parser.add_argument("--out", required=True, help="new folder for the results")
    parser.add_argument(
        "--threshold",
        type=float,
        default=0.5,
        help="probability above which a pixel is lesion (default 0.5)",
    )
    parser.add_argument(
        "--size", type=int, help="side the network sees (default: the checkpoint's image size)"
    )
    parser.add_argument(
        "--device", default=None, help="cpu, cuda, cuda:1 ... (default: a GPU if there is one)"
    )
    parser.add_argument(
        "--fused",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="Triton kernels or eager operators",
    )


def usable_device(name: str) -> torch.device:
    """The device of that name, if numbers put on it can be read back.

    Raises:
        UsageError: it is unknown, not there, or holds no numbers.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError) as error:
        raise UsageError(
            f"--device {name}: cannot be used here ({first_line(error)}); try --device cpu"
        ) from error
    return device


def load_checkpoint(args: argparse.Namespace) -> tuple[IntraSenseNet, int]:
    """The network on its device, and the image size; every argument checked, and the folder --out made.

    Raises:
        UsageError: an argument that cannot be used.
    """
    if not 0 <= args.threshold <= 1:
        raise UsageError(f"--threshold must lie in [0, 1], got {args.threshold}")
    try:
        config = read_config(args.checkpoint)
        net = IntraSenseNet.from_pretrained(args.checkpoint, fused=args.fused)
    except ValueError as error:
        raise UsageError(f"--checkpoint {error}") from error
    if net.config["num_classes"] != 1:
        classes = net.config["num_classes"]
        raise UsageError(
            f"--checkpoint {args.checkpoint}: has {classes} classes, a network with one class (lesion) is needed"
        )
    size = args.size if args.size is not None else config.get("image_size")
    if size is None:
        raise UsageError(
            f"{args.checkpoint}/config.json has no image_size; give --size, the side the network was trained at"
        )
    if not isinstance(size, int) or size < 32:
        raise UsageError(f"--size must be an integer >= 32, got {size!r}")
    device = usable_device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        net.to(device)
    except RuntimeError as error:
        raise UsageError(
            f"--device {device}: the network cannot be put there ({first_line(error)})"
        ) from error
    if args.fused:
        unavailable = [
            path.reason for path in net.fused_report().values() if path.path == "unavailable"
        ]
        if unavailable:
            raise UsageError(f"--fused: {unavailable[0]}")
    out = Path(args.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"--out {out} is in use; nothing is overwritten: choose a new folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {out}: cannot be made ({error.strerror})") from error
    return net, size


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "input", metavar="IMAGE|FOLDER", help="an image, or a folder whose images are all segmented"
    )
    add_checkpoint_arguments(parser)
    parser.add_argument(
        "--probabilities", action="store_true", help="also write NAME_probability.png, 16-bit"
    )


def run(args: argparse.Namespace) -> int:
    """Segment; 0 when all went well, 1 when some images failed and were named.

    Raises:
        UsageError: nothing could start.
    """
    files, left_out = _images(Path(args.input))
    _check_targets(files, args.probabilities)
    net, size = load_checkpoint(args)
    for path in left_out:
        show(f"left out, the mask of an image beside it: {path}")
    out, rows, failures = Path(args.out), [], []
    drawn: list[OverlayItem] = []
    with tqdm(total=len(files), desc="predict", unit="image") as bar:
        for chunk in _chunks(files):
            images: dict[Path, np.ndarray] = {}
            for relative, path in chunk:
                try:
                    images[relative] = read_image(path)
                except ImageError as error:
                    failures.append(str(error))
            for (relative, image), probability in zip(
                images.items(), predict_probabilities(net, list(images.values()), size), strict=True
            ):
                mask = (probability > args.threshold).astype(np.uint8)
                rows.append(_write(out, relative, image, probability, mask, args))
                if len(drawn) < MAX_ROWS:
                    drawn.append(OverlayItem(relative.as_posix(), image, None, mask))
            bar.update(len(chunk))
    write_csv(out / "predictions.csv", rows, COLUMNS)
    if drawn:
        save_overlays(out / "overlays.png", drawn)
    show(
        f"{len(rows)} of {len(files)} images segmented; masks, overlays and predictions.csv are in {out}"
    )
    for failure in failures:
        show(f"failed: {failure}", sys.stderr)
    return 1 if failures else 0


def _write(
    out: Path,
    relative: Path,
    image: np.ndarray,
    probability: np.ndarray,
    mask: np.ndarray,
    args: argparse.Namespace,
) -> dict[str, Any]:
    stem = _target(out, relative)
    target = stem.with_name(f"{stem.name}_mask.png")
    target.parent.mkdir(parents=True, exist_ok=True)
    write_png(target, mask * np.uint8(255))
    write_png(stem.with_name(f"{stem.name}_overlay.png"), overlay(image, None, mask))
    if args.probabilities:
        write_png(
            stem.with_name(f"{stem.name}_probability.png"),
            np.rint(probability * 65535).astype(np.uint16),
        )
    ys, xs = np.nonzero(mask)
    box = (
        (xs.min(), ys.min(), xs.max() - xs.min() + 1, ys.max() - ys.min() + 1)
        if len(xs)
        else ("", "", "", "")
    )
    inside = float(probability[mask == 1].mean()) if len(xs) else ""
    values = (
        relative.as_posix(),
        target.relative_to(out).as_posix(),
        len(xs),
        *box,
        inside,
        args.threshold,
    )
    return dict(zip(COLUMNS, values, strict=True))


def _target(out: Path, relative: Path) -> Path:
    """Where the results of an image begin: its place in `out`, its name in UTF-8 as predictions.csv holds it."""
    return out / legible(relative.with_suffix("").as_posix())


def _images(source: Path) -> tuple[list[tuple[Path, Path]], list[Path]]:
    """(relative path, path) of every image, in natural order, and the masks left out. Links that lead back are not followed."""
    if source.is_file():
        return [(Path(source.name), source)], []
    if not source.is_dir():
        raise UsageError(f"{source}: no such image or folder")
    found = []
    for folder, inside, names in os.walk(source, onerror=_refuse, followlinks=True):
        here = Path(folder)
        if any(
            os.path.samefile(here, up)
            for up in here.parents
            if up == source or source in up.parents
        ):
            inside.clear()
            continue
        found += [
            Path(folder, name)
            for name in names
            if Path(name).suffix.lower() in SUFFIXES and not name.startswith(".")
        ]
    if not found:
        raise UsageError(f"{source}: holds no images ({', '.join(SUFFIXES)})")
    stems = {path.with_suffix("") for path in found}
    masks = {
        path
        for path in found
        if (match := _MASK_NAME.match(path.stem)) and path.with_name(match[1]) in stems
    }
    relative = [path.relative_to(source) for path in found if path not in masks]
    ordered = sorted(relative, key=lambda path: [natural_key(part) for part in path.parts])
    return [(path, source / path) for path in ordered], sorted(masks)


def _refuse(error: OSError) -> None:
    raise UsageError(
        f"{error.filename}: cannot be read ({error.strerror}); make it readable, or move it out of the folder"
    )


def _check_targets(files: Sequence[tuple[Path, Path]], probabilities: bool) -> None:
    kinds = ("mask", "overlay", "probability") if probabilities else ("mask", "overlay")
    writers = defaultdict(list)
    for relative, _ in files:
        for kind in kinds:
            # Compared without case: on many file systems a.png and A.png are one file.
            writers[f"{_target(Path(), relative)}_{kind}".casefold()].append(relative)
    for target, sources in writers.items():
        if len(sources) > 1:
            names = " and ".join(str(path) for path in sources)
            raise UsageError(
                f"{names} would both be written to {target}.png; rename one or put them in different folders"
            )


def _chunks(files: Sequence[tuple[Path, Path]]) -> Iterator[Sequence[tuple[Path, Path]]]:
    for start in range(0, len(files), _AT_A_TIME):
        yield files[start : start + _AT_A_TIME]
