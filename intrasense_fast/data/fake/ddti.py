"""A fake DDTI as downloaded: XML files with outlines as JSON, JPEG images, and the damage of the
real one."""

import json
from collections.abc import Sequence

import cv2
import numpy as np

from intrasense_fast.data.fake._tree import Picture, Tree, in_colour, variant

_TIRADS = ("2", "3", "4a", "4b", "None", "")
Outline = list[dict[str, int]]


def write_ddti(tree: Tree, count: int) -> None:
    """Cases of one to three images; what is odd stands in the first thirteen, case numbers have
    gaps."""
    images = _images_of_cases(count)
    outlines: dict[int, list[tuple[int, Outline]]] = {}
    pictures: dict[tuple[int, int], Picture] = {}
    for case, number in images.items():
        for k in range(1, number + 1):
            pictures[case, k] = tree.picture(("benign", "malignant")[case % 2])
    pictures[13, 1] = variant(pictures[12, 1], tree.rng, "recompressed", "brightness")
    for (case, k), picture in pictures.items():
        tree.write(f"{case}_{k}.jpg", in_colour(picture.image), cv2.IMWRITE_JPEG_QUALITY, 92)
        outlines.setdefault(case, []).append((k, _outline(picture.mask)))
    for case, known in outlines.items():
        tree.write_bytes(
            f"{case}.xml",
            _xml(case, _TIRADS[case % len(_TIRADS)], [_mark(k, _svg([line])) for k, line in known]),
        )
    _odd_cases(tree, outlines, pictures)
    if tree.broken:
        _break(tree, outlines)


def _images_of_cases(count: int) -> dict[int, int]:
    """Case -> number of its images; cases 10 and 11 are absent, and images beyond `count` are left
    out."""
    found: dict[int, int] = {}
    case, left = 0, count
    while left:
        case += 1
        if case in (10, 11):
            continue
        found[case] = min(
            left, {2: 2, 3: 3, 6: 2}.get(case, 2 if case > 14 and case % 6 == 0 else 1)
        )
        left -= found[case]
    return found


def _odd_cases(
    tree: Tree,
    outlines: dict[int, list[tuple[int, Outline]]],
    pictures: dict[tuple[int, int], Picture],
) -> None:
    line = {case: known[0][1] for case, known in outlines.items()}

    def case(number: int, *marks: str, tirads: str = "4a") -> None:
        tree.write_bytes(f"{number}.xml", _xml(number, tirads, marks))

    case(1, _mark(1, _svg([line[1], _moved(line[1])])))
    case(
        2,
        *(_mark(k, _svg([outline])) for k, outline in outlines[2]),
        _mark(1, _svg([_moved(line[2])])),
    )
    case(4, _mark(1, _svg([line[4]])[: -len('hand"}]')]))
    tree.warning("4.xml", "outline of 4_1: JSON cut after its last point: closed")
    case(5, _mark(1, ""), _mark(1, _svg([line[5]])))
    tree.warning("5.xml", "an empty outline of 5_1")
    case(6, _mark(1, _svg([line[6]])), _mark(2, ""))
    tree.warning("6.xml", "an empty outline of 6_2")
    tree.warning("6_2.jpg", "left out: no XML file outlines anything in this image")
    case(7, _mark(None, _svg([line[7]])))
    tree.warning("7.xml", "a mark without image number: taken for 7_1")
    height, width = pictures[8, 1].image.shape
    beyond = [
        {"x": width - 20, "y": height - 20},
        {"x": width + 5, "y": height - 20},
        {"x": width - 10, "y": height - 5},
    ]
    case(8, _mark(1, _svg([line[8], beyond])))
    tree.warning("8_1.jpg", "1 outline points lie outside")
    case(9, _mark(1, _svg([line[9], line[9][:2]])))
    tree.warning(
        "9.xml", "outline of 9_1: a region of 2 different points encloses nothing: left out"
    )
    for number in (12, 13):
        case(number, _mark(1, _svg([line[12]])))
    tree.warning("12_1.jpg", "near-duplicate of 13_1: kept in one group")
    stray = tree.picture()
    tree.write("400_1.jpg", in_colour(stray.image))
    tree.warning("400_1.jpg", "left out: no XML file outlines anything in this image")


def _break(tree: Tree, outlines: dict[int, list[tuple[int, Outline]]]) -> None:
    line = outlines[14][0][1]
    tree.write_bytes("14.xml", _xml(14, "2", [_mark(1, _svg([line])), _mark(2, _svg([line]))]))
    tree.error("14.xml", "outlines 14_2, but there is no such image")
    tree.write_bytes("15.xml", _xml(15, "2", [_mark(1, _svg([line])[:60])]))
    tree.error("15.xml", "outline of 15_1: JSON damaged at character")
    tree.write_bytes("16.xml", _xml(16, "2", [_mark(1, _svg([line]))])[:-20])
    tree.error("16.xml", "no readable XML")
    tree.truncate("17_1.jpg")


def _outline(mask: np.ndarray) -> Outline:
    """Every third point of the largest contour, as a freehand stroke would give."""
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    points = max(contours, key=len)[:, 0, :]
    return [{"x": int(x), "y": int(y)} for x, y in points[:: 3 if len(points) > 30 else 1]]


def _moved(outline: Outline) -> Outline:
    """A second region within the image: half the size, about the same middle but for 4 pixels."""
    x, y = (sum(point[axis] for point in outline) // len(outline) for axis in ("x", "y"))
    return [{"x": (point["x"] + x) // 2 + 4, "y": (point["y"] + y) // 2} for point in outline]


def _svg(regions: Sequence[Outline]) -> str:
    return json.dumps(
        [{"points": region, "annotation": {}, "regionType": "freehand"} for region in regions]
    )


def _mark(image: int | None, svg: str) -> str:
    return f"<mark>{'' if image is None else f'<image>{image}</image>'}<svg>{svg}</svg></mark>"


def _xml(case: int, tirads: str, marks: Sequence[str]) -> bytes:
    """The number inside is not the case: the real archive's file names are what counts."""
    described = (
        "<age>45</age><sex>F</sex><composition>solid</composition>"
        "<echogenicity>hypoechogenicity</echogenicity>"
    )
    head = f"<case><number>{case + 1000}</number>{described}<tirads>{tirads}</tirads>"
    return f"{head}{''.join(marks)}</case>\n".encode()
