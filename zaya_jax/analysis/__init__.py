"""What a run cost and what it measured: analytic counts, result files, figures, report."""

from zaya_jax.analysis.flops import describe, forward_flops, parameter_count, training_memory
from zaya_jax.analysis.results import RESULT_COLUMNS, Run, load_run, read_results, wilson, write_results

__all__ = [
    "RESULT_COLUMNS", "Run", "describe", "forward_flops", "load_run", "parameter_count", "read_results",
    "training_memory", "wilson", "write_results",
]  # fmt: skip
