"""Where training puts draft blocks: a registry, one entry a layout, that `Objective.row_layout` picks from by name.

A new one is one `register_layout(TrainingLayout(...))`, which may stand in a config file:
docs/extending.md#a-new-layout.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from zaya_jax.architecture.layout import Layout
from zaya_jax.errors import UserError
from zaya_jax.registry import Registry, caller

Array = jax.Array
Drawn = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class TrainingLayout:
    """A way to lay out training rows.

    Attributes:
      name: what `Objective.row_layout` says.
      words: a sentence for readers.
      draw: (key, batch, row, block_size) -> where blocks start, drawn anew at every step: {"first": int32 [B, N]}, the
        row index of each block's first slot, or {"offset": int32 [B]}, that of a grid's first block.
        The number of blocks is static. Traced.
      build: (tokens int32 [B, T], block_size=, document=int32 [B, T], and what was drawn) -> a Layout whose
        clean rows are the tokens and whose blocks stand where `draw` said, in that order. Traced.
      random_masking: whether `build` also takes reveal=bool [B, T], and `draw` an offset (or blocks are documents).
      documents: whether blocks are whole documents, whatever the block size. Tokens without a loss then show
        themselves, as a prompt does at inference, and one mask rate is drawn for a row.
      splits: whether the blocks that start in each part of a row follow each other and are as many in every part: then
        devices can share rows (a mesh's `context`).

    Raises:
      UserError: naming the field.
    """

    name: str
    words: str
    draw: Callable[[Array, int, int, int], Drawn]
    build: Callable[..., Layout] = Layout.blocks_at
    random_masking: bool = False
    documents: bool = False
    splits: bool = False

    def __post_init__(self) -> None:
        for field, right, may_be in (
            ("words", isinstance(self.words, str) and bool(self.words.strip()), "a sentence"),
            ("draw", callable(self.draw), "a function"),
            ("build", callable(self.build), "a function"),
        ):
            if not right:
                raise UserError(f"TrainingLayout.{field}: got {getattr(self, field)!r}, may be {may_be}")

    def drawn(self, key: Array, batch: int, row: int, block_size: int) -> Drawn:
        """What `draw` gives. UserError unless it is a "first" or an "offset" of integers, a row of the batch each."""
        found = self.draw(key, batch, row, block_size)
        shapes = {"first": 2, "offset": 1}
        right = isinstance(found, Mapping) and len(found) == 1 and set(found) <= set(shapes)
        if not right:
            raise UserError(
                f"layout {self.name}: draw gave {found!r:.60}, may give {{'first': ...}} or {{'offset': ...}}"
            )
        ((name, value),) = found.items()
        if value.ndim != shapes[name] or value.shape[0] != batch or value.dtype.kind not in "iu":
            got, may_be = f"{value.dtype}{list(value.shape)}", "[batch, block]" if name == "first" else "[batch]"
            raise UserError(f"layout {self.name}: draw gave {name} {got}, may give int32 {may_be} with batch {batch}")
        return dict(found)


LAYOUTS: Registry[TrainingLayout] = Registry("layout")


def register_layout(layout: TrainingLayout) -> TrainingLayout:
    """Adds a training layout and returns it. The same file, read again, replaces its layout.

    Raises:
      UserError: the name is one of this package's layouts, or another file has registered it.
    """
    before = dict(LAYOUTS).get(layout.name)
    LAYOUTS.add(layout.name, layout, caller())
    if before not in (None, layout):
        jax.clear_caches()  # compiled programs know a layout by its name
    return layout


def blocks_of_drawn_size(key: Array, batch: int, row: int, smallest: int, block_size: int) -> Drawn:
    """A grid of blocks of one size for the whole batch, drawn in smallest .. block_size; its offset is a row's own.

    Returns:
      {"first": int32 [B, N], "size": int32 [B]} as `Layout.blocks_at` takes them. N is static: as many groups of
      block_size slots as the size needs that fills them worst.
    """
    size_key, offset_key = jax.random.split(key)
    size = jax.random.randint(size_key, (), smallest, block_size + 1)
    offset = (jax.random.uniform(offset_key, (batch, 1)) * size).astype(jnp.int32)
    worst = min(block_size // each * each for each in range(smallest, block_size + 1))
    group = jnp.arange(-(-row // worst), dtype=jnp.int32)
    return {"first": offset + group * (block_size // size * size), "size": jnp.broadcast_to(size, (batch,))}


def _anywhere(key: Array, batch: int, row: int, block_size: int) -> Drawn:
    return {"offset": jax.random.randint(key, (batch,), 0, block_size)}


register_layout(
    TrainingLayout(
        "tidar",
        "Every token but a row's first few is drafted once: blocks on a grid whose offset is drawn.",
        _anywhere,
        Layout.tidar,
        random_masking=True,
        splits=True,
    )
)


def _from_the_start(key: Array, batch: int, row: int, block_size: int) -> Drawn:
    return {"first": jnp.zeros((batch, 1), jnp.int32)}


def _whole(tokens: Array, block_size: int, document: Array, first: Array, reveal: Array | None = None) -> Layout:
    return Layout.whole(tokens, document=document, reveal=reveal)


register_layout(
    TrainingLayout(
        "whole",
        "Every document is one block, which sees all of itself and no context: unconstrained masked diffusion.",
        _from_the_start,
        _whole,
        random_masking=True,
        documents=True,
    )
)
