"""Near-duplicates: how many are found, how few are wrong, what is done with them, and what is kept
for next time."""

import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from intrasense_fast.data import duplicates as module
from intrasense_fast.data import open_dataset, proposals, read_dataset
from intrasense_fast.data import pairs as pairs_module
from intrasense_fast.data.alignment import Alignment
from intrasense_fast.data.duplicates import (
    Duplicates,
    Pair,
    clusters_of,
    conflicts_of,
    find_duplicates,
    find_pairs,
    regrouped,
)
from intrasense_fast.data.fake import VARIANTS, Picture, variant
from intrasense_fast.data.fake._tree import cut_out, neighbour, sector, with_calipers
from intrasense_fast.data.phantom import phantom, to_bytes
from intrasense_fast.data.reading import ReadingOptions
from intrasense_fast.data.records import DataError, Record, SegmentationData
from intrasense_fast.data.signatures import Signature, signature
from intrasense_fast.data.splits import make_splits, parted_groups, strata_of
from intrasense_fast.data.subsets import choose, curated_names

Trees = Callable[[str, bool], tuple[Path, list]]


def sign(picture: Picture) -> Signature:
    return signature(picture.image / np.float32(255), (picture.mask > 0).astype(np.uint8))


def drawn(seed: int, count: int) -> list[Picture]:
    """Phantoms of about 100 to 260 pixels, each of its own size; one in ten without lesion."""
    rng = np.random.default_rng(seed)
    shapes = rng.integers(100, 260, (count, 2)).tolist()
    found = [
        phantom((seed, i), tuple(shape), lesions=0 if i % 10 == 0 else None)
        for i, shape in enumerate(shapes)
    ]
    return [Picture(to_bytes(image), mask * np.uint8(255)) for image, mask in found]


def drawn_large(seed: int, count: int) -> list[Picture]:
    """Phantoms of about 256 pixels, each with a lesion."""
    found = [phantom((seed, i), (208, 256)) for i in range(count)]
    return [Picture(to_bytes(image), mask * np.uint8(255)) for image, mask in found]


def test_recall_and_precision_on_synthetic_pairs(
    seed: int, record_property: Callable[[str, object], None]
) -> None:
    rng = np.random.default_rng(seed)
    pictures = drawn(seed, 150)
    ways = [*((kind,) for kind in VARIANTS), tuple(VARIANTS)]
    names, signatures, truth = [], [], set()
    for i, picture in enumerate(pictures):
        names.append(f"{i}")
        signatures.append(sign(picture))
        if i < 100:
            names.append(f"{i} again")
            signatures.append(sign(variant(picture, rng, *ways[i % len(ways)])))
            truth.add((f"{i}", f"{i} again"))
    found = {(pair.first, pair.second) for pair in find_pairs(names, signatures)[0]}
    recall, precision = len(found & truth) / len(truth), len(found & truth) / max(len(found), 1)
    record_property("recall", recall)
    record_property("precision", precision)
    missed = sorted(truth - found)
    assert recall >= 0.95, (
        f"recall {recall}: {[(name, ways[int(name) % len(ways)]) for name, _ in missed]}"
    )
    assert precision >= 0.99, f"precision {precision}: {sorted(found - truth)}"


def levels(pictures: list[Picture]) -> dict[tuple[str, str], bool]:
    """Pairs by name (their numbers), and whether they are the same picture."""
    names = [f"{i}" for i in range(len(pictures))]
    pairs, _ = find_pairs(names, [sign(each) for each in pictures])
    return {(pair.first, pair.second): pair.same_picture for pair in pairs}


