"""The page in a real browser: drop, paste, threshold, downloads, a broken file, a phone's width."""

import base64
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest

from intrasense_fast.app.answers import Shown, shown_file
from intrasense_fast.app.page import build, example
from intrasense_fast.data.images import write_png
from intrasense_fast.data.phantom import phantom, to_bytes
from intrasense_fast.inference.opening import open_ensemble
from intrasense_fast.measuring.lesion import measure
from tests.support.browser import Page, browser_page, chromium
from tests.support.checkpoints import tiny_checkpoint

pytest.importorskip("gradio", reason="needs the extra app: pip install 'intrasense-fast[app]'")
needs_browser = pytest.mark.skipif(chromium() is None, reason="needs Chromium on PATH")
pytestmark = pytest.mark.extended

ROOT = Path(__file__).parents[2]
READY = (
    "!!document.querySelector('#isf-outline') && "
    "!!document.querySelector('#isf-picture input[type=file]') && "
    "!!document.querySelector('#isf-threshold input[type=number]')"
)
STATUS = "(document.querySelector('.isf-status, .isf-error') || {}).innerText || ''"


class Served(NamedTuple):
    process: subprocess.Popen[str]
    address: str
    checkpoint: Path
    temporary: Path
    work: Path
    # Whatever the server asks of other machines would come here.
    proxy: socket.socket


def serve(folder: Path, checkpoint: Path) -> Served:
    """`intrasense-fast app` in a folder of its own, once its page is there."""
    temporary, work = folder / "tmp", folder / "work"
    temporary.mkdir()
    work.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    proxy = socket.create_server(("127.0.0.1", 0))
    proxy.setblocking(False)
    outside = f"http://127.0.0.1:{proxy.getsockname()[1]}"
    process = subprocess.Popen(
        [sys.executable, "-m", "intrasense_fast", "app"]
        + ["--checkpoint", str(checkpoint), "--port", str(port), "--device", "cpu"],
        env={**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)}
        | dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), outside),
        cwd=work,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    line = process.stdout.readline()
    assert line.startswith(f"the page is at http://127.0.0.1:{port}/"), process.communicate()
    return Served(process, f"http://127.0.0.1:{port}/", checkpoint, temporary, work, proxy)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("app")
    found = serve(folder, tiny_checkpoint(folder / "best"))
    yield found
    if found.process.poll() is None:
        found.process.terminate()
        found.process.communicate(timeout=60)
    with pytest.raises(BlockingIOError), found.proxy:
        found.proxy.accept()


@pytest.fixture
def page(served: Served, tmp_path: Path) -> Iterator[Page]:
    with browser_page() as page:
        page.call(
            "Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path / "saved")
        )
        page.open(served.address, 1400)
        page.wait(READY)
        yield page
        elsewhere = [
            address
            for address in page.requests
            if not address.startswith((served.address, "data:", "blob:"))
        ]
        assert not elsewhere and not page.problems
        assert any(address.startswith(served.address) for address in page.requests)


def picture(path: Path, seed: int) -> Path:
    write_png(path, to_bytes(phantom(seed, (72, 96), lesions=1)[0]))
    return path


def expected(served: Served, file: Path) -> Shown:
    return shown_file(open_ensemble([str(served.checkpoint)], device="cpu"), file)


def set_threshold(page: Page, value: float) -> None:
    page.evaluate(
        "(() => {const e = document.querySelector('#isf-threshold input[type=number]');"
        f"e.focus(); e.value = '{value}'; e.dispatchEvent(new Event('input', {{bubbles: true}}));"
        "e.dispatchEvent(new Event('change', {bubbles: true})); e.blur()})()"
    )
    page.wait(f"document.querySelector('#isf-outline').alt.endsWith('{value:.2f}')")


def download(page: Page, folder: Path, name: str) -> bytes:
    page.evaluate(f"document.querySelector('a[download=\"{name}\"]').click()")
    deadline = time.monotonic() + 30
    while not (folder / name).exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    return (folder / name).read_bytes()


def drop(page: Page, file: Path) -> None:
    """A file dropped from outside, as the browser tells it the page."""
    data = base64.b64encode(file.read_bytes()).decode()
    page.evaluate(
        f"(() => {{const bytes = Uint8Array.from(atob('{data}'), c => c.charCodeAt(0));"
        f"const files = new DataTransfer(); files.items.add(new File([bytes], '{file.name}', "
        "{type: 'image/png'}));"
        "document.querySelector('#isf-picture .upload-container').dispatchEvent("
        "new DragEvent('drop', {bubbles: true, cancelable: true, dataTransfer: files}))})()"
    )


@needs_browser
def test_drop_threshold_and_downloads(
    served: Served, page: Page, tmp_path: Path, seed: int
) -> None:
    assert "not a medical device" in page.text() and "example_phantom.png" in page.evaluate(STATUS)
    file = picture(tmp_path / "dropped.png", seed)
    drop(page, file)
    page.wait(f"({STATUS}).startsWith('dropped.png, 96 x 72')")
    found = expected(served, file)
    # The network is far from trained: a threshold among its probabilities.
    threshold = round(float(np.clip(np.quantile(found.probability, 0.7), 0.02, 0.98)), 2)
    before = page.evaluate("document.querySelector('#isf-outline').src")
    set_threshold(page, threshold)
    assert page.evaluate("document.querySelector('#isf-outline').src") != before or (
        np.array_equal(found.mask(0.5), found.mask(threshold))
    )
    saved = download(page, tmp_path / "saved", "dropped_mask.png")
    mask = cv2.imdecode(np.frombuffer(saved, np.uint8), cv2.IMREAD_UNCHANGED)
    near = np.abs(found.probability - threshold) < 1e-4
    assert mask.shape == (72, 96) and set(np.unique(mask)) <= {0, 255}
    assert np.array_equal((mask > 0)[~near], found.mask(threshold)[~near])
    contour = json.loads(download(page, tmp_path / "saved", "dropped_contour.json"))
    assert contour["images"][0] == {"id": 1, "file_name": file.name, "width": 96, "height": 72}
    assert sum(each["area"] for each in contour["annotations"]) == np.count_nonzero(mask)
    area = float(re.search(r"Area\s+([\d,.]+) px", page.text())[1].replace(",", ""))
    assert area == measure(mask).area
    uploads = [path for path in served.temporary.rglob("*") if path.is_file()]
    assert not [path for path in uploads if "dropped" in path.name]


