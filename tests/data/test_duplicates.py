"""Near-duplicates: how many are found, how few are wrong, what is done with them, and what is kept for next time."""

import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from intrasense_fast.data import duplicates as module
from intrasense_fast.data import open_dataset, read_dataset
from intrasense_fast.data.duplicates import Duplicates, Pair, clusters_of, find_duplicates, find_pairs, regrouped
from intrasense_fast.data.fake import VARIANTS, Picture, variant
from intrasense_fast.data.phantom import phantom, to_bytes
from intrasense_fast.data.records import DataError, Record, SegmentationData
from intrasense_fast.data.signatures import Signature, signature
from intrasense_fast.data.subsets import choose, curated_names

Trees = Callable[[str, bool], tuple[Path, list]]


def sign(picture: Picture) -> Signature:
    return signature(picture.image / np.float32(255), (picture.mask > 0).astype(np.uint8))


def drawn(seed: int, count: int) -> list[Picture]:
    """Phantoms of about 100 to 260 pixels, each of its own size; one in ten without lesion."""
    rng = np.random.default_rng(seed)
    shapes = rng.integers(100, 260, (count, 2)).tolist()
    found = [phantom((seed, i), tuple(shape), lesions=0 if i % 10 == 0 else None) for i, shape in enumerate(shapes)]
    return [Picture(to_bytes(image), mask * np.uint8(255)) for image, mask in found]


def test_recall_and_precision_on_synthetic_pairs(seed: int, record_property: Callable[[str, object], None]) -> None:
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
    found = {(pair.first, pair.second) for pair in find_pairs(names, signatures)}
    recall, precision = len(found & truth) / len(truth), len(found & truth) / max(len(found), 1)
    record_property("recall", recall)
    record_property("precision", precision)
    missed = sorted(truth - found)
    assert recall >= 0.95, f"recall {recall}: {[(name, ways[int(name) % len(ways)]) for name, _ in missed]}"
    assert precision >= 0.99, f"precision {precision}: {sorted(found - truth)}"


def test_mirror_images_are_other_pictures(seed: int) -> None:
    pictures = drawn(seed, 12)
    mirrored = [Picture(image[:, ::-1].copy(), mask[:, ::-1].copy()) for image, mask in pictures]
    assert not find_pairs([f"{i}" for i in range(24)], [sign(each) for each in (*pictures, *mirrored)])


