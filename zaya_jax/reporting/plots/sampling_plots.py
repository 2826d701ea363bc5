"""Figures of sampling: tokens per forward beside what it costs, from results.csv and samples.jsonl."""

from collections import Counter
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from zaya_jax.reporting.plots import style
from zaya_jax.reporting.results import Row
from zaya_jax.reporting.run_files import Run


def tokens_per_forward(run: Run) -> Figure | None:
    """T, query tokens per forward, wall-clock ratio and accuracy of every sampler: T is never shown alone."""
    rows = [r for r in run.rows("sampling") if r["tokens_per_forward"] is not None and r["temperature"] is not None]
    if not rows:
        return None
    figure = style.new_figure(_speed_title(rows), style.footer(run, *_conditions(rows)), height=6.6, legend=1)
    axes = figure.subplots(2, 2).ravel()
    panels = (
        ("tokens_per_forward", "Tokens per forward (T)", style.number),
        ("rows_per_forward", "Query tokens per forward", style.number),
        ("speedup", _speedup_title(rows), style.number),
        ("accuracy", "Task accuracy, 95% interval", style.percent),
    )
    for axis, (column, title, text) in zip(axes, panels, strict=True):
        style.tidy(axis, title)
        _grouped_bars(axis, rows, column, text)
    axes[2].axhline(1, color=style.INK, linewidth=1, linestyle=(0, (4, 3)), zorder=3)
    axes[2].annotate("1 = as fast", (1, 1), (0, 3), xycoords=("axes fraction", "data"), textcoords="offset points",
                     ha="right", fontsize=8.5, color=style.INK)  # fmt: skip
    axes[3].set_ylim(0, 1.12)
    style.in_percent(axes[3].yaxis)
    style.legend_below(figure, axes[0].get_legend_handles_labels()[0])
    return figure


def accepted_histogram(run: Run) -> Figure | None:
    """How many tokens single forwards yielded, by sampler: of all prompts, or of the kept samples (`yields`)."""
    counts, prompts, whole = yields(run)
    if not counts:
        return None
    most = max(n for by_sampler in counts.values() for counted in by_sampler.values() for n in counted)
    block = f", block size {run.block_size}" if run.block_size else ""
    title = f"What one forward yields: tokens accepted per forward{block}"
    of = f"all {prompts} prompts" if whole else f"the kept samples of {prompts} prompts, not of all"
    notes = (of, "prefill counted, it yields 1", "autoregressive always yields 1")
    figure = style.new_figure(title, style.footer(run, *notes), height=3.9)
    panels = figure.subplots(1, len(counts), squeeze=False, sharey=True)[0]
    for axis, (temperature, by_sampler) in zip(panels, counts.items(), strict=True):
        style.tidy(axis, f"temperature {temperature:g}", "tokens in one forward", "share of forwards")
        _accepted_bars(axis, by_sampler, most)
    return figure


def forward_cost(run: Run) -> Figure | None:
    """The cost of a forward against its query tokens, with the free and the break-even line."""
    rows = sorted(
        (r for r in run.rows("cost") if r["rows"] is not None and r["cost_ratio"] is not None), key=lambda r: r["rows"]
    )
    if not rows:
        return None
    xs, ys = [r["rows"] for r in rows], [r["cost_ratio"] for r in rows]
    batch = f"batch {rows[0]['batch']:g}" if rows[0]["batch"] else ""
    title = f"A forward over {xs[-1]:g} query tokens costs {ys[-1]:.3g}x a forward over {xs[0]:g}"
    figure = style.new_figure(title, style.footer(run, batch), height=4.6)
    axis = style.tidy(figure.subplots(), "", "query tokens in one forward", "cost over one token's", grid="both")
    axis.set_xscale("log", base=2)
    axis.set_yscale("log", base=2)
    axis.plot(xs, ys, "-o", color=style.INK, linewidth=2, markersize=6, zorder=4, label="measured (median)")
    for number, row in enumerate(rows):  # above and below the line in turn: neighbours may stand close
        note = f"{row['cost_ratio']:.3g}x" + (f" ({row['milliseconds']:.3g} ms)" if row["milliseconds"] else "")
        offset, side = ((6, -13), "left") if number % 2 else ((-6, 7), "right")
        axis.annotate(note, (row["rows"], row["cost_ratio"]), offset, textcoords="offset points", fontsize=8.5,
                      ha=side, color=style.INK, zorder=5, bbox=style.HALO)  # fmt: skip
    axis.axhline(1, color=style.GREEN, linewidth=1.6, label="free: more tokens cost nothing")
    axis.plot(xs, xs, color=style.QUIET, linewidth=1, linestyle=":", label="proportional to query tokens")
    _break_even(axis, run)
    axis.set_xticks(xs)
    axis.set_xlim(xs[0] / 1.8, xs[-1] * 1.5)
    for each in (axis.xaxis, axis.yaxis):
        style.plain_numbers(each)
    style.legend(axis, loc="upper left")
    return figure


