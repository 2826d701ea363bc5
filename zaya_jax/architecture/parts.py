"""A row that several devices share: `Layout.part`."""

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from zaya_jax.architecture.visibility import CONTEXT
from zaya_jax.errors import UserError

if TYPE_CHECKING:
    from zaya_jax.architecture.layout import Layout

Array = jax.Array


def part(layout: "Layout", index: Array | int, count: int, axis: tuple[str, ...]) -> "Layout":
    """This device's part of a `causal` or `tidar` row: a piece of the text, and the blocks that start in it.

    What stands before the piece is to it what the cache is to decoding: its first token's predecessor is CONTEXT,
    and the clean keys of all parts (`gather`) are what its queries meet.

    Args:
      index: which part, 0 .. count - 1.
      count: equal parts, static.
      axis: the `shard_map` names that the parts lie along, in order.

    Raises:
      UserError: a row or its blocks that `count` does not divide.
    """
    if layout.clean_size % count or layout.num_blocks % count:
        raise UserError(
            f"row: got {layout.clean_size} tokens and {layout.num_blocks} blocks, may be multiples of {count} parts"
        )
    clean, drafts = layout.clean_size // count, layout.num_blocks // count * layout.block_size
    first, first_draft = index * clean, layout.clean_size + index * drafts

    def cut(x: Array) -> Array:
        pieces = [jax.lax.dynamic_slice_in_dim(x, start, size, axis=1) for start, size in at if size]
        return jnp.concatenate(pieces, axis=1)

    at = ((first, clean), (first_draft, drafts))
    mine = jax.tree.map(cut, layout)
    before = mine.predecessor
    in_clean = jnp.where(before >= first, before - first, CONTEXT)
    in_drafts = before - first_draft + clean
    before = jnp.where(before < 0, before, jnp.where(before < layout.clean_size, in_clean, in_drafts))
    global_keys = layout.clean_rows().keys
    return mine.replace(
        predecessor=before, clean_size=clean, global_keys=global_keys, axis=axis, ordered=False, ordered_blocks=False
    )
