"""Figures of the stability study: how noisy each objective is, what it stands, and what its model is worth.

Each takes results/stability/*.json as read (`experiments.bench.stability`) and gives a `Drawn`, or raises `MissingData`
with what it lacks.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from zaya_jax.reporting.paper.marks import Drawn
from zaya_jax.reporting.paper.sweep_rows import MissingData
from zaya_jax.reporting.plots import style
from zaya_jax.reporting.results import TOY_LIMIT
from zaya_jax.training.stability import largest_stable_rate, margin_interval

NAMES = {
    "autoregressive": "AR only", "tidar": "TiDAR: full mask", "random": "random mask a block",
    "sbd": "set block decoding", "bd3": "BD3-LM, 1/t", "bd3_no_ar": "BD3-LM, 1/t, no AR loss",
    "bd3_clipped": "BD3-LM, clipped", "complementary": "complementary pair", "llada": "LLaDA-like, no AR loss",
    "tidar_no_ar": "full mask, no AR loss", "random_no_ar": "random mask, no AR loss",
    "sbd_no_ar": "set block, no AR loss", "sdar": "SDAR-like, no AR loss",
    "sbd_by_masked": "set block, by masked tokens", "bd3_by_masked": "BD3-LM, 1/t, by masked tokens",
}  # fmt: skip
COLOURS = {
    "autoregressive": style.GREY, "tidar": style.BLUE, "random": style.ORANGE, "sbd": style.GREEN,
    "bd3": style.VERMILION, "bd3_no_ar": "#8c2d04", "bd3_clipped": style.PURPLE, "complementary": "#56B4E9",
    "llada": style.INK, "tidar_no_ar": "#2b5d8a", "random_no_ar": "#b8860b", "sbd_no_ar": "#00644b",
    "sdar": "#6a3d9a", "sbd_by_masked": "#66c2a5", "bd3_by_masked": "#fc8d62",
}  # fmt: skip
SOURCES = {"data": style.GREY, "rate": style.ORANGE, "mask": style.VERMILION}
SOURCE_WORDS = {"data": "which data", "rate": "mask rates, where blocks stand", "mask": "which masks"}
LEAST = 1e-3  # of |E g|^2 that is shown
NO_PUBLISHED = "No published measurement of this kind exists beside it."


def arms_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The arms that rows are of, in the order of NAMES."""
    there = {row["arm"] for row in rows}
    return [name for name in NAMES if name in there]


def noise(study: dict[str, Any]) -> Drawn:
    """Variance of the gradient over |mean|^2, by source: of the draft term alone, and of the whole loss."""
    rows = [row for row in _section(study, "noise") if row["at"] == "checkpoint"]
    arms = arms_of(rows)
    figure = style.new_figure(
        "What the gradient's noise comes from, at the common AR checkpoint", _footer(study), 11, 6.2, legend=1
    )
    for axis, term, title in zip(
        figure.subplots(1, 2, sharex=True, sharey=True), ("draft", "whole"), ("the draft term alone", "the whole loss"),
        strict=True,
    ):  # fmt: skip
        style.tidy(axis, f"{title}: tr Var(g) / |E g|²", grid="x")
        for i, arm in enumerate(arms):
            mine = [row for row in rows if row["arm"] == arm]
            row = next((row for row in mine if row["term"] == term), mine[0])
            for j, (source, colour) in enumerate(SOURCES.items()):
                value, error = row["relative"][source]
                at = i + (j - 1) * 0.26
                if value > LEAST:
                    axis.barh(at, value, 0.24, color=colour)
                    axis.plot([max(value - error, LEAST), value + error], [at, at], color=style.INK, linewidth=0.8)
        axis.set_xscale("log")
        axis.set_xlim(LEAST, None)
        style.plain_numbers(axis.xaxis)
        axis.set_yticks(range(len(arms)), [NAMES[arm] for arm in arms])
    figure.axes[0].invert_yaxis()
    handles = [Patch(color=colour, label=SOURCE_WORDS[source]) for source, colour in SOURCES.items()]
    style.legend_below(figure, handles)
    draws = " x ".join(map(str, rows[0]["draws"]))
    return Drawn(figure, (
        f"The gradient's variance over the squared norm of its mean, split by the law of total variance over nested "
        f"draws ({draws}: batches, rates and places, masks), for {study['parameters']:,} parameters and batches of "
        f"{study['batch']} rows of {study['row_length']} tokens. Lines are standard errors (jackknife over batches); "
        "estimates below 0.001 are left out. Arms without an AR loss stand in both panels alike, as does AR alone. "
        f"{NO_PUBLISHED}"
    ))  # fmt: skip


