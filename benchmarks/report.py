"""Renders README's speed, docs/measurements.md and benchmarks/results/README.md from JSON.

    python -m benchmarks.report                    write all three from benchmarks/results
    python -m benchmarks.report --check            exit 1 where they disagree with the JSON
    python -m benchmarks.report FILE.json ...      render these files instead

A quick walk (--dry-run, interpreted kernels) is refused: its times are no speeds.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.provenance import ROOT
from benchmarks.tables import document, front_page, summary
from intrasense_fast.files import atomic_path

RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "README.md"
MEASUREMENTS = ROOT / "docs" / "measurements.md"
# What only a result of this kind holds.
MARKS = {
    "static": "bounds",
    "benchmarks": "benchmarks",
    "sanitizer": "checks",
    "memory": "rows",
    "ceilings": "ceilings",
    "breakdown": "calls",
    "host": "host",
}
BEGIN, END = "<!-- speed -->", "<!-- /speed -->"


class ReportError(ValueError):
    """A result that cannot be rendered: the message names file, what is wrong and what to do."""


def load(paths: Sequence[Path]) -> dict[str, list[dict]]:
    """Every result by kind, each with its "file".

    Kinds: "static", "benchmarks", "memory", "ceilings", "sanitizer", "breakdown", "host".

    Raises:
        ReportError: a file that is no result, or one of a quick walk.
    """
    found: dict[str, list[dict]] = {kind: [] for kind in MARKS}
    for path in paths:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ReportError(
                f"{path}: cannot be read ({error}); run the stage that wrote it again"
            ) from error
        keys = content.keys() if isinstance(content, dict) else ()
        kind = next((kind for kind, mark in MARKS.items() if mark in keys), None)
        if kind is None:
            raise ReportError(
                f"{path}: no result of static_report, pytest-benchmark, memory, ceilings, "
                "sanitizer, breakdown or host"
            )
        if content.get("dry_run") or content.get("machine_info", {}).get("dry_run"):
            raise ReportError(
                f"{path}: comes from a quick walk, whose times are no speeds; "
                "measure without --dry-run"
            )
        shown = path.resolve()
        name = shown.relative_to(ROOT).as_posix() if shown.is_relative_to(ROOT) else path.name
        found[kind].append({**content, "file": name})
    # A later measurement of the same takes an earlier one's place in the tables.
    found["benchmarks"].sort(key=lambda run: run.get("datetime", ""))
    return found


def rendered(readme: str, results: dict[str, list[dict]]) -> str:
    """README with its section replaced.

    Raises:
        ReportError: the markers are missing or out of order.
    """
    start, end = readme.find(BEGIN), readme.find(END)
    if not 0 <= start < end:
        raise ReportError(
            f"README.md: needs the lines {BEGIN} and {END}, in this order, around what is rendered"
        )
    return readme[: start + len(BEGIN)] + "\n" + front_page(results) + readme[end:]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "results", nargs="*", type=Path, help="result files; default: all of benchmarks/results"
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 where text and JSON disagree"
    )
    parser.add_argument("--readme", type=Path, default=README)
    parser.add_argument("--measurements", type=Path, default=MEASUREMENTS)
    parser.add_argument("--document", type=Path, default=RESULTS / "README.md")
    options = parser.parse_args(arguments)
    try:
        results = load(options.results or sorted(RESULTS.rglob("*.json")))
        wanted = {
            options.readme: rendered(options.readme.read_text(encoding="utf-8"), results),
            options.measurements: summary(results),
            options.document: document(results),
        }
    except (ReportError, OSError) as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    stale = [
        path
        for path, text in wanted.items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    if options.check:
        for path in stale:
            print(
                f"report: {path} disagrees with the committed results; "
                "run python -m benchmarks.report",
                file=sys.stderr,
            )
        return 1 if stale else 0
    for path in stale:
        with atomic_path(path) as temporary:
            temporary.write_text(wanted[path], encoding="utf-8")
        print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
