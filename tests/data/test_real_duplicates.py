"""Near-duplicates of the real BUSI: the 330 images the published list leaves out, and frames."""

from pathlib import Path

import pytest

from intrasense_fast.data import read_dataset
from intrasense_fast.data.duplicates import Duplicates, conflicts_of, find_duplicates, regrouped
from intrasense_fast.data.records import Record, SegmentationData
from intrasense_fast.data.splits import make_splits, parted_groups, strata_of
from intrasense_fast.data.subsets import curated_names

BUSI = Path(__file__).resolve().parents[3] / "shared" / "data" / "Dataset_BUSI_with_GT"

pytestmark = pytest.mark.skipif(
    not BUSI.is_dir(), reason=f"the BUSI data set is not redistributed, and not at {BUSI}"
)


@pytest.fixture(scope="module")
def searched(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[SegmentationData, Duplicates, list[str]]:
    """The data with groups, what was found, and the strata."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        data = read_dataset(BUSI)
        findings = data.inspect(signatures=True)
        found = find_duplicates(data, [each.signature for each in findings])
    return regrouped(data, found), found, strata_of(findings)


Searched = tuple[SegmentationData, Duplicates, list[str]]


def names(text: str) -> tuple[str, ...]:
    """ "b435 m145" as names of BUSI."""
    labels = {"b": "benign", "m": "malignant", "n": "normal"}
    return tuple(f"{labels[each[0]]} ({each[1:]})" for each in text.split())


def test_all_330_published_duplicates_stand_in_a_cluster(searched: Searched) -> None:
    data, found, _ = searched
    curated = {f"{label} ({number})" for label, number in curated_names()}
    left_out = {record.name for record in data.records} - curated
    clustered = {name for cluster in found.clusters for name in cluster}
    assert len(left_out) == 330 and left_out <= clustered
    # Not in the published list, and seen to be one picture: a sector and a rectangle cut out of it.
    assert clustered - left_out == set(names("m11 m113"))


@pytest.mark.parametrize("text", ["m65 m66", "m80 m81", "m95 m96 m97", "m98 m99", "m106 m107"])
def test_zoomed_pictures_are_the_same_picture(text: str, searched: Searched) -> None:
    assert names(text) in searched[1].clusters


@pytest.mark.parametrize(
    "text",
    [
        "b433 b435 m145",
        "m4 m5 m6 m7 m8 m9",
        "b238 b240 b255 b277 b300",
        "b61 b94 b108 b114 b116 b119 b122",
    ],
)
def test_frames_are_one_view_and_one_group(text: str, searched: Searched) -> None:
    data, found, _ = searched
    assert names(text) in found.views and names(text) not in found.clusters
    group = {record.name: record.group for record in data.records}
    assert len({group[name] for name in names(text)}) == 1


def test_a_chain_of_frames_is_no_conflict(searched: Searched) -> None:
    data, found, _ = searched
    chain = set(names("b61 b94 b108 b114 b116 b119 b122"))
    conflicts = list(conflicts_of(data.records, found))
    assert conflicts and not any(chain & set(each.pair[:2]) for each in conflicts)


def test_no_cluster_parts_in_any_fold_of_20_seeds(searched: Searched) -> None:
    data, found, strata = searched
    records: tuple[Record, ...] = data.records
    listed = [record.name for record in records]
    groups = [record.group for record in records]
    view = {name: each[0] for each in found.views for name in each}
    views = {name: view.get(name, name) for name in listed}
    for seed in range(20):
        splits = make_splits(listed, groups, strata, folds=5, seed=seed)
        assert not parted_groups(splits, views)
