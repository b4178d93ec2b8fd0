"""What the page says of a picture, against hand-computed cases and OpenCV's polygons; and what it
refuses before it opens."""

import base64
import json
import math
import re
import socket
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from intrasense_fast.app import markup
from intrasense_fast.app.answers import Answer, contours_json, doubt, entropy, measurements
from intrasense_fast.app.server import check_address, library
from intrasense_fast.cli import main
from intrasense_fast.errors import UsageError


def random_answer(seed: int, height: int = 60, width: int = 90) -> Answer:
    rng = np.random.default_rng(seed)
    smooth = cv2.GaussianBlur(rng.normal(size=(height, width)), (0, 0), 5)
    probability = 1 / (1 + np.exp(-smooth / smooth.std()))
    return Answer("a <b>.png", rng.random((height, width), np.float32), probability.astype("f4"))


def test_entropy_is_that_of_a_coin() -> None:
    values = np.array([[0, 0.5, 1, 0.25, 0.11]], np.float32)
    expected = [0, 1, 0, 2 - 0.75 * math.log2(3), 0.499916]
    assert entropy(values)[0] == pytest.approx(expected, abs=1e-6)


def test_doubt_is_what_dice_falls_short_of(seed: int) -> None:
    """Of a mask drawn pixel by pixel with these probabilities, by drawing."""
    found = random_answer(seed)
    mask, rng = found.mask(0.5), np.random.default_rng(seed)
    dices = []
    for _ in range(200):
        truth = rng.random(mask.shape) < found.probability
        dices.append(2 * (mask & truth).sum() / (mask.sum() + truth.sum()))
    assert doubt(found.probability, 0.5) == pytest.approx(1 - np.mean(dices), abs=5e-3)
    assert doubt(np.ones((3, 3), np.float32), 0.5) == 0
    assert doubt(np.full((3, 3), 0.4, np.float32), 0.5) == pytest.approx(0.8)


def test_measurements_of_a_turned_bar() -> None:
    mask = np.zeros((200, 200), np.uint8)
    corners = cv2.boxPoints(((100, 100), (120, 30), 60))
    cv2.fillPoly(mask, [np.rint(corners).astype(np.int32)], 1)
    shown = measurements(mask > 0)
    longest, across = (float(shown[name].split()[0]) for name in ("Longest axis", "Axis across it"))
    diagonal = math.hypot(120, 30)
    assert longest == pytest.approx(diagonal, abs=3)
    # Across the diagonal: twice the distance of a corner from it.
    assert across == pytest.approx(2 * 120 * 30 / diagonal, abs=4)
    assert shown["Area"].startswith(f"{np.count_nonzero(mask):,} px")
    assert shown["Taller than wide"].startswith("yes") and shown["Regions"] == "1"


def test_measurements_of_next_to_nothing() -> None:
    one = np.zeros((8, 8), bool)
    assert measurements(one) == {"Area": "no lesion at this threshold"}
    one[2, 3] = one[6, 6] = True
    shown = measurements(one)
    assert shown["Longest axis"] == shown["Axis across it"] == "1 px" and shown["Regions"] == "2"
    assert measurements(np.ones((4, 6), bool))["Width x height"] == "6 x 4 px"


def test_contours_give_the_mask_back(seed: int) -> None:
    found = random_answer(seed)
    content = json.loads(contours_json(found, 0.6))
    filled = np.zeros(found.probability.shape, np.uint8)
    for each in content["annotations"]:
        (polygon,) = each["segmentation"]
        points = np.array(polygon, np.int32).reshape(-1, 1, 2)
        cv2.fillPoly(filled, [points], 1)
        assert list(cv2.boundingRect(points)) == each["bbox"]
    # Outlines are the outer ones: holes are filled.
    mask = found.mask(0.6)
    outside = cv2.floodFill(np.pad(mask, 1).astype(np.uint8), None, (0, 0), 2)[1][1:-1, 1:-1] == 2
    assert np.array_equal(filled > 0, ~outside)
    assert content["images"] == [{"id": 1, "file_name": "a <b>.png", "width": 90, "height": 60}]


def test_downloads_are_the_mask_of_the_threshold(seed: int) -> None:
    found = random_answer(seed, 1500, 700)
    text = markup.numbers(found, 0.4)
    links = dict(re.findall(r'download="([^"]+)" href="data:[^,]+,([^"]+)"', text))
    assert list(links) == ["a &lt;b&gt;_mask.png", "a &lt;b&gt;_contour.json"]
    png, contour = (base64.b64decode(data) for data in links.values())
    mask = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(mask, found.mask(0.4) * np.uint8(255))
    assert json.loads(contour)["threshold"] == 0.4
    assert "<b>" not in markup.status(found) + markup.error("<b>") + markup.head("<b>")


def test_an_address_that_cannot_be_used_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        arguments = ["app", "--checkpoint", str(tmp_path), "--port", str(port)]
        assert main(arguments) == 2
    text = capsys.readouterr().err
    assert text == f"app: --port {port}: is in use on 127.0.0.1; give another one\n"
    assert main([*arguments[:-1], "0"]) == 2 and "from 1 to 65535" in capsys.readouterr().err
    assert main([*arguments, "--threshold", "1"]) == 2 and "--threshold" in capsys.readouterr().err
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith(f"app: --checkpoint {tmp_path}: is no checkpoint")
    with pytest.raises(UsageError, match=r"--host 203\.0\.113\.7: is no address of this computer"):
        check_address("203.0.113.7", port)


def test_without_gradio_one_line_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UsageError, match=r"pip install 'intrasense-fast\[app\]'") as error:
        library()
    assert "\n" not in str(error.value)
