"""Figures of sweeps that compare samplers on the same models: pass@16, tokens per forward, beta in mixing.

Each takes the rows of a sweep and gives a `Drawn`, or raises `MissingData` with the rows it lacks.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from zaya_jax.reporting.paper import published
from zaya_jax.reporting.paper.marks import SAMPLER_NAMES, Drawn, bar_legend, seed_bars
from zaya_jax.reporting.paper.sweep_rows import (
    MissingData,
    anchors_in_words,
    conditions,
    pick,
    shared,
    with_block_size,
    with_same_anchors,
)
from zaya_jax.reporting.plots import style
from zaya_jax.reporting.results import COMPARED, Row

COLOURS = {sampler: style.SAMPLER_COLOURS[sampler] for sampler in COMPARED}
MIXED = 0.5  # beta of the mixing sampler where several were sampled: the logits' plain average, as Zyphra describes it
DRAFT_TEMPERATURE = "evaluate.draft_temperature"  # no column of the rows; where it is changed, T is another's


def pass_at_16(rows: Sequence[Row], more: Sequence[Row] = ()) -> Drawn:
    """pass@16 by task for AR, lossless and mixing, and the paired differences from AR; a column a block size.

    `more` are rows of another sweep: tasks that have a model of their own.
    """
    found = _samplers([*rows, *more], having=("pass_at_16", "pass_at_16_low", "pass_at_16_high"))
    temperature = max(row["temperature"] for row in found)
    found = [row for row in found if row["temperature"] == temperature]
    blocks = shared(found, "block_size")
    figure = style.new_figure(
        f"pass@16 by task at temperature {temperature:g}: autoregressive, lossless and mixing",
        conditions(found), width=max(7.5, 2.3 + 2.9 * len(blocks)), height=6.2, legend=1,
    )  # fmt: skip
    axes = figure.subplots(2, len(blocks), squeeze=False, sharey="row", height_ratios=(1.5, 1))
    for column, block in enumerate(blocks):
        here = [row for row in found if row["block_size"] == block]
        tasks = shared(here, "source")
        style.tidy(axes[0, column], f"block size {block:g}", "", "pass@16, 95% interval" if not column else "")
        _interval_bars(axes[0, column], here, tasks)
        style.tidy(axes[1, column], "", "", "difference from AR\n(paired, 95%)" if not column else "")
        _differences(axes[1, column], here, tasks)
    axes[0, 0].set_ylim(0, 1.12)
    style.in_percent(axes[0, 0].yaxis)
    style.in_percent(axes[1, 0].yaxis)
    bar_legend(figure, COLOURS, SAMPLER_NAMES)
    return Drawn(figure, _pass_caption(found))


def speedup(rows: Sequence[Row], more: Sequence[Row] = ()) -> Drawn:
    """Tokens per forward of AR, lossless and mixing beside the published pair, and the speed-up.

    Speed-ups are drawn where every one has an interval; one run's without is told in the caption alone.
    `more` are rows of another sweep: tasks that have a model of their own.
    """
    found = _samplers([*rows, *more], having=("tokens_per_forward", "speedup"))
    block = max(shared(found, "block_size"))
    found = [row for row in found if row["block_size"] == block]
    groups = {
        f"{_task(task)}\ntemperature {temperature:g}": [
            row for row in found if row["source"] == task and row["temperature"] == temperature
        ]
        for task in shared(found, "source")
        for temperature in shared(found, "temperature")
    }
    groups = {name: here for name, here in groups.items() if here}
    warmest = max(shared(found, "temperature"))
    warm = [here for here in groups.values() if here[0]["temperature"] == warmest]

    def by_task(sampler: str) -> str:
        least, *_, most = sorted([_mean(here, sampler, "tokens_per_forward") for here in warm] * 2)
        return f"{least:.2f}" if len(warm) == 1 else f"{least:.2f} to {most:.2f} by task"

    ours = ", ".join(f"{SAMPLER_NAMES[sampler]} {by_task(sampler)}" for sampler in COMPARED[1:])
    theirs = ", ".join(f"{published.SPEEDUP[sampler]:g}" for sampler in COMPARED[1:])
    figure = style.new_figure(
        f"Tokens per forward at temperature {warmest:g}, block size {block:g}: {ours} (published: {theirs})",
        conditions(found), width=max(8.5, 2.2 + 1.9 * (1 + len(groups))), height=6.4 if _has_intervals(found) else 4.6,
        legend=1,
    )  # fmt: skip
    panels = figure.subplots(1 + _has_intervals(found), 1, sharex=True, squeeze=False)[:, 0]
    top = panels[0]
    other = "Zyphra, published\n8B, temperature not stated"
    style.tidy(top, "Tokens per forward (T): the speed-up if a forward cost the same whatever it computes")
    bars = {other: {sampler: [value] for sampler, value in published.SPEEDUP.items()}}
    bars |= {name: _by_sampler(here, "tokens_per_forward") for name, here in groups.items()}
    seed_bars(top, bars, COLOURS, published=[other])
    for bottom in panels[1:]:
        style.tidy(bottom, "Wall-clock over AR on this machine, 95% interval (nothing is published)")
        _interval_groups(bottom, {other: []} | groups, "speedup")
        bottom.axhline(1, color=style.INK, linewidth=1, linestyle=(0, (4, 3)), zorder=3)
    bar_legend(figure, COLOURS, SAMPLER_NAMES, published=True)
    return Drawn(figure, _speedup_caption(groups, block))


def beta(rows: Sequence[Row]) -> Drawn:
    """Mixing's trade-off at temperature 1: tokens per forward against pass@1 and pass@16, one point a beta."""
    found = with_same_anchors(with_block_size(rows))
    found = [row for row in found if row["changes"].get(DRAFT_TEMPERATURE) is None]
    found = pick(found, "sampling", ("tokens_per_forward", "accuracy"), temperature=1)
    mixing = pick(found, "sampling", ("beta",), sampler="mix_stale", temperature=1)
    if len(shared(mixing, "beta")) < 2:
        raise MissingData("rows of kind sampling, sampler mix_stale, temperature 1 with more than one beta")
    tasks = shared(mixing, "source")
    measures = [("accuracy", "pass@1")]
    measures += [("pass_at_16", "pass@16")] if all(row.get("pass_at_16") is not None for row in mixing) else []
    figure = style.new_figure(
        "Mixing by beta: tokens per forward against quality, temperature 1",
        conditions(found), width=4.9 * max(2, len(measures)),
        height=0.8 + 3.4 * len(tasks),
    )  # fmt: skip
    axes = figure.subplots(len(tasks), len(measures), squeeze=False)
    for task, line in zip(tasks, axes, strict=True):
        for (column, name), axis in zip(measures, line, strict=True):
            style.tidy(axis, f"{_task(task)}: {name}", "tokens per forward", "", grid="both")
            _beta_curve(axis, [row for row in found if row["source"] == task], column)
    style.legend(axes[0, 0], loc="best")
    return Drawn(figure, _beta_caption(mixing))


