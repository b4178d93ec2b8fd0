"""The comparison on a CPU walks, and its file says what was measured."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import cpu


@pytest.mark.extended
def test_a_walk_has_a_row_for_each_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    threads = torch.get_num_threads()
    out = tmp_path / "cpu.json"
    try:
        assert cpu.main(["--dry-run", "--only", "inference", "--out", str(out)]) == 0
    finally:
        torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    assert all(name in printed for name in cpu.FORMATS) and "training step" not in printed
    content = json.loads(out.read_text())
    assert content["dry_run"] and content["commit"]
    assert len(content["cells"]) == len(cpu.FORMATS) * len(cpu.NETWORKS)
    assert all(seconds > 0 for cell in content["cells"] for seconds in cell["seconds"])


def test_a_ratio_is_that_of_the_same_round() -> None:
    cell = cpu.Cell("inference", "NCHW bf16", cpu.PLAIN)
    times = {cell: [1.0, 2.0, 4.0], cell._replace(network=cpu.FULL): [3.0, 2.0, 6.0]}
    assert cpu.ratios(times) == {("inference", "NCHW bf16"): 1.5}


def test_an_unknown_row_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cpu.main(["--dry-run", "--only", "float8"])
    assert "--only float8: no row holds this text" in capsys.readouterr().err
