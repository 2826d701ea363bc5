"""The picture of the one idea: who sees whom, for a training row and for an inference row."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from zaya_jax.architecture import Layout, visible
from zaya_jax.architecture.layout import Keys
from zaya_jax.architecture.visibility import NO_TREE
from zaya_jax.reporting.plots import style
from zaya_jax.reporting.run_files import Run

BLOCK, ROW, CACHED = 4, 8, 4  # drawn small, whatever the run used: 8 clean tokens, or 4 drafts after 4 cached tokens
HIDDEN, CLEAN, OWN = 0, 1, 2
COLOURS = ("#f3f5f8", style.BLUE, style.ORANGE)


def layout_picture(run: Run) -> Figure:
    """A TiDAR training row and a verify-and-draft row side by side, from the same visibility rule."""
    title = "Who sees whom: one rule for training (left) and for verify-and-draft (right)"
    used = f"; this run: block size {run.block_size}" if run.block_size else ""
    figure = style.new_figure(title, style.footer(run, f"drawn with block size {BLOCK}{used}"), height=5.8, legend=1)
    left, right = figure.subplots(1, 2)
    training, step = _layouts()
    draw_visibility(left, training, title=f"Training: {ROW} clean tokens, every position drafted")
    draw_visibility(right, step, cached=CACHED, title=f"Sampling: verify {BLOCK}, draft after each outcome")
    names = ("hidden", "clean token (or cache)", "own draft block")
    patches = [Patch(facecolor=c, edgecolor=style.RULE, label=n) for c, n in zip(COLOURS, names, strict=True)]
    style.legend_below(figure, patches[1:] + patches[:1])
    return figure


@jax.jit  # one program instead of one for each operation
def _layouts() -> tuple[Layout, Layout]:
    """The training row and the verify-and-draft row."""
    step = jnp.zeros((1, BLOCK), jnp.int32)
    return (
        Layout.tidar(jnp.zeros((1, ROW), jnp.int32), BLOCK),
        Layout.verify_and_draft(step, start=CACHED, anchors=tuple(range(1, BLOCK + 1)), block_size=BLOCK),
    )


def draw_visibility(axes: Axes, layout: Layout, cached: int = 0, row: int = 0, title: str = "") -> None:
    """Paints one row of a layout: queries down, keys across, labelled with their positions in the text.

    Args:
      layout: fields [batch, row]; small enough to read.
      cached: clean tokens of the cache to draw in front of the keys.
      row: which of the batch.
    """
    marks = _marks(layout, cached, row)
    style.tidy(axes, title, "key: its position in the text", "query: its position in the text", grid="")
    axes.imshow(marks, cmap=ListedColormap(COLOURS), vmin=HIDDEN, vmax=OWN, aspect="auto", interpolation="nearest")
    queries, keys = marks.shape
    position = np.asarray(layout.position[row])
    axes.set_xticks(range(keys), [*map(str, range(cached)), *map(str, position)], fontsize=7)
    axes.set_yticks(range(queries), map(str, position), fontsize=7)
    axes.set_xticks(np.arange(keys + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(queries + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1)
    axes.spines["bottom"].set_visible(False)
    clean, size = layout.clean_size, layout.block_size
    edges = [clean + i * size for i in range(layout.num_blocks)]
    for edge in edges:
        axes.axhline(edge - 0.5, color=style.INK, linewidth=0.9)
    for edge in [cached] * bool(cached) + [cached + e for e in edges]:
        axes.axvline(edge - 0.5, color=style.INK, linewidth=0.9)
    _group_names(axes, layout, cached)


def _marks(layout: Layout, cached: int, row: int) -> np.ndarray:
    """int [query, cached + row]: HIDDEN, CLEAN or OWN."""
    seen, block = (np.asarray(found[row]) for found in _seen(layout, cached))
    return np.where(seen, np.where(block == 0, CLEAN, OWN), HIDDEN)


@functools.partial(jax.jit, static_argnums=1)
def _seen(layout: Layout, cached: int) -> tuple[jax.Array, jax.Array]:
    """(visible bool [batch, query, cached + row], each key's block int [batch, cached + row])."""
    if not cached:
        return layout.visibility(), layout.block
    front = jnp.broadcast_to(jnp.arange(cached, dtype=jnp.int32), (layout.tokens.shape[0], cached))
    context = Keys(position=front, document=jnp.zeros_like(front), block=jnp.zeros_like(front))
    if layout.preorder is not None:
        context = context._replace(preorder=jnp.zeros_like(front), subtree_end=jnp.full_like(front, NO_TREE))
    keys = jax.tree.map(lambda *pair: jnp.concatenate(pair, axis=1), context, layout.keys)
    return visible(layout, keys), keys.block


def _group_names(axes: Axes, layout: Layout, cached: int) -> None:
    """Names over the columns: cache, clean tokens, blocks."""
    clean, size, count = layout.clean_size, layout.block_size, layout.num_blocks
    groups = [("cache", 0, cached)] * bool(cached) + [("to verify" if cached else "clean", cached, clean)]
    groups += [(f"block {i + 1}", cached + clean + i * size, size) for i in range(count)]
    for name, start, width in groups:
        axes.text(start + width / 2 - 0.5, -0.75, name, ha="center", va="bottom", fontsize=7.5, color=style.QUIET)
    axes.title.set_position((0, 1))
    axes.set_title(axes.get_title(loc="left"), loc="left", fontsize=10, color=style.INK, pad=16)
