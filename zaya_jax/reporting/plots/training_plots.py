"""Figures of the training stages, from metrics.jsonl."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator

from zaya_jax.reporting.plots import style
from zaya_jax.reporting.run_files import Run
from zaya_jax.reporting.tables.cells import percent_change


def training_curves(run: Run) -> Figure | None:
    """AR loss of every phase after the one it starts from, and the draft loss beside it; None without metrics."""
    stages = [stage for stage in run.phases if run.stage(stage, "ar_loss")]
    if not stages:
        return None
    drafting = [stage for stage in stages if run.stage(stage, "draft_loss")]
    drafts = bool(drafting)
    block = f"block size {run.block_size}" if drafts else ""
    figure = style.new_figure(_curves_title(run), style.footer(run, block), height=4.5, legend=1)
    axes = figure.subplots(1, 2 if drafts else 1, squeeze=False, width_ratios=[3, 2] if drafts else [1])[0]
    _, unit = clean_tokens(run)
    style.tidy(axes[0], "Autoregressive loss", f"{unit} ({_order(run, stages)})", "nats per token")
    _loss_curves(axes[0], run, "ar_loss")
    if drafts:
        style.tidy(axes[1], f"Draft loss, all slots ({', '.join(drafting)})", unit, "nats per mask token")
        _loss_curves(axes[1], run, "draft_loss")
    for axis in axes:
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(base=10, subs=(1, 1.5, 2, 3, 5, 7), numticks=12))
        style.plain_numbers(axis.yaxis)
    style.legend_below(figure, _loss_handles(run))
    return figure


def draft_accuracy(run: Run) -> Figure | None:
    """How often a slot's likeliest token is right: final validation by source, and training over time."""
    lines = run.stage(run.sampled or "", "draft_accuracy_by_slot")
    final = _final_accuracy(run)
    if not lines and not final:
        return None
    size = len(lines[-1]["draft_accuracy_by_slot"] if lines else next(iter(final.values())))
    where, ends = next(iter(final.items())) if final else ("training batches", lines[-1]["draft_accuracy_by_slot"])
    title = f"Draft accuracy on {where}: {100 * ends[0]:.0f}% in the first slot, {100 * ends[-1]:.0f}% in slot {size}"
    figure = style.new_figure(title, style.footer(run, f"block size {size}", "teacher-forced, most likely token"))
    axes = figure.subplots(1, bool(lines) + bool(final), squeeze=False)[0]
    if final:
        _accuracy_bars(axes[0], final, size)
    if lines:
        _accuracy_lines(axes[-1], run, lines, size)
    return figure


def expert_load(run: Run) -> Figure | None:
    """The busiest expert's share, of clean and of mask tokens, over training; and the last step's shares by layer."""
    stages = [stage for stage in run.path_to(run.sampled or "") if run.stage(stage, "expert_load_clean")]
    if not stages:
        return None
    last = run.stage(stages[-1], "expert_load_clean")[-1]
    kinds = [(kind, last[key]) for kind, key in _SHARES.items() if key in last]
    experts = len(kinds[0][1][0]) - 1 if kinds else (run.model.num_experts if run.model else None)
    takes = " and ".join(f"{100 * np.max(share, axis=1).mean():.0f}% of {kind} tokens" for kind, share in kinds)
    title = f"Expert load: the busiest of a layer's {experts} experts takes {takes}" if kinds else "Expert load"
    figure = style.new_figure(title, style.footer(run, "skip = the router's last class, which runs no expert"))
    axes = figure.subplots(1, 1 + len(kinds), squeeze=False, width_ratios=[2.4] + [1.3] * len(kinds))[0]
    _load_lines(axes[0], run, stages, experts)
    for axis, (kind, share) in zip(axes[1:], kinds, strict=True):
        _share_map(axis, kind, np.asarray(share), stages[-1])
    return figure