def norms(study: dict[str, Any]) -> Drawn:
    """Gradient norms over training, a panel an arm, a line a seed."""
    rows = [row for row in _section(study, "runs") if row.get("norms")]
    arms = arms_of(rows)
    if not arms:
        raise MissingData("rows of section 'runs' with norms")
    columns = 3
    lines = math.ceil(len(arms) / columns)
    figure = style.new_figure(
        f"Gradient norms from the common AR checkpoint on, learning rate {study['base_rate']:g}", _footer(study),
        11, 1.2 + 1.9 * lines,
    )  # fmt: skip
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flat
    for axis, arm in zip(panels, arms, strict=False):
        style.tidy(axis, NAMES[arm])
        mine = [row for row in rows if row["arm"] == arm]
        for row in mine:
            axis.plot([np.nan if x is None else x for x in row["norms"]], color=COLOURS[arm], linewidth=0.8, alpha=0.7)
        axis.axhline(study["clip_norm"], color=style.QUIET, linewidth=0.8, linestyle=":")
        axis.set_yscale("log")
        style.plain_numbers(axis.yaxis)
        tails = [row["tail"] for row in mine if row.get("tail")]
        clipped = [row["clipped"] for row in mine if row.get("tail")]
        if tails:
            axis.text(
                0.98, 0.95, f"p99/median {np.mean(tails):.2f}, clipped {np.mean(clipped):.0%}", fontsize=8,
                transform=axis.transAxes, ha="right", va="top", color=style.INK, bbox=style.HALO,
            )  # fmt: skip
    for axis in list(panels):
        axis.set_visible(False)
    return Drawn(figure, (
        "Gradient norm at each step, a line a seed; dotted: where it is clipped. p99/median is taken in windows of 50 "
        "steps, the mean over windows and seeds. A loss's scale is its own: compare shapes, not heights. "
        f"{NO_PUBLISHED}"
    ))  # fmt: skip


def margin(study: dict[str, Any]) -> Drawn:
    """What an arm ends at by learning rate, and the largest rate at which it ends well."""
    rows = _section(study, "runs")
    arms = arms_of(rows)
    figure = style.new_figure(
        "How large a learning rate each objective stands", _footer(study), 11, 5.4, legend=math.ceil(len(arms) / 3)
    )
    left, right = figure.subplots(1, 2, gridspec_kw={"width_ratios": [1.2, 1]})
    style.tidy(left, "end loss over the arm's own best (median of seeds)", "learning rate", grid="both")
    style.tidy(right, "largest stable rate (95% interval)", "learning rate", grid="x")
    handles = []
    for i, arm in enumerate(arms):
        ends = ends_of(rows, arm)
        medians = {rate: float(np.median(_worst(losses))) for rate, losses in ends.items()}
        best = min(medians.values())
        shown = {rate: value / best for rate, value in medians.items() if math.isfinite(value)}
        left.plot(list(shown), list(shown.values()), "o-", color=COLOURS[arm], markersize=4, linewidth=1.4)
        handles.append(Line2D([], [], color=COLOURS[arm], marker="o", markersize=4, label=NAMES[arm]))
        rate, interval = largest_stable_rate(ends), margin_interval(ends)
        if rate is not None:
            right.plot(rate, i, "o", color=COLOURS[arm], markersize=7)
        if interval is not None:
            right.plot(interval, [i, i], color=COLOURS[arm], linewidth=1.6)
    for axis in (left, right):
        axis.set_xscale("log", base=2)
        axis.set_xticks(sorted({row["rate"] for row in rows}))
        style.plain_numbers(axis.xaxis)
    left.axhline(1.05, color=style.QUIET, linewidth=0.9, linestyle=":")
    left.set_ylim(0.97, 1.6)
    right.set_yticks(range(len(arms)), [NAMES[arm] for arm in arms])
    right.invert_yaxis()
    style.legend_below(figure, handles, ncols=3)
    seeds = len({row["seed"] for row in rows})
    return Drawn(figure, (
        f"Left: the held-out loss of each arm's own kind (fixed draws) after {study['steps']} steps, over the arm's "
        "best median; values above the panel are cut off. Right: the largest learning rate at which 4 of 5 seeds end "
        f"finite and at most 5% (dotted) above that best; lines are bootstraps over the {seeds} seeds. "
        f"{NO_PUBLISHED}"
    ))  # fmt: skip


def exchange(study: dict[str, Any]) -> Drawn:
    """Final AR loss against T: what an objective costs the model that it drafts for."""
    rows, runs = _section(study, "decode"), _section(study, "runs")
    lossless = [row for row in rows if row["sampler"] == "lossless"]
    if not lossless:
        raise MissingData("rows of section 'decode', sampler lossless")
    figure = style.new_figure(
        "What drafting costs the AR model: its loss against tokens per forward", _footer(study), 11, 4.8,
        legend=math.ceil(len(arms_of(rows)) / 3),
    )  # fmt: skip
    temperatures = sorted({row["temperature"] for row in lossless})
    alone = _ends(runs, "autoregressive", study["base_rate"])
    handles = []
    for axis, temperature in zip(figure.subplots(1, len(temperatures), sharey=True, squeeze=False)[0], temperatures,
                                 strict=True):  # fmt: skip
        style.tidy(axis, f"lossless sampling at temperature {temperature:g}", "tokens per forward (T)", "", grid="both")
        for row in (row for row in lossless if row["temperature"] == temperature):
            losses, colour = _ends(runs, row["arm"], study["base_rate"]), COLOURS[row["arm"]]
            t = row["tokens_per_forward"]
            axis.plot([t, t], [min(losses), max(losses)], color=colour, linewidth=1)
            axis.plot(t, np.mean(losses), "o", color=colour, markersize=7)
            if axis is figure.axes[0]:
                handles.append(Line2D([], [], color=colour, marker="o", label=NAMES[row["arm"]]))
        if alone:
            axis.axhline(np.mean(alone), color=style.GREY, linewidth=1, linestyle="--")
        axis.set_yscale("log")
        style.plain_numbers(axis.yaxis)
    figure.axes[0].set_ylabel("held-out AR loss (nats a token)", fontsize=9, color=style.QUIET)
    style.legend_below(figure, handles, ncols=3)
    return Drawn(figure, (
        "Held-out AR loss after training (mean of seeds; lines: their range) against tokens per forward of lossless "
        "sampling (the first seed's model). Dashed: AR alone for as many steps. Lossless sampling gives each model's "
        f"own AR distribution, so what an arm loses in quality is this loss. {NO_PUBLISHED}"
    ))  # fmt: skip


