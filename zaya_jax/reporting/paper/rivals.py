"""Figures of configs/sweeps/rivals.py: ways to draft from one AR checkpoint, by what a forward yields and costs.

Each takes the rows of its sweeps and gives a `Drawn`, or raises `MissingData` with the rows it lacks.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from zaya_jax.reporting.paper.marks import Drawn
from zaya_jax.reporting.paper.sweep_rows import conditions, pick, shared
from zaya_jax.reporting.plots import style
from zaya_jax.reporting.results import Row

METHOD = ":method"  # the argument that the sweep's jobs change
METHODS = {
    "ngram": "prompt lookup, no training", "ar": "AR, trained on", "tidar": "TiDAR", "tidar_lora": "TiDAR, drafts only",
    "mtp": "MTP, joint", "mtp_frozen": "MTP, target as it is", "medusa": "Medusa", "eagle3": "EAGLE-3",
    "dflash": "DFlash", "dflash_causal": "DFlash, causal",
}  # fmt: skip
COLOURS = {
    "ngram": style.GREY, "ar": style.INK, "tidar": style.BLUE, "tidar_lora": "#56B4E9", "mtp": style.VERMILION,
    "mtp_frozen": style.ORANGE, "medusa": "#8c6d31", "eagle3": style.PURPLE, "dflash": style.GREEN,
    "dflash_causal": "#66c2a5",
}  # fmt: skip
KINDS = {"two_pass": "two passes", "likeliest": "likeliest drafts", "tree": "tree"}  # by how a sampler's name ends
COUNTED = ("tokens_per_forward", "tokens_per_forward_equivalent")
NO_PUBLISHED = "Published numbers are of other targets, data and budgets, and are not drawn."


def rivals(rows: Sequence[Row]) -> Drawn:
    """Tokens per forward-equivalent of every method and sampler, a panel a temperature; T as a hollow mark.

    Prompt lookup is sampled in every job; it is taken from the jobs that train nothing.
    """
    found = _sampled(rows)
    ways = _ways(found)
    temperatures = shared(found, "temperature")
    figure = style.new_figure(
        "Ways to draft, trained after the same AR training for the same FLOPs and verified exactly",
        conditions(found), width=11, height=1.9 + 0.3 * len(ways), legend=1,
    )  # fmt: skip
    axes = figure.subplots(1, len(temperatures), sharey=True, squeeze=False)[0]
    for axis, temperature in zip(axes, temperatures, strict=True):
        style.tidy(axis, f"temperature {temperature:g}: tokens per forward-equivalent", grid="x")
        for i, (method, sampler) in enumerate(ways):
            here = [row for row in _of(found, method, sampler) if row["temperature"] == temperature]
            values = [row[COUNTED[1]] for row in here]
            axis.barh(i, np.mean(values), 0.62, color=COLOURS[method])
            if len(values) > 1:
                axis.plot(values, [i] * len(values), "o", color=style.INK, markersize=2.8, zorder=4)
            counted = np.mean([row[COUNTED[0]] for row in here])
            axis.plot(counted, i, "D", color=style.INK, markerfacecolor="white", markersize=5, zorder=5)
        axis.axvline(1, color=style.INK, linewidth=1, linestyle=(0, (4, 3)), zorder=3)
        axis.set_yticks(range(len(ways)), [_named(*way) for way in ways])
    figure.axes[0].invert_yaxis()
    style.legend_below(figure, [
        Patch(color=style.QUIET, label="tokens per forward-equivalent (the drafter's weights counted)"),
        Line2D(
            [], [], marker="D", color=style.INK, markerfacecolor="white", linewidth=0,
            label="tokens per target forward (T)",
        ),
    ])  # fmt: skip
    return Drawn(figure, _caption(found, temperatures))


def rivals_training(rows: Sequence[Row], more: Sequence[Row] = ()) -> Drawn:
    """T against the FLOPs that a method's training took: a line a method, its plain sampler, a panel a temperature.

    `more` are rows of another sweep: the same methods trained for fewer steps.
    """
    found = [row for row in _sampled([*rows, *more]) if _kind(row["sampler"]) == "" and row["training_flops"]]
    found = pick(found, "sampling", ("training_flops",))
    temperatures = shared(found, "temperature")
    figure = style.new_figure(
        "Tokens per forward against the FLOPs of a method's training, after the common AR checkpoint",
        conditions(found), width=10, height=4.8, legend=2,
    )  # fmt: skip
    methods = [name for name in METHODS if any(row["changes"][METHOD] == name for row in found)]
    axes = figure.subplots(1, len(temperatures), sharey=True, squeeze=False)[0]
    for axis, temperature in zip(axes, temperatures, strict=True):
        style.tidy(axis, f"temperature {temperature:g}: T", "training FLOPs", grid="both")
        for method in methods:
            _line(
                axis, [r for r in found if r["changes"][METHOD] == method and r["temperature"] == temperature], method
            )
        axis.set_xscale("log")
    handles = [Line2D([], [], marker="o", color=COLOURS[name], label=METHODS[name]) for name in methods]
    style.legend_below(figure, handles, ncols=5)
    return Drawn(figure, (
        f"Tokens per target forward (T) of each method's plain sampler (one draft chain, drawn at the target's "
        f"temperature) on {_tasks(found)}, against all FLOPs of its training after the checkpoint, a frozen target's "
        f"forward included. Points of one training seed and of several are means. {NO_PUBLISHED}"
    ))  # fmt: skip


def _sampled(rows: Sequence[Row]) -> list[Row]:
    """Rows that draft; prompt lookup's own job alone has its rows of "ngram"."""
    drafting = pick([row for row in rows if row["sampler"] != "autoregressive"], "sampling", COUNTED)
    return [row for row in drafting if row["sampler"] != "ngram" or row["changes"].get(METHOD) == "ngram"]


