"""The page's own HTML. Pictures and downloads stand in it as data: no file of theirs is
ever written."""

import base64
from html import escape
from pathlib import PurePath

import cv2

from intrasense_fast.app.answers import Answer, contours_json, doubt, entropy, measurements
from intrasense_fast.app.pictures import coloured, mask_png, outlined, scale

NOTICE = "Research software, not a medical device. No diagnosis may rest on what it shows."
_PROBABILITY, _DOUBT = cv2.COLORMAP_VIRIDIS, cv2.COLORMAP_INFERNO


def head(checkpoint: str) -> str:
    """The title, which checkpoint answers, and what it may not be used for."""
    return (
        '<div class="isf-head"><h1>Lesion segmentation in ultrasound</h1>'
        f"<p>IntraSense-Fast, checkpoint {escape(checkpoint)}</p>"
        f'<p class="isf-notice">{NOTICE}</p></div>'
    )


def error(message: str) -> str:
    """One line that says what is wrong with a picture."""
    return f'<div class="isf-error" role="alert">{escape(message)}</div>'


def status(found: Answer) -> str:
    """Which picture is shown."""
    height, width = found.image.shape
    text = f"{escape(found.name)}, {width} x {height} pixels"
    return f'<div class="isf-status" role="status">{text}</div>'


def outline(found: Answer, threshold: float) -> str:
    """The picture with the mask's outline."""
    data = _data("image/png", outlined(found.image, found.mask(threshold)))
    text = f"Outline of the mask: probability above {threshold:.2f}"
    return (
        '<div class="isf-figures isf-outline"><figure>'
        f'<img id="isf-outline" src="{data}" alt="{text}"><figcaption>{text}</figcaption>'
        "</figure></div>"
    )


def maps(found: Answer) -> str:
    """Probability and doubt, with their scales."""
    figures = [
        _figure(
            "Probability of a lesion", "", coloured(found.probability, _PROBABILITY), _PROBABILITY
        ),
        _figure(
            "Doubt",
            ": predictive entropy in bits",
            coloured(entropy(found.probability), _DOUBT),
            _DOUBT,
        ),
    ]
    return f'<div class="isf-figures">{"".join(figures)}</div>'


def numbers(found: Answer, threshold: float) -> str:
    """Measurements, the doubt score, and the downloads."""
    mask = found.mask(threshold)
    rows = {**measurements(mask), "Doubt": f"{doubt(found.probability, threshold):.2f}"}
    table = "".join(
        f'<tr><th scope="row">{escape(title)}</th><td>{escape(value)}</td></tr>'
        for title, value in rows.items()
    )
    stem = PurePath(found.name).stem or "picture"
    links = [
        (f"{stem}_mask.png", "Mask (PNG)", "image/png", mask_png(mask)),
        (f"{stem}_contour.json", "Contour (JSON)", "application/json", _contours(found, threshold)),
    ]
    downloads = "".join(
        f'<a download="{escape(name, quote=True)}" href="{_data(kind, data)}">{title}</a>'
        for name, title, kind, data in links
    )
    return (
        f'<table class="isf-table"><tbody>{table}</tbody></table>'
        '<p class="isf-small">Lengths are in pixels: a picture does not say how large one is. '
        "Doubt is 1 less the Dice to expect: 0 is certain, 1 is a guess.</p>"
        f'<div class="isf-downloads">{downloads}</div>'
    )


def _figure(title: str, more: str, png: bytes, colours: int) -> str:
    return (
        f'<figure><img src="{_data("image/png", png)}" alt="{title}">'
        f"<figcaption><b>{title}</b>{more}</figcaption>"
        f'<div class="isf-scale">0<img src="{_data("image/png", scale(colours))}" alt="">1</div>'
        "</figure>"
    )


def _contours(found: Answer, threshold: float) -> bytes:
    return contours_json(found, threshold).encode()


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
