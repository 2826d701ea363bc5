"""Figure "roofline": 16-token blocks a forward, against hardware, from published peaks; nothing was run."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.lines import Line2D

from zaya_jax.architecture import preset
from zaya_jax.costs.roofline import (
    ATTENTIONS,
    HARDWARE,
    drafting_seconds,
    experts_touched,
    forward_seconds,
    free_query_tokens,
    free_rows,
    resident_bytes,
    ridge_rows,
)
from zaya_jax.reporting.paper import published
from zaya_jax.reporting.paper.marks import Drawn, seed_bars
from zaya_jax.reporting.plots import style
from zaya_jax.reporting.result_files import Record

BLOCK, CONTEXT, BATCHES, TOLERANCE = 16, 32_768, (1, 8, 64), 0.1
NAMES = {"mi300x": "MI300X", "mi355x": "MI355X", "h100": "H100"}
ATTENTION_COLOURS = dict(zip(ATTENTIONS, (style.BLUE, style.GREY, style.VERMILION), strict=True))
BATCH_COLOURS = {
    f"batch {batch}": to_hex(style.DEPTHS(share)) for batch, share in zip(BATCHES, (0.75, 0.45, 0.1), strict=True)
}
DASHES: dict[str, Any] = {"mi300x": "-", "mi355x": (0, (5, 2)), "h100": (0, (1.5, 1.5))}


def attention_blocks() -> dict[str, dict[str, float]]:
    """Hardware -> attention -> 16-token blocks up to the ridge of attention over the cache alone."""
    return {
        device: {name: free_query_tokens(shape, HARDWARE[device]) / BLOCK for name, shape in ATTENTIONS.items()}
        for device in NAMES
    }


def model_blocks() -> dict[str, dict[int, tuple[float, float, float]]]:
    """Hardware -> batch -> ZAYA1-8B's blocks.

    Those that cost at most 10% over the one-row forward (0 where not even one does), those up to the ridge of the
    whole forward, and what a forward at that ridge costs over the one-row forward.
    """
    config, out = preset("zaya1_8b"), {}
    for device in NAMES:
        out[device] = {}
        for batch in BATCHES:
            here = HARDWARE[device]
            free = free_rows(config, here, batch, CONTEXT, BLOCK, TOLERANCE)
            ridge = ridge_rows(config, here, batch, CONTEXT, BLOCK)
            cost = drafting_seconds(config, here, ridge, batch, CONTEXT, BLOCK)
            over = cost / forward_seconds(config, here, 1, batch, CONTEXT)
            out[device][batch] = (free / BLOCK if free > 1 else 0.0, ridge / BLOCK, over)
    return out


def counted(runs: Iterable[Record]) -> dict[str, dict[str, tuple[float, float]]]:
    """Sampler and batch -> hardware -> (bytes that a step must move, bytes that its kernels move), of lowered programs.

    Args:
      runs: files of `experiments.lower --what=steps`; empty ones are passed over.
    """
    out: dict[str, dict[str, tuple[float, float]]] = {}
    names = {NAMES[device]: device for device in NAMES}
    for sampler, label in {"autoregressive": "AR", "single_pass": "K = 3"}.items():
        for run in filter(None, runs):
            found = run["programs"][sampler]
            device = next(device for name, device in names.items() if name in run["target"])
            group = out.setdefault(f"{label}, batch {found['program'].split()[1]}", {})
            group[device] = (found["traffic"], found["moved"])
    return out


def roofline(*runs: Record) -> Drawn:
    """How many proposals a forward can carry: for attention alone, then for the whole of ZAYA1-8B.

    Args:
      runs: see `counted`; without any of them the panel that holds the code to the bound is left out.
    """
    bytes_counted = counted(runs)
    attention, model = attention_blocks(), model_blocks()
    least, most = (attention[d]["CCGQA 4:1"] for d in published.BLOCKS)
    title = (
        f"Room for {least:.2f} blocks of {BLOCK} on MI300X, {most:.2f} on MI355X, where the cache is all that is read"
    )
    footer = style.footer_line(
        ("roofline from published peaks: a bound, nothing was run", "bf16", "ZAYA1-8B", f"context {CONTEXT:,}")
    )
    figure = style.new_figure(title, footer, width=11, height=8.2)
    halves: Any = figure.subfigures(2, 1, height_ratios=(1, 1.05))
    top, bottom = halves
    left, right = top.subplots(1, 2)
    _attention_panel(left, attention)
    _model_panel(right, model)
    if bytes_counted:
        left, right = bottom.subplots(1, 2)
        _cost_panel(left, model)
        _counted_panel(right, bytes_counted)
    else:
        _cost_panel(bottom.subplots(), model)
    return Drawn(figure, "\n".join([_caption(attention, model), *_counted_lines(bytes_counted)]))


def _attention_panel(axis: Axes, attention: dict[str, dict[str, float]]) -> None:
    """Bars of the formula, and what Zyphra says."""
    style.tidy(
        axis, f"The cache is all that is read: ridge / (FLOP per byte and token) / {BLOCK}", "", "blocks a forward"
    )
    groups = {NAMES[device]: {name: [blocks] for name, blocks in by.items()} for device, by in attention.items()}
    seed_bars(axis, groups, ATTENTION_COLOURS)
    for j, device in enumerate(attention):
        if device in published.BLOCKS:
            said = published.BLOCKS[device]
            axis.plot(j - 0.44, said, "D", color=style.PURPLE, markerfacecolor="white", markersize=7)
    handles = [Line2D([], [], color=colour, linewidth=7, label=name) for name, colour in ATTENTION_COLOURS.items()]
    handles.append(
        Line2D([], [], color=style.PURPLE, marker="D", markerfacecolor="white", linewidth=0,
               label="published: Zyphra, roughly 3 and 5")
    )  # fmt: skip
    axis.set_ylim(0, 27)
    style.legend(axis, handles=handles, loc="upper left", ncols=2)


def _model_panel(axis: Axes, model: dict[str, dict[int, tuple[float, float, float]]]) -> None:
    """Bars of what the whole model leaves at each batch."""
    style.tidy(axis, f"Weights and experts are read too: blocks at up to {1 + TOLERANCE:g}x the AR forward", "", "")
    groups = {NAMES[d]: {f"batch {b}": [free] for b, (free, _, _) in by.items()} for d, by in model.items()}
    seed_bars(axis, groups, BATCH_COLOURS, lambda blocks: f"{blocks:.2f}" if blocks else "none")
    for j, device in enumerate(model):
        if resident_bytes(preset("zaya1_8b"), BATCHES[-1], CONTEXT) > HARDWARE[device].memory:
            axis.annotate("batch 64 exceeds\nits 80 GB", (j + 0.27, model[device][64][0]), (0, 16), ha="center",
                          textcoords="offset points", fontsize=8, color=style.VERMILION)  # fmt: skip
        if device in published.BLOCKS:
            axis.plot(
                j + 0.44, published.BLOCKS[device], "D", color=style.PURPLE, markerfacecolor="white", markersize=7
            )
    axis.set_ylim(0, 8)
    handles = [Line2D([], [], color=colour, linewidth=7, label=name) for name, colour in BATCH_COLOURS.items()]
    style.legend(axis, handles=handles, loc="upper left", ncols=3)


def _cost_panel(axis: Axes, model: dict[str, dict[int, tuple[float, float, float]]]) -> None:
    """A drafting forward's time over one token's, against its query tokens; dots where arithmetic takes over."""
    title = "A drafting forward's time over one token's; dots: arithmetic takes over"
    style.tidy(axis, title, f"query tokens of a sequence in one forward ({BLOCK} = one block)", "", grid="both")
    config, rows = preset("zaya1_8b"), np.unique(np.geomspace(1, 1024, 120).astype(int))
    for colour, batch in zip(BATCH_COLOURS.values(), BATCHES, strict=True):
        for device, dashes in DASHES.items():
            here = HARDWARE[device]
            one = forward_seconds(config, here, 1, batch, CONTEXT)
            cost = [drafting_seconds(config, here, int(n), batch, CONTEXT, BLOCK) / one for n in rows]
            axis.plot(rows, cost, linestyle=dashes, color=colour, linewidth=1.8)
            _, ridge, over = model[device][batch]
            axis.plot(ridge * BLOCK, over, "o", color=colour, markersize=5)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log", base=2)
    axis.set_xticks([1, 4, 16, 32, 64, 128, 272, 1024])
    axis.set_yticks([1, 2, 4, 8])
    axis.set_ylim(0.9, 12)
    for each in (axis.xaxis, axis.yaxis):
        style.plain_numbers(each)
    handles = [Line2D([], [], color=colour, linewidth=3, label=name) for name, colour in BATCH_COLOURS.items()]
    handles += [Line2D([], [], color=style.QUIET, linestyle=d, label=NAMES[device]) for device, d in DASHES.items()]
    style.legend(axis, handles=handles, loc="upper left", ncols=2)


def _counted_panel(axis: Axes, found: dict[str, dict[str, tuple[float, float]]]) -> None:
    """Bars of bytes moved over bytes that must move, with the bound's own 1."""
    style.tidy(axis, "Bytes that compiled steps move over those that must, context 4,096", "", "")
    shares = {
        group.replace(", ", "\n"): {NAMES[device]: [moved / must] for device, (must, moved) in by.items()}
        for group, by in found.items()
    }
    colours = dict(zip(NAMES.values(), (style.VERMILION, style.BLUE, style.GREY), strict=True))
    seed_bars(axis, shares, colours)
    axis.axhline(1, color=style.QUIET, linewidth=1)
    handles = [Line2D([], [], color=colour, linewidth=7, label=name) for name, colour in colours.items()]
    style.legend(axis, handles=handles, loc="upper left")


