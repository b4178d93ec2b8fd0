"""README and the committed results agree, and a result that is none is refused."""

import json
import shutil

import pytest

from benchmarks import report
from benchmarks.sections import host_table
from benchmarks.tables import headline


def test_readme_and_committed_results_agree(capsys):
    assert report.main(["--check"]) == 0, capsys.readouterr().err


def bench_run(gpu: str | None = "some GPU", **changes) -> dict:
    """A pytest-benchmark file of two paths, of which the other is quicker."""
    info = {
        "gpu": gpu,
        "driver": "1",
        "cuda": "13.0",
        "torch": "2.13.0",
        "triton": "3.7.1",
        "python": "3.11.7",
        "cpu": "x",
        "l2": "",
        "threads": "2",
        "commit": "abc",
        "date": "2026-01-01",
        "note": "",
        "ceilings": {},
        "dry_run": False,
        "machine": "x",
    }
    shared = {
        "operator": "bce_dice",
        "mode": "forward",
        "shape": [1, 1, 8, 8],
        "dtype": "bfloat16",
        "error": 1e-3,
    }
    row = lambda path, extra: {
        "group": "bce_dice forward",
        "stats": {"median": 2e-3, "data": [2e-3]},
        "extra_info": {**shared, "path": path, **extra},
    }
    rows = [
        row("fused", {"device_ms": 2.0}),
        row(
            "eager",
            {
                "device_ms": 1.0,
                "times_as_long": 0.5,
                "times_as_long_range": [0.4, 0.6],
                "against": "fused",
            },
        ),
    ]
    return {"machine_info": {**info, **changes}, "benchmarks": rows, "file": "x.json"}


def test_a_loss_is_shown_as_one():
    assert "slower than it" in headline([bench_run()]) and "0.50 x" in headline([bench_run()])


def test_the_latest_measurement_of_a_shape_is_shown(tmp_path):
    """Whatever its file is called, and without what only an older run of that shape held."""
    newer, older = bench_run(), bench_run()
    newer["benchmarks"] = newer["benchmarks"][:1]
    newer["benchmarks"][0]["extra_info"].update(device_ms=1.5, device_clock="queued")
    for name, run, date in (("a", newer, "2026-01-02"), ("b", older, "2026-01-01")):
        (tmp_path / f"{name}.json").write_text(json.dumps({**run, "datetime": date}))
    table = headline(report.load(sorted(tmp_path.glob("*.json")))["benchmarks"])
    assert "| 1.500 ms |" in table and "0.50 x" not in table
    assert "2.000 ms (host)" in headline([older])


def test_a_changed_result_is_noticed_and_rendered(tmp_path, capsys):
    names = ("README.md", "measurements.md", "out.md", "bce_dice.json")
    readme, measurements, document, result = (tmp_path / name for name in names)
    shutil.copy(report.README, readme)
    arguments = [str(result), "--readme", str(readme), "--document", str(document)]
    arguments += ["--measurements", str(measurements)]
    result.write_text(json.dumps(bench_run()))
    assert report.main([*arguments, "--check"]) == 1
    assert report.main(arguments) == 0
    assert report.main([*arguments, "--check"]) == 0
    assert "No GPU result has been measured yet" not in measurements.read_text()
    assert "2.000 ms" in measurements.read_text() and "some GPU, driver 1" in document.read_text()
    # The front page shows what it names, and this is none of it.
    assert "No result has been measured yet" in readme.read_text()
    result.write_text(json.dumps(bench_run(gpu="another GPU")))
    assert report.main([*arguments, "--check"]) == 1
    assert "python -m benchmarks.report" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content, message",
    [
        ('{"machine_info": {"dry_run": true}, "benchmarks": []}', "no speeds"),
        ('{"rows": [], "dry_run": true}', "no speeds"),
        ('{"benchmarks": [', "cannot be read"),
        ("[]", "no result of"),
        ("{}", "no result of"),
    ],
)
def test_what_is_no_result_is_refused(content, message, tmp_path, capsys):
    result = tmp_path / "x.json"
    result.write_text(content)
    assert report.main([str(result), "--check"]) == 2
    assert message in capsys.readouterr().err


def test_a_readme_without_its_markers_is_refused(tmp_path, capsys):
    readme = tmp_path / "README.md"
    readme.write_text("nothing")
    assert report.main(["--readme", str(readme)]) == 2
    assert readme.read_text() == "nothing" and "<!-- speed -->" in capsys.readouterr().err


def test_host_time_is_shown_beside_its_goal():
    counts = {"launches": 2, "allocations": 7, "workspace_bytes": 0}
    row = {"forward": counts, "backward": {**counts, "launches": 4}, "goal": 3.0}
    row |= {"us": {"without plans": 600.0, "with plans": 180.0, "empty Function": 60.0}}
    row |= {"ratio_before": 10.0, "ratio": 2.96}
    text = host_table({"host": {"attention": row}})
    assert "| attention | 2 + 4 | 7 + 7 | 600 | 180 | 60 | 10.0 | 2.96 | 3 |" in text
