"""Markdown tables, and the cells that several of them have in common."""

import math
from collections.abc import Iterable, Sequence

import numpy as np

from zaya_jax.reporting.results import Row


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(cells) + " |" for cells in rows)])


def percent_change(share: float, digits: int = 1) -> str:
    """0.0123 -> "+1.2%"; what rounds to nothing has no sign."""
    text = f"{share:+.{digits}%}"
    return text if text.strip("+-0.%") else text[1:]


def number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def accuracy(row: Row | dict) -> str:
    if row["accuracy"] is None:
        return ""
    return f"{row['accuracy']:.3f} ({row['accuracy_low']:.3f}-{row['accuracy_high']:.3f})"


def speedup(group: list[Row]) -> str:
    """Tokens per second over AR's: with its interval where the run measured one, else the range over runs."""
    speedups = [row["speedup"] for row in group]
    low, high = min(speedups), max(speedups)
    if len(group) == 1 and group[0].get("speedup_low") is not None:
        low, high = group[0]["speedup_low"], group[0]["speedup_high"]
    return f"{np.mean(speedups):.2f}x" + (f" ({low:.2f}-{high:.2f})" if low < high else "")


def mean(rows: list[Row], column: str) -> float:
    return float(np.mean([row[column] for row in rows]))


def mean_if_known(group: list[Row], column: str) -> str:
    values = [row[column] for row in group]
    return "" if None in values else f"{np.mean(values):.2f}"


def p_value(row: Row) -> str:
    return "<0.01" if row["p_value"] < 0.01 else f"{row['p_value']:.2f}"


def difference(rows: list[Row]) -> str:
    half = [(row["pass_at_16_difference_high"] - row["pass_at_16_difference_low"]) / 2 for row in rows]
    spread = math.sqrt(sum(h * h for h in half)) / len(rows)
    centre = mean(rows, "pass_at_16_difference")
    return f"{centre:+.3f} ({centre - spread:+.3f} to {centre + spread:+.3f})"
