"""Notebooks run from the committed results, and each .ipynb is its .py; live modes keep their budget (slow)."""

import os
import time
from pathlib import Path

import jupytext
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))
LIVE_SECONDS = 120  # of two free CPU cores, for a whole notebook

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """What the kernels inherit: this checkout, and nothing of what a reader may have set for notebooks."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    for name in ("ZAYA_LIVE", "ZAYA_RESULTS"):
        monkeypatch.delenv(name, raising=False)


def execute(path: Path, timeout: int) -> None:
    """Runs a notebook, which must draw at least one figure; `timeout` seconds are a cell's."""
    notebook = jupytext.read(path)
    NotebookClient(notebook, timeout=timeout, resources={"metadata": {"path": str(path.parent)}}).execute()
    outputs = [o for cell in notebook.cells if cell.cell_type == "code" for o in cell.outputs]
    assert any("image/png" in o.get("data", {}) for o in outputs), "no figure was drawn"


@every_notebook
def test_notebook_runs(path):
    execute(path, timeout=300)


@pytest.mark.slow
@every_notebook
def test_notebook_runs_live(path, monkeypatch):
    monkeypatch.setenv("ZAYA_LIVE", "1")
    for name in ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR"):  # the tests compile as no reader does
        monkeypatch.delenv(name, raising=False)
    start = time.monotonic()
    execute(path, timeout=5 * LIVE_SECONDS)  # a busy machine shall fail below, with its seconds
    assert time.monotonic() - start < LIVE_SECONDS


@every_notebook
def test_the_pair_is_in_step(path):
    def sources(notebook):
        return [(cell.cell_type, cell.source) for cell in notebook.cells]

    assert sources(jupytext.read(path.with_suffix(".ipynb"))) == sources(jupytext.read(path))
