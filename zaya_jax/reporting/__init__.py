"""Result files in and out, and what is made of them: tables, pages, plots, figures, report.

Imports costs, sampling, training and what is below them; runs no model.
"""

from zaya_jax.reporting.results import RESULT_COLUMNS, Run, load_run, read_results, wilson, write_results

__all__ = ["RESULT_COLUMNS", "Run", "load_run", "read_results", "wilson", "write_results"]
