"""The notebook runs from its first cell to the last, as in Jupyter, at a few steps."""

import nbformat
from nbclient import NotebookClient

from .conftest import ROOT

SHORT = {"image_size": 32, "patch_size": 8, "layers": 1, "dim": 16, "heads": 2, "dec_layers": 1, "dec_dim": 16} | {
    "dec_heads": 2, "train_batch_size": 64, "training_steps": 4, "warmup_steps": 1, "log_interval": 1, "flip": "none",
}  # fmt: skip


def test_the_notebook_ends_with_pictures_a_score_and_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    notebook = nbformat.read(ROOT / "examples/photos.ipynb", as_version=4)
    (settings,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    settings.source = settings.source.partition("SETTINGS")[0] + f"SETTINGS = {SHORT}"
    for cell in notebook.cells:
        cell.source = cell.source.replace("2400", "240").replace("600", "60")
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    text = "".join(output.get("text", "") for output in shown)
    assert "untrained  knn_10" in text and "loss " in text, text
    assert [output for output in shown if "image/png" in output.get("data", {})]
    assert (tmp_path / "photos.safetensors").exists() and (tmp_path / "runs/photos/report.html").exists()