def clean_tokens(run: Run):
    """The common x axis: (function (stage, step) -> x, label). Clean token slots in millions, else steps."""
    sections = {stage: run.config.get(stage, {}) for stage in run.phases}
    length = run.config.get("data", {}).get("row_length")
    lengths = {stage: section.get("row_length") or length for stage, section in sections.items()}
    present = [stage for stage in run.phases if run.stage(stage, "ar_loss")]
    known = all(lengths[stage] and "batch_size" in sections[stage] for stage in present)
    size = {
        stage: section.get("batch_size", 1) * lengths[stage] / 1e6 if known and lengths[stage] else 1
        for stage, section in sections.items()
    }

    def x(stage: str, step: int) -> float:
        before = [(other, run.stage(other, "ar_loss")) for other in run.path_to(stage)[:-1]]
        return sum(lines[-1]["step"] * size[other] for other, lines in before if lines) + step * size[stage]

    return x, "million clean token slots" if known else "steps"


def _order(run: Run, stages: list[str]) -> str:
    """Which phase follows which, in words: "pretrain, then convert or control"."""
    levels: dict[int, list[str]] = {}
    for stage in stages:
        levels.setdefault(len(run.path_to(stage)), []).append(stage)
    return ", then ".join(" or ".join(levels[depth]) for depth in sorted(levels))


_SHARES = {"clean": "expert_share_clean", "mask": "expert_share_draft"}


def _curves_title(run: Run) -> str:
    """What conversion did to the AR loss, measured against its control on the last common validation."""
    changes = [(source, _relative_cost(run, source)) for source in run.sources()]
    spans = [f"{percent_change(change)} on {source}" for source, change in changes if change is not None]
    if not spans:
        return "Training loss"
    return f"AR loss after learning to draft, against AR-only training on the same tokens: {', '.join(spans)}"


def _relative_cost(run: Run, source: str) -> float | None:
    """(convert - control) / control of a source's last validation AR loss."""
    ends = [run.stage(f"{stage}/validation", f"{source}/ar_loss") for stage in ("convert", "control")]
    if not all(ends):
        return None
    convert, control = (end[-1][f"{source}/ar_loss"] for end in ends)
    return convert / control - 1


def _loss_curves(axis: Axes, run: Run, key: str) -> None:
    """Training as thin lines, validation as markers: a shape a source, control's hollow so that both are seen."""
    x, _ = clean_tokens(run)
    for stage, colour in style.stage_colours(run).items():
        lines = run.stage(stage, key)
        axis.plot([x(stage, m["step"]) for m in lines], [m[key] for m in lines], color=colour, linewidth=1, alpha=0.5)
        for source, marker in zip(run.sources(), style.MARKERS, strict=False):
            points = run.stage(f"{stage}/validation", f"{source}/{key}")
            xs, ys = [x(stage, m["step"]) for m in points], [m[f"{source}/{key}"] for m in points]
            hollow = stage == "control"
            face, size, above = ("none", 7, 3) if hollow else (colour, 4, 4)
            axis.plot(xs, ys, marker, color=colour, markerfacecolor=face, markersize=size, zorder=above)


def _loss_handles(run: Run) -> list[Line2D]:
    """Legend: a colour a stage, a shape a validation source."""
    colours = style.stage_colours(run)
    stages = [stage for stage in run.phases if run.stage(stage, "ar_loss")]
    lines = [Line2D([], [], color=colours[stage], linewidth=2, label=stage) for stage in stages]
    shapes = zip(run.sources(), style.MARKERS, strict=False)
    return lines + [
        Line2D([], [], marker=m, color=style.INK, linestyle="none", markersize=5, label=f"{source}, validation")
        for source, m in shapes
    ]


def _final_accuracy(run: Run) -> dict[str, list[float]]:
    """Source -> accuracy by slot at the last validation of the sampled phase."""
    out = {}
    for source in run.sources():
        points = run.stage(f"{run.sampled}/validation", f"{source}/draft_accuracy_by_slot")
        if points:
            out[source] = points[-1][f"{source}/draft_accuracy_by_slot"]
    return out


