"""The table of results/bench/decode*.json (`experiments.bench.decode`)."""

from typing import Any

from zaya_jax.reporting.tables.cells import markdown


def decode_table(*runs: dict[str, Any]) -> str:
    """What a decoding forward costs, beside transformers': autoregressive steps, then forwards by query tokens."""
    lines = []
    for run in runs:
        name = run["preset"] or run["checkpoint"]
        for step in run["autoregressive"]:
            share = f"{step['fraction_of_bandwidth']:.2f} of copy bandwidth"
            lines.append((name, str(step["batch"]), "autoregressive step", _ms(step), "", *_beside(step), share))
        over = run["summary"]["rows_over_one"]
        for row in run["forwards"]:
            times = f"{over[str(row['rows'])]:.2f}" if row["batch"] == 1 and str(row["rows"]) in over else ""
            share = f"{row['fraction_of_product_rate']:.2f} of a large product's rate"
            lines.append(
                (name, str(row["batch"]), f"{row['rows']} query tokens", _ms(row), times, *_beside(row), share)
            )
    head = ("model", "batch", "forward", "ours", "over one query token", "transformers", "theirs over ours", "reached")
    return markdown(head, lines)


def _ms(row: dict[str, Any]) -> str:
    return f"{row['milliseconds']:.1f} ms"


def _beside(row: dict[str, Any]) -> tuple[str, str]:
    return (f"{row['transformers']:.1f} ms", f"{row['ratio']:.2f}") if "ratio" in row else ("", "")
