"""Softmax attention of a row's queries over [context ‖ own block], never over the whole row.

`visible` allows a key in a block to its own block alone, so scores between two blocks need not exist. Every query meets
the clean keys (the cache, or the row's clean slots); draft slots also meet the block_size slots of their own block, and
both parts share one softmax. For a TiDAR training row of 2N slots that is 2N·N + N·block_size pairs, not (2N)².
"""

import jax
import jax.numpy as jnp
import numpy as np

from zaya_jax.architecture.layout import Keys, Layout, visible

Array = jax.Array


def attend(
    query: Array,
    layout: Layout,
    context: tuple[Array, Array],
    context_keys: Keys,
    own: tuple[Array, Array],
    window: Array | None,
    query_chunk: int,
) -> Array:
    """Attention for all rows of a layout.

    Args:
      query: [batch, row, head, head_dim].
      layout: the row's; clean slots first, then whole blocks.
      context: keys and values every row may meet, [batch, context, kv_head, head_dim] each.
      context_keys: their visibility fields [batch, context].
      own: keys and values of the draft slots, [batch, num_blocks * block_size, kv_head, head_dim] each.
      window: see `visible`.
      query_chunk: queries whose scores exist at once.

    Returns:
      [batch, row, head, head_dim].
    """
    clean = layout.clean_size
    out = []
    if clean:
        out.append(_over_context(query[:, :clean], layout.clean_rows(), context, context_keys, window, query_chunk))
    if layout.num_blocks:
        out.append(_with_own_block(query[:, clean:], layout, context, context_keys, own, window, query_chunk))
    return jnp.concatenate(out, axis=1) if len(out) > 1 else out[0]


def attend_dense(query: Array, key: Array, value: Array, layout: Layout, window: Array | None) -> Array:
    """The slow twin of `attend` for a row without cache: the row x row mask, spelled out."""
    heads, dim = query.shape[2:]
    groups = heads // key.shape[2]
    key, value = (jnp.repeat(x, groups, axis=2) for x in (key, value))
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) * dim**-0.5
    scores = jnp.where(layout.visibility(window)[:, None], _wide(scores), _lowest(scores))
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores, axis=-1).astype(value.dtype), value)


def _over_context(query, rows, context, context_keys, window, query_chunk):
    """Queries that see the context alone (clean slots)."""

    def chunk(query, rows):
        scores = _scores(query, context[0], visible(rows, context_keys, window))
        weights = jnp.exp(scores - scores.max(-1, keepdims=True))
        return (_mix(weights, context[1]) / _total(weights)).astype(query.dtype)

    return _chunked(chunk, query, rows, query_chunk)