def _speed_title(rows: list[Row]) -> str:
    """The best lossless row in words, with its temperature, block size and speed-up."""
    best = max((r for r in rows if r["sampler"] == "lossless"), key=lambda r: r["tokens_per_forward"], default=None)
    if best is None:
        return "Tokens per forward, and what they cost"
    block = f", block size {best['block_size']:g}" if best["block_size"] else ""
    low, high = best["speedup_low"], best["speedup_high"]
    speed = "" if low is None else f"; speed-up {best['speedup']:.2f}x ({low:.2f} to {high:.2f})"
    where = f"(temperature {best['temperature']:g}{block})"
    return f"Lossless drafting: {best['tokens_per_forward']:.2f} tokens per forward {where}{speed}"


def _speedup_title(rows: list[Row]) -> str:
    """What a speed-up is worth: an interval, or one measurement."""
    title = "Wall-clock: tokens/s over autoregressive's"
    return f"{title}, 95%" if _has_intervals(rows) else f"{title} (one run, no interval)"


def _has_intervals(rows: list[Row]) -> bool:
    return any(row["speedup_low"] is not None for row in rows)


def _conditions(rows: list[Row]) -> list[str]:
    """Block size, branch points, batch, prompts, seeds, hardware: what T must be read with."""
    parts = []
    for column, word in (
        ("block_size", "block size"),
        ("anchors", "branch points"),
        ("batch", "batch"),
        ("prompts", "prompts"),
        ("seed", "sampling seed"),
    ):
        drafting = [r for r in rows if r["sampler"] != "autoregressive"] or rows
        values = sorted({r[column] for r in drafting if r[column] is not None}, key=str)
        texts = [f"{v:g}" if isinstance(v, float) else v for v in values]
        parts += [f"{word} {' / '.join(texts)}"] if texts else []
    return parts


def _grouped_bars(axis: Axes, rows: list[Row], column: str, text) -> None:
    """A group a temperature, a bar a series; bars of several seeds stand for their mean."""
    labels = style.series_labels(rows)
    colours = style.series_colours(rows, labels)
    temperatures = sorted({r["temperature"] for r in rows})
    width = 0.8 / len(colours)
    for i, (label, colour) in enumerate(colours.items()):
        at, heights, errors = [], [], []
        for j, temperature in enumerate(temperatures):
            same = [
                r for r, name in zip(rows, labels, strict=True) if name == label and r["temperature"] == temperature
            ]
            same = [r for r in same if r[column] is not None]
            if same:
                height = float(np.mean([r[column] for r in same]))
                at.append(j + (i - (len(colours) - 1) / 2) * width)
                heights.append(height)
                known = column in ("accuracy", "speedup") and len(same) == 1
                errors.append(_interval(same[0], column, height) if known else (0, 0))
        uncertain = column == "speedup" and not _has_intervals(rows)  # one measurement is no finding
        look: dict[str, Any] = (
            {"facecolor": "white", "edgecolor": colour, "hatch": "...."} if uncertain else {"color": colour}
        )
        bars = axis.bar(at, heights, width * 0.92, label=label, **look)
        if any(map(any, errors)):
            axis.errorbar(at, heights, np.transpose(errors), fmt="none", ecolor=style.INK, elinewidth=1, capsize=2.5)
            high = [h + e[1] for h, e in zip(heights, errors, strict=True)]
            for x, y, height in zip(at, high, heights, strict=True):
                axis.annotate(text(height), (x, y), (0, 2), textcoords="offset points", ha="center", fontsize=8.5)
        else:
            axis.bar_label(bars, [text(h) for h in heights], fontsize=8.5, color=style.INK, padding=2)
    axis.set_xticks(range(len(temperatures)), [f"temperature {t:g}" for t in temperatures])
    axis.margins(y=0.18)


