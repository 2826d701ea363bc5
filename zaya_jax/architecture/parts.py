"""A row that several devices share: `Layout.part`.

Later tokens see more, so equal stretches of a text would leave the last device the most attention. Of 2 * count
stretches device i therefore has two, the i-th from the start and the i-th from the end: together every device's queries
see as much as any other's (but for where documents end). A row that does not divide so is cut into count stretches.
"""

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from zaya_jax.architecture.visibility import CONTEXT, SECOND_CONTEXT
from zaya_jax.errors import UserError

if TYPE_CHECKING:
    from zaya_jax.architecture.layout import Layout

Array = jax.Array
BEFORE = (CONTEXT, SECOND_CONTEXT)  # in `predecessor`: what stands before a part's first stretch, before its second


def part(layout: "Layout", index: Array | int, count: int, axis: tuple[str, ...]) -> "Layout":
    """This device's part of a `causal` or `tidar` row: stretches of the text, and the blocks that start in them.

    What stands before a stretch is to it what the cache is to decoding: its first token's predecessor is CONTEXT (of
    the second stretch SECOND_CONTEXT), and the clean keys of all parts (`gather`) are what its queries meet.

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
    stretches = 1 if layout.clean_size % (2 * count) or layout.num_blocks % (2 * count) else 2
    clean = layout.clean_size // (count * stretches)
    drafts = layout.num_blocks // (count * stretches) * layout.block_size
    starts = _starts(index, count, stretches)

    def cut(x: Array) -> Array:
        context = share(x[:, : layout.clean_size], index, count, stretches)
        return jnp.concatenate([context, share(x[:, layout.clean_size :], index, count, stretches)], axis=1)

    mine = jax.tree.map(cut, layout)
    # of each slot its stretch: the first of the stretch's tokens and mask tokens, in the whole row and in this part
    of_slot = jnp.concatenate([jnp.repeat(jnp.arange(stretches), size) for size in (clean, drafts)])
    at = jnp.stack(starts)[of_slot]
    first, first_draft = at * clean, layout.clean_size + at * drafts
    here, here_draft = of_slot * clean, stretches * clean + of_slot * drafts
    before = mine.predecessor
    in_clean = jnp.where(before >= first, before - first + here, jnp.array(BEFORE)[of_slot])
    in_drafts = before - first_draft + here_draft
    before = jnp.where(before < 0, before, jnp.where(before < layout.clean_size, in_clean, in_drafts))
    return mine.replace(
        predecessor=before, clean_size=stretches * clean, global_keys=layout.clean_rows().keys, axis=axis,
        stretches=stretches, ordered=False, ordered_blocks=False,
    )  # fmt: skip


def share(x: Array, index: Array | int, count: int, stretches: int) -> Array:
    """A part's share of x [B, S, ...] along a whole row's context tokens, or its mask tokens."""
    size = x.shape[1] // (count * stretches)
    pieces = [jax.lax.dynamic_slice_in_dim(x, at * size, size, axis=1) for at in _starts(index, count, stretches)]
    return jnp.concatenate(pieces, axis=1)


def gather(layout: "Layout", x: Array) -> Array:
    """x [B, clean_size, ...] of this part's context tokens -> of all parts' [B, count * clean_size, ...], as in the
    text."""
    if not layout.axis:
        return x
    everything = jax.lax.all_gather(x, layout.axis, axis=1, tiled=True)
    if layout.stretches == 1:
        return everything
    count = jax.lax.axis_size(layout.axis)
    by_part = everything.reshape(x.shape[0], count, 2, -1, *x.shape[2:])
    in_text = jnp.concatenate([by_part[:, :, 0], by_part[:, ::-1, 1]], axis=1)
    return in_text.reshape(everything.shape)


def before_stretches(newest: list[Array], axis: tuple[str, ...]) -> list[Array]:
    """What stands before each of this part's stretches, of what is newest at the end of each; zeros before the text.

    Args:
      newest: an array for each stretch, in order.
    """
    count, index = jax.lax.axis_size(axis), jax.lax.axis_index(axis)
    # rings, for `jax.vmap` takes no other permutations; what closes them is not used
    first = jax.lax.ppermute(newest[0], axis, [(i, (i + 1) % count) for i in range(count)])
    first = jnp.where(index == 0, 0, first)
    if len(newest) == 1:
        return [first]
    # backwards from the last part, whose second stretch follows its own first one
    second = jax.lax.ppermute(newest[1], axis, [((i + 1) % count, i) for i in range(count)])
    return [first, jnp.where(index == count - 1, newest[0], second)]


def _starts(index: Array | int, count: int, stretches: int) -> list[Array]:
    """Which stretches of the text a part has."""
    return [jnp.asarray(index), 2 * count - 1 - jnp.asarray(index)][:stretches]