def _with_own_block(query, layout, context, context_keys, own, window, query_chunk):
    """Queries that see the context and their own block (draft slots), under one softmax."""
    size = layout.block_size
    batch, kv_heads, dim = own[0].shape[0], own[0].shape[2], own[0].shape[3]
    own_keys = layout.blocks().keys

    def by_block(x):
        return x.reshape(batch, -1, size, *x.shape[2:])

    def chunk(query, rows, own_key, own_value, own_keys):
        scores = _scores(query, context[0], visible(rows, context_keys, window))
        blocks = jax.tree.map(by_block, rows)
        grouped = by_block(query.reshape(*query.shape[:2], kv_heads, -1, dim))
        own_scores = jnp.einsum("bnqkgd,bnjkd->bkgnqj", grouped, own_key) * dim**-0.5
        allowed = visible(blocks, own_keys, window)[:, None, None]
        own_scores = jnp.where(allowed, _wide(own_scores), _lowest(own_scores)).reshape(*scores.shape[:-1], size)
        top = jnp.maximum(scores.max(-1, keepdims=True), own_scores.max(-1, keepdims=True))
        weights, own_weights = jnp.exp(scores - top), jnp.exp(own_scores - top)
        own_mix = jnp.einsum(
            "bkgnqj,bnjkd->bnqkgd",
            own_weights.reshape(batch, kv_heads, -1, query.shape[1] // size, size, size).astype(query.dtype),
            own_value,
        ).reshape(query.shape)
        mixed = (_mix(weights, context[1]) + own_mix) / (_total(weights) + _total(own_weights))
        return mixed.astype(query.dtype)

    # chunks hold whole blocks
    return _chunked(
        chunk, query, layout.draft_rows(), max(1, query_chunk // size) * size,
        by_block(own[0]), by_block(own[1]), own_keys, block_size=size,
    )  # fmt: skip


def _chunked(f, query, rows, chunk_size, *block_args, block_size=1):
    """f over chunks of queries; block_args ([batch, block, ...]) are cut alongside, a block for block_size queries."""
    row = query.shape[1]
    if row <= chunk_size:
        return f(query, rows, *block_args)
    whole = row // chunk_size * chunk_size

    def cut(x, per_query):
        size = chunk_size // per_query
        return jnp.moveaxis(x[:, : whole // per_query].reshape(x.shape[0], -1, size, *x.shape[2:]), 1, 0)

    head = (
        *jax.tree.map(lambda x: cut(x, 1), (query, rows)),
        *jax.tree.map(lambda x: cut(x, block_size), block_args),
    )
    # Without the checkpoint the backward pass would keep every chunk's scores: the row x context matrix again.
    done = jax.lax.map(jax.checkpoint(lambda args: f(*args)), head)
    done = jnp.moveaxis(done, 0, 1).reshape(query.shape[0], whole, *query.shape[2:])
    if whole == row:
        return done
    rest = jax.tree.map(lambda x: x[:, whole:], (query, rows))
    rest_blocks = jax.tree.map(lambda x: x[:, whole // block_size :], block_args)
    return jnp.concatenate([done, f(*rest, *rest_blocks)], axis=1)


def _scores(query: Array, key: Array, allowed: Array) -> Array:
    """[batch, kv_head, group, query, key]: scaled, masked, in at least float32.

    The query heads that share a key head are folded into the rows of one matrix product.
    """
    batch, rows, heads, dim = query.shape
    kv_heads = key.shape[2]
    folded = query.reshape(batch, rows, kv_heads, heads // kv_heads, dim).transpose(0, 2, 3, 1, 4)
    folded = folded.reshape(batch, kv_heads, -1, dim)
    scores = jnp.einsum("bkqd,bskd->bkqs", folded, key) * dim**-0.5
    scores = scores.reshape(batch, kv_heads, heads // kv_heads, rows, -1)
    return jnp.where(allowed[:, None, None], _wide(scores), _lowest(scores))


def _mix(weights: Array, value: Array) -> Array:
    """[batch, kv_head, group, query, key] x [batch, key, kv_head, head_dim] -> [batch, query, head, head_dim]."""
    batch, kv_heads, groups, rows, keys = weights.shape
    folded = weights.reshape(batch, kv_heads, groups * rows, keys).astype(value.dtype)
    mixed = jnp.einsum("bkqs,bskd->bkqd", folded, value).reshape(batch, kv_heads, groups, rows, -1)
    return mixed.transpose(0, 3, 1, 2, 4).reshape(batch, rows, kv_heads * groups, -1)


def _total(weights: Array) -> Array:
    """The softmax's denominator, [batch, query, head, 1]."""
    batch, kv_heads, groups, rows, _ = weights.shape
    return weights.sum(-1).transpose(0, 3, 1, 2).reshape(batch, rows, kv_heads * groups, 1)


def _wide(scores: Array) -> Array:
    return scores.astype(jnp.promote_types(scores.dtype, jnp.float32))


def _lowest(scores: Array) -> np.floating:
    """Finite, so that a padding row that sees nothing stays finite; exp(lowest - top) is exactly 0."""
    return jnp.finfo(_wide(scores).dtype).min
