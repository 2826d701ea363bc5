"""Tables of what drafting costs and yields: results of `experiments.bench.sampling` and `experiments.ceiling`."""

from zaya_jax.reporting.tables.cells import accuracy, markdown


def anchors_table(rows: list[dict]) -> str:
    """Budgets of branch points: the "anchors" section of results/bench/samplers.json."""
    batches = list(rows[0]["speedup"])
    return markdown(
        ("temperature", "K", "branch points", "query tokens per forward", "tokens per forward", "of the T of all",
         "accuracy",
         *(f"wall-clock vs AR, batch {batch}" for batch in batches)),
        (
            (
                f"{row['temperature']:g}", str(row["anchors"]),
                "all" if row["anchors"] == row["block_size"] else ", ".join(map(str, row["list"])),
                f"{row['rows_per_forward']:g}", f"{row['tokens_per_forward']:.2f}", f"{kept_by_anchors(rows, row):.1%}",
                f"{row['accuracy']:.3f}", *(f"{row['speedup'][batch]:.2f}x" for batch in batches),
            )
            for row in rows
        ),
    )  # fmt: skip


def kept_by_anchors(rows: list[dict], row: dict) -> float:
    """The row's tokens per forward over those of all branch points at the same temperature."""
    everywhere = next(
        r for r in rows if r["anchors"] == r["block_size"] and r["temperature"] == row["temperature"]
    )  # fmt: skip
    return row["tokens_per_forward"] / everywhere["tokens_per_forward"]


def strategies_table(rows: list[dict]) -> str:
    """TiDAR's table of decoding strategies: the "strategies" section of results/bench/samplers.json."""
    by = {(row["strategy"], row["temperature"]): row for row in rows}
    lines = []
    for name in dict.fromkeys(row["strategy"] for row in rows):
        pair = (by[name, 0.0], by[name, 1.0])
        cells = [cell for row in pair for cell in (f"{row['tokens_per_forward']:.2f}", accuracy(row))]
        lines.append((name, f"{pair[0]['rows_per_forward']:g}", *cells))
    return markdown(
        ("strategy", "query tokens per forward", "T, temperature 0", "accuracy (95% interval)", "T, temperature 1",
         "accuracy (95% interval)"),
        lines,
    )  # fmt: skip


def auto_table(rows: list[dict]) -> str:
    """What "auto" chose: the "auto" section of results/bench/samplers.json."""

    def chosen(row: dict) -> str:
        if row["mode"] != "single_pass":
            return row["mode"]
        return f"single_pass, block {row['block_size']}, anchors {', '.join(map(str, row['anchors']))}"

    return markdown(
        ("prompts", "batch", "temperature", "chosen", "query tokens per forward", "tokens per forward",
         "wall-clock vs AR"),
        (
            (
                row["prompts"], str(row["batch"]), f"{row['temperature']:g}", chosen(row),
                f"{row['rows_per_forward']:g}", f"{row['tokens_per_forward']:.2f}", f"{row['speedup']:.2f}x",
            )
            for row in rows
        ),
    )  # fmt: skip


def ceiling_table(rows: list[dict]) -> str:
    """T under exact distributions: the "rows" of results/bench/ceiling.json."""
    return markdown(
        ("operations", "examples", "beta", "T", "upper bound on T", "decode-only T"),
        (
            (
                " or ".join(str(n + 1) for n in range(row["max_operations"])), str(row["examples"]), f"{row['beta']:g}",
                f"{row['tokens_per_forward']:.2f}", f"{row['most_tokens_per_forward']:.2f}",
                f"{row['tokens_per_decoding_forward']:.2f}",
            )
            for row in rows
        ),
    )  # fmt: skip


def rows_table(rows: list[dict]) -> str:
    """A forward's cost over the AR forward of one token: the "rows" section of results/bench/forward.json."""
    counts = list(rows[0]["ratio"])
    lines = []
    for row in rows:
        products = row["plain_products"]["touched"]
        cells = {
            f"{row['parameters'] / 1e6:.1f}M": (row["milliseconds"]["1"], row["ratio"]),
            "plain products, experts touched": (products["milliseconds"]["1"], products["ratio"]),
        }
        for title, (one, ratio) in cells.items():
            lines.append((title, str(row["batch"]), f"{one:.3f} ms", *(f"{ratio[n]:.1f}x" for n in counts[1:])))
    return markdown(("model", "batch", "one token", *(f"{n} tokens" for n in counts[1:])), lines)


def few_experts_table(rows: list[dict]) -> str:
    """What a forward costs where all tokens share an expert, and what that predicts: results/bench/few_experts.json.

    The prediction takes the trained model's measured acceptance; nothing of that size has been trained.
    """

    def best(row: dict) -> str:
        chosen = row["predicted_best"]
        if not chosen["anchors"]:
            return "autoregression"
        points = ", ".join(map(str, chosen["anchors"]))
        return f"block {chosen['block_size']}, branch points {points}: {chosen['rows']} tokens"

    counts = list(rows[0]["ratio"])
    return markdown(
        ("parameters", "experts", "one token", *(f"{n} tokens" for n in counts[1:]), "predicted best", "at T",
         "wall-clock vs AR"),
        (
            (
                f"{row['parameters'] / 1e6:.1f}M", str(row["experts"]), f"{row['milliseconds']['1']:.2f} ms",
                *(f"{row['ratio'][n]:.1f}x" for n in counts[1:]), best(row), f"{row['predicted_best']['tokens']:.2f}",
                f"{row['predicted_best']['speedup']:.2f}x",
            )
            for row in rows
        ),
    )  # fmt: skip
