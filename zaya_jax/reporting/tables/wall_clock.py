"""The table of `experiments.bench.drafting`."""

from collections.abc import Iterable, Mapping
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
        shape = f"{row['block_size']}, {' '.join(map(str, row['anchors']))}"
        shape += f", lookup {row['lookup']}" if row.get("lookup") else ""
        if drafter := row.get("drafter"):
            shape = f"{drafter}, {row['block_size'] - 1} drafts"
        rows.append(
            [
                row["prompts"], f"{row['temperature']:g}",
                shape, f"{row['query_tokens']:g}",
                f"{row['tokens_per_forward']:.2f}", f"{rates['plain']:.1f}", f"{rates['drafting']:.1f}",
                f"{row['ratio']:.2f}x ({low:.2f}-{high:.2f})",
                _auto(row),
                f"{row['same']} of {row['count']}",
            ]
        )  # fmt: skip
    return markdown(HEAD, rows)


def _auto(row: Mapping[str, Any]) -> str:
    """What mode auto chose, and how fast it was, if it was timed."""
    if row["auto_ratio"] is None:
        return f"{row['auto_drafter'] or 'drafts'}, not timed"
    return f"{'drafts' if row['auto'] != 'autoregressive' else 'AR'}, {row['auto_ratio']:.2f}x"


def learned_table(runs: Iterable[tuple[Mapping[str, Any], Iterable[Mapping[str, Any]]]], stage: str = "convert") -> str:
    """What drafts had learnt on held-out rows, by clean tokens seen: losses, and how many drafts are right.

    Args:
      runs: config.json and metrics.jsonl of each, where each trained on from the one before.
    """
    rows, before = [], 0
    for config, metrics in runs:
        section = config[stage]
        tokens = section["batch_size"] * (section.get("row_length") or config["data"]["row_length"])
        lines = [line for line in metrics if line["stage"] == f"{stage}/validation"]
        for line in lines:
            for source in dict.fromkeys(name.partition("/")[0] for name in line if "/" in name):
                if f"{source}/draft_loss" in line:
                    right = " ".join(f"{share:.2f}" for share in line[f"{source}/draft_accuracy_by_slot"])
                    losses = (f"{line[f'{source}/{kind}_loss']:.3f}" for kind in ("ar", "draft"))
                    rows.append([source, f"{before + line['step'] * tokens:,}", *losses, right])
        before += max((line["step"] for line in lines), default=0) * tokens
    return markdown(("held-out source", "clean tokens", "AR loss", "draft loss", "drafts right, by slot"), rows)
