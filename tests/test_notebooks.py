"""Committed notebooks are what their .py gives on committed results; a reader's own folder, or one line; live modes."""

import os
import time
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from experiments.notebooks import executed
from zaya_jax.errors import UserError
from zaya_jax.reporting.results import is_own, read_rows, results_folder

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))
LIVE_SECONDS = 120  # of two free CPU cores, for a whole notebook
LARGEST = 512 * 1024  # bytes
CHEAP = ("block_size_ablation",)  # runs no model and draws little; the others are slow
RUN, SWEEP = ROOT / "results" / "quickstart", ROOT / "results" / "sweeps" / "study"

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
cheap_first = pytest.mark.parametrize(
    "path", [pytest.param(p, marks=[pytest.mark.slow] * (p.stem not in CHEAP), id=p.stem) for p in NOTEBOOKS]
)


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """What the kernels inherit: this checkout, and nothing of what a reader may have set for notebooks."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    for name in ("ZAYA_LIVE", "ZAYA_RESULTS"):
        monkeypatch.delenv(name, raising=False)


def execute(path: Path, timeout: int) -> list[list[Any]]:
    """Runs a notebook in this environment; the outputs of its code cells. `timeout` seconds are a cell's."""
    notebook = jupytext.read(path)
    NotebookClient(notebook, timeout=timeout, resources={"metadata": {"path": str(path.parent)}}).execute()
    return outputs(notebook)


def outputs(notebook: Any) -> list[list[Any]]:
    return [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]


def said(cell: list[Any]) -> tuple[str, list[str]]:
    """What a cell printed, and its displayed things: their Markdown, HTML or text; "figure" for a picture."""
    printed = "".join(out.text for out in cell if out.output_type == "stream" and out.name == "stdout")
    shown = []
    for out in cell:
        data = out.get("data", {})
        kind = next((kind for kind in ("text/markdown", "text/html") if kind in data), None)
        if data:
            shown.append("figure" if "image/png" in data else data[kind] if kind else data["text/plain"])
    return printed, shown


def figures(cells: list[list[Any]]) -> int:
    return sum(said(cell)[1].count("figure") for cell in cells)


@cheap_first
def test_committed_outputs_have_not_drifted(path):
    committed = outputs(nbformat.read(path.with_suffix(".ipynb"), 4))
    made = outputs(executed(path))
    assert [said(cell) for cell in made] == [said(cell) for cell in committed]
    assert figures(made)


@every_notebook
def test_a_committed_notebook_has_outputs_and_is_small(path):
    file = path.with_suffix(".ipynb")
    notebook = nbformat.read(file, 4)
    assert figures(outputs(notebook)) and file.stat().st_size < LARGEST
    assert not [out for cell in outputs(notebook) for out in cell if out.output_type == "error"]
    assert all(not cell.metadata.get("execution") for cell in notebook.cells)  # no times, which differ at every run


@every_notebook
def test_the_pair_is_in_step(path):
    def sources(notebook):
        return [(cell.cell_type, cell.source) for cell in notebook.cells]

    assert sources(jupytext.read(path.with_suffix(".ipynb"))) == sources(jupytext.read(path))


@pytest.mark.slow
@pytest.mark.parametrize("folder", [RUN, SWEEP], ids=["run", "sweep"])
@every_notebook
def test_a_notebook_reads_a_folder_of_ones_own(path, folder, tmp_path, monkeypatch):
    """Under another name than this project's; the notebook that looks into a model says that a sweep holds several."""
    own = tmp_path / "mine"
    own.symlink_to(folder)
    monkeypatch.setenv("ZAYA_RESULTS", str(own))
    if path.stem == "inside_one_forward" and folder == SWEEP:
        with pytest.raises(CellExecutionError, match=r"config\.json: no such file, should be the config of a run"):
            execute(path, timeout=300)
        return
    made = execute(path, timeout=300)
    assert figures(made)
    if path.stem != "inside_one_forward":
        assert "mine" in "".join(said(cell)[0] for cell in made)


def test_a_wrong_folder_is_one_line(tmp_path):
    usual = ROOT / "results"
    assert results_folder(None, usual) == results_folder("", usual) == usual and not is_own(usual)
    assert results_folder("results/quickstart", usual).samefile(RUN)
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "config.json").write_text("{}")
    for given, words in (
        ("nowhere", "which is no folder"),
        (tmp_path, ""),
        (tmp_path / "unfinished", "not evaluated yet"),
    ):
        with pytest.raises(
            UserError, match=rf"^results: got {given}.*{words}.*, may be a sweep's folder .*, a run's"
        ) as e:
            results_folder(str(given), usual)
        assert "\n" not in str(e.value)
        assert e.value._render_traceback_() == [f"error: {e.value}"]  # what IPython shows of it


def test_a_run_is_a_sweep_of_one_job():
    rows = read_rows(RUN)
    assert {row["run"] for row in rows} == {"quickstart"} and all(row["changes"] == {} for row in rows)
    assert len({row["run"] for row in read_rows(SWEEP)}) > 1


@pytest.mark.slow
@every_notebook
def test_notebook_runs_live(path, monkeypatch):
    monkeypatch.setenv("ZAYA_LIVE", "1")
    for name in ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR"):  # the tests compile as no reader does
        monkeypatch.delenv(name, raising=False)
    start = time.monotonic()
    assert figures(execute(path, timeout=5 * LIVE_SECONDS))  # a busy machine shall fail below, with its seconds
    assert time.monotonic() - start < LIVE_SECONDS