def _accuracy_bars(axis: Axes, final: dict[str, list[float]], size: int) -> None:
    style.tidy(axis, "End of convert, validation", "slot of the block", "share right")
    width = 0.8 / len(final)
    for i, (source, values) in enumerate(final.items()):
        at = np.arange(1, size + 1) + (i - (len(final) - 1) / 2) * width
        colour = (style.BLUE, style.ORANGE, *style.OTHERS)[i % 7]
        bars = axis.bar(at, values, width * 0.92, color=colour, label=source)
        if size * len(final) <= 16:
            labels = [f"{100 * v:.0f}" for v in values]
            axis.bar_label(bars, labels, fontsize=7.5, color=style.QUIET, padding=1.5)
    axis.set_xticks(range(1, size + 1))
    axis.set_ylim(0, 1.08)
    style.in_percent(axis.yaxis)
    style.legend(axis, loc="upper right")


def _accuracy_lines(axis: Axes, run: Run, lines: list, size: int) -> None:
    x, unit = clean_tokens(run)
    style.tidy(axis, f"Over {run.sampled}, training batches", unit, "share right")
    xs = [x(run.sampled or "", m["step"]) for m in lines]
    values = np.asarray([m["draft_accuracy_by_slot"] for m in lines])
    for slot in range(size):
        colour = style.DEPTHS(slot / max(1, size - 1))
        axis.plot(xs, values[:, slot], color=colour, linewidth=1.5, label=f"slot {slot + 1}")
    axis.set_ylim(0, 1.08)
    style.in_percent(axis.yaxis)
    style.legend(axis, loc="upper left", ncols=2 if size <= 8 else 4)


def _load_lines(axis: Axes, run: Run, stages: list[str], experts: int | None) -> None:
    x, unit = clean_tokens(run)
    style.tidy(axis, "Largest share of an expert, mean over layers", unit, "share of tokens")
    names = {"clean": "expert_load_clean", "mask": "expert_load_draft"}
    for kind, key in names.items():
        points = [(x(stage, m["step"]), m[key]) for stage in stages for m in run.stage(stage, key)]
        if points:
            axis.plot(*zip(*points, strict=True), color=style.ROW_COLOURS[kind], linewidth=1.4, label=f"{kind} tokens")
    if experts:
        axis.axhline(1 / experts, color=style.INK, linewidth=1, linestyle=(0, (4, 3)))
        note = f"1/{experts}: perfectly even"
        axis.annotate(note, (1, 1 / experts), (0, -4), xycoords=("axes fraction", "data"), textcoords="offset points",
                      ha="right", va="top", fontsize=8.5, color=style.INK)  # fmt: skip
    for stage in stages[1:]:
        start = x(stage, 0)
        axis.axvline(start, color=style.QUIET, linewidth=0.8)
        axis.annotate(f" {stage} starts", (start, 0.02), xycoords=("data", "axes fraction"), fontsize=8.5,
                      color=style.QUIET)  # fmt: skip
    axis.set_ylim(0, None)
    style.in_percent(axis.yaxis)
    style.legend(axis, loc="upper right")


def _share_map(axis: Axes, kind: str, share: np.ndarray, stage: str) -> None:
    """Layers x experts, the numbers written in."""
    style.tidy(axis, f"{kind} tokens, end of {stage}", "expert", "layer", grid="")
    layers, classes = share.shape
    axis.imshow(share, cmap=style.HEAT, vmin=0, vmax=max(0.35, share.max()), aspect="auto")
    if layers * classes <= 80:
        dark = 0.5 * max(0.35, share.max())
        for (i, j), value in np.ndenumerate(share):
            colour = "white" if value > dark else style.INK
            axis.text(j, i, f"{100 * value:.0f}", ha="center", va="center", fontsize=7, color=colour)
    axis.set_xticks(range(classes), [*map(str, range(1, classes)), "skip"], fontsize=7.5)
    axis.set_yticks(range(layers), map(str, range(1, layers + 1)))
    axis.spines["bottom"].set_visible(False)
