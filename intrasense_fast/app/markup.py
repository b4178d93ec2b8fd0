"""The page's own HTML. Pictures and downloads stand in it as data: no file of theirs is
ever written."""

import base64
from html import escape
from pathlib import PurePath

import cv2

from intrasense_fast.app.answers import Shown
from intrasense_fast.app.pictures import coloured, mask_png, outlined, scale
from intrasense_fast.inference.doubt import entropy
from intrasense_fast.measuring.lesion import MILLIMETRES, PIXELS, Measurements
from intrasense_fast.report.contours import coco_json

NOTICE = "Research software, not a medical device. No diagnosis may rest on what it shows."
_UNITS = {
    PIXELS: "Lengths are in pixels: the file does not say how large one is.",
    MILLIMETRES: "Millimetres come from the file.",
}
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


def status(shown: Shown) -> str:
    """Which picture is shown."""
    height, width = shown.picture.image.shape
    text = f"{escape(shown.name)}, {width} x {height} pixels"
    if shown.picture.remark:
        text += f"; {escape(shown.picture.remark)}"
    return f'<div class="isf-status" role="status">{text}</div>'


def outline(shown: Shown, threshold: float) -> str:
    """The picture with the mask's outline."""
    data = _data("image/png", outlined(shown.picture.image, shown.mask(threshold)))
    text = f"Outline of the mask: probability above {threshold:.2f}"
    return (
        '<div class="isf-figures isf-outline"><figure>'
        f'<img id="isf-outline" src="{data}" alt="{text}"><figcaption>{text}</figcaption>'
        "</figure></div>"
    )


def maps(shown: Shown) -> str:
    """Probability and doubt, with their scales."""
    figures = [
        _figure(
            "Probability of a lesion", "", coloured(shown.probability, _PROBABILITY), _PROBABILITY
        ),
        _figure(
            "Doubt",
            ": predictive entropy in bits",
            coloured(entropy(shown.probability), _DOUBT),
            _DOUBT,
        ),
    ]
    return f'<div class="isf-figures">{"".join(figures)}</div>'


def numbers(shown: Shown, threshold: float) -> str:
    """Measurements, the doubt score, and the downloads."""
    mask = shown.mask(threshold)
    measured = shown.measurements(threshold)
    rows = {**_measured(measured), "Doubt": f"{shown.doubt(threshold):.2f}"}
    table = "".join(
        f'<tr><th scope="row">{escape(title)}</th><td>{escape(value)}</td></tr>'
        for title, value in rows.items()
    )
    stem = PurePath(shown.name).stem or "picture"
    contour = coco_json([(shown.name, mask)]).encode()
    links = [
        (f"{stem}_mask.png", "Mask (PNG)", "image/png", mask_png(mask)),
        (f"{stem}_contour.json", "Contour (JSON)", "application/json", contour),
    ]
    downloads = "".join(
        f'<a download="{escape(name, quote=True)}" href="{_data(kind, data)}">{title}</a>'
        for name, title, kind, data in links
    )
    return (
        f'<table class="isf-table"><tbody>{table}</tbody></table>'
        f'<p class="isf-small">Area and axes are of the largest region. {_UNITS[measured.unit]} '
        "Doubt is the mean entropy of the mask and its border: 0 is certain, 1 is a guess.</p>"
        f'<div class="isf-downloads">{downloads}</div>'
    )


def _measured(measured: Measurements) -> dict[str, str]:
    """Title -> value."""
    if not measured.components:
        return {"Area": "no lesion at this threshold"}
    unit, ratio = measured.unit, measured.taller_than_wide
    return {
        "Area": f"{measured.area:,.1f} {unit}²",
        "Longest axis": f"{measured.longest_axis:,.1f} {unit}",
        "Axis across it": f"{measured.cross_axis:,.1f} {unit}",
        "Taller than wide": f"{'yes' if ratio > 1 else 'no'} ({ratio:.2f})",
        "Regions": f"{measured.components}",
    }


def _figure(title: str, more: str, png: bytes, colours: int) -> str:
    return (
        f'<figure><img src="{_data("image/png", png)}" alt="{title}">'
        f"<figcaption><b>{title}</b>{more}</figcaption>"
        f'<div class="isf-scale">0<img src="{_data("image/png", scale(colours))}" alt="">1</div>'
        "</figure>"
    )


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