def _samplers(rows: Sequence[Row], having: Sequence[str]) -> list[Row]:
    """Rows of the three samplers with the same anchors, mixing at MIXED where several betas are there."""
    found = with_same_anchors(with_block_size(rows))
    betas = {row["beta"] for row in found if row["sampler"] == "mix_stale"}
    kept = [row for row in found if row["sampler"] != "mix_stale" or len(betas) == 1 or row["beta"] == MIXED]
    return [row for sampler in COMPARED for row in pick(kept, "sampling", having, sampler=sampler)]


def _task(name: str) -> str:
    return name.replace("_", " ")


def _by_sampler(rows: Sequence[Row], column: str) -> dict[str, list[float]]:
    return {sampler: [row[column] for row in rows if row["sampler"] == sampler] for sampler in COMPARED}


def _has_intervals(rows: Sequence[Row]) -> bool:
    """Whether every speed-up over AR has an interval."""
    drafting = [row for row in rows if row["sampler"] != "autoregressive"]
    return all(row.get("speedup_low") is not None and row.get("speedup_high") is not None for row in drafting)


def _interval_groups(axis: Axes, groups: dict[str, list[Row]], column: str) -> None:
    """`seed_bars` of a column, and every row's interval where it has one."""
    seed_bars(axis, {name: _by_sampler(here, column) for name, here in groups.items()}, COLOURS)
    for j, here in enumerate(groups.values()):
        for row, x in _places([""], [row | {"source": ""} for row in here], COMPARED):
            if row.get(f"{column}_low") is not None:
                axis.plot([j + x] * 2, [row[f"{column}_low"], row[f"{column}_high"]], color=style.INK, linewidth=1)


def _mean(rows: Sequence[Row], sampler: str, column: str) -> float:
    values = [row[column] for row in rows if row["sampler"] == sampler]
    return float(np.mean(values)) if values else float("nan")


