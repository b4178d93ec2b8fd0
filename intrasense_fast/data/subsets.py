"""Parts of a data set that publications use: --subset all, lesions, deduplicated or curated."""

import re
from collections.abc import Sequence

from intrasense_fast.data.duplicates import Duplicates
from intrasense_fast.data.records import DataError, Finding, SegmentationData

# The 450 images of "Curated BUSI": Aumente-Maestro, Diez, Remeseiro, CMPB 2025,
# mapping_curated_BUSI.csv. Every member of a group of duplicates is left out there, not only the
# copies.
CURATED = {
    "benign": "20 22-24 26-29 31-32 34 36 39-41 43 45-49 53-57 59 61 63 66-80 82-84 87-95 97-98 "
    "100-104 106-109 111-126 137 "
    "142-149 159-162 165-176 178-196 198 212 243 283 286 311 313-315 317 334-394 397-398 401-403 "
    "405 407-410 414 416-418 420 "
    "427-432 434-436",
    "malignant": "1-3 6 11 16 19-33 35-38 40-41 43-50 53-64 67-76 79 82-87 89-91 100-105 108 "
    "113 115 117 120-122 124-127 "
    "130-144 146-210",
    "normal": "2-4 6-12 14-18 36-37 65-66 70-80 82-96 99-103 105-106 108-118 133",
}
_BUSI_NAME = re.compile(r"^(?:.*/)?(benign|malignant|normal)[ _]?\(?(\d+)\)?$", re.IGNORECASE)


def curated_names() -> set[tuple[str, int]]:
    """(class, number) of the images of Curated BUSI."""
    found: set[tuple[str, int]] = set()
    for label, spans in CURATED.items():
        for span in spans.split():
            first, _, last = span.partition("-")
            found.update((label, number) for number in range(int(first), int(last or first) + 1))
    return found


def choose(
    data: SegmentationData, findings: Sequence[Finding], duplicates: Duplicates, subset: str
) -> SegmentationData:
    """The part of a data set that `subset` names.

    "all": everything. "lesions": images whose mask is not empty. "deduplicated": of each cluster of
    near-duplicates the first image in natural order. "curated": the published list of BUSI images
    without any duplicate.

    Raises:
        DataError: the subset is empty, or "curated" of another data set than BUSI.
    """
    if subset == "all":
        return data
    if subset == "lesions":
        kept = {finding.record.name for finding in findings if finding.area}
        reason = "no mask shows a lesion"
    elif subset == "deduplicated":
        kept = {record.name for record in data.records}
        for cluster in duplicates.clusters:
            present = [name for name in cluster if name in kept]
            kept.difference_update(present[1:])
        reason = "there are no images"
    else:
        wanted = curated_names()
        keys = {
            record.name: match
            for record in data.records
            if (match := _BUSI_NAME.match(record.name))
        }
        kept = {
            name for name, match in keys.items() if (match[1].casefold(), int(match[2])) in wanted
        }
        reason = (
            "it is a published list of BUSI images ('benign (20)', ...), and none of them is here"
        )
    data = data.with_records(record for record in data.records if record.name in kept)
    if not data.records:
        raise DataError(f"{data.root}: subset {subset} is empty, {reason}")
    return data
