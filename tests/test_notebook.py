"""The notebook runs on the demo's model (make test-demo)."""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from segformer_spark.config.load import PROJECT_ROOT

NOTEBOOK = PROJECT_ROOT / "docs" / "notebooks" / "predict.ipynb"


def outputs(run: Path, images: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Execute the notebook; returns all that it prints."""
    monkeypatch.setenv("RUN", str(run))
    monkeypatch.setenv("IMAGES", str(images))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(folder))
    monkeypatch.setenv("IPYTHONDIR", str(folder))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), "it is stored without outputs"
    kernel = {"argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"], "language": "python"}
    client = NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(folder)}})
    client.create_kernel_manager()
    client.km.kernel_spec.argv = kernel["argv"]
    client.execute()
    return "\n".join(str(output) for cell in notebook.cells for output in cell.get("outputs", ()))


@pytest.mark.demo
def test_it_runs_on_the_demos_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = PROJECT_ROOT / "runs" / "demo"
    if not (run / "best").is_dir():
        pytest.skip("the demo's own test has to run before")
    printed = outputs(run, PROJECT_ROOT / "data" / "demo" / "stream-1-test", tmp_path, monkeypatch)
    assert "<Model demo: background, body, panels on" in printed
    assert "image/png" in printed
    assert "overlay/test_00000_img.png" in printed
    assert "torch.Size([1, 3, 32, 32])" in printed
