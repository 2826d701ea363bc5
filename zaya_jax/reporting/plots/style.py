"""How our figures look: one colour-blind safe palette (Okabe-Ito), quiet axes, a footer that says what run it was."""

import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MaxNLocator

from zaya_jax.costs.flops import parameter_count
from zaya_jax.reporting.results import TOY_LIMIT, Row
from zaya_jax.reporting.run_files import Run

DPI = 130
PADS = {"w_pad": 0.12, "h_pad": 0.09, "wspace": 0.05, "hspace": 0.07}  # inches, then shares
INK, QUIET, RULE = "#1f2733", "#667085", "#e4e7ec"
BLUE, ORANGE, GREEN, VERMILION, GREY, PURPLE = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#7A8594", "#CC79A7"
STAGE_COLOURS = {"pretrain": GREY, "convert": BLUE, "control": VERMILION}
SAMPLER_COLOURS = {"autoregressive": GREY, "lossless": BLUE, "mix_stale": ORANGE, "mix_fresh": GREEN}
OTHERS = (PURPLE, GREEN, VERMILION, "#56B4E9", "#F0E442")
ROW_COLOURS = {"clean": BLUE, "mask": ORANGE}
MARKERS = "osD^vP"
KEY_LENGTH = 3.2  # of a legend, in letters: long enough to tell a dashed line from a solid one
HALO = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.6}  # of words that stand on lines
SEPARATOR = "  ·  "  # of a footer's parts
DEPTHS = LinearSegmentedColormap.from_list("depths", ["#0b2d4a", "#0072B2", "#56B4E9", "#b9e2f7"])
HEAT = LinearSegmentedColormap.from_list("heat", ["#ffffff", "#cfe6f5", "#56B4E9", "#0072B2", "#0b2d4a"])


def new_figure(title: str, footer: str, width: float = 9.5, height: float = 4.2, legend: int = 0) -> Figure:
    """An empty white figure: the title says what is seen, the footer which run it was.

    The footer is wrapped between its parts; below it is room for `legend` lines of `legend_below`.
    """
    lines = [""]
    for part in footer.split(SEPARATOR):
        longer = f"{lines[-1]}{SEPARATOR}{part}" if lines[-1] else part
        lines = [*lines[:-1], longer] if len(longer) <= 16.5 * width else [*lines, part]
    blank = "\n" * round(1.5 * legend + 0.5)  # a legend's line is higher than a footer's; round(0.5) is 0
    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(**PADS), facecolor="white")
    figure.suptitle(
        textwrap.fill(title, round(9.1 * width)), x=0.012, ha="left", fontsize=12.5, fontweight="bold", color=INK
    )
    figure.supxlabel("\n".join(lines) + blank, x=0.012, ha="left", fontsize=8, color=QUIET)
    return figure


def save(figure: Figure, path: Path) -> None:
    """What `figure.savefig(path, dpi=DPI, format="png")` writes, byte by byte; that one draws twice for a layout."""
    before = figure.dpi
    figure.set_dpi(DPI)
    FigureCanvasAgg(figure).print_png(path)
    figure.set_dpi(before)


def legend_below(figure: Figure, handles: Sequence[Any], **options) -> None:
    """A figure's legend, below its footer."""
    figure.legend(handles=handles, frameon=False, fontsize=9, labelcolor=INK, loc="outside lower left",
                  **{"ncols": len(handles), "handlelength": KEY_LENGTH, **options})  # fmt: skip


def tidy(axes: Axes, title: str = "", x: str = "", y: str = "", grid: Literal["x", "y", "both", ""] = "y") -> Axes:
    """Names the axes and takes away what is not data; `grid` is "x", "y", "both" or ""."""
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.set_xlabel(x, fontsize=9, color=QUIET)
    axes.set_ylabel(y, fontsize=9, color=QUIET)
    axes.tick_params(colors=QUIET, labelsize=8.5, length=0)
    axes.tick_params(which="minor", length=0, labelsize=8.5, colors=QUIET)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#c5cbd5")
    axes.set_axisbelow(True)
    if grid:
        axes.grid(axis=grid, color=RULE, linewidth=0.8)
    return axes


