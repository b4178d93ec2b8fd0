"""The notebook runs from its first cell to its last, and is committed without its outputs."""

import json
import os
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "intrasense_fast.ipynb"


def test_it_is_committed_without_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) >= 5
    assert not [cell["id"] for cell in code if cell["outputs"] or cell["execution_count"]]
    assert NOTEBOOK.stat().st_size < 20_000


@pytest.mark.extended
def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reason = "needs the extra notebook: pip install 'intrasense-fast[notebook]'"
    nbclient = pytest.importorskip("nbclient", reason=reason)
    nbformat = pytest.importorskip("nbformat", reason=reason)
    pytest.importorskip("ipykernel", reason=reason)
    # Figures stay in the notebook; what it writes goes with the test.
    monkeypatch.delenv("MPLBACKEND", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    paths = [str(NOTEBOOK.parents[1]), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": tmp_path}}
    ).execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    shown = [output for cell in code for output in cell.outputs]
    pictures = [each for each in shown if "image/png" in each.get("data", {})]
    assert len(pictures) == 3
    text = "".join(each.get("text", "") for each in shown)
    assert "largest difference" in text and "BCE 0.6931" in text
    (run,) = tmp_path.glob("intrasense-*/run")
    assert (run / "best" / "model.safetensors").exists()
