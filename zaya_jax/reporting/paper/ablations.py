"""Figures of sweeps that compare trained models: masking, block size, and the negative control, a layout-unaware CCA.

Each takes the rows of its sweeps and gives a `Drawn`, or raises `MissingData` with the rows it lacks.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from zaya_jax.reporting.paper import published
from zaya_jax.reporting.paper.marks import (
    Drawn,
    bar_legend,
    published_line,
    seed_bars,
    seed_line,
    two_decimals,
)
from zaya_jax.reporting.paper.sweep_rows import (
    BLOCK_SIZE,
    SEED,
    MissingData,
    anchors_in_words,
    conditions,
    matched,
    pick,
    shared,
    with_same_anchors,
)
from zaya_jax.reporting.plots import style
from zaya_jax.reporting.results import Row

MASKING, SUCCESSION = "convert.objective.masking", "model.succession"
MASKING_COLOURS = {"full": style.BLUE, "random": style.VERMILION}
SUCCESSION_COLOURS = {"text": style.BLUE, "row": style.VERMILION}
SUCCESSION_NAMES = {"text": "CCA along the text", "row": "layout-unaware: along the row (negative control)"}
SECOND = "block_size sweep"
SLOTS = "draft_accuracy_by_slot"


def masking(rows: Sequence[Row]) -> Drawn:
    """Full against random masking by block size: T and quality, ours above TiDAR's."""
    lossless = pick(with_same_anchors(rows), "sampling", ("tokens_per_forward", "accuracy"), sampler="lossless")
    temperature = min(row["temperature"] for row in lossless)
    lossless = [row for row in lossless if row["temperature"] == temperature]
    by, setting = matched(lossless, MASKING, ("full", "random"), "full", (SEED, BLOCK_SIZE))
    sizes = sorted(set(shared(by["full"], "block_size")) & set(shared(by["random"], "block_size")))
    if not sizes:
        raise MissingData(f"rows of one block size that was run with {MASKING} = full and random")
    used = [row for here in by.values() for row in here if row["block_size"] in sizes]
    tasks = shared(used, "source")
    figure = style.new_figure(
        f"Full against random masking of the drafts, lossless sampling at temperature {temperature:g}",
        conditions(used, setting), height=6.4, legend=1,
    )  # fmt: skip
    axes = figure.subplots(2, 2)
    for axis, column, title, text in (
        (axes[0, 0], "tokens_per_forward", "tokens per forward (T)", two_decimals),
        (axes[0, 1], "accuracy", "pass@1", style.percent),
    ):
        style.tidy(axis, f"ours: {title}")
        groups = {
            f"{task.replace('_', ' ')}\nblock {size:g}": {
                name: [r[column] for r in here if r["source"] == task and r["block_size"] == size]
                for name, here in by.items()
            }
            for task in tasks for size in sizes
        }  # fmt: skip
        seed_bars(axis, groups, MASKING_COLOURS, text)
    style.in_percent(axes[0, 1].yaxis)
    _published_masking(axes[1])
    bar_legend(figure, MASKING_COLOURS, {"full": "full", "random": "random"}, published=True)
    return Drawn(figure, _masking_caption(used, by, setting))


def block_size(study: Sequence[Row], sweep: Sequence[Row] = ()) -> Drawn:
    """T and quality against block size, seeds as dots, TiDAR's beside them.

    Args:
      study: rows of sweep "study".
      sweep: rows of sweep "block_size" where it was run: other seeds and anchors, so a series of its own.
    """
    needed = ("tokens_per_forward", "accuracy")
    series = {"": pick(with_same_anchors(study), "sampling", needed, sampler="lossless")}
    if sweep:
        more = pick(with_same_anchors(sweep), "sampling", needed, sampler="lossless")
        series = {f"study, {anchors_in_words(series[''])}: ": series[""], f"{SECOND}, {anchors_in_words(more)}: ": more}
    used = [row for rows in series.values() for row in rows]
    if len(shared(used, "block_size")) < 2:
        raise MissingData("rows of kind sampling, sampler lossless of more than one block size")
    figure = style.new_figure(
        "Block size: tokens per forward and quality of lossless sampling",
        conditions(used), width=11.5, height=5.2 + 0.5 * len(series), legend=2 * len(series) + 1,
    )  # fmt: skip
    speed, quality, other = figure.subplots(1, 3)
    style.tidy(speed, "Tokens per forward (T), ours and published", "block size", "", grid="both")
    style.tidy(quality, "pass@1, ours", "block size", "", grid="both")
    style.tidy(other, "Mean of HumanEval, MBPP, GSM8K, published", "block size", "", grid="both")
    _block_lines(speed, series, "tokens_per_forward")
    _block_lines(quality, series, "accuracy")
    published_line(speed, {size: line.tokens_per_forward for size, line in published.BLOCK_SIZES.items()})
    published_line(other, {size: line.average for size, line in published.BLOCK_SIZES.items()})
    style.in_percent(quality.yaxis)
    other.set_ylim(40, 55)
    other.yaxis.set_major_formatter(lambda value, _: f"{value:g}%")
    for axis in (speed, quality, other):
        axis.set_xscale("log", base=2)
        axis.set_xticks(shared(used, "block_size") if axis is not other else list(published.BLOCK_SIZES))
        style.plain_numbers(axis.xaxis)
        axis.margins(0.1)
    handles, _ = speed.get_legend_handles_labels()
    style.legend_below(figure, handles, ncols=2)
    return Drawn(figure, _block_caption(series))


