"""Result rows as Markdown, for the README: the numbers there are made here, from a committed results.csv."""

from zaya_jax.analysis.results import Row


def sampling_table(rows: list[Row]) -> str:
    """The four figures every claim of speed needs: tokens per forward, rows per forward, clock, quality.

    Args:
      rows: of results.csv; those of kind "sampling" are shown, in their order.
    """
    head = (
        "| temperature | sampler | tokens per forward | rows per forward | wall-clock vs AR | accuracy (95% interval) "
        "| same tokens as greedy AR |\n|---|---|---|---|---|---|---|"
    )
    lines = [head]
    for row in rows:
        if row["kind"] != "sampling":
            continue
        same = row["identical_to_autoregressive"]
        interval = f"{row['accuracy_low']:.3f}-{row['accuracy_high']:.3f}"
        lines.append(
            f"| {row['temperature']:g} | {row['arm']} | {row['tokens_per_forward']:.2f} | {row['rows_per_forward']:g} "
            f"| {row['speedup']:.2f}x | {row['accuracy']:.3f} ({interval}) | {'' if same is None else f'{same:.1%}'} |"
        )
    return "\n".join(lines)


def likelihood_table(rows: list[Row]) -> str:
    """AR loss of every stage, and of convert against control: rows of kind "likelihood"."""
    lines = [
        "| held-out source | pretrained | converted | AR-only control | converted vs control |",
        "|---|---|---|---|---|",
    ]
    loss = {(r["source"], r["model"]): r["ar_loss"] for r in rows if r["kind"] == "likelihood"}
    for source in dict.fromkeys(source for source, _ in loss):
        before, after, control = (loss[source, model] for model in ("pretrain", "convert", "control"))
        lines.append(f"| {source} | {before:.4f} | {after:.4f} | {control:.4f} | {after / control - 1:+.1%} |")
    return "\n".join(lines)
