"""Softmax attention of a row's queries over [context ‖ own block], never over the whole row.

`visible` allows a key in a block to its own block alone, so scores between two blocks need not exist. Every query meets
the clean keys (the cache, or the row's context tokens); mask tokens also meet the block_size slots of their own block,
and both parts share one softmax. For a TiDAR training row of 2N slots that is 2N·N + N·block_size pairs, not (2N)².

Scores and the softmax's sums are in at least float32, whatever the dtype of queries, keys and values; weights are
rounded to the values' dtype for their product, and the output once (`precision`).
"""

import jax
import jax.numpy as jnp
import numpy as np

from zaya_jax.architecture.attention.tiled import Visibility, attend_tiles, executed_pairs, tile_sizes, visible_pairs
from zaya_jax.architecture.layout import Keys, Layout, visible
from zaya_jax.architecture.precision import product

Array = jax.Array

PIECES, LEAST_TO_SPLIT = 4, 64  # an ordered row is cut so, which saves 3/8 of its scores, unless it is shorter


def attend(
    query: Array,
    layout: Layout,
    context: tuple[Array, Array],
    context_keys: Keys,
    own: tuple[Array, Array],
    window: Array | None,
    query_chunk: int,
    tiles: bool = False,
    cached: bool = False,
) -> Array:
    """Attention for all rows of a layout.

    A row whose scores fit what `query_chunk` allows is computed directly (`is_small`); a longer one tile by tile.

    Args:
      query: [B, T, H, D].
      layout: the row's; context tokens first, then whole blocks.
      context: keys and values every row may meet, [B, S, K, D] each: the row's own context
        tokens, or more than those (a cache, or other devices' share of a row).
      context_keys: their visibility fields [B, S].
      own: keys and values of the mask tokens, [B, N * block_size, K, D] each.
      window: see `visible`.
      query_chunk: bounds the memory of scores, see `is_small` and `tile_sizes`.
      tiles: tile by tile, however short the row. On one CPU thread faster in training: tiles stay in its cache.
      cached: the context is a cache: few queries, many keys. A GPU then reads it once for both kinds of slots.

    Returns:
      [B, T, H, D].
    """
    if tiles or not is_small(query.shape[1], context[0].shape[1], query_chunk):
        seen = Visibility(layout, context_keys, None if window is None else jnp.asarray(window, jnp.int32))
        return attend_tiles(query, context, own, seen, tile_sizes(query_chunk))
    clean, both = layout.clean_size, 0 < layout.clean_size < query.shape[1]

    def by_kind(query: Array, context: tuple[Array, Array], own: tuple[Array, Array]) -> Array:
        kinds = [(query[:, :clean], layout.clean_rows(), None), (query[:, clean:], layout.draft_rows(), own)]
        parts = [_direct(*kind, context, context_keys, window) for kind in kinds if kind[0].size]
        return jnp.concatenate(parts, axis=1)

    def at_once(query: Array, context: tuple[Array, Array], own: tuple[Array, Array]) -> Array:
        return _at_once(query, layout, context, context_keys, window, own, clean)

    if not cached or not both:
        return by_kind(query, context, own)
    return jax.lax.platform_dependent(query, context, own, cpu=by_kind, default=at_once)