def negative_control(rows: Sequence[Row]) -> Drawn:
    """CCA along the text against layout-unaware CCA: the AR loss they share, the T they do not, drafts by slot."""
    likelihood = [r for r in pick(rows, "likelihood", ("ar_loss",), model="convert") if _is_cca(r)]
    lossless = pick(with_same_anchors(rows), "sampling", ("tokens_per_forward",), sampler="lossless")
    lossless = [row for row in lossless if _is_cca(row)]
    loss, setting = matched(likelihood, SUCCESSION, ("text", "row"), "text")
    speed, other_setting = matched(lossless, SUCCESSION, ("text", "row"), "text")
    if setting != other_setting:
        raise MissingData(f"likelihood and sampling rows of one setting (got {setting!r} and {other_setting!r})")
    slots = {name: [r for r in here if r.get(SLOTS)] for name, here in loss.items()}
    panels = 2 + all(slots.values())
    used = [row for here in (*loss.values(), *speed.values()) for row in here]
    figure = style.new_figure(
        _control_title(loss, speed), conditions(used, setting), width=4.8 * panels, height=5.1, legend=1
    )
    axes = figure.subplots(1, panels)
    style.tidy(axes[0], "AR loss, nats a token, held-out text")
    seed_bars(axes[0], _bars(loss, "ar_loss"), SUCCESSION_COLOURS, lambda nats: f"{nats:.3f}")
    style.tidy(axes[1], "Tokens per forward (T), lossless")
    seed_bars(axes[1], _bars(speed, "tokens_per_forward"), SUCCESSION_COLOURS)
    if panels == 3:
        style.tidy(axes[2], "Draft accuracy by slot", "slot of the block", "", grid="both")
        _slot_lines(axes[2], slots)
    bar_legend(figure, SUCCESSION_COLOURS, SUCCESSION_NAMES)
    return Drawn(figure, _control_caption(loss, speed, setting))


def _control_title(loss: dict[str, list[Row]], speed: dict[str, list[Row]]) -> str:
    """The two models task by task: numbers that stand above bars."""
    coldest = min(row["temperature"] for here in speed.values() for row in here)
    told = []
    for task in dict.fromkeys(row["source"] for here in speed.values() for row in here):
        parts = []
        for what, by, column, digits in (("T", speed, "tokens_per_forward", 2), ("AR loss", loss, "ar_loss", 3)):
            values = {
                name: [r[column] for r in here if r["source"] == task and r["temperature"] in (None, coldest)]
                for name, here in by.items()
            }
            if all(values.values()):
                unaware, aware = (f"{np.mean(values[name]):.{digits}f}" for name in ("row", "text"))
                parts.append(f"{what} {unaware} against {aware}".replace(" ", "\N{NO-BREAK SPACE}"))
        told.append(f"{task.replace('_', ' ')} {', '.join(parts)}")
    return f"Layout-unaware CCA against CCA along the text, temperature {coldest:g}: {'; '.join(told)}"


def _is_cca(row: Row) -> bool:
    """Whether the model has CCA at all; a job that leaves `model.attention` unchanged has."""
    return row["changes"].get("model.attention", "cca") == "cca"


def _published_masking(axes: Sequence[Axes]) -> None:
    """TiDAR's table as bars: T, and the mean of its three tasks."""
    for axis, title, value, text in (
        (axes[0], "tokens per forward (T)", lambda line: line.tokens_per_forward, two_decimals),
        (axes[1], "mean of HumanEval, MBPP, GSM8K", lambda line: line.average, lambda share: f"{share:.2f}%"),
    ):
        style.tidy(axis, f"published, TiDAR 1.5B: {title}")
        groups = {
            f"block {size}": {name: [value(published.MASKING[name, size])] for name in MASKING_COLOURS}
            for size in (4, 8)
        }  # fmt: skip
        seed_bars(axis, groups, MASKING_COLOURS, text, published=list(groups))
    axes[1].yaxis.set_major_formatter(lambda value, _: f"{value:g}%")


def _block_lines(axis: Axes, series: dict[str, list[Row]], column: str) -> None:
    """A line a task and temperature; dashed above temperature 0, hollow for the second sweep."""
    every = [row for rows in series.values() for row in rows]
    colours = dict(zip(shared(every, "source"), (style.BLUE, style.ORANGE, style.GREEN, style.VERMILION), strict=False))
    for prefix, rows in series.items():
        for task, colour in colours.items():
            for temperature in shared(rows, "temperature"):
                here = [row for row in rows if row["source"] == task and row["temperature"] == temperature]
                points = {
                    size: [row[column] for row in here if row["block_size"] == size]
                    for size in shared(here, "block_size")
                }
                look = {"linestyle": "--" if temperature else "-", "marker": "o"}
                look |= {"marker": "s", "markerfacecolor": "white"} if prefix.startswith(SECOND) else {}
                label = f"{prefix}{task.replace('_', ' ')}, temperature {temperature:g}"
                if points:
                    seed_line(axis, points, colour, label, **look)