def _interval(row: Row, column: str, height: float) -> tuple[float, float]:
    low, high = row[f"{column}_low"], row[f"{column}_high"]
    return (0, 0) if low is None or high is None else (max(0.0, height - low), max(0.0, high - height))


def yields(run: Run) -> tuple[dict[float, dict[str, Counter]], int, bool]:
    """How many forwards yielded how many tokens: temperature -> series -> counts, drafting series if there are any.

    Returns:
      (counts, prompts they are of, whether those are all that were sampled: results.csv has the counts of all; of a
      run from before it had, only the kept samples tell).
    """
    rows = [r for r in run.rows("sampling") if r["forwards_by_tokens"] and r["temperature"] is not None]
    labelled = [
        (r["temperature"], label, _counted(r["forwards_by_tokens"]), r["sampler"])
        for r, label in zip(rows, style.series_labels(rows), strict=True)
    ]
    prompts, whole = int(max((r["prompts"] or 0 for r in rows), default=0)), bool(rows)
    if not whole:
        labelled = [
            (s["temperature"], s["sampler"], Counter(s["accepted"]), s["sampler"]) for s in run.samples if s["accepted"]
        ]
        prompts = len({s["prompt"] for s in run.samples if s["accepted"]})
    labelled = [line for line in labelled if line[3] != "autoregressive"] or labelled
    counts: dict[float, dict[str, Counter]] = {}
    for temperature, label, counted, _ in sorted(labelled, key=lambda line: line[0]):
        counts.setdefault(temperature, {}).setdefault(label, Counter()).update(counted)
    return counts, prompts, whole


def _counted(forwards_by_tokens: list[float]) -> Counter:
    return Counter({n: int(count) for n, count in enumerate(forwards_by_tokens) if count})


def _accepted_bars(axis: Axes, by_sampler: dict[str, Counter], most: int) -> None:
    samplers = list(by_sampler)
    spare = iter(style.OTHERS * (1 + len(samplers)))
    width = 0.84 / len(samplers)
    for i, (sampler, counts) in enumerate(by_sampler.items()):
        forwards = counts.total()
        mean = sum(n * c for n, c in counts.items()) / forwards
        at = np.arange(1, most + 1) + (i - (len(samplers) - 1) / 2) * width
        heights = [counts[n] / forwards for n in range(1, most + 1)]
        colour = style.SAMPLER_COLOURS.get(sampler) or next(spare)
        axis.bar(at, heights, width * 0.92, color=colour, label=f"{sampler}: mean {mean:.2f} over {forwards} forwards")
    axis.set_xticks(range(1, most + 1))
    axis.margins(y=0.06 + 0.08 * len(samplers))  # room for the legend
    style.in_percent(axis.yaxis)
    style.legend(axis, loc="upper right")


def _break_even(axis: Axes, run: Run) -> None:
    """Below these lines a forward that yields T tokens costs less than T forwards that yield one each."""
    rows = run.rows("sampling", sampler="lossless")
    rows = [r for r in rows if r["tokens_per_forward"] and r["temperature"] is not None]
    for row, dashes in zip(sorted(rows, key=lambda r: -r["tokens_per_forward"]), _DASHES, strict=False):
        t = row["tokens_per_forward"]
        block = f", block size {row['block_size']:g}" if row["block_size"] else ""
        label = f"break-even: cost = T = {t:.2f} (lossless, temperature {row['temperature']:g}{block})"
        axis.axhline(t, color=style.BLUE, linewidth=1.3, linestyle=(0, dashes), label=label)
    if rows:
        axis.axhspan(1, max(r["tokens_per_forward"] for r in rows), color=style.BLUE, alpha=0.06, linewidth=0)


_DASHES = ((6, 2), (2, 2), (1, 3), (8, 2, 1, 2))
