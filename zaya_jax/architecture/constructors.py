"""Rows that training, prefill and decoding run: what makes a `Layout`, as its class methods."""

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from zaya_jax.architecture.visibility import CONTEXT, MASK, PADDING, START
from zaya_jax.errors import UserError

if TYPE_CHECKING:
    from zaya_jax.architecture.layout import Layout

Array = jax.Array


def causal(cls: type["Layout"], tokens: Array, valid: Array | None = None, document: Array | None = None) -> "Layout":
    """Plain autoregressive rows.

    Args:
      tokens: int [B, T].
      valid: bool [B, T], False on padding, which may stand left or right; None for no padding.
      document: int [B, T] >= 0, equal ids stand side by side (packed documents); None for one a row. PADDING
        (-1) marks padding here too.

    Returns:
      A Layout of the same row; positions count from 0 in each document.

    Raises:
      UserError: shapes that differ from tokens'.
    """
    tokens = _as_row(tokens)
    document = _documents(tokens, valid, document)
    position, starts = _positions(document)
    row = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    return cls(
        tokens=tokens,
        position=position,
        document=document,
        horizon=position + 1,
        block=jnp.zeros_like(tokens),
        predecessor=jnp.where(starts, START, row - 1),
        clean_size=tokens.shape[1],
        ordered=True,
    )


def tidar(
    cls: type["Layout"],
    tokens: Array,
    block_size: int,
    offset: Array | int = 0,
    valid: Array | None = None,
    document: Array | None = None,
    reveal: Array | None = None,
) -> "Layout":
    """TiDAR's training rows: [row clean tokens ‖ ceil(row / block_size) blocks] (arXiv 2511.08923, section 3).

    Block b starts after the clean tokens 0 .. offset + b * block_size - 1 of its row and belongs to the document
    that stands at its first slot. Blocks are always whole, as at inference: slots that run past their document's or
    the row's end stay in the row but have no target (`draft_targets`). The first `offset` tokens of a row belong to
    no block, so draw the offset anew for every row and step: at inference blocks start anywhere.

    Args:
      tokens, valid, document: as in `causal`.
      block_size: slots a block, static.
      offset: first block's first row index, int or int [B], in [0, block_size).
      reveal: bool [B, T], True where a mask token shows its token instead of MASK (random masking); None for
        full masking.

    Raises:
      UserError: block_size < 1, a static offset out of range, or shapes that differ from tokens'.
    """
    _check_block_size(block_size)
    if isinstance(offset, (int, np.integer)) and not 0 <= offset < block_size:
        raise UserError(f"offset: got {offset}, may be in [0, block_size = {block_size})")
    tokens = _as_row(tokens)
    first = grid(tokens.shape[0], tokens.shape[1], block_size, offset)[:, ::block_size]
    return cls.blocks_at(tokens, first, block_size, valid, document, reveal).replace(ordered_blocks=True)