def _ways(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """(method, sampler) pairs, most tokens per forward-equivalent at the lowest temperature first."""
    coldest = min(row["temperature"] for row in rows)
    yields: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        if row["temperature"] == coldest:
            yields.setdefault((row["changes"][METHOD], row["sampler"]), []).append(row[COUNTED[1]])
    return sorted(yields, key=lambda way: -float(np.mean(yields[way])))


def _of(rows: Sequence[Row], method: str, sampler: str) -> list[Row]:
    return [row for row in rows if row["changes"][METHOD] == method and row["sampler"] == sampler]


def _kind(sampler: str) -> str:
    return next((words for end, words in KINDS.items() if sampler.endswith(end)), "")


def _named(method: str, sampler: str) -> str:
    kind = _kind(sampler) or ("one pass" if method.startswith("tidar") else "")
    return METHODS.get(method, method) + (f", {kind}" if kind else "")


def _line(axis: Axes, rows: Sequence[Row], method: str) -> None:
    points: dict[float, list[float]] = {}
    for row in rows:
        points.setdefault(row["training_flops"], []).append(row[COUNTED[0]])
    xs = sorted(points)
    axis.plot(xs, [float(np.mean(points[x])) for x in xs], "o-", color=COLOURS[method], markersize=5, linewidth=1.6)


def _tasks(rows: Sequence[Row]) -> str:
    return " and ".join(name.replace("_", " ") for name in shared(rows, "source"))


def _caption(rows: Sequence[Row], temperatures: Sequence[float]) -> str:
    told = []
    for temperature in temperatures:
        here = [row for row in rows if row["temperature"] == temperature]
        best = {
            name: max(np.mean([row[COUNTED[1]] for row in _of(here, *way)]) for way in _ways(here) if way[0] == name)
            for name in METHODS if any(row["changes"][METHOD] == name for row in here)
        }  # fmt: skip
        first, second, *_ = [*sorted(best, key=lambda name: -best[name]), "", ""]
        told.append(
            f"at temperature {temperature:g} {METHODS[first]} yields most ({best[first]:.2f})"
            + (f", then {METHODS[second]} ({best[second]:.2f})" if second else "")
        )
    return (
        f"Tokens a step on {_tasks(rows)} over what it costs where memory bounds it: the target's forwards and the "
        f"drafter's passes, each by its weights; diamonds count the target's forwards alone (T). Of each method's best "
        f"sampler, {'; '.join(told)}. Dots are training seeds. The dashed line is AR. {NO_PUBLISHED}"
    )
