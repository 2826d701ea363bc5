"""What the figures after the paper share: bars of seeds, marks of published numbers, a footer that fits."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from zaya_jax.reporting.plots import style

PUBLISHED = style.PURPLE
SAMPLER_NAMES = {"autoregressive": "AR", "lossless": "lossless", "mix_stale": "mixing", "mix_fresh": "fresh mixing"}


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A figure and the text beside it: what is shown, from which sources, and what it does not say."""

    figure: Figure
    caption: str


def two_decimals(value: float) -> str:
    """4.5 -> '4.50': tokens per forward."""
    return f"{value:.2f}"


def seed_bars(
    axis: Axes,
    values: Mapping[str, Mapping[str, Sequence[float]]],
    colours: Mapping[str, str],
    text: Callable[[float], str] = two_decimals,
    published: Sequence[str] = (),
) -> None:
    """Groups of bars: the height is the mean, each seed is a dot where there are several.

    Args:
      values: group -> series -> one value a seed; a series may be absent from a group.
      colours: series -> colour, in the order they are drawn.
      text: how a mean is written above its bar.
      published: groups whose bars are another's numbers: drawn hollow and hatched.
    """
    width = 0.8 / len(colours)
    for i, (name, colour) in enumerate(colours.items()):
        for j, (group, by_series) in enumerate(values.items()):
            seeds = by_series.get(name, ())
            if not len(seeds):
                continue
            at, mean, ours = j + (i - (len(colours) - 1) / 2) * width, float(np.mean(seeds)), group not in published
            look: dict[str, Any] = (
                {"color": colour} if ours else {"facecolor": "white", "edgecolor": colour, "hatch": "///"}
            )
            axis.bar(at, mean, width * 0.9, **look)
            if len(seeds) > 1:
                spread = np.linspace(-0.2, 0.2, len(seeds)) * width
                axis.plot(at + spread, seeds, "o", color=style.INK, markersize=2.8, zorder=4)
            axis.annotate(text(mean), (at, max(*seeds, mean)), (0, 3), textcoords="offset points", ha="center",
                          fontsize=8.5, color=style.INK)  # fmt: skip
    axis.set_xticks(range(len(values)), list(values))
    axis.margins(y=0.15)


def seed_line(axis: Axes, points: Mapping[float, Sequence[float]], colour: str, label: str, **more: Any) -> None:
    """x -> one value a seed: dots, and a line through the means."""
    xs = sorted(points)
    for x in xs:
        axis.plot([x] * len(points[x]), points[x], "o", color=colour, markersize=3.5, alpha=0.55, linewidth=0)
    means = [float(np.mean(points[x])) for x in xs]
    look: dict[str, Any] = {"marker": "o", "markersize": 5.5, "linewidth": 1.8, "color": colour, **more}
    axis.plot(xs, means, label=label, **look)


def published_line(axis: Axes, points: Mapping[float, float], label: str = "published: TiDAR 1.5B") -> None:
    """Another's curve: hollow diamonds on a dashed line, each with its value."""
    axis.plot(list(points), list(points.values()), "D--", color=PUBLISHED, markerfacecolor="white", markersize=6.5,
              linewidth=1.2, label=label)  # fmt: skip
    for x, y in points.items():
        axis.annotate(f"{y:.4g}", (x, y), (-4, 6), textcoords="offset points", ha="right", fontsize=8, color=PUBLISHED)


def bar_legend(figure: Figure, colours: Mapping[str, str], names: Mapping[str, str], published: bool = False) -> None:
    """The series of `seed_bars`, below the footer."""
    handles = [Patch(color=colour, label=names[name]) for name, colour in colours.items()]
    if published:
        handles.append(Patch(facecolor="white", edgecolor=style.QUIET, hatch="///", label="published"))
    style.legend_below(figure, handles)
