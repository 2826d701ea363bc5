"""The table of `experiments.bench.drafting`."""

from collections.abc import Mapping
from typing import Any

from zaya_jax.reporting.tables.cells import markdown

HEAD = (
    "prompts", "temperature", "block, branch points", "query tokens", "tokens per forward", "AR tokens/s",
    "drafting tokens/s", "wall-clock vs AR (95% interval)", "auto", "same texts",
)  # fmt: skip


def wall_clock_table(numbers: Mapping[str, Any]) -> str:
    """Wall-clock of drafting against autoregression, a row for each set of prompts and temperature."""
    rows = []
    for row in numbers["rows"]:
        rates, (low, high) = row["tokens_per_second"], row["interval"]
        rows.append(
            [
                row["prompts"], f"{row['temperature']:g}",
                f"{row['block_size']}, {' '.join(map(str, row['anchors']))}", f"{row['query_tokens']:g}",
                f"{row['tokens_per_forward']:.2f}", f"{rates['plain']:.1f}", f"{rates['drafting']:.1f}",
                f"{row['ratio']:.2f}x ({low:.2f}-{high:.2f})",
                f"{'drafts' if row['auto'] != 'autoregressive' else 'AR'}, {row['auto_ratio']:.2f}x",
                f"{row['same']} of {row['count']}",
            ]
        )  # fmt: skip
    return markdown(HEAD, rows)
