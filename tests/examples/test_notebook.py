"""The notebook runs from top to bottom in a fresh kernel, and is committed without outputs."""

import json
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "first_run.ipynb"
PICTURE = "image/png"


def test_it_is_committed_without_outputs_and_traces_of_a_machine() -> None:
    notebook: dict[str, Any] = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    nbformat.validate(notebook)
    assert notebook["metadata"] == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook["cells"]:
        assert cell["metadata"] == {}, cell["id"]
        assert (cell.get("outputs", []), cell.get("execution_count")) == ([], None), cell["id"]


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "TMPDIR"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))  # nothing of the user's is read or written
    monkeypatch.delenv("MPLBACKEND", raising=False)
    notebook = nbformat.reads(NOTEBOOK.read_text(encoding="utf-8"), as_version=4)  # type: ignore[no-untyped-call]
    client = nbclient.NotebookClient(notebook, timeout=180, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    outputs = {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}
    assert not [output for cell in outputs.values() for output in cell if output.output_type == "error"]
    pictures = [name for name, cell in outputs.items() if any(PICTURE in output.get("data", {}) for output in cell)]
    assert {"compare", "metrics", "alone", "strength"} <= set(pictures)
    assert any("text/html" in output.get("data", {}) for output in outputs["robust"])
    averaging, robust = (float(line.split()[-1].rstrip("%")) for line in outputs["mean"][-1]["text"].splitlines()[-2:])
    assert averaging < 20 < 90 < robust
    ranked = [line.split()[0] for line in outputs["suspects"][0]["text"].splitlines()]
    assert set(ranked[:3]) == {"byzantine-0", "byzantine-1", "byzantine-2"}