def _counted_lines(found: dict[str, dict[str, tuple[float, float]]]) -> list[str]:
    if not found:
        return []
    lines = [
        "",
        "Counted (right, below): ZAYA1-8B compiled for each GPU, 4,096 cached tokens a sequence, bfloat16, block 16, "
        "three branch points; nothing was run. Bytes of a step's kernels, every operand and result once, over those "
        "that must move: weights of the experts touched, cache, logits written and read (results/lower/*_decode_4k_*).",
    ]
    for group, by in found.items():
        said = (f"{NAMES[d]} {moved / 1e9:.1f} of {must / 1e9:.1f} GB" for d, (must, moved) in by.items())
        lines.append(f"  {group}: {', '.join(said)}")
    return lines


def _caption(attention: dict[str, dict[str, float]], model: dict[str, dict[int, tuple[float, float, float]]]) -> str:
    """Formula, inputs, sources and every number of the figure."""
    lines = [
        "Proposals a forward: 16-token blocks that a forward can carry before arithmetic, not memory, sets its time. "
        "A roofline of published peaks, not a measurement: perfect overlap, every byte read once, no overhead.",
        "",
        "Formula (left): free query tokens = ridge / intensity; blocks = free query tokens / 16. Ridge = dense bf16 "
        "peak FLOP/s over memory bytes/s. Intensity = FLOP a byte of cache and query token.",
    ]
    lines += [
        f"  {name}: {shape.flops:g} FLOP over {shape.bytes:g} bytes a cached token and layer: intensity "
        f"{shape.intensity:.4g}" for name, shape in ATTENTIONS.items()
    ]  # fmt: skip
    for device, by in attention.items():
        here = HARDWARE[device]
        blocks = ", ".join(f"{name} {BLOCK * n:.4g} tokens = {n:.2f} blocks" for name, n in by.items())
        lines.append(
            f"  {NAMES[device]} ({here.flops / 1e12:g} TFLOP/s, {here.bandwidth / 1e12:g} TB/s, ridge "
            f"{here.ridge:.1f}): {blocks}"
        )
    return "\n".join([*lines, "", *_model_lines(model), "", *_SOURCES])


