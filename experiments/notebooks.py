"""Executes notebooks and writes each .ipynb anew from its .py, with outputs.

    python -m experiments.notebooks
    python -m experiments.notebooks inside_one_forward

Without a name it executes all of them. A notebook's .py is what one edits; the .ipynb beside it is committed with the
outputs that its code gives on committed results, and tests/test_notebooks.py says when they have drifted. Figures are
kept at few dots an inch and in few colours, so that a file stays small. Needs the `test` extra.
"""

import base64
import contextlib
import importlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import flags

from zaya_jax.command_line import cli
from zaya_jax.errors import UserError
from zaya_jax.files import write_text
from zaya_jax.paths import absolute

_FOLDER = flags.DEFINE_string("folder", "notebooks", "Folder of the notebooks.")

SECONDS = 300  # that a cell may take
COLOURS = 32  # of a figure
READERS = ("ZAYA_LIVE", "ZAYA_RESULTS")  # what a reader may have set, and committed outputs must not depend on


def main(*names: str) -> None:
    """Executes the named notebooks, or all."""
    folder = absolute(_FOLDER.value)
    known = {path.stem: path for path in sorted(folder.glob("*.py"))}
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"notebook: got {unknown[0]!r}, may be {', '.join(known) or f'none: {folder} has no .py'}")
    for name in names or known:
        path = known[name].with_suffix(".ipynb")
        write_text(path, text_of(executed(known[name]), path))
        print(f"{path}: {path.stat().st_size / 1024:.0f} KiB", flush=True)


def executed(path: Path) -> Any:
    """The notebook of a .py, with the outputs of its cells."""
    jupytext, nbclient = _needs("jupytext"), _needs("nbclient")
    notebook = jupytext.read(path)
    client = nbclient.NotebookClient(
        notebook,
        timeout=SECONDS,
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(path.parent)}},
    )
    with _environment(PYTHONPATH=os.pathsep.join([str(path.parents[1]), os.environ.get("PYTHONPATH", "")])):
        client.execute()
    return notebook


def text_of(notebook: Any, path: Path) -> str:
    """The notebook's file: small figures, no trace of this machine's kernel, and the cells' ids that `path` has."""
    nbformat = _needs("nbformat")
    before = nbformat.read(path, 4).cells if path.exists() else []
    notebook.metadata.pop("language_info", None)
    for number, cell in enumerate(notebook.cells):
        cell.id = before[number].id if number < len(before) else f"cell-{number}"
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                data["image/png"] = _small(data["image/png"])
    return nbformat.writes(notebook) + "\n"


def _small(picture: str) -> str:
    """A PNG in base64, in COLOURS colours."""
    image = _needs("PIL.Image").open(io.BytesIO(base64.b64decode(picture)))
    file = io.BytesIO()
    image.convert("RGB").quantize(COLOURS, dither=0).save(file, format="PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    """os.environ with these values, and without READERS."""
    before = dict(os.environ)
    for name in READERS:
        os.environ.pop(name, None)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _needs(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f'notebooks: {name.partition(".")[0]} is missing: pip install -e ".[test]"') from None


if __name__ == "__main__":
    cli.run(main, names=True)