def _bars(by: dict[str, list[Row]], column: str) -> dict[str, dict[str, list[float]]]:
    """Group (source, and temperature where rows have one) -> succession -> one value a seed."""
    groups: dict[str, dict[str, list[float]]] = {}
    for name, rows in by.items():
        for row in rows:
            group = row["source"].replace("_", " ")
            if row["temperature"] is not None:
                group += f"\ntemperature {row['temperature']:g}"
            groups.setdefault(group, {}).setdefault(name, []).append(row[column])
    return groups


def _slot_lines(axis: Axes, slots: dict[str, list[Row]]) -> None:
    for name, rows in slots.items():
        for source, dashes in zip(shared(rows, "source"), ("-", "--", ":", "-."), strict=False):
            accuracy = np.mean([row[SLOTS] for row in rows if row["source"] == source], axis=0)
            axis.plot(range(1, 1 + len(accuracy)), accuracy, color=SUCCESSION_COLOURS[name], linestyle=dashes,
                      label=source.replace("_", " ") if name == "text" else None)  # fmt: skip
    axis.set_ylim(0, 1.02)
    style.in_percent(axis.yaxis)
    style.legend(axis, loc="best")


def _masking_caption(rows: Sequence[Row], by: dict[str, list[Row]], setting: str) -> str:
    lines = [
        "Full masking (every slot of a draft block is MASK) against random masking (a random share is revealed) in "
        "conversion, all else equal" + (f" ({setting})" if setting else "") + ". Bars are means over seeds (dots)."
    ]
    for task in shared(rows, "source"):
        for size in shared(rows, "block_size"):
            told = []
            for name, here in by.items():
                same = [row for row in here if row["source"] == task and row["block_size"] == size]
                if same:
                    t, share = (float(np.mean([r[c] for r in same])) for c in ("tokens_per_forward", "accuracy"))
                    told.append(f"{name} T {t:.2f}, pass@1 {100 * share:.1f}%")
            lines.append(f"{task.replace('_', ' ')}, block {size:g}: " + "; ".join(told) + ".")
    lines.append(
        f"Published (hatched): {published.TIDAR_MASKING}: "
        + "; ".join(
            f"{name} B={size} T {line.tokens_per_forward:.2f}, average {line.average:.2f}%"
            for (name, size), line in published.MASKING.items()
        )
        + "."
    )
    return "\n".join(lines)


def _seeds(count: int) -> str:
    return f"{count} seed{'s' * (count != 1)}"


def _block_caption(series: dict[str, list[Row]]) -> str:
    lines = [
        "Block size against tokens per forward and pass@1 of lossless sampling, "
        f"{anchors_in_words([row for rows in series.values() for row in rows])}; every block size is a model of its "
        "own. Small dots are training seeds, lines their means; solid: temperature 0, dashed: above."
    ]
    for prefix, rows in series.items():
        for task in shared(rows, "source"):
            for temperature in shared(rows, "temperature"):
                told = []
                for size in shared(rows, "block_size"):
                    same = [
                        r for r in rows if (r["source"], r["temperature"], r["block_size"]) == (task, temperature, size)
                    ]
                    if same:
                        t, share = (float(np.mean([r[c] for r in same])) for c in ("tokens_per_forward", "accuracy"))
                        told.append(f"B={size:g} T {t:.2f}, pass@1 {100 * share:.1f}% ({_seeds(len(same))})")
                if told:
                    lines.append(
                        f"{prefix}{task.replace('_', ' ')}, temperature {temperature:g}: " + "; ".join(told) + "."
                    )
    told = [
        f"B={n} T {line.tokens_per_forward:.2f}, mean {line.average:.2f}%" for n, line in published.BLOCK_SIZES.items()
    ]
    return "\n".join([*lines, f"Published (diamonds): {published.TIDAR_STRATEGIES}: {'; '.join(told)}."])


def _control_caption(loss: dict[str, list[Row]], speed: dict[str, list[Row]], setting: str) -> str:
    lines = [
        "The negative control: the same model, trained the same way, whose convolutions and delayed value read the row "
        "before instead of the token before in the text. On clean tokens both are the same, so the AR loss cannot tell "
        "them apart; a draft's first slots read rows that do not stand before them in the text"
        + (f" ({setting})" if setting else "")
        + "."
    ]
    for what, by, column, unit in (("AR loss", loss, "ar_loss", " nats"), ("T", speed, "tokens_per_forward", "")):
        for group, values in _bars(by, column).items():
            told = ", ".join(
                f"{SUCCESSION_NAMES[name]} {np.mean(v):.3f}{unit} ({_seeds(len(v))})" for name, v in values.items()
            )
            lines.append(f"{what}, {group.replace(chr(10), ', ')}: {told}.")
    why = "docs/method.md#cca-along-the-text derives why the AR loss does not show it"
    lines.append(f"Nothing is published on this; {why}.")
    return "\n".join(lines)
