"""What a run shows about speed, in sentences made from its own numbers."""

from zaya_jax.reporting.plots import style
from zaya_jax.reporting.results import Row
from zaya_jax.reporting.run_files import Run
from zaya_jax.reporting.tables.cells import percent_change


def verdict(run: Run) -> list[str]:
    """Plain sentences for the report's first box: what kind of run, whether drafting is faster, and why."""
    return [_kind(run), *_clock(run), *_lossless(run)]


def on_cpu(run: Run) -> bool:
    """Whether environment.json names a CPU; False where it names nothing."""
    return "cpu" in str(run.environment.get("device", "")).lower()


def cost_at(run: Run, rows: float) -> Row | None:
    """The cost measured at exactly this many query tokens."""
    return next((r for r in run.rows("cost", rows=rows) if r["cost_ratio"] is not None), None)


def relative_loss(run: Run, source: str) -> float | None:
    """(convert - control) / control of a source's AR loss in results.csv; None if either was not measured."""
    losses = [run.rows("likelihood", model=model, source=source) for model in ("convert", "control")]
    if not all(losses) or any(rows[0]["ar_loss"] is None for rows in losses):
        return None
    return losses[0][0]["ar_loss"] / losses[1][0]["ar_loss"] - 1


def _kind(run: Run) -> str:
    words = style.size_in_words(run)
    if style.is_toy(run):
        return (
            f"This is a toy run: {words}, one seed{_training_time(run)}. It shows that the method runs and what it "
            "costs here; it says nothing about how a large model would do."
        )
    return f"This run trained a model of {words}, one seed{_training_time(run)}."


def _training_time(run: Run) -> str:
    seconds = [s for stage, s in run.environment.get("seconds", {}).items() if stage in run.phases]
    spent = f"{sum(seconds):.0f} seconds" if sum(seconds) < 120 else f"{sum(seconds) / 60:.3g} minutes"
    return f", {spent} of training in all" if seconds else ""


def _clock(run: Run) -> list[str]:
    rows = [r for r in run.rows("sampling") if r["speedup"] is not None and r["tokens_per_forward"]]
    rows = [r for r in rows if r["sampler"] == "lossless"] or _fastest_of_drafters(rows)
    if run.is_autoregressive:
        return [
            "No phase of this run drafts: it is an autoregressive model, sampled one token a forward (T = 1). To have "
            "it draft, train a phase with objective.kind 'tidar' from it."
        ]
    if not rows:
        return ["No lossless sampling was measured yet, so nothing can be said about speed."]
    rows = sorted(rows, key=lambda r: r["temperature"] or 0)
    faster = [r for r in rows if r["speedup"] > 1]
    device = run.environment.get("device")
    machine = "a CPU" if on_cpu(run) else f"this device ({device})" if device else "this machine"
    if len(faster) == len(rows):
        head = f"On {machine} lossless drafting gains time:"
    elif faster:
        head = f"On {machine} lossless drafting gains time in some settings only:"
    else:
        head = f"On {machine} drafting is not faster (speed-up below 1):"
    return [f"{head} {'; '.join(map(_setting, rows))}.", *_why(run, rows, gained=bool(faster))]


def _fastest_of_drafters(rows: list[Row]) -> list[Row]:
    """Where the model itself does not draft: at each temperature the fastest of those beside it, lossless all."""
    fastest: dict[float, Row] = {}
    for row in sorted(rows, key=lambda r: r["speedup"]):
        if row.get("draft_length") is not None:
            fastest[row["temperature"] or 0] = row
    return list(fastest.values())


def _setting(row: Row) -> str:
    by = "" if row["sampler"] == "lossless" else f", by {row['sampler']} (the fastest of the drafters tried),"
    block = f" and block size {row['block_size']:g}" if row["block_size"] and not by else ""
    return (
        f"at temperature {row['temperature'] or 0:g}{block}{by} a forward yields {row['tokens_per_forward']:.2f} "
        f"tokens and tokens come at {row['speedup']:.2f}x the autoregressive rate{_interval(row)}"
    )


def _interval(row: Row) -> str:
    low, high = row["speedup_low"], row["speedup_high"]
    return " (one measurement)" if low is None else f" (95% interval {low:.2f} to {high:.2f})"


def _why(run: Run, rows: list[Row], gained: bool) -> list[str]:
    """The cost of a forward against what it yields; then what a GPU would have to do."""
    best = max(rows, key=lambda r: r["tokens_per_forward"])
    t, count = best["tokens_per_forward"], best["rows_per_forward"]
    batch = f"batch {best['batch']:g}" if best["batch"] else "the batch sampled with"
    implied = (
        f"Implied by these two numbers at {batch}: a drafting forward takes about {t / best['speedup']:.3g} times as "
        f"long as an autoregressive one, and yields {t:.2f} times the tokens."
    )
    out = [implied]
    cost = cost_at(run, count) if count else None
    if cost:
        alone = f" at batch {cost['batch']:g}" if cost["batch"] else ""
        relation = "more" if cost["cost_ratio"] > t else "less"
        out.append(
            f"Measured alone{alone}: a forward over {count:g} query tokens costs {cost['cost_ratio']:.3g} times "
            f"a forward over one, {relation} than the {t:.2f} tokens it yields."
        )
    if on_cpu(run) and not gained:
        rows_text = f"{count:g} query tokens" if count else "all its query tokens"
        out.append(
            "The likely reason (reasoned, not isolated by a measurement): a CPU has little arithmetic to spare, so "
            "every further token is paid for, and more tokens read more experts. For a gain on a GPU a forward over "
            f"{rows_text} would have to cost less than {t:.2f} times a forward over one, as it can where reading the "
            "weights, not the arithmetic, takes the time (small batches, large models). This run did not measure that."
        )
    return out


def _lossless(run: Run) -> list[str]:
    """Whether greedy outputs were the same, and what conversion did to the AR loss."""
    out = []
    for row in run.rows("sampling", sampler="lossless", temperature=0.0):
        same = row["identical_to_autoregressive"]
        if same is not None:
            count = f" of {row['prompts']:g} prompts" if row["prompts"] else " of the prompts"
            out.append(
                f"Lossless greedy decoding gave exactly the autoregressive tokens on {style.percent(same)}{count}."
            )
    sources = dict.fromkeys(r["source"] for r in run.rows("likelihood"))
    changes = [(source, relative_loss(run, source)) for source in sources]
    texts = [f"{percent_change(change)} on {source}" for source, change in changes if change is not None]
    if texts:
        out.append(
            f"Learning to draft changed the AR loss by {', '.join(texts)} against a control trained on the same tokens "
            "without drafting."
        )
    return out