def legend(axes: Axes, **options) -> None:
    """A frameless legend, if there is anything to name."""
    if options.get("handles") or axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8.5, labelcolor=INK, handlelength=KEY_LENGTH, **options)


def in_percent(axis) -> None:
    """Ticks of shares as percentages, at round numbers: a label is its tick's value, not the nearest percent."""
    axis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value + 0.0:.6g}%"))


def plain_numbers(axis) -> None:
    """Ticks of a logarithmic axis as plain numbers."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(FuncFormatter(lambda value, _: ""))


def stage_colours(run: Run) -> dict[str, str]:
    """Phase -> colour; those of other names than the usual three have the spare ones."""
    spare = iter((BLUE, ORANGE, *OTHERS) * (1 + len(run.phases)))
    return {name: STAGE_COLOURS.get(name) or next(spare) for name in run.phases}


def parameters(run: Run) -> int | None:
    return parameter_count(run.model).total if run.model else None


def size_in_words(run: Run) -> str:
    """How many parameters the model has, and how many of them the run trained, if not all."""
    model = run.model
    if model is None:
        return "a model of unknown size"
    total, moved = parameter_count(model).total, run.trained_parameters
    return f"{total:,} parameters" + (f" ({moved:,} trained, {total - moved:,} frozen)" if moved != total else "")


def is_toy(run: Run) -> bool:
    """A model below TOY_LIMIT parameters, or of unknown size: its numbers say nothing about large models."""
    return (parameters(run) or 0) < TOY_LIMIT


def hardware(run: Run) -> str:
    """The machine in words, from results.csv or else environment.json."""
    named = [r["hardware"] for r in run.results if r["hardware"]]
    env = run.environment
    cores = f", {env['cores']} cores" if "cores" in env else ""
    return named[0] if named else (f"{env['cpu']}{cores}" if env.get("cpu") else "unknown hardware")


def footer(run: Run, *more: str) -> str:
    """Which run, how big, that it is a toy if it is one, its training seed, and on which machine."""
    size, seed = parameters(run), run.config.get("seed")
    parts = ["toy run" if is_toy(run) else "", run.name, f"{size / 1e6:.3g}M parameters" if size else "", *more]
    return footer_line([*parts, "" if seed is None else f"training seed {seed}", hardware(run)])


def footer_line(parts: Iterable[str]) -> str:
    """A footer's parts on one line, without the empty ones."""
    return SEPARATOR.join(part for part in parts if part)


def percent(share: float | None) -> str:
    """0.123 -> '12.3%'; a dash where nothing was measured."""
    return "–" if share is None else f"{100 * share:.1f}%"


def number(value: float | None, digits: int = 3) -> str:
    """Significant digits without exponents; a dash where nothing was measured."""
    if value is None:
        return "–"
    if value and abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def series_labels(
    rows: Sequence[Row], by: Iterable[str] = ("block_size", "anchors", "beta", "source", "batch", "model")
):
    """A label for every sampling row: its sampler, and whatever else tells it from the other rows of that sampler.

    Returns:
      list[str], as long as rows. Rows that differ in temperature or seed alone share a label.
    """
    by = tuple(by)
    labels = []
    for row in rows:
        same_sampler = [r for r in rows if r["sampler"] == row["sampler"]]
        telling = [c for c in by if len({r[c] for r in same_sampler}) > 1]
        values = [f"{c.replace('_', ' ')} {row[c]:g}" if isinstance(row[c], float) else str(row[c]) for c in telling]
        labels.append(" · ".join([row["sampler"] or "?", *values]))
    return labels


def series_colours(rows: Sequence[Row], labels: Sequence[str]) -> dict[str, str]:
    """Label -> colour; the first series of a sampler has the sampler's own."""
    colours: dict[str, str] = {}
    spare = iter(OTHERS * (1 + len(labels)))
    for row, label in zip(rows, labels, strict=True):
        if label not in colours:
            own = SAMPLER_COLOURS.get(row["sampler"])
            colours[label] = own if own and own not in colours.values() else next(spare)
    return colours
