"""report.html: one file with everything in it, for a wide screen and for a telephone."""

import base64
import html
from collections.abc import Sequence

_STYLE = """
:root{color-scheme:light}
body{font:16px/1.5 system-ui,sans-serif;color:#222;background:#fff;margin:0 auto;max-width:88rem;
padding:0 1rem 3rem;overflow-wrap:anywhere}
p,figcaption{max-width:60rem}
h1{font-size:1.6rem;line-height:1.2}
h2{font-size:1.25rem;margin-top:2.5rem;border-bottom:1px solid #ddd}
h3{font-size:1rem;margin:1.5rem 0 .4rem}
.wide{overflow-x:auto;overflow-wrap:normal}
table{border-collapse:collapse;font-size:.85rem;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .5rem;text-align:right;white-space:nowrap;border-bottom:1px solid #eee}
th:first-child{text-align:left;position:sticky;left:0;background:#fff}
thead th{border-bottom:2px solid #999;vertical-align:bottom;white-space:normal;
min-width:3.5rem}
thead th:last-child{min-width:6rem}
td.best{font-weight:700}td.second{text-decoration:underline;text-underline-offset:3px}
.note{font-size:.85rem;color:#555;margin:.3rem 0}
.fault{background:#fff4e5;border-left:4px solid #d55e00;padding:.3rem .8rem;margin:0}
figure{margin:1rem 0}figcaption{font-size:.85rem;color:#555}
.picture{overflow-x:auto}.picture img{max-width:100%;height:auto}
.picture.large img{min-width:min(100%,40rem)}
.narrow{display:none}
@media(max-width:600px){.narrow{display:block}
body{font-size:15px;padding:0 .7rem 2rem}
tbody th:first-child{white-space:normal;overflow-wrap:anywhere;min-width:7rem;max-width:38vw}
.picture.large img{max-width:none;width:44rem}}
"""


def page(title: str, sections: Sequence[tuple[str, Sequence[str]]]) -> str:
    """A whole HTML document that needs no other file.

    Args:
        title: of the document; text.
        sections: headings, text, and the parts below them, HTML.
    """
    body = [f"<h1>{html.escape(title)}</h1>"]
    body.append('<p class="note narrow">Wide tables and pictures scroll sideways.</p>')
    for heading, parts in sections:
        body += [f"<section><h2>{html.escape(heading)}</h2>", *parts, "</section>"]
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>"
        f"<body>{''.join(body)}</body></html>\n"
    )


def paragraphs(lines: Sequence[str], kind: str = "") -> str:
    """A paragraph a line; `kind` is its class."""
    opening = f'<p class="{kind}">' if kind else "<p>"
    return "".join(f"{opening}{html.escape(line)}</p>" for line in lines)


def picture(content: bytes, caption: str, *, large: bool = False) -> str:
    """A PNG as a data URI; a large one scrolls sideways on a telephone."""
    data = base64.b64encode(content).decode("ascii")
    kind = "picture large" if large else "picture"
    text = html.escape(caption)
    return (
        f'<figure><div class="{kind}"><img alt="{text}" src="data:image/png;base64,{data}"></div>'
        f"<figcaption>{text}</figcaption></figure>"
    )