def _places(tasks: Sequence[str], rows: Sequence[Row], samplers: Sequence[str]):
    """(row, x, width of its bar) for every row: groups are tasks, bars samplers, seeds side by side within a bar."""
    width = 0.8 / len(samplers)
    for i, sampler in enumerate(samplers):
        for j, task in enumerate(tasks):
            here = [row for row in rows if row["sampler"] == sampler and row["source"] == task]
            spread = np.linspace(-0.22, 0.22, len(here)) * width if len(here) > 1 else [0.0]
            for row, shift in zip(here, spread, strict=False):
                yield row, j + (i - (len(samplers) - 1) / 2) * width + shift


def _interval_bars(axis: Axes, rows: Sequence[Row], tasks: Sequence[str]) -> None:
    """Bars of the mean over seeds, and every seed with its own interval."""
    width = 0.8 / len(COMPARED)
    for i, (sampler, colour) in enumerate(COLOURS.items()):
        for j, task in enumerate(tasks):
            here = [row for row in rows if row["sampler"] == sampler and row["source"] == task]
            if here:
                at, mean = j + (i - (len(COMPARED) - 1) / 2) * width, _mean(here, sampler, "pass_at_16")
                axis.bar(at, mean, width * 0.9, color=colour)
                top = max(row["pass_at_16_high"] for row in here)
                axis.annotate(f"{100 * mean:.1f}", (at, top), (0, 3), textcoords="offset points", ha="center",
                              fontsize=8, color=style.INK)  # fmt: skip
    for row, x in _places(tasks, rows, COMPARED):
        _with_interval(axis, x, row, "pass_at_16", style.INK)
    axis.set_xticks(range(len(tasks)), [_task(task) for task in tasks])
    axis.set_xlim(-0.5, len(tasks) - 0.5)


def _differences(axis: Axes, rows: Sequence[Row], tasks: Sequence[str]) -> None:
    """Every seed's difference from AR with its interval, around zero."""
    axis.axhline(0, color=style.INK, linewidth=1)
    for row, x in _places(tasks, rows, COMPARED):
        if row["sampler"] != "autoregressive":
            _with_interval(axis, x, row, "pass_at_16_difference", COLOURS[row["sampler"]])
    axis.set_xticks(range(len(tasks)), [_task(task) for task in tasks])
    axis.set_xlim(-0.5, len(tasks) - 0.5)


def _with_interval(axis: Axes, x: float, row: Row, column: str, colour: str) -> None:
    value, low, high = (row.get(f"{column}{end}") for end in ("", "_low", "_high"))
    if value is None or low is None or high is None:
        raise MissingData(f"{column}, {column}_low and {column}_high of sampler {row['sampler']}, run {row['run']}")
    axis.plot([x, x], [low, high], color=colour, linewidth=1, zorder=3)
    axis.plot(x, value, "o", color=colour, markersize=3, zorder=4)


def _beta_curve(axis: Axes, rows: Sequence[Row], column: str) -> None:
    """The curve of betas with AR and lossless beside it; means over seeds, seeds as dots."""
    betas = shared([row for row in rows if row["sampler"] == "mix_stale"], "beta")
    points = []
    for value in betas:
        here = [row for row in rows if row["sampler"] == "mix_stale" and row["beta"] == value]
        points.append((_mean(here, "mix_stale", "tokens_per_forward"), _mean(here, "mix_stale", column)))
        axis.plot([r["tokens_per_forward"] for r in here], [r[column] for r in here], "o", color=style.ORANGE,
                  markersize=3, alpha=0.5)  # fmt: skip
        axis.annotate(f"{value:g}", points[-1], (8, 5), textcoords="offset points", fontsize=8.5, color=style.INK,
                      va="center", bbox=style.HALO, zorder=6)  # fmt: skip
    axis.plot(
        *zip(*points, strict=True), "o-", color=style.ORANGE, label="mixing, by beta (weight of the draft)", zorder=5
    )
    for sampler, mark in (("autoregressive", "s"), ("lossless", "D")):
        here = [row for row in rows if row["sampler"] == sampler and row.get(column) is not None]
        if here:
            x, y = _mean(here, sampler, "tokens_per_forward"), _mean(here, sampler, column)
            axis.plot(
                x,
                y,
                mark,
                color=COLOURS[sampler],
                markerfacecolor="none",
                markeredgewidth=1.6,
                markersize=10,
                zorder=4,
                label=SAMPLER_NAMES[sampler],
            )  # fmt: skip  (hollow: beta's dot may lie within)
            axis.axhline(y, color=COLOURS[sampler], linewidth=1, linestyle=(0, (4, 3)))
    axis.margins(0.12)
    style.in_percent(axis.yaxis)


