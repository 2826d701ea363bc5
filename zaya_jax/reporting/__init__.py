"""Result files in and out, and what is made of them: tables, pages, plots, figures, report.

Imports costs, sampling, training and what is below them; runs no model.
"""

import importlib
import os
import sys

if "MPLBACKEND" in os.environ:
    # Figures here are drawn and saved without a backend, but matplotlib refuses to be imported under one that it does
    # not know: a notebook hands its own to the programs that it starts, where that one's package may be missing.
    try:
        importlib.import_module("matplotlib")
    except (ImportError, ValueError):
        del os.environ["MPLBACKEND"]
        for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
            del sys.modules[name]  # imported by half

from zaya_jax.reporting.results import RESULT_COLUMNS, read_results, wilson, write_results
from zaya_jax.reporting.run_files import Run, load_run

__all__ = ["RESULT_COLUMNS", "Run", "load_run", "read_results", "wilson", "write_results"]
