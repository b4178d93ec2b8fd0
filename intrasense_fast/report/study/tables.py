"""One table, written as Markdown, LaTeX, HTML or CSV."""

import html
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from intrasense_fast.metrics import DISTANCES, LABELS
from intrasense_fast.report.tables import write_csv

BEST, SECOND = "best", "second"
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "±": r"$\pm$", "<": "$<$", ">": "$>$",
}  # fmt: skip


@dataclass(frozen=True)
class Table:
    """Text cells under a head; `marks`: (row, column) -> BEST or SECOND; `notes` stand below."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    marks: Mapping[tuple[int, int], str] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def markdown(self) -> str:
        """The best is bold, the second best in italics."""
        signs = {BEST: "**", SECOND: "*"}

        def cell(i: int, j: int) -> str:
            sign = signs.get(self.marks.get((i, j), ""), "")
            return sign + self.rows[i][j].replace("|", "\\|") + sign

        lines = [
            f"### {self.title}",
            "",
            "| " + " | ".join(self.columns) + " |",
            "|---" * len(self.columns) + "|",
        ]
        lines += [
            "| " + " | ".join(cell(i, j) for j in range(len(row))) + " |"
            for i, row in enumerate(self.rows)
        ]
        return "\n".join([*lines, "", *self.notes, ""])

    def latex(self) -> str:
        """A table float with booktabs' rules: the best bold, the second best underlined."""
        signs = {BEST: r"\textbf{%s}", SECOND: r"\underline{%s}"}
        lines = [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escaped(' '.join([self.title + '.', *self.notes]))}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(self.columns) - 1)}}}",
            r"\toprule",
            " & ".join(map(escaped, self.columns)) + r" \\",
            r"\midrule",
        ]
        for i, row in enumerate(self.rows):
            cells = [signs.get(self.marks.get((i, j), ""), "%s") for j in range(len(row))]
            filled = [sign % escaped(text) for sign, text in zip(cells, row, strict=True)]
            lines.append(" & ".join(filled) + r" \\")
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])

    def html(self) -> str:
        """A table that scrolls by itself where it is wider than the screen."""
        head = "".join(f"<th>{html.escape(column)}</th>" for column in self.columns)
        body = []
        for i, row in enumerate(self.rows):
            cells = []
            for j, text in enumerate(row):
                mark = self.marks.get((i, j), "")
                kind = f' class="{mark}"' if mark else ""
                tag = "td" if j else "th"
                cells.append(f"<{tag}{kind}>{html.escape(text)}</{tag}>")
            body.append(f"<tr>{''.join(cells)}</tr>")
        notes = "".join(f"<p class=note>{html.escape(note)}</p>" for note in self.notes)
        return (
            f"<h3>{html.escape(self.title)}</h3><div "
            f"class=wide><table><thead><tr>{head}</tr></thead>"
            f"<tbody>{''.join(body)}</tbody></table></div>{notes}"
        )

    def save_csv(self, path: str | os.PathLike[str]) -> None:
        write_csv(
            path, [dict(zip(self.columns, row, strict=True)) for row in self.rows], self.columns
        )


def escaped(text: str) -> str:
    """Text as LaTeX takes it."""
    return "".join(_LATEX.get(character, character) for character in text)


def ranks(values: Sequence[float], metric: str) -> dict[int, str]:
    """Place -> BEST or SECOND by the printed figure, so that equal figures share a mark; nan has
    none.

    Distances: the smallest; everything else: the largest.
    """
    shown = [float(shown_value(value, metric)) if value == value else math.nan for value in values]
    distinct = sorted({value for value in shown if value == value})
    if metric not in DISTANCES:
        distinct.reverse()
    marks = dict(zip(distinct, (BEST, SECOND), strict=False))
    # Where all are equal none is best.
    if len(distinct) < 2:
        return {}
    return {i: marks[value] for i, value in enumerate(shown) if value in marks}


def shown_value(value: float, metric: str = "") -> str:
    """A ratio in per cent, a distance in pixels; "-" where undefined."""
    if math.isnan(value):
        return "-"
    return f"{value:.2f}" if metric in DISTANCES else f"{100 * value:.2f}"


def with_interval(row: Mapping[str, Any], key: str = "mean", prefix: str = "") -> str:
    """ "82.10 [80.02, 84.18]"."""
    metric = row["metric"]
    low, high = row[f"{prefix}low"], row[f"{prefix}high"]
    value = shown_value(row[key], metric)
    if math.isnan(low) or math.isnan(high):
        return value
    return f"{value} [{shown_value(low, metric)}, {shown_value(high, metric)}]"


def heading(metric: str) -> str:
    """A metric's title with its unit."""
    return LABELS[metric] if metric in DISTANCES else f"{LABELS[metric]} (%)"