def _pass_caption(rows: Sequence[Row]) -> str:
    lines = [
        "pass@16 by task for autoregressive, lossless and mixing (beta "
        f"{_list(shared([r for r in rows if r['sampler'] == 'mix_stale'], 'beta'))}) sampling of the same converted "
        "models, the same prompts and seeds. Bars: mean over training seeds. Dots: one seed each with its 95% interval "
        "(bootstrap over prompts). Below: difference from AR, paired bootstrap.",
    ]
    for sampler in COMPARED[1:]:
        here = [row for row in rows if row["sampler"] == sampler]
        apart = [row for row in here if row["pass_at_16_difference_low"] > 0 or row["pass_at_16_difference_high"] < 0]
        mean = 100 * float(np.mean([row["pass_at_16_difference"] for row in here]))
        tested = [row["p_value"] for row in here if row.get("p_value") is not None]
        least = f"; smallest p of a permutation test against AR {min(tested):.3g} of {len(tested)}" if tested else ""
        lines.append(
            f"{SAMPLER_NAMES[sampler]}: mean difference {mean:+.2f} points; {len(here) - len(apart)} of {len(here)} "
            f"intervals contain 0{least}."
        )
    lines.append(
        f"Layout of the bar chart in {published.ZYPHRA}. Published values: its pass@16 is a chart only and no numeric "
        "table is public, so none is drawn here."
    )
    return "\n".join(lines)


def _speedup_caption(groups: dict[str, list[Row]], block: float) -> str:
    lines = [
        f"Tokens per forward (T) at block size {block:g}, prefill counted as a forward; bars are means over seeds."
    ]
    for name, here in groups.items():
        told = []
        for sampler in COMPARED:
            rows = shared([row for row in here if row["sampler"] == sampler], "rows_per_forward")
            speedups = [row["speedup"] for row in here if row["sampler"] == sampler]
            speedup = f"{speedups[0]:.2f}x (1 run)" if len(speedups) == 1 else (
                f"{min(speedups):.2f} to {max(speedups):.2f}x ({len(speedups)} runs)")  # fmt: skip
            speedup = "" if sampler == "autoregressive" else f", speed-up {speedup}"
            values = f"T {_mean(here, sampler, 'tokens_per_forward'):.2f}{speedup}"
            told.append(f"{SAMPLER_NAMES[sampler]} {values}, query tokens per forward {_list(rows)}")
        lines.append(f"{name.replace(chr(10), ', ')}: " + "; ".join(told) + ".")
    if not all(map(_has_intervals, groups.values())):
        lines.append(
            "Speed-ups are wall-clock tokens per second over AR's, one measurement a run and no interval: they spread "
            "widely, support no finding, and are not drawn."
        )
    lines.append(
        f"Published (hatched): AR 1, lossless 4.6, mixing 7.7 for ZAYA1-8B at block size 16: {published.ZYPHRA}; "
        f"{published.ZYPHRA_NOTE}. Quality stands in figure pass_at_16."
    )
    return "\n".join(lines)


def _beta_caption(mixing: Sequence[Row]) -> str:
    lines = [
        "mix_stale: a draft is tested against softmax((1 - beta) * AR logits + beta * the logits that drew it). beta 0 "
        f"is lossless, more beta accepts more of the draft. Temperature 1, {anchors_in_words(mixing)}; dots are seeds, "
        "the line their mean; hollow marks and dashed lines: AR and lossless."
    ]
    for task in shared(mixing, "source"):
        for value in shared(mixing, "beta"):
            here = [row for row in mixing if row["source"] == task and row["beta"] == value]
            if here:
                quality = f"pass@1 {100 * _mean(here, 'mix_stale', 'accuracy'):.1f}%"
                if all(row.get("pass_at_16") is not None for row in here):
                    quality += f", pass@16 {100 * _mean(here, 'mix_stale', 'pass_at_16'):.1f}%"
                speed = _mean(here, "mix_stale", "tokens_per_forward")
                lines.append(f"{_task(task)}, beta {value:g}: T {speed:.2f}, {quality}.")
    lines.append(
        "Published: TiDAR's figure 6 (its beta weighs the AR logits, and mixes a fresh draft) finds quality and speed "
        "nearly flat; its values are not at hand. Zyphra mixes at 7.7 tokens per forward; no curve is published."
    )
    return "\n".join(lines)


def _list(values: Sequence[float]) -> str:
    return " / ".join(f"{value:g}" for value in values)
