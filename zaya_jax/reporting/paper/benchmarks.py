"""Figures of the sampling benchmark: decoding strategies, free token slots, branch points.

Each takes files of results/bench as read from JSON and gives a `Drawn`, or raises `MissingData` with what it lacks.
"""

import functools
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes

from zaya_jax.reporting.paper import published
from zaya_jax.reporting.paper.marks import PUBLISHED, Drawn
from zaya_jax.reporting.paper.sweep_rows import MissingData
from zaya_jax.reporting.plots import style
from zaya_jax.reporting.results import TOY_LIMIT
from zaya_jax.sampling.planning.branch_points import best_anchors, expected_tokens

# Our strategies in the order of TiDAR's table, and the line there that does the same.
SAME_STRATEGY = {
    "autoregressive": None,
    "most confident, 1": "confidence max, 1",
    "most confident, 2": "confidence max, 2",
    "left to right, 1": "left to right, 1",
    "left to right, 2": "left to right, 2",
    "confidence > 0.9": "confidence > 0.9",
    "confidence > 0.8": "confidence > 0.8",
    "confidence > 0.7": "confidence > 0.7",
    "confidence > 0.6": "confidence > 0.6",
    "lossless": "TiDAR, block 16",
    "lossless, two passes": None,
    "mix_fresh(0.5)": None,
    "mix_stale(0.5)": None,
}
FLAT_BLOCK = 16
# flat acceptance -> the published speed-up that it gives (docs/method.md#branch-points)
FLAT = {0.787: "lossless", 0.89: "mix_stale"}
TEMPERATURE_COLOURS = {0.0: style.BLUE, 1.0: style.ORANGE}


def strategies(samplers: dict[str, Any]) -> Drawn:
    """TiDAR's table of decoding strategies: T and quality, ours and theirs, a line each."""
    rows = _section(samplers, "strategies")
    by = {(row["strategy"], row["temperature"]): row for row in rows}
    names = [name for name in SAME_STRATEGY if (name, 0.0) in by and (name, 1.0) in by]
    if not names:
        raise MissingData("strategies at temperatures 0 and 1")
    block = rows[0]["block_size"]
    figure = style.new_figure(
        f"Decoding strategies of one model, block size {block:g}: tokens per forward and quality",
        _footer(samplers, rows[0], f"block size {block:g}", "all branch points", "temperature 0 / 1"),
        width=12, height=6.5, legend=1,
    )  # fmt: skip
    speed, quality, table = figure.subplots(1, 3, sharey=True, width_ratios=(1, 1, 1.35))
    style.tidy(speed, "Tokens per forward (T)", grid="both")
    style.tidy(quality, _quality_title(samplers["model"]["task"]), grid="both")
    _strategy_points(speed, quality, by, names)
    speed.set_yticks(range(len(names)), names)
    speed.tick_params(axis="y", labelcolor=style.INK, labelsize=9)
    speed.set_ylim(len(names) - 0.4, -1.4)
    quality.set_xlim(-3, 106)
    quality.xaxis.set_major_formatter(lambda value, _: f"{value:g}%")
    _strategy_table(table, by, names)
    style.legend_below(figure, speed.get_legend_handles_labels()[0])
    return Drawn(figure, _strategies_caption(samplers, by, names))