def _direct(query, rows, own, context, context_keys, window):
    """All context tokens (own: None) or all mask tokens, their scores computed in a few large products.

    Slots of an ordered layout stand as its context tokens do: a piece of them meets the context up to its own end
    alone. The backward pass computes the scores again instead of keeping them.
    """
    length, unit = query.shape[1], rows.block_size or 1
    pieces = PIECES if rows.ordered and length >= LEAST_TO_SPLIT else 1
    side = -(-length // (pieces * unit)) * unit

    def cut(tree, start: int, end: int | None):
        return jax.tree.map(lambda x: x[:, start:end], tree)

    def piece(start: int) -> Array:
        met = start + side if rows.ordered else None
        mine, own_mine = (cut(x, start, start + side) for x in (query, own))
        part, keys = cut(rows, start, start + side), cut(context_keys, 0, met)
        if own is None:
            return jax.checkpoint(_over_context)(mine, part, cut(context, 0, met), keys, window)
        return jax.checkpoint(_with_own_block)(mine, part, cut(context, 0, met), keys, window, own_mine)

    return jnp.concatenate([piece(start) for start in range(0, length, side)], axis=1)


def is_small(row: int, context: int, query_chunk: int) -> bool:
    """Whether `attend` computes all scores at once: no more of them than a training row of query_chunk context tokens
    has.

    So does decoding with any usual cache: few rows, and no tables to make for them.
    """
    return row * context <= 2 * query_chunk**2


def attend_dense(query: Array, key: Array, value: Array, layout: Layout, window: Array | None) -> Array:
    """The reference implementation of `attend` for a row without cache: the row x row mask, spelled out."""
    heads, dim = query.shape[2:]
    groups = heads // key.shape[2]
    key, value = (jnp.repeat(x, groups, axis=2) for x in (key, value))
    scores = product("bqhd,bkhd->bhqk", query, key) * dim**-0.5  # [B, H, T, T]
    scores = jnp.where(layout.visibility(window)[:, None], scores, _lowest(scores))
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return product("bhqk,bkhd->bqhd", weights, value).astype(query.dtype)


def count_pairs(layout: Layout, window: int | None, query_chunk: int, context_keys: Keys | None = None) -> dict:
    """How many scores of one head `attend` computes for these rows, and how many of them anybody sees.

    Args:
      layout, window, query_chunk, context_keys: as `attend` takes them; None for context_keys is a row without cache.

    Returns:
      {"executed", "visible"}: pairs of a query and a key, summed over the batch. Padding sees nothing.
    """
    keys = layout.clean_rows().keys if context_keys is None else context_keys
    seen = Visibility(layout, keys, None if window is None else jnp.int32(window))
    (batch, row), context = layout.document.shape, keys.document.shape[1]
    own = batch * layout.num_blocks * layout.block_size**2
    if is_small(row, context, query_chunk):
        executed = batch * row * context
    else:
        executed = executed_pairs(seen, tile_sizes(query_chunk))
    return {"executed": executed + own, "visible": visible_pairs(seen)}


def _over_context(query, rows, context, context_keys, window):
    """Queries that see the context alone (context tokens)."""
    scores = _scores(query, context[0], visible(rows, context_keys, window))
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    return (_mix(weights, context[1]) / _total(weights)).astype(query.dtype)


def _with_own_block(query, rows, context, context_keys, window, own, clean=0):
    """Queries that see the context and their own block (mask tokens), under one softmax.

    The first `clean` of them (static) are context tokens, which have no block.
    """
    size, drafts = rows.block_size, query.shape[1] - clean
    batch, kv_heads, dim = own[0].shape[0], own[0].shape[2], own[0].shape[3]
    blocks = rows.blocks()

    def by_block(x):
        return x.reshape(batch, -1, size, *x.shape[2:])

    own_key, own_value = (by_block(x) for x in own)  # [B, N, size, K, D]
    scores = _scores(query, context[0], visible(rows, context_keys, window))  # [B, K, G, T, S]
    grouped = by_block(query[:, clean:].reshape(batch, drafts, kv_heads, -1, dim))  # [B, N, size, K, G, D]
    own_scores = product("bnqkgd,bnjkd->bkgnqj", grouped, own_key) * dim**-0.5  # [B, K, G, N, size, size]
    allowed = visible(blocks, blocks.keys, window)[:, None, None]
    own_scores = jnp.where(allowed, own_scores, _lowest(own_scores)).reshape(*scores.shape[:3], drafts, size)
    top = scores.max(-1, keepdims=True)
    own_top = jnp.maximum(top[..., clean:, :], own_scores.max(-1, keepdims=True))
    top = jax.lax.stop_gradient(jnp.concatenate([top[..., :clean, :], own_top], axis=-2) if clean else own_top)
    weights, own_weights = jnp.exp(scores - top), jnp.exp(own_scores - top[..., clean:, :])
    own_mix = product(
        "bkgnqj,bnjkd->bnqkgd",
        own_weights.reshape(batch, kv_heads, -1, drafts // size, size, size).astype(query.dtype),
        own_value,
    ).reshape(batch, drafts, *query.shape[2:])
    mixed, total = _mix(weights, context[1]), _total(weights)
    if not clean:
        return ((mixed + own_mix) / (total + _total(own_weights))).astype(query.dtype)
    mixed, total = mixed.at[:, clean:].add(own_mix), total.at[:, clean:].add(_total(own_weights))
    return (mixed / total).astype(query.dtype)


# of a GPU; traced once for all programs that ask for these shapes: a CPU's never run it
_at_once = jax.jit(_with_own_block, static_argnames="clean")


def _scores(query: Array, key: Array, allowed: Array) -> Array:
    """[B, K, G, T, S]: scaled, masked, in at least float32.

    The query heads that share a key head are folded into the rows of one matrix product.
    """
    batch, rows, heads, dim = query.shape
    kv_heads = key.shape[2]
    folded = query.reshape(batch, rows, kv_heads, heads // kv_heads, dim).transpose(0, 2, 3, 1, 4)
    folded = folded.reshape(batch, kv_heads, -1, dim)  # [B, K, G * T, D]
    if folded.shape[2] < dim:
        # XLA's CPU transposes the second factor of such a product: the queries, where they are few
        scores = jnp.swapaxes(product("bskd,bkqd->bksq", key, folded), 2, 3) * dim**-0.5
    else:
        scores = product("bkqd,bskd->bkqs", folded, key) * dim**-0.5
    scores = scores.reshape(batch, kv_heads, heads // kv_heads, rows, -1)
    return jnp.where(allowed[:, None, None], scores, _lowest(scores))


def _mix(weights: Array, value: Array) -> Array:
    """[B, K, G, T, S] x [B, S, K, D] -> [B, T, H, D], wide."""
    batch, kv_heads, groups, rows, keys = weights.shape
    folded = weights.reshape(batch, kv_heads, groups * rows, keys).astype(value.dtype)  # [B, K, G * T, S]
    mixed = product("bkqs,bskd->bkqd", folded, value).reshape(batch, kv_heads, groups, rows, -1)
    return mixed.transpose(0, 3, 1, 2, 4).reshape(batch, rows, kv_heads * groups, -1)


def _total(weights: Array) -> Array:
    """The softmax's denominator, [B, T, H, 1]."""
    batch, kv_heads, groups, rows, _ = weights.shape
    return weights.sum(-1).transpose(0, 3, 1, 2).reshape(batch, rows, kv_heads * groups, 1)


def _lowest(scores: Array) -> np.floating:
    """Finite, so that a padding row that sees nothing stays finite; exp(lowest - top) is exactly 0."""
    return jnp.finfo(scores.dtype).min
