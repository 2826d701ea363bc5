"""Targets of training rows: methods of `Layout`."""

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from zaya_jax.architecture.constructors import grid, slots
from zaya_jax.architecture.visibility import MASK, PADDING

if TYPE_CHECKING:
    from zaya_jax.architecture.layout import Layout

Array = jax.Array


def clean_targets(layout: "Layout", scored: Array | None = None) -> tuple[Array, Array]:
    """Next-token targets of the context tokens: (ids, has_target), int32 and bool [B, clean_size].

    The last token of a document and padding have none.

    Args:
      scored: bool [B, clean_size], the clean tokens that may be targets; None for all.
    """
    clean = layout.clean_rows()
    following = jnp.concatenate([clean.document[:, 1:], jnp.full_like(clean.document[:, :1], PADDING)], axis=1)
    has = (clean.document != PADDING) & (following == clean.document)
    ids = jnp.concatenate([clean.tokens[:, 1:], clean.tokens[:, :1]], axis=1)
    if scored is not None:
        has &= jnp.concatenate([scored[:, 1:], scored[:, :1]], axis=1)
    return jnp.where(has, ids, 0), has


def draft_targets(
    layout: "Layout", offset: Array | int = 0, scored: Array | None = None, first: Array | None = None
) -> tuple[Array, Array]:
    """Same-position targets of the mask tokens of a `tidar` row: (ids, has_target) [B, N * block_size].

    A slot has one iff it is MASK and its position exists in its document; so nothing is asked of slots beyond the
    document's end, of revealed slots and of padding.

    Args:
      offset, first: what `tidar` or `blocks_at` was given.
      scored: as in `clean_targets`.
    """
    clean, drafts = layout.clean_rows(), layout.draft_rows()
    slot_row = _slot_row(layout, offset, first)
    source = jnp.minimum(slot_row, layout.clean_size - 1)
    has = (slot_row < layout.clean_size) & (drafts.document != PADDING) & (drafts.tokens == MASK)
    has &= jnp.take_along_axis(clean.document, source, axis=1) == drafts.document
    if scored is not None:
        has &= jnp.take_along_axis(scored, source, axis=1)
    return jnp.where(has, jnp.take_along_axis(clean.tokens, source, axis=1), 0), has


def draft_teachers(layout: "Layout", offset: Array | int = 0, first: Array | None = None) -> tuple[Array, Array]:
    """The clean row slot whose AR distribution is of each mask token's position: (index, there is one).

    int32 and bool [B, N * block_size]. None at a document's first token.

    Args:
      offset, first: what `tidar` or `blocks_at` was given.
    """
    slot_row = _slot_row(layout, offset, first)
    source = jnp.clip(slot_row - 1, 0, layout.clean_size - 1)
    same = jnp.take_along_axis(layout.clean_rows().document, source, axis=1) == layout.draft_rows().document
    return source, same & (slot_row > 0)


def draft_sources(layout: "Layout", offset: Array | int = 0, first: Array | None = None) -> Array:
    """The clean row slot that each mask token stands for, int32 [B, N * block_size]; beyond the row's end its last.

    Args:
      offset, first: what `tidar` or `blocks_at` was given.
    """
    return jnp.minimum(_slot_row(layout, offset, first), layout.clean_size - 1)


def _slot_row(layout: "Layout", offset: Array | int, first: Array | None) -> Array:
    """The clean row index that each mask token stands for."""
    if first is not None:
        return slots(jnp.asarray(first, jnp.int32), layout.block_size)
    return grid(layout.tokens.shape[0], layout.clean_size, layout.block_size, offset)