def _model_lines(model: dict[str, dict[int, tuple[float, float, float]]]) -> list[str]:
    touched = ", ".join(f"{experts_touched(16, n):.1f} at {n} tokens" for n in (1, 16, 64, 272))
    lines = [
        f"Whole model (right, below): ZAYA1-8B, {CONTEXT:,} cached tokens a sequence; time = max(FLOP / peak, bytes / "
        "bandwidth); bytes = shared weights + experts touched + tied head + cache; FLOP = projections, convolutions, "
        "attention, router, one expert a token, head of the verified and one drafted block. Experts touched = "
        f"E (1 - (1 - 1/E)^n) with uniform routing, E = 16: {touched}. Blocks at up to {1 + TOLERANCE:g}x the "
        "one-token forward, and at the ridge of the whole forward with what a forward costs there:",
    ]
    for device, by in model.items():
        said = "; ".join(
            f"batch {batch}: {free:.2f} ({ridge:.2f} at {over:.2f}x)" for batch, (free, ridge, over) in by.items()
        )
        lines.append(f"  {NAMES[device]}: {said}")
    need = resident_bytes(preset("zaya1_8b"), BATCHES[-1], CONTEXT)
    lines.append(
        "At batch 1 and 8 a second token already meets experts that would not be read without it, so no slot is free; "
        f"at batch {BATCHES[-1]} nearly all are read anyway. Weights and caches of batch {BATCHES[-1]} take "
        f"{need / 1e9:.0f} GB: more than the 80 GB of an H100."
    )
    return lines


_SOURCES = (
    f"Published: {published.ZYPHRA}: roughly 3 proposals on MI300X and 5 on MI355X. Their formula is not public; this "
    "one gives 5 by rounding and 3 only by rounding down. All blocks are counted, the one that is verified among them. "
    "More free slots do not make an attention faster: MHA has many because each of its bytes does little, and here it "
    "reads 8 times CCGQA's. The one token that fits MLA is the one that decoding feeds anyway: no slot is free.",
    "Sources: peaks: docs/hardware.md#peaks (data sheets). CCGQA: ZAYA1-8B, 8 query and 2 "
    "key-value heads of 128 (docs/architecture.md). MHA: 16 heads of 128, the width 2048 uncompressed. "
    "MLA: 128 heads, latent 512, "
    "rotary 64, as in DeepSeek-V2 (arXiv 2405.04434).",
)