def test_masks_are_compared_where_both_pictures_show_them(seed: int) -> None:
    image, _ = drawn(seed, 2)[1]
    height, width = image.shape
    lesion, other = np.zeros_like(image), np.zeros_like(image)
    lesion[height // 3 : 2 * height // 3, width // 3 : 2 * width // 3] = 255
    other[height // 3 : 2 * height // 3, : width // 3] = 255
    cut = Picture(image[: -height // 20, width // 20 :].copy(), lesion[: -height // 20, width // 20 :].copy())
    same, different = (find_pairs(["a", "b"], [sign(Picture(image, mask)), sign(cut)]) for mask in (lesion, other))
    assert same[0].overlap > 0.85 and different[0].overlap < 0.1
    none = np.zeros_like(image)
    (pair,) = find_pairs(["a", "b"], [sign(Picture(image, none)), sign(Picture(image, none))])
    assert pair == Pair("a", "b", 1.0, 1.0)


def test_pictures_without_structure(seed: int) -> None:
    flat, dark = np.full((50, 60), 80, np.uint8), np.zeros((64, 64), np.uint8)
    noise = np.random.default_rng(seed).integers(0, 255, (3, 64, 64), np.uint8)
    pairs = find_pairs(list("abcde"), [sign(Picture(each, dark)) for each in (flat, dark, *noise)])
    assert all({pair.first, pair.second} == {"a", "b"} for pair in pairs), "two flat pictures may pass as one, noise may not"
    assert find_pairs([], []) == [] and find_pairs(["a"], [sign(Picture(dark, dark))]) == []


def test_clusters_against_a_plain_search(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(50):
        names = [f"n{i}" for i in range(12)]
        pairs = [tuple(names[i] for i in rng.choice(12, 2, replace=False)) for _ in range(rng.integers(0, 9))]
        parts = [{name} for name in names]
        for first, second in itertools.chain(pairs, pairs):
            one, two = (next(part for part in parts if name in part) for name in (first, second))
            if one is not two:
                parts.remove(two)
                one |= two
        assert {frozenset(each) for each in clusters_of(pairs)} == {frozenset(part) for part in parts if len(part) > 1}


def data_of(cases: dict[str, str]) -> SegmentationData:
    records = [
        Record(name, Path(f"{name}.png"), (Path(f"{name}_m.png"),), case, case, "benign") for name, case in cases.items()
    ]
    return SegmentationData(Path("."), "ddti", tuple(records))


def test_groups_that_share_a_picture_become_one() -> None:
    data = data_of({"1_1": "1", "1_2": "1", "2_1": "2", "3_1": "3", "4_1": "4"})
    found = Duplicates((Pair("1_2", "3_1", 0.9, 1.0), Pair("gone", "4_1", 0.9, 1.0)), (("1_2", "3_1"), ("gone", "4_1")))
    grouped = regrouped(data, found)
    groups = [record.group for record in grouped.records]
    assert groups == ["1_1", "1_1", "2", "1_1", "4"] and [record.case for record in grouped.records] == [
        "1",
        "1",
        "2",
        "3",
        "4",
    ]
    (warning,) = grouped.problems
    assert warning.file == "1_2.png" and "near-duplicate of 3_1" in warning.message


def test_a_search_is_remembered_until_a_file_changes(trees: Trees, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "busi"
    shutil.copytree(trees("busi", False)[0], root)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first = open_dataset(root)
    (kept,) = (file for file in (tmp_path / "cache").rglob("*") if file.is_file())
    assert json.loads(kept.read_text())["version"] == module.VERSION

    searched = []
    original = find_pairs

    def counted(*arguments: object, **options: object) -> list[Pair]:
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
        shutil.copy(root / "benign" / f"benign (13){ending}", root / "benign" / f"benign (6){ending}")
    changed = {record.name: record.group for record in open_dataset(root).records}
    assert len(searched) == 3 and changed["benign (6)"] == changed["benign (13)"] == "benign (6)"
    assert changed["benign (1)"] == "benign (1)"


def test_groups_of_the_layouts(trees: Trees) -> None:
    groups = {record.name: record.group for record in open_dataset(trees("busi", False)[0]).records}
    assert groups["benign (6)"] == groups["benign (1)"] == "benign (1)"
    assert groups["malignant (1)"] == groups["benign (2)"] and groups["malignant (8)"] == groups["benign (12)"]
    assert groups["malignant (2)"] == groups["malignant (3)"] == groups["malignant (4)"]
    groups = {record.name: record.group for record in open_dataset(trees("dataset-b", False)[0]).records}
    assert groups["000004"] == groups["000005"] and groups["000006"] == groups["000295"]
    records = open_dataset(trees("ddti", False)[0]).records
    assert {record.group for record in records if record.case == "2"} == {"2"}
    assert {record.group for record in records if record.case in ("12", "13")} == {"12_1"}
    plain = open_dataset(trees("busi", False)[0], group_duplicates=False)
    assert all(record.group == record.name for record in plain.records)


def test_subsets(trees: Trees) -> None:
    data = read_dataset(trees("busi", False)[0])
    findings = data.inspect(signatures=True)
    found = find_duplicates(data.records, [finding.signature for finding in findings])
    sizes = {subset: len(choose(data, findings, found, subset)) for subset in ("all", "lesions", "deduplicated", "curated")}
    # 30 images; 5 normal ones; 6 clusters of 13 images; Curated BUSI holds malignant 1 to 3 and 6, normal 2 to 4 of these.
    assert sizes == {"all": 30, "lesions": 25, "deduplicated": 23, "curated": 7}
    kept = {record.name for record in choose(data, findings, found, "deduplicated").records}
    assert "benign (1)" in kept and not kept & {"benign (6)", "malignant (1)", "malignant (3)", "malignant (4)", "normal (2)"}
    lesions = [finding for finding in findings if not finding.area]
    with pytest.raises(DataError, match="subset lesions is empty"):
        choose(data.subset(range(25, 30)), lesions, found, "lesions")
    other = replace(data, records=tuple(replace(record, name=f"x{i}") for i, record in enumerate(data.records)))
    with pytest.raises(DataError, match="subset curated is empty, it is a published list of BUSI images"):
        choose(other, findings, found, "curated")


def test_curated_is_the_published_list() -> None:
    names = curated_names()
    counts = {label: sum(each == label for each, _ in names) for label in ("benign", "malignant", "normal")}
    assert counts == {"benign": 222, "malignant": 164, "normal": 64}
    conflicts = {"benign": (42, 85, 131, 164, 269, 333, 399, 406, 433, 437), "malignant": (51, 52, 77, 78, 93, 94, 145)}
    assert not any((label, number) in names for label, numbers in conflicts.items() for number in numbers)
    assert ("normal", 1) not in names and ("normal", 34) not in names