@pytest.mark.parametrize(("way", "least"), [("zoomed", 26), ("sector against cut-out", 21)])
def test_parts_of_a_picture_are_the_same_picture(way: str, least: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pictures = drawn_large(seed, 30)
    if way == "zoomed":
        others = [cut_out(each, rng) for each in pictures]
    else:
        others = [cut_out(each, rng) for each in pictures]
        pictures = [sector(each) for each in pictures]
    found = levels([*pictures, *others])
    truth = {(f"{i}", f"{i + 30}") for i in range(30)}
    assert len(truth & {pair for pair, same in found.items() if same}) >= least
    assert len(set(found) - truth) <= 1


@pytest.mark.parametrize("change", [neighbour, with_calipers])
def test_neighbouring_frames_and_calipers_are_one_view_at_least(
    change: Callable, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    pictures = drawn_large(seed, 30)
    found = levels([*pictures, *(change(each, rng) for each in pictures)])
    truth = {(f"{i}", f"{i + 30}") for i in range(30)}
    assert len(truth & set(found)) >= 26 and len(set(found) - truth) <= 1
    if change is neighbour:
        same = [pair for pair in truth & set(found) if found[pair]]
        assert len(same) <= 1, "neighbouring frames are other pictures"


def test_mirror_images_are_other_pictures(seed: int) -> None:
    pictures = drawn(seed, 12)
    mirrored = [Picture(image[:, ::-1].copy(), mask[:, ::-1].copy()) for image, mask in pictures]
    assert find_pairs(
        [f"{i}" for i in range(24)], [sign(each) for each in (*pictures, *mirrored)]
    ) == ([], 0)


def test_masks_are_compared_where_both_pictures_show_them(seed: int) -> None:
    image, _ = drawn(seed, 2)[1]
    height, width = image.shape
    lesion, other = np.zeros_like(image), np.zeros_like(image)
    lesion[height // 3 : 2 * height // 3, width // 3 : 2 * width // 3] = 255
    other[height // 3 : 2 * height // 3, : width // 3] = 255
    cut = Picture(
        image[: -height // 20, width // 20 :].copy(), lesion[: -height // 20, width // 20 :].copy()
    )
    same, different = (
        find_pairs(["a", "b"], [sign(Picture(image, mask)), sign(cut)])[0]
        for mask in (lesion, other)
    )
    assert same[0].overlap > 0.85 and different[0].overlap < 0.1
    none = np.zeros_like(image)
    ((pair,), _) = find_pairs(["a", "b"], [sign(Picture(image, none)), sign(Picture(image, none))])
    assert pair == Pair("a", "b", 1.0, 1.0)


def test_pictures_without_structure(seed: int) -> None:
    flat, dark = np.full((50, 60), 80, np.uint8), np.zeros((64, 64), np.uint8)
    noise = np.random.default_rng(seed).integers(0, 255, (3, 64, 64), np.uint8)
    pairs, _ = find_pairs(
        list("abcde"), [sign(Picture(each, dark)) for each in (flat, dark, *noise)]
    )
    assert all({pair.first, pair.second} == {"a", "b"} for pair in pairs), (
        "two flat pictures may pass as one, noise may not"
    )
    assert find_pairs([], []) == find_pairs(["a"], [sign(Picture(dark, dark))]) == ([], 0)


def blends(seed: int, count: int) -> list[Signature]:
    """Of two of a few phantoms each: many are nearly the same, and many others only alike."""
    rng = np.random.default_rng(seed)
    images = [phantom((seed, i), 64)[0] for i in range(8)]
    found = []
    for _ in range(count):
        first, second = rng.choice(len(images), 2, replace=False)
        share = np.float32(rng.uniform(0.5, 1))
        blend = images[first] * share + images[second] * (1 - share)
        found.append(signature(blend, np.zeros((64, 64), np.uint8)))
    return found


def test_every_pair_of_close_hashes_is_proposed_once(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proposals, "_TILE", 16)
    hashes = np.stack([each.hash for each in blends(seed, 60)])
    bits = np.unpackbits(hashes, axis=1)
    wanted = {
        (first, second, int((bits[first] != bits[second]).sum()))
        for first, second in itertools.combinations(range(60), 2)
    }
    wanted = {each for each in wanted if each[2] <= proposals.LARGEST_DISTANCE}
    proposed = []
    for start in range(0, 60, 25):
        rows = slice(start, min(60, start + 25))
        never = lambda first, _: np.zeros(len(first), bool)
        proposed += proposals.alike(hashes, rows, never).tolist()
    assert len(proposed) == len(wanted) > 0 and set(map(tuple, proposed)) == wanted


def test_a_search_that_gives_up_joined_pictures_finds_the_same_clusters(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    signatures = blends(seed, 60)
    names = [f"{i}" for i in range(len(signatures))]
    found = {}
    monkeypatch.setattr(pairs_module, "MOST_FAILURES", len(names))
    monkeypatch.setattr(pairs_module, "MOST_FAILURES_OF_FEATURES", len(names))
    monkeypatch.setattr(pairs_module, "MOST_FAILURES_IN_VIEW", len(names))
    monkeypatch.setattr(pairs_module, "_ALIGNED_AT_ONCE", 4)
    for fully in (len(names), 3):
        monkeypatch.setattr(pairs_module, "FULLY_COMPARED", fully)
        found[fully], left_out = find_pairs(names, signatures)
        assert left_out == 0
    few, all_of_them = found[3], found[len(names)]
    assert {each[:2] for each in few} <= {each[:2] for each in all_of_them}
    assert clusters_of(few) == clusters_of(all_of_them)
    pictures = [
        clusters_of(each for each in pairs if each.same_picture) for pairs in found.values()
    ]
    assert pictures[0] == pictures[1] and pictures[0]


@pytest.mark.parametrize("same", [True, False])
def test_alignments_grow_with_the_pictures_not_their_square(
    same: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 600
    aligned = []

    def align(first: Signature, second: Signature, alike: bool) -> Alignment:
        aligned.append(alike)
        return Alignment(80, 80, 0.99 if same else 0.1, 1.0)

    monkeypatch.setattr(pairs_module, "align", align)
    alike = sign(drawn(0, 2)[1])
    found, left_out = find_pairs([f"{i}" for i in range(count)], [alike] * count)
    if same:
        assert len(aligned) < 2 * count and left_out == 0 and len(clusters_of(found)[0]) == count
    else:
        most = pairs_module.MOST_FAILURES + pairs_module._ALIGNED_AT_ONCE
        assert not found and len(aligned) < most * count
        assert left_out == count * (count - 1) // 2 - len(aligned)


def test_what_was_left_out_is_said_and_remembered(
    trees: Trees, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, _ = trees("generic", False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "find_pairs", lambda *_, **__: ([], 7))
    for _ in range(2):
        (problem,) = open_dataset(root).problems
        assert problem.level == "warning" and problem.file == str(root)
        assert problem.message.startswith("up to 7 pairs of similar pictures were not compared: ")
        monkeypatch.setattr(module, "find_pairs", None)


def test_large_clusters_say_that_not_every_pair_was_compared() -> None:
    data = data_of({f"{i}_1": f"{i}" for i in range(9)})
    star = tuple(Pair("0_1", f"{i}_1", 0.9, 1.0) for i in range(1, 9))
    (large,) = regrouped(data, Duplicates(star)).problems
    (small,) = regrouped(data, Duplicates(star[:-1])).problems
    assert "not compared each with each" in large.message and small.message.endswith(
        "kept in one group"
    )
    without = data.subset(range(1, 9))
    assert {record.group for record in regrouped(without, Duplicates(star)).records} == {"1_1"}


def test_clusters_against_a_plain_search(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(50):
        names = [f"n{i}" for i in range(12)]
        pairs = [
            tuple(names[i] for i in rng.choice(12, 2, replace=False))
            for _ in range(rng.integers(0, 9))
        ]
        parts = [{name} for name in names]
        for first, second in itertools.chain(pairs, pairs):
            one, two = (next(part for part in parts if name in part) for name in (first, second))
            if one is not two:
                parts.remove(two)
                one |= two
        assert {frozenset(each) for each in clusters_of(pairs)} == {
            frozenset(part) for part in parts if len(part) > 1
        }


def data_of(cases: dict[str, str]) -> SegmentationData:
    records = [
        Record(name, Path(f"{name}.png"), (Path(f"{name}_m.png"),), case, case, "benign")
        for name, case in cases.items()
    ]
    return SegmentationData(Path("."), "ddti", tuple(records))


def test_groups_that_share_a_picture_become_one() -> None:
    data = data_of({"1_1": "1", "1_2": "1", "2_1": "2", "3_1": "3", "4_1": "4"})
    found = Duplicates(
        (Pair("1_2", "3_1", 0.9, 1.0), Pair("gone", "4_1", 0.9, 1.0)),
    )
    grouped = regrouped(data, found)
    groups = [record.group for record in grouped.records]
    assert groups == ["1_1", "1_1", "2", "1_1", "4"] and [
        record.case for record in grouped.records
    ] == [
        "1",
        "1",
        "2",
        "3",
        "4",
    ]
    (warning,) = grouped.problems
    assert warning.file == "1_2.png" and "near-duplicate of 3_1" in warning.message


def test_a_view_is_one_group_and_no_conflict() -> None:
    names = ["1", "2", "3", "4", "5"]
    data = data_of({name: name for name in names})
    labels = ("benign", "malignant", "benign", "malignant", "benign")
    records = [replace(r, label=label) for r, label in zip(data.records, labels, strict=True)]
    chain = (Pair("1", "2", 0.6, 0.1, False), Pair("2", "3", 0.6, 0.1, False))
    found = Duplicates((*chain, Pair("3", "4", 0.99, 0.1)))
    assert found.clusters == (("3", "4"),) and found.views == (("1", "2", "3", "4"),)
    grouped = regrouped(data.with_records(records), found)
    assert [record.group for record in grouped.records] == ["1", "1", "1", "1", "5"]
    (conflict,) = conflicts_of(records, found)
    assert conflict.pair.first == "3" and conflict.classes and conflict.masks
    said = [(problem.file, problem.message.split(":")[0]) for problem in grouped.problems]
    assert said == [
        ("3.png", "near-duplicate of 4"),
        ("1.png", "the same view as 2, 3 (neighbouring frames, or drawn on)"),
        ("3.png", "conflict"),
        ("3.png", "conflict"),
    ]


def test_a_search_is_remembered_until_a_file_changes(
    trees: Trees, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "busi"
    shutil.copytree(trees("busi", False)[0], root)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first = open_dataset(root)
    (kept,) = (file for file in (tmp_path / "cache").rglob("*") if file.is_file())
    assert json.loads(kept.read_text())["version"] == module.VERSION

    searched = []
    original = find_pairs

    def counted(*arguments: object, **options: object) -> tuple[list[Pair], int]:
        searched.append(1)
        return original(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "find_pairs", counted)
    assert open_dataset(root).records == first.records and not searched
    kept.write_text("{ torn")
    assert open_dataset(root).records == first.records and len(searched) == 1
    assert json.loads(kept.read_text())["pairs"]
    monkeypatch.setattr(module, "VERSION", module.VERSION + 1)
    assert open_dataset(root).records == first.records and len(searched) == 2
    for ending in (".png", "_mask.png"):
        shutil.copy(
            root / "benign" / f"benign (13){ending}", root / "benign" / f"benign (6){ending}"
        )
    changed = {record.name: record.group for record in open_dataset(root).records}
    assert len(searched) == 3 and changed["benign (6)"] == changed["benign (13)"] == "benign (6)"
    assert changed["benign (1)"] == "benign (1)"


def test_groups_of_the_layouts(trees: Trees) -> None:
    groups = {record.name: record.group for record in open_dataset(trees("busi", False)[0]).records}
    assert groups["benign (6)"] == groups["benign (1)"] == "benign (1)"
    assert (
        groups["malignant (1)"] == groups["benign (2)"]
        and groups["malignant (8)"] == groups["benign (12)"]
    )
    assert groups["malignant (2)"] == groups["malignant (3)"] == groups["malignant (4)"]
    assert groups["benign (15)"] == groups["benign (14)"] == "benign (14)"
    assert groups["benign (17)"] == groups["benign (16)"] == "benign (16)"
    groups = {
        record.name: record.group for record in open_dataset(trees("dataset-b", False)[0]).records
    }
    assert groups["000004"] == groups["000005"] and groups["000006"] == groups["000295"]
    records = open_dataset(trees("ddti", False)[0]).records
    assert {record.group for record in records if record.case == "2"} == {"2"}
    assert {record.group for record in records if record.case in ("12", "13")} == {"12_1"}
    plain = open_dataset(trees("busi", False)[0], group_duplicates=False)
    assert all(record.group == record.name for record in plain.records)


def test_subsets(trees: Trees) -> None:
    data = read_dataset(trees("busi", False)[0])
    findings = data.inspect(signatures=True)
    found = find_duplicates(data, [finding.signature for finding in findings])
    sizes = {
        subset: len(choose(data, findings, found, subset))
        for subset in ("all", "lesions", "deduplicated", "curated")
    }
    # 30 images; 5 normal ones; 7 clusters of 15 images; Curated BUSI holds malignant 1 to 3 and 6,
    # normal 2 to 4 of these.
    assert sizes == {"all": 30, "lesions": 25, "deduplicated": 22, "curated": 7}
    kept = {record.name for record in choose(data, findings, found, "deduplicated").records}
    assert "benign (1)" in kept and not kept & {
        "benign (6)",
        "malignant (1)",
        "malignant (3)",
        "malignant (4)",
        "normal (2)",
    }
    lesions = [finding for finding in findings if not finding.area]
    with pytest.raises(DataError, match="subset lesions is empty"):
        choose(data.subset(range(25, 30)), lesions, found, "lesions")
    other = replace(
        data, records=tuple(replace(record, name=f"x{i}") for i, record in enumerate(data.records))
    )
    with pytest.raises(
        DataError, match="subset curated is empty, it is a published list of BUSI images"
    ):
        choose(other, findings, found, "curated")


def test_curated_is_the_published_list() -> None:
    names = curated_names()
    counts = {
        label: sum(each == label for each, _ in names)
        for label in ("benign", "malignant", "normal")
    }
    assert counts == {"benign": 222, "malignant": 164, "normal": 64}
    conflicts = {
        "benign": (42, 85, 131, 164, 269, 333, 399, 406, 433, 437),
        "malignant": (51, 52, 77, 78, 93, 94, 145),
    }
    assert not any(
        (label, number) in names for label, numbers in conflicts.items() for number in numbers
    )
    assert ("normal", 1) not in names and ("normal", 34) not in names


def test_no_view_parts_in_any_fold_of_20_seeds(trees: Trees) -> None:
    data = read_dataset(trees("busi", False)[0])
    findings = data.inspect(signatures=True)
    found = find_duplicates(data, [finding.signature for finding in findings])
    view = {name: each[0] for each in found.views for name in each}
    assert len(set(view.values())) == 8
    records = regrouped(data, found).records
    names = [record.name for record in records]
    groups = [record.group for record in records]
    for seed in range(20):
        splits = make_splits(names, groups, strata_of(findings), folds=5, seed=seed)
        assert not parted_groups(splits, {name: view.get(name, name) for name in names})


@pytest.mark.parametrize(
    "options",
    [
        ReadingOptions(max_pixels=10**6),
        ReadingOptions(levels=200),
        ReadingOptions(mask_values=(255,)),
    ],
)
def test_a_search_is_another_one_where_files_are_read_otherwise(
    options: ReadingOptions, trees: Trees
) -> None:
    root = trees("generic", False)[0]
    plain, other = read_dataset(root), read_dataset(root, options=options)
    assert module.cache_file(plain) == module.cache_file(read_dataset(root))
    assert module.cache_file(plain) != module.cache_file(other)


def test_a_search_is_another_one_where_any_mask_of_the_data_set_changed(
    trees: Trees, tmp_path: Path
) -> None:
    root = tmp_path / "busi"
    shutil.copytree(trees("busi", False)[0], root)
    data = read_dataset(root)
    few = data.subset(range(3))
    before = module.cache_file(few)
    # It is of no record of these three, but the rule of all masks is decided over it too.
    (mask,) = data.records[9].masks
    mask.write_bytes(mask.read_bytes() + b"\0")
    assert module.cache_file(few) != before