def free_slots(forward: dict[str, Any], few_experts: dict[str, Any]) -> Drawn:
    """A forward's time against its query tokens on this device: over one token's, beside plain matrix products."""
    panels = [("", row) for row in _section(forward, "rows")]
    single = [row for row in _section(few_experts, "rows") if row["experts"] == 1]
    if not single:
        raise MissingData("rows of a model with one expert")
    panels += [(", 1 expert", row) for row in single]
    worst, best = (chosen(r["ratio"]["16"] for _, r in panels) for chosen in (max, min))
    columns = 3
    lines = -(-len(panels) // columns)
    figure = style.new_figure(
        f"Free token slots on this device: 16 query tokens cost {best:.1f} to {worst:.1f} times one (free would be 1)",
        style.footer_line(["toy runs", _trained(forward["model"]), "medians", *_devices(forward, few_experts)]),
        width=11.5, height=0.9 + 3.2 * lines,
    )  # fmt: skip
    axes = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axis, (experts, row) in zip(axes, panels, strict=False):
        title = f"{row['parameters'] / 1e6:.3g}M{experts}, batch {row['batch']}"
        words = "cost over one token" if axis in axes[::columns] else ""
        style.tidy(axis, f"{title}: one token {row['milliseconds']['1']:.3g} ms", "", words, grid="both")
        _cost_lines(axis, row)
    counts = [int(n) for n in panels[0][1]["ratio"]]
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    for axis in axes[len(panels) - columns : len(panels)]:
        axis.set_xlabel("query tokens of a sequence in one forward", fontsize=9, color=style.QUIET)
    axes[0].set_xscale("log", base=2)
    axes[0].set_yscale("log", base=2)
    axes[0].set_xticks([n for n in counts if n not in (12, 20)])
    for axis in axes[: len(panels)]:
        style.plain_numbers(axis.xaxis)
        style.plain_numbers(axis.yaxis)
        axis.tick_params(labelbottom=True)
    handles, labels = axes[0].get_legend_handles_labels()
    if len(panels) < len(axes):
        axes[-1].legend(handles, labels, frameon=False, fontsize=9, labelcolor=style.INK, loc="center left")
    else:
        figure.legend(handles, labels, frameon=False, fontsize=9, loc="outside upper right", ncols=2)
    return Drawn(figure, _free_slots_caption(panels))


def anchors(samplers: dict[str, Any]) -> Drawn:
    """T against the number of branch points: measured, and what flat acceptance gives."""
    rows = _section(samplers, "anchors")
    flat = {rate: flat_tokens(rate) for rate in FLAT}
    block = rows[0]["block_size"]
    three = [r["tokens_per_forward"] / _all_anchors(rows, r["temperature"]) for r in rows if r["anchors"] == 3]
    kept = f": three branch points keep {100 * min(three):.0f}% of the tokens per forward of all" if three else ""
    figure = style.new_figure(
        f"After how many accepted lengths to draft{kept}",
        _footer(samplers, rows[0], f"block size {block:g}", "lossless", "temperature 0 / 1"), width=10.5, height=5.2,
    )  # fmt: skip
    axis = style.tidy(
        figure.subplots(), "", "branch points K (query tokens per forward: block size x (K + 1))", "tokens per forward"
    )
    for temperature in sorted({row["temperature"] for row in rows}):
        here = sorted((r for r in rows if r["temperature"] == temperature), key=lambda r: r["anchors"])
        colour = TEMPERATURE_COLOURS.get(temperature, style.GREEN)
        xs, ys = [r["anchors"] for r in here], [r["tokens_per_forward"] for r in here]
        axis.plot(xs, ys, "o-", color=colour, linewidth=1.8, label=f"measured, temperature {temperature:g}")
        for x, y in zip(xs, ys, strict=True):
            axis.annotate(f"{y:.2f}", (x, y), (-6, 6) if temperature == 0 else (0, -14), textcoords="offset points",
                          ha="center", fontsize=8, color=colour)  # fmt: skip
    for (rate, tokens), dashes in zip(flat.items(), ((0, (5, 2)), (0, (1.5, 1.5))), strict=True):
        label = f"expected at flat acceptance {rate:g} (block {FLAT_BLOCK})"
        axis.plot(list(tokens), list(tokens.values()), linestyle=dashes, color=style.GREY, label=label)
        said = published.SPEEDUP[FLAT[rate]]
        axis.plot(FLAT_BLOCK + 0.35, said, "D", color=PUBLISHED, markerfacecolor="white", markersize=7,
                  label="published: Zyphra, 4.6 lossless and 7.7 mixing" if rate == min(FLAT) else None)  # fmt: skip
        axis.annotate(f"{said:g}", (FLAT_BLOCK + 0.35, said), (8, -3), textcoords="offset points", color=PUBLISHED)
    axis.set_xticks(range(1, FLAT_BLOCK + 1))
    axis.set_xlim(0.4, FLAT_BLOCK + 1.2)
    style.legend(axis, loc="lower right", ncols=2)
    axis.set_ylim(3, None)
    return Drawn(figure, _anchors_caption(rows, flat))


@functools.cache  # every list of branch points is compared: a second or two
def flat_tokens(rate: float) -> dict[int, float]:
    """Tokens per forward of the best K branch points for K = 1 .. FLAT_BLOCK where every draft survives at one rate."""
    curve = [rate] * (FLAT_BLOCK - 1)
    return {
        budget: expected_tokens(curve, FLAT_BLOCK, best_anchors(curve, FLAT_BLOCK, budget))
        for budget in range(1, FLAT_BLOCK + 1)
    }


def _quality_title(task: str) -> str:
    return f"Quality. Ours: accuracy on {task};\npublished: mean of HumanEval, MBPP, GSM8K"


def _section(numbers: dict[str, Any], name: str) -> list[dict[str, Any]]:
    if not numbers.get(name):
        raise MissingData(f"section {name!r}")
    return numbers[name]


def _devices(*numbers: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(each["hardware"] for each in numbers))


def _footer(samplers: dict[str, Any], row: dict[str, Any], *more: str) -> str:
    size = samplers["model"]["parameters"]
    parts = ["toy run" if size < TOY_LIMIT else "", f"{size / 1e6:.3g}M parameters", samplers["model"]["task"], *more]
    parts += [f"batch {row['batch']}", f"{row['prompts']} prompts", _training_seed(samplers["model"])]
    parts += [f"sampling seed {row['seed']}", samplers["hardware"]]
    return style.footer_line(parts)


def _training_seed(model: dict[str, Any]) -> str:
    seed = model.get("training_seed")
    return "training seed not recorded" if seed is None else f"training seed {seed}"


def _trained(model: dict[str, Any]) -> str:
    """Which of several models has been trained."""
    return f"random weights but for {model['parameters'] / 1e6:.3g}M ({_training_seed(model)})"


def _strategy_points(speed: Axes, quality: Axes, by: dict, names: Sequence[str]) -> None:
    """Ours as dots by temperature, theirs as hollow diamonds."""
    for temperature, colour in TEMPERATURE_COLOURS.items():
        rows, shift = [by[name, temperature] for name in names], -0.16 if temperature == 0 else 0.16
        ys = [i + shift for i in range(len(names))]
        label = f"ours, temperature {temperature:g}"
        speed.plot([r["tokens_per_forward"] for r in rows], ys, "o", color=colour, markersize=5.5, label=label)
        quality.plot([100 * r["accuracy"] for r in rows], ys, "o", color=colour, markersize=5.5)
        low, high = ([100 * r[f"accuracy_{end}"] for r in rows] for end in ("low", "high"))
        quality.hlines(ys, low, high, color=colour, linewidth=1.2)
    theirs = [(i, published.STRATEGIES[s]) for i, name in enumerate(names) if (s := SAME_STRATEGY[name])]
    look = {"color": PUBLISHED, "markerfacecolor": "white", "markersize": 6.5, "linewidth": 0, "marker": "D"}
    speed.plot([t.tokens_per_forward for _, t in theirs], [i for i, _ in theirs], label="published: TiDAR 1.5B", **look)
    quality.plot([t.average for _, t in theirs], [i for i, _ in theirs], **look)


def _strategy_table(axis: Axes, by: dict, names: Sequence[str]) -> None:
    """The numbers beside the dots: rows and T of ours, T and the three tasks of theirs."""
    axis.set_axis_off()
    columns = ("query", "T at 0", "T at 1", "T", "HEval", "MBPP", "GSM8K")
    places = (0.08, 0.23, 0.38, 0.53, 0.67, 0.81, 0.96)
    for x, word in zip(places, columns, strict=True):
        axis.text(x, -0.75, word, ha="right", va="center", fontsize=8.5, color=style.QUIET,
                  transform=axis.get_yaxis_transform())  # fmt: skip
    for x, word, colour in (
        (0.38, "ours, by temperature", style.INK),
        (0.96, "published (TiDAR 1.5B, percent)", PUBLISHED),
    ):
        axis.text(x, -1.25, word, ha="right", va="center", fontsize=9, color=colour,
                  transform=axis.get_yaxis_transform())  # fmt: skip
    for i, name in enumerate(names):
        ours = [by[name, t] for t in TEMPERATURE_COLOURS]
        cells = [f"{ours[0]['rows_per_forward']:g}", *(f"{r['tokens_per_forward']:.2f}" for r in ours)]
        if said := SAME_STRATEGY[name]:
            line = published.STRATEGIES[said]
            cells += [f"{v:.2f}" for v in (line.tokens_per_forward, line.human_eval, line.mbpp, line.gsm8k)]
        for x, cell in zip(places, cells, strict=False):
            axis.text(x, i, cell, ha="right", va="center", fontsize=8.5, transform=axis.get_yaxis_transform(),
                      color=PUBLISHED if x > 0.5 else style.INK)  # fmt: skip


def _cost_lines(axis: Axes, row: dict[str, Any]) -> None:
    """Measured, plain products over the same weights, and the limits: free, and proportional to query tokens."""
    xs = [int(n) for n in row["ratio"]]
    axis.plot(xs, row["ratio"].values(), "o-", color=style.INK, linewidth=2, markersize=5, zorder=4,
              label="forward, measured")  # fmt: skip
    for kind, colour, words in (
        ("touched", style.BLUE, "experts touched"),
        ("active", style.ORANGE, "one expert"),
    ):
        axis.plot(xs, row["plain_products"][kind]["ratio"].values(), "s--", color=colour, linewidth=1.4, markersize=4,
                  label=f"plain matrix products, {words}")  # fmt: skip
    axis.axhline(1, color=style.GREEN, linewidth=1.5, label="free: more tokens cost nothing")
    axis.plot(xs, xs, color=style.QUIET, linewidth=1, linestyle=":", label="proportional to query tokens")


def _all_anchors(rows: list[dict], temperature: float) -> float:
    """Tokens per forward with a branch point after every accepted length."""
    for row in rows:
        if row["anchors"] == row["block_size"] and row["temperature"] == temperature:
            return row["tokens_per_forward"]
    raise MissingData(f"anchors: a row with an anchor at every accepted length at temperature {temperature:g}")


def _strategies_caption(samplers: dict[str, Any], by: dict, names: Sequence[str]) -> str:
    lines = [
        "TiDAR's table of decoding strategies, with one model of ours: tokens per forward (T) and quality. Dots: ours, "
        f"accuracy on {samplers['model']['task']} with its 95% interval (Wilson); temperature 0 and 1. Diamonds: "
        "published; quality is the mean of HumanEval, MBPP and GSM8K (percent), on another scale and other tasks: "
        "compare the order of the lines, not their places."
    ]
    for name in names:
        told = [
            f"temperature {t:g} T {row['tokens_per_forward']:.2f}, accuracy {100 * row['accuracy']:.1f}%"
            for t in TEMPERATURE_COLOURS
            for row in [by[name, t]]
        ]
        lines.append(f"{name}: {by[name, 0.0]['rows_per_forward']:g} query tokens per forward; {'; '.join(told)}.")
    lines.append(
        "Two passes count both forwards of a step. Without verification T falls below the tokens revealed a forward: a "
        "block is drawn whole even where the text stops inside it. Published: "
        f"{published.TIDAR_STRATEGIES}; its block 4 and 8 stand in figure block_size."
    )
    return "\n".join(lines)


def _free_slots_caption(panels: list[tuple[str, dict]]) -> str:
    lines = [
        "A decoding forward's median time against the query tokens of each sequence, over the autoregressive "
        "forward of the same batch, one token (which gathers its experts per token). Squares: nothing but matrix "
        "products over the weights that so many tokens touch, or over one expert's a layer; every line is over its own "
        "time of one token, so squares may lie above a forward whose one token has other costs. A slot is free where "
        "the line stays at 1. The models above 1.1M have random weights; one expert takes routing away."
    ]
    for experts, row in panels:
        told = ", ".join(f"{n} tokens {x:.2f}x" for n, x in row["ratio"].items() if n != "1")
        touched = ", ".join(
            f"{n} tokens {x:.2f}x" for n, x in row["plain_products"]["touched"]["ratio"].items() if n != "1"
        )
        lines.append(
            f"{row['parameters'] / 1e6:.3g}M{experts}, batch {row['batch']}: one token "
            f"{row['milliseconds']['1']:.3g} ms; {told}; plain products {touched}."
        )
    lines.append(
        "After TiDAR's picture of free token slots (latency against tokens a forward); its published values are not at "
        "hand."
    )
    return "\n".join(lines)


def _anchors_caption(rows: list[dict], flat: dict[float, dict[int, float]]) -> str:
    lines = [
        "Tokens per forward (T) against the number K of accepted lengths after which the next block is drafted. "
        "Measured: lossless single_pass; the list of each K was chosen on validation problems, T is of test problems."
    ]
    for row in rows:
        share = row["tokens_per_forward"] / _all_anchors(rows, row["temperature"])
        told = "all" if row["anchors"] == row["block_size"] else f"at {', '.join(map(str, row['list']))}"
        lines.append(
            f"temperature {row['temperature']:g}, K = {row['anchors']} ({told}; {row['rows_per_forward']:g} query "
            f"tokens): T {row['tokens_per_forward']:.2f}, {100 * share:.1f}% of all, accuracy "
            f"{100 * row['accuracy']:.1f}%."
        )
    for rate, tokens in flat.items():
        told = ", ".join(f"K = {k} {tokens[k]:.2f}" for k in (1, 3, 5, FLAT_BLOCK))
        lines.append(f"Expected at flat acceptance {rate:g}, block {FLAT_BLOCK}, best K branch points: {told}.")
    lines.append(
        "Expected: a Markov chain over how late a block is (branch_points.py). The two rates are those whose "
        f"T with all branch points meets the published 4.6 and 7.7 (diamonds): {published.ZYPHRA}; "
        f"{published.ZYPHRA_NOTE}. Real acceptance is not flat: it belongs to the text, as the measured curves show."
    )
    return "\n".join(lines)