@needs_browser
def test_a_broken_file_is_one_line_and_the_next_one_works(
    served: Served, page: Page, tmp_path: Path, seed: int
) -> None:
    whole = picture(tmp_path / "whole.png", seed)
    broken = tmp_path / "broken.png"
    broken.write_bytes(whole.read_bytes()[:-200])
    page.give_file("#isf-picture input[type=file]", broken)
    told = page.wait(f"({STATUS}).startsWith('broken.png: ') && ({STATUS})")
    assert "\n" not in told.strip() and "again" in told and "Traceback" not in page.text()
    assert str(served.temporary) not in page.text()
    assert page.evaluate("document.querySelector('#isf-outline') === null")
    page.wait("!!document.querySelector('#isf-picture input[type=file]')")
    page.give_file("#isf-picture input[type=file]", whole)
    page.wait(f"({STATUS}).startsWith('whole.png, ') && !!document.querySelector('#isf-outline')")
    page.evaluate("document.querySelector('#isf-example').click()")
    page.wait(f"({STATUS}).startsWith('example_phantom.png')")


@needs_browser
def test_a_picture_is_pasted(served: Served, page: Page, tmp_path: Path, seed: int) -> None:
    data = base64.b64encode(picture(tmp_path / "p.png", seed).read_bytes()).decode()
    # A browser without a window has no clipboard: the page gets what one would give it.
    page.evaluate(
        f"(() => {{const bytes = Uint8Array.from(atob('{data}'), c => c.charCodeAt(0));"
        "const item = new ClipboardItem({'image/png': new Blob([bytes], {type: 'image/png'})});"
        "Object.defineProperty(navigator.clipboard, 'read', {value: async () => [item]})})()"
    )
    page.evaluate("document.querySelector('[aria-label=\"Paste from clipboard\"]').click()")
    page.wait(f"({STATUS}).includes('96 x 72')")


@needs_browser
def test_a_dicom_file_is_chosen(served: Served, page: Page, tmp_path: Path, seed: int) -> None:
    """A browser does not call it an image."""
    from tests.support.dicom import scan_region, write_dicom

    pixels = to_bytes(phantom(seed, (72, 96), lesions=1)[0])
    file = write_dicom(tmp_path / "scan", pixels, [scan_region((8, 10, 79, 65))])
    page.give_file("#isf-file input[type=file], input[type=file]:has(+ #isf-file)", file)
    page.wait(f"({STATUS}).startsWith('scan, 96 x 72 pixels')")
    found = expected(served, file)
    set_threshold(page, 0.02)
    assert "Millimetres come from the file" in page.text()
    assert f"{found.measurements(0.02).area:,.1f} mm" in page.text()
    assert not list(served.temporary.rglob("scan"))


@needs_browser
def test_a_phone_does_not_scroll_sideways(served: Served, page: Page, tmp_path: Path) -> None:
    page.open(served.address, 390, 844, mobile=True)
    page.wait(READY)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    wide = page.evaluate(
        "[...document.querySelectorAll('#isf-main *, .isf-head *')]"
        ".filter(e => e.getBoundingClientRect().right > 391).map(e => e.className)"
    )
    assert not wide
    order = page.evaluate(
        "['picture', 'file', 'drawn', 'threshold', 'numbers', 'maps']"
        ".map(n => document.querySelector('#isf-' + n).getBoundingClientRect().top)"
    )
    assert order == sorted(order)


def test_the_threshold_does_not_run_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gradio

    ensemble = open_ensemble([str(tiny_checkpoint(tmp_path / "best"))], device="cpu")
    page = build(gradio, ensemble, "best", 0.5)
    found = example(ensemble)

    def refused(*arguments: object) -> None:
        raise AssertionError("the network ran")

    monkeypatch.setattr(type(ensemble.members[0].net), "forward", refused)
    (move,) = [fn.fn for fn in page.fns.values() if fn.fn.__name__ == "move"]
    at = float(np.quantile(found.probability, 0.9))
    outline, numbers = move(found, at)
    assert f"above {at:.2f}" in outline
    assert f"{found.measurements(at).area:,.1f} px" in numbers


def test_ctrl_c_ends_quietly_and_leaves_nothing(served: Served) -> None:
    """The last test of the file: it ends the server of the others."""
    assert list(served.temporary.iterdir())
    served.process.send_signal(signal.SIGINT)
    _, errors = served.process.communicate(timeout=60)
    assert served.process.returncode == 130
    said = [line for line in errors.splitlines() if line and "has no" not in line]
    assert said == ["app: stopped"]
    assert not list(served.temporary.rglob("*")) and not list(served.work.rglob("*"))