def quality(study: dict[str, Any]) -> Drawn:
    """Quality against tokens per forward of every decoder; filled: lossless."""
    rows = _section(study, "decode")
    arms = arms_of(rows)
    figure = style.new_figure(
        "Quality against tokens per forward: filled marks are lossless, hollow ones verify nothing", _footer(study), 11,
        5.2, legend=math.ceil(len(arms) / 3),
    )  # fmt: skip
    panels = [(0.0, "accuracy", "accuracy, temperature 0"), (1.0, "accuracy", "pass@1, temperature 1"),
              (1.0, "pass_at_16", "pass@16, temperature 1")]  # fmt: skip
    for axis, (temperature, column, title) in zip(figure.subplots(1, 3, sharey=True), panels, strict=True):
        style.tidy(axis, title, "tokens per forward (T)", "", grid="both")
        for arm in arms:
            here = [
                r for r in rows if r["arm"] == arm and r["temperature"] == temperature and r.get(column) is not None
            ]
            free = sorted((r for r in here if not r["lossless"]), key=lambda r: r["tokens_per_forward"])
            _marks(axis, free, column, COLOURS[arm], "o", "white", ":")
            for row in (r for r in here if r["lossless"]):
                _marks(axis, [row], column, COLOURS[arm], "s" if row["sampler"] == "autoregressive" else "D", None, "")
        style.in_percent(axis.yaxis)
    handles = [Line2D([], [], color=COLOURS[arm], marker="o", linestyle="", label=NAMES[arm]) for arm in arms]
    style.legend_below(figure, handles, ncols=3)
    return Drawn(figure, (
        "Each arm's model (first seed) under every decoder: squares AR, diamonds lossless drafting, hollow circles "
        "what reveals a block without verifying (one or two slots a forward, confidence 0.9 and 0.7, entropy 0.1 and "
        "0.35), which is not lossless: its distribution is no language model's. Lossless drafting computes "
        f"more query tokens a forward; see the table. {NO_PUBLISHED}"
    ))  # fmt: skip


def ends_of(rows: Sequence[Mapping[str, Any]], arm: str) -> dict[float, list[float]]:
    """An arm's end losses by learning rate; not a number where it diverged."""
    ends: dict[float, list[float]] = {}
    for row in rows:
        if row["arm"] == arm:
            ends.setdefault(row["rate"], []).append(math.nan if row["loss"] is None else row["loss"])
    return dict(sorted(ends.items()))


def _worst(losses: Sequence[float]) -> np.ndarray:
    found = np.asarray(losses, float)
    return np.where(np.isfinite(found), found, np.inf)


def _ends(rows: Sequence[Mapping[str, Any]], arm: str, rate: float) -> list[float]:
    """AR losses of an arm's seeds at a rate."""
    return [r["ar_loss"] for r in rows if r["arm"] == arm and r["rate"] == rate and r["ar_loss"] is not None]


def _marks(axis: Axes, rows: Sequence[Mapping[str, Any]], column: str, colour: str, marker: str, face, line) -> None:
    axis.plot([r["tokens_per_forward"] for r in rows], [r[column] for r in rows], marker=marker, linestyle=line or "",
              color=colour, markerfacecolor=face or colour, markersize=6.5, linewidth=0.9)  # fmt: skip


def _section(study: dict[str, Any], name: str) -> list[dict[str, Any]]:
    if not study.get(name):
        raise MissingData(f"section {name!r}")
    return study[name]


def _footer(study: dict[str, Any]) -> str:
    size, seeds = study["parameters"], sorted({row["seed"] for row in study["runs"]})
    runs = [
        f"{study['steps']} steps of {study['batch']} x {study['row_length']} tokens",
        f"{len(seeds)} seed{'s' * (len(seeds) > 1)}",
    ]
    return style.footer_line([
        "toy run" if size < TOY_LIMIT else "", f"{size:,} parameters", "additions of up to two digits",
        f"AR checkpoint of {study['pretrain_steps']} steps, training seed {study['training_seed']}",
        *(runs if seeds else ()), study["hardware"],
    ])  # fmt: skip
