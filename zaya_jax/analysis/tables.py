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


def anchors_table(rows: list[dict]) -> str:
    """Budgets of anchors: the "anchors" section of results/bench/samplers.json."""
    batches = list(rows[0]["clock_over_ar"])
    clocks = " | ".join(f"clock vs AR, batch {batch}" for batch in batches)
    lines = [f"| temperature | K | anchors | rows per forward | tokens per forward | accuracy | {clocks} |"]
    lines.append("|---" * (6 + len(batches)) + "|")
    for row in rows:
        speed = " | ".join(f"{row['clock_over_ar'][batch]:.2f}x" for batch in batches)
        anchors = "all" if row["anchors"] == row["block_size"] else ", ".join(map(str, row["list"]))
        lines.append(
            f"| {row['temperature']:g} | {row['anchors']} | {anchors} | {row['rows_per_forward']:g} "
            f"| {row['tokens_per_forward']:.2f} | {row['accuracy']:.3f} | {speed} |"
        )
    return "\n".join(lines)


def strategies_table(rows: list[dict]) -> str:
    """TiDAR's table of decoding strategies: the "strategies" section of results/bench/samplers.json."""
    lines = [
        "| strategy | rows per forward | T, temperature 0 | accuracy | T, temperature 1 | accuracy (95% interval) |",
        "|---|---|---|---|---|---|",
    ]
    by = {(row["strategy"], row["temperature"]): row for row in rows}
    for name in dict.fromkeys(row["strategy"] for row in rows):
        cold, warm = by[name, 0.0], by[name, 1.0]
        lines.append(
            f"| {name} | {cold['rows_per_forward']:g} | {cold['tokens_per_forward']:.2f} | {cold['accuracy']:.3f} "
            f"| {warm['tokens_per_forward']:.2f} | {warm['accuracy']:.3f} "
            f"({warm['accuracy_low']:.3f}-{warm['accuracy_high']:.3f}) |"
        )
    return "\n".join(lines)


def rows_table(rows: list[dict]) -> str:
    """A forward's cost over the one-row AR forward: the "rows" section of results/bench/samplers.json."""
    counts = list(rows[0]["ratio"])
    lines = ["| model | batch | one row | " + " | ".join(f"{n} rows" for n in counts[1:]) + " |"]
    lines.append("|---" * (2 + len(counts)) + "|")
    for row in rows:
        name = f"{row['parameters'] / 1e6:.1f}M"
        cells = {name: (row["milliseconds"]["1"], row["ratio"])}
        products = row["plain_products"]["touched"]
        cells["plain products, experts touched"] = (products["milliseconds"]["1"], products["ratio"])
        for title, (one, ratio) in cells.items():
            lines.append(
                f"| {title} | {row['batch']} | {one:.3f} ms | "
                + " | ".join(f"{ratio[n]:.1f}x" for n in counts[1:])
                + " |"
            )
    return "\n".join(lines)


def auto_table(rows: list[dict]) -> str:
    """What "auto" chose: the "auto" section of results/bench/samplers.json."""
    lines = [
        "| prompts | batch | temperature | chosen | rows per forward | tokens per forward | clock vs AR |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        chosen = row["mode"]
        if chosen == "single_pass":
            chosen += f", block {row['block_size']}, anchors {', '.join(map(str, row['anchors']))}"
        lines.append(
            f"| {row['prompts']} | {row['batch']} | {row['temperature']:g} | {chosen} | {row['rows_per_forward']:g} "
            f"| {row['tokens_per_forward']:.2f} | {row['clock_over_ar']:.2f}x |"
        )
    return "\n".join(lines)


def transformers_table(rows: list[dict]) -> str:
    """AR decoding beside transformers: results/bench/transformers.json."""
    lines = [
        "| model | batch | transformers, ms a token | here, ms a token | ratio | goal |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        clock = row["milliseconds_per_token"]
        lines.append(
            f"| {row['preset']} | {row['batch']} | {clock['transformers']:.2f} | {clock['zaya_jax']:.2f} "
            f"| {row['ratio']:.1f} | {row['goal']:g} |"
        )
    return "\n".join(lines)
