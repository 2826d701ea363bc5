"""Ways to draft side by side: the sweep of configs/sweeps/rivals.py."""

from collections.abc import Iterable

import numpy as np

from zaya_jax.costs.flops import si
from zaya_jax.reporting.paper.rivals import METHOD
from zaya_jax.reporting.results import Row
from zaya_jax.reporting.tables.cells import markdown, mean


def rivals_table(rows: Iterable[Row]) -> str:
    """A line for each task, method and sampler: means over training seeds, T with the range over them.

    A step's work is the target's forwards and query tokens and the drafter's passes; tokens by forward-equivalent count
    where memory bounds a step (weights read), those by row-equivalent where arithmetic does.
    """
    rows = list(rows)
    entropies = {
        (row["run"], row["source"]): row["entropy"]
        for row in rows if row["sampler"] == "autoregressive" and row["temperature"] == 1
    }  # fmt: skip
    losses = {(row["run"], row["model"], row["source"]): row["ar_loss"] for row in rows if row["kind"] == "likelihood"}
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        if row["kind"] == "sampling":
            groups.setdefault((row["source"], row["changes"][METHOD], row["sampler"]), []).append(row)
    lines = []
    for (source, method, sampler), group in groups.items():
        cold, warm = ([row for row in group if row["temperature"] == t] for t in (0, 1))
        one = warm[0]
        work = f"{one['target_forwards']:g} / {one['target_rows']:g} / {one['draft_passes']:g}"
        loss = np.mean([losses[row["run"], row["model"], source] for row in warm])
        entropy = np.mean([entropies[row["run"], source] for row in warm])
        lines.append(
            (
                source, method, sampler, *(_range(each, "tokens_per_forward") for each in (cold, warm)), work,
                *(f"{mean(each, 'tokens_per_forward_equivalent'):.2f}" for each in (cold, warm)),
                f"{mean(warm, 'tokens_per_row_equivalent'):.2f}",
                *(f"{mean(each, 'accuracy'):.3f}" for each in (cold, warm)), f"{loss:.3f}",
                f"{entropy:.3f}",
                f"{si(mean(warm, 'training_flops'))}FLOP" if one["training_flops"] else "none",
                f"{one['added_parameters']:,.0f}",
            )
        )  # fmt: skip
    return markdown(
        ("task", "method", "sampler", "T, temperature 0", "T, temperature 1 (seeds)", "forwards / tokens / passes",
         "tokens per forward-equivalent, 0", "and at 1", "per row-equivalent, 1", "accuracy, 0", "and at 1",
         "target's AR loss", "its entropy", "training", "parameters added"),
        lines,
    )  # fmt: skip


def _range(group: list[Row], column: str) -> str:
    values = [row[column] for row in group]
    spread = f" ({min(values):.2f}-{max(values):.2f})" if max(values) > min(values) else ""
    return f"{np.mean(values):.2f}{spread}"