def blocks_at(
    cls: type["Layout"],
    tokens: Array,
    first: Array,
    block_size: int,
    valid: Array | None = None,
    document: Array | None = None,
    reveal: Array | None = None,
    size: Array | None = None,
) -> "Layout":
    """Training rows with draft blocks anywhere: [row clean tokens ‖ one block from each of `first` on].

    `tidar` puts them on a grid; a training layout of your own says where else (docs/extending.md#a-new-layout).

    Args:
      first: int [B, N], the row index of each block's first slot. From the row's length on: no block, its
        slots are padding.
      tokens, block_size, valid, document, reveal: as in `tidar`.
      size: int [B] in 1 .. block_size, a run-time value: how many slots a block has. block_size is then the slots
        that are there (static): those from each of `first` on hold block_size // size blocks, one after the other,
        each of the document at its own first slot; what is left of them is padding. None: a block each.

    Raises:
      UserError: block_size < 1, or shapes that differ from tokens'.
    """
    _check_block_size(block_size)
    clean, first = cls.causal(tokens, valid, document), jnp.asarray(first, jnp.int32)
    row = clean.tokens.shape[1]
    if size is not None:
        slot_row, within = slots(first, block_size), jnp.arange(first.shape[1] * block_size) % block_size
        size = jnp.asarray(size, jnp.int32)[:, None]
        start = slot_row - within % size
        drafts = _placed(cls, clean, slot_row, start, within < block_size // size * size, block_size)
        return _joined(clean, drafts if reveal is None else _revealed(clean, drafts, slot_row, reveal))
    inside = first < row

    def at_first(x: Array) -> Array:
        return jnp.take_along_axis(x, jnp.minimum(first, row - 1), axis=1)

    drafts = _draft_slots(
        cls,
        horizon=at_first(clean.position),
        document=jnp.where(inside, at_first(clean.document), PADDING),
        before=at_first(clean.predecessor),
        clean_size=row,
        block_size=block_size,
    )
    if reveal is not None:
        drafts = _revealed(clean, drafts, slots(first, block_size), reveal)
    return _joined(clean, drafts)


def whole(
    cls: type["Layout"],
    tokens: Array,
    valid: Array | None = None,
    document: Array | None = None,
    reveal: Array | None = None,
) -> "Layout":
    """Training rows whose every document is drafted at once: [row clean tokens ‖ row mask tokens].

    A document's mask tokens are one block, which sees all of itself and nothing else: unconstrained masked diffusion
    (LLaDA, arXiv 2502.09992). The layout's block_size is the row's length; `draft_targets` takes first = 0.

    Args:
      tokens, valid, document, reveal: as in `tidar`.

    Raises:
      UserError: shapes that differ from tokens'.
    """
    clean = cls.causal(tokens, valid, document)
    row = clean.tokens.shape[1]
    slot_row = jnp.broadcast_to(jnp.arange(row, dtype=jnp.int32), clean.tokens.shape)
    drafts = _placed(cls, clean, slot_row, slot_row - clean.position, slot_row >= 0, row)
    return _joined(clean, drafts if reveal is None else _revealed(clean, drafts, slot_row, reveal))


def verify_and_draft(
    cls: type["Layout"],
    tokens: Array,
    start: Array | int = 0,
    anchors: Array | tuple[int, ...] | None = None,
    block_size: int = 0,
    count: Array | None = None,
) -> "Layout":
    """Inference rows after `start` cached tokens: [tokens ‖ one block of mask tokens after each anchor].

    Everything a sampler does is an instance: decoding (one token, no anchors), a prompt's prefill (anchor = its
    length), "verify these drafts and draft after every outcome" (TiDAR, section 3.3: anchors 1 .. block_size) and
    a second pass seeded with the pending token (one token, anchor 1).

    Args:
      tokens: int [B, T], the clean tokens at positions start .. start + row - 1.
      start: cached tokens before them, int or int [B]. Must be the cache's length.
      anchors: for each block, after how many of `tokens` it starts (0 .. row; 0 is directly after the cache):
        static ints, or int [B, N]. None for no blocks. Block a covers positions start + a ..
        start + a + block_size - 1.
      block_size: slots a block, static; needed with anchors.
      count: int [B], how many of `tokens` are real; the rest are right padding. None for all.

    Raises:
      UserError: a static anchor out of range, or anchors without a block_size.
    """
    tokens = _as_row(tokens)
    batch, row = tokens.shape
    start = jnp.broadcast_to(jnp.asarray(start, jnp.int32), (batch,))[:, None]
    index = jnp.broadcast_to(jnp.arange(row, dtype=jnp.int32), tokens.shape)
    real = index < (row if count is None else jnp.asarray(count, jnp.int32)[:, None])
    position = start + index
    before_row = jnp.where(start > 0, CONTEXT, START)
    clean = cls(
        tokens=tokens,
        position=position,
        document=jnp.where(real, 0, PADDING),
        horizon=position + 1,
        block=jnp.zeros_like(tokens),
        predecessor=jnp.where(index == 0, before_row, index - 1),
        clean_size=row,
    )
    if anchors is None:
        return clean
    _check_block_size(block_size)
    if isinstance(anchors, (tuple, list)):
        bad = [a for a in anchors if not 0 <= a <= row]
        if bad:
            raise UserError(f"anchors: got {bad[0]}, may be in 0 .. {row} (the clean tokens of the row)")
    anchors = jnp.broadcast_to(jnp.asarray(anchors, jnp.int32), (batch, np.shape(anchors)[-1]))
    return _joined(
        clean,
        _draft_slots(
            cls,
            horizon=start + anchors,
            document=jnp.zeros_like(anchors),
            before=jnp.where(anchors > 0, anchors - 1, before_row),
            clean_size=row,
            block_size=block_size,
        ),
    )


def verify_tree(cls: type["Layout"], tokens: Array, parent: Array, start: Array | int = 0) -> "Layout":
    """Inference rows after `start` cached tokens that continue the text in several ways: a tree.

    Args:
      tokens: int [B, 1 + m]: the root, at position start, then m nodes, each after its parent.
      parent: int32 [B, m], the row (0: the root) of each node's parent; smaller than the node's own.
      start: as in `verify_and_draft`.

    Returns:
      A Layout in which a token sees the cache, its ancestors and itself, and comes after its parent. A tree of one
      branch is `verify_and_draft`'s row.
    """
    tokens = _as_row(tokens)
    batch, rows = tokens.shape
    start = jnp.broadcast_to(jnp.asarray(start, jnp.int32), (batch,))[:, None]
    above = ancestors(parent)
    position = start + above.sum(-1, dtype=jnp.int32) - 1
    size = above.sum(-2, dtype=jnp.int32)  # of the subtree below each token, itself counted
    earlier = jnp.arange(rows) < jnp.arange(rows)[:, None]  # the second index stands before the first
    siblings = earlier[1:, 1:] & (parent[:, None, :] == parent[:, :, None])
    skipped = jnp.pad(jnp.where(siblings, size[:, None, 1:], 0).sum(-1, dtype=jnp.int32), ((0, 0), (1, 0)))
    preorder = jnp.where(above, 1 + skipped[:, None, :], 0).sum(-1, dtype=jnp.int32) - 1
    root = jnp.where(start > 0, CONTEXT, START)
    return cls(
        tokens=tokens,
        position=position,
        document=jnp.zeros_like(tokens),
        horizon=position + 1,
        block=jnp.zeros_like(tokens),
        predecessor=jnp.concatenate([root, parent.astype(jnp.int32)], axis=1),
        clean_size=rows,
        preorder=preorder,
        subtree_end=preorder + size,
    )


def ancestors(parent: Array) -> Array:
    """bool [B, 1 + m, 1 + m]: is the second row the first one's ancestor, or itself? parent: see `verify_tree`."""
    rows = parent.shape[1] + 1
    one_up = jnp.arange(rows) == jnp.pad(parent, ((0, 0), (1, 0)))[..., None]  # the root's is itself
    above = jnp.eye(rows, dtype=bool) | one_up
    for _ in range(max(0, rows - 2).bit_length()):  # each doubles how far it reaches
        steps = above.astype(jnp.float32)
        above = jnp.matmul(steps, steps) > 0
    return above


def _revealed(clean: "Layout", drafts: "Layout", slot_row: Array, reveal: Array) -> "Layout":
    """The mask tokens, those that `reveal` (bool [B, T]) names showing their token; slot_row int32 [B, slots]."""
    row = clean.tokens.shape[1]
    if reveal.shape != clean.tokens.shape:
        raise UserError(f"reveal: got shape {reveal.shape}, may be tokens' shape {clean.tokens.shape}")
    source = jnp.minimum(slot_row, row - 1)
    shown = jnp.take_along_axis(reveal, source, axis=1) & (slot_row < row)
    shown &= jnp.take_along_axis(clean.document, source, axis=1) == drafts.document
    return drafts.replace(tokens=jnp.where(shown, jnp.take_along_axis(clean.tokens, source, axis=1), MASK))


def _placed(
    cls: type["Layout"], clean: "Layout", slot_row: Array, start: Array, exists: Array, block_size: int
) -> "Layout":
    """Mask tokens of blocks of any size, in static groups of `block_size` slots that no block leaves.

    Args:
      slot_row: int32 [B, slots], the row index that each slot stands for; counts up within a block.
      start: int32 [B, slots], that of its block's first slot; no two blocks have the same.
      exists: bool [B, slots]; the others are padding.
    """
    row = clean.tokens.shape[1]
    source = jnp.minimum(start, row - 1)

    def at_start(x: Array) -> Array:
        return jnp.take_along_axis(x, source, axis=1)

    slot = jnp.arange(slot_row.shape[1], dtype=jnp.int32)
    horizon = at_start(clean.position)
    return cls(
        tokens=jnp.full_like(slot_row, MASK),
        position=horizon + slot_row - start,
        document=jnp.where(exists & (start < row), at_start(clean.document), PADDING),
        horizon=horizon,
        block=start + 1,
        predecessor=jnp.where(slot_row == start, at_start(clean.predecessor), row + slot - 1),
        clean_size=0,
        block_size=block_size,
    )


def _joined(clean: "Layout", drafts: "Layout") -> "Layout":
    joined = jax.tree.map(
        lambda a, b: jnp.concatenate([a, b], axis=1),
        clean.replace(clean_size=0, block_size=0),
        drafts.replace(clean_size=0, block_size=0, ordered=clean.ordered),
    )
    return joined.replace(clean_size=clean.clean_size, block_size=drafts.block_size)


def _draft_slots(
    cls: type["Layout"], horizon: Array, document: Array, before: Array, clean_size: int, block_size: int
) -> "Layout":
    """Whole blocks of MASK; arguments int32 [B, N]; `before` is the first slots' predecessor."""
    num_blocks = horizon.shape[1]
    slot = jnp.arange(num_blocks * block_size, dtype=jnp.int32)
    first_slot = slot % block_size == 0

    def spread(x: Array) -> Array:
        return jnp.repeat(x, block_size, axis=1, total_repeat_length=num_blocks * block_size)

    position = slots(horizon, block_size)
    return cls(
        tokens=jnp.full_like(position, MASK),
        position=position,
        document=spread(document),
        horizon=spread(horizon),
        block=jnp.broadcast_to(slot // block_size + 1, position.shape),
        predecessor=jnp.where(first_slot, spread(before), clean_size + slot - 1),
        clean_size=0,
        block_size=block_size,
    )


def grid(batch: int, row: int, block_size: int, offset: Array | int) -> Array:
    """The row index each mask token of a `tidar` row stands for, int32 [B, slots]; may run past the row's end."""
    offset = jnp.broadcast_to(jnp.asarray(offset, jnp.int32), (batch,))
    num_blocks = -(-row // block_size)
    return slots(offset[:, None] + block_size * jnp.arange(num_blocks, dtype=jnp.int32), block_size)


def slots(first: Array, block_size: int) -> Array:
    """int32 [B, N] -> [B, N * block_size], counting up from each first."""
    return (first[:, :, None] + jnp.arange(block_size, dtype=jnp.int32)).reshape(first.shape[0], -1)


def _as_row(tokens: Array) -> Array:
    tokens = jnp.asarray(tokens, jnp.int32)
    if tokens.ndim != 2:
        raise UserError(f"tokens: got shape {tokens.shape}, may be [batch, row]")
    return tokens


def _check_block_size(block_size: int) -> None:
    if not isinstance(block_size, (int, np.integer)) or block_size < 1:
        raise UserError(f"block_size: got {block_size!r}, may be an integer of at least 1")


def _documents(tokens: Array, valid: Array | None, document: Array | None) -> Array:
    for name, value in (("valid", valid), ("document", document)):
        if value is not None and jnp.shape(value) != tokens.shape:
            raise UserError(f"{name}: got shape {jnp.shape(value)}, may be tokens' shape {tokens.shape}")
    document = jnp.zeros_like(tokens) if document is None else jnp.asarray(document, jnp.int32)
    return document if valid is None else jnp.where(jnp.asarray(valid, bool), document, PADDING)


def _positions(document: Array) -> tuple[Array, Array]:
    """Position in the document, and whether a token starts one: int32 and bool [B, T]."""
    starts = jnp.concatenate([jnp.ones_like(document[:, :1], dtype=bool), document[:, 1:] != document[:, :-1]], axis=1)
    row = jnp.arange(document.shape[1], dtype=jnp.int32)
    start_row = jax.lax.cummax(jnp.where(starts, row, 0), axis=1)
    return row - start_row, starts
