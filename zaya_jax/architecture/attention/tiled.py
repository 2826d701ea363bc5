"""Attention in memory linear in the row: tiles of queries x keys, one after the other, those that see nothing left out.

Which tiles those are is read from the layout at run time (`table`): from bounds on each tile's documents, positions and
horizons. The bounds only ever save work. Inside a tile `visible` decides, as everywhere. One softmax over a query's own
block and its context is built up tile by tile (the largest score, the denominator and the weighted sum of values so
far; arXiv 1805.02867, 2205.14135); the backward pass keeps only the output and the log of the denominator and computes
scores again.

A loop over a list of tiles, with no axis for the batch: packed documents differ from row to row, so do the tiles.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zaya_jax.architecture.layout import PADDING, Keys, Layout, visible
from zaya_jax.architecture.precision import product, wide_dtype
from zaya_jax.architecture.visibility import NO_TREE

Array = jax.Array
FAR = 2**30 - 1  # beyond every document id, position and horizon; differences of two still fit int32


class Visibility(NamedTuple):
    """All that decides who sees whom, in one argument that has no gradient."""

    rows: Layout  # fields [B, T]
    keys: Keys  # of the context: fields [B, S]
    window: Array | None


class Table(NamedTuple):
    """What is known of each tile before it is computed, bool [B, T tiles, S tiles]."""

    needed: Array  # False: no query that is not padding sees any key
    whole: Array  # every query sees every key


def tile_sizes(query_chunk: int) -> tuple[int, int, int]:
    """Tile sides, largest first: a half, a quarter and an eighth of query_chunk.

    Tiles in which all is visible are large: few, with big products, and no mask. Where something is hidden small ones
    waste less. Twice the size is slower on CPU, whose cache holds a tile's scores.
    """
    small = max(1, query_chunk // 8)
    return 4 * small, 2 * small, small


def table(seen: Visibility, size: int) -> Table:
    """Bounds every tile of `size` queries x `size` keys; both axes must be multiples of `size`."""
    rows, keys = (jax.tree.map(lambda x: x.reshape(x.shape[0], -1, size), fields) for fields in seen[:2])
    query, key = _groups(rows.document), _groups(keys.document)

    def low(x: Array, members: Array) -> Array:
        return jnp.where(members, x, FAR).min(-1)

    def high(x: Array, members: Array) -> Array:
        return jnp.where(members, x, -FAR).max(-1)

    def q(x: Array) -> Array:
        return x[:, None, ..., :, None]

    def k(x: Array) -> Array:
        return x[None, :, ..., None, :]

    needed = q(low(rows.document, query)) <= k(high(keys.document, key))
    needed &= q(high(rows.document, query)) >= k(low(keys.document, key))
    # the context is clean; were it not, nothing would be known from the horizon
    needed &= (q(high(rows.horizon, query)) > k(low(keys.position, key))) | k(((keys.block != 0) & key).any(-1))
    # a tile of one document is all in its first group
    one_query, one_key = query[:1], key[:1]
    whole = q(one_query.all(-1)) & k(one_key.all(-1) & (keys.block == 0).all(-1))
    whole &= q(low(rows.document, one_query)) == k(low(keys.document, one_key))
    whole &= q(low(rows.horizon, one_query)) > k(high(keys.position, one_key))
    if keys.subtree_end is not None:
        whole &= k((keys.subtree_end == NO_TREE).all(-1))
    if seen.window is not None:
        needed &= q(low(rows.position, query)) - k(high(keys.position, key)) < seen.window
        whole &= q(high(rows.position, one_query)) - k(low(keys.position, one_key)) < seen.window
    return Table(needed.any((0, 1)), whole[0, 0])


def _groups(document: Array) -> Array:
    """[B, tile, member] -> bool [3, B, tile, member]: a tile's first document, its last, and the rest.

    Bounded separately, since a tile in which a long document ends and another starts has wide bounds on everything,
    while documents between the two are no longer than the tile. Padding is in no group.
    """
    real = document != PADDING
    index = jnp.argmax(real, -1), document.shape[-1] - 1 - jnp.argmax(real[..., ::-1], -1)
    first, last = (document == jnp.take_along_axis(document, i[..., None], -1) for i in index)
    return jnp.stack([first & real, last & ~first & real, ~first & ~last & real])


def worklist(seen: Visibility, sizes: tuple[int, ...]) -> list[tuple[Array, Array]]:
    """The tiles to compute, for each size: ([B, T tiles, S tiles] flattened indices, how many of them count).

    A tile is computed at the largest size at which all of it is visible; what is left, at the smallest, where needed.
    """
    batch, row, context = *seen.rows.document.shape, seen.keys.document.shape[1]
    out, done = [], jnp.zeros((batch, 1, 1), bool)
    for size in sizes:
        tiles = (row // size, context // size)
        done = jnp.repeat(jnp.repeat(done, tiles[0] // done.shape[1], 1), tiles[1] // done.shape[2], 2)
        known = table(seen, size)
        todo = (known.needed if size == sizes[-1] else known.whole) & ~done
        done |= todo
        (order,) = jnp.nonzero(todo.reshape(-1), size=todo.size, fill_value=0)
        out.append((order.astype(jnp.int32), todo.sum(dtype=jnp.int32)))
    return out


def executed_pairs(seen: Visibility, sizes: tuple[int, ...]) -> int:
    """Scores of one head that `attend_tiles` computes between the rows and the context."""
    return sum(int(count) * size**2 for size, count in zip(sizes, _listed_tiles(seen, sizes), strict=True))


@functools.partial(jax.jit, static_argnums=1)
def _listed_tiles(seen: Visibility, sizes: tuple[int, ...]) -> list[Array]:
    """How many tiles of each size are computed."""
    return [count for _, count in worklist(_whole_tiles(seen, sizes[0]), sizes)]


def visible_pairs(seen: Visibility) -> int:
    """Pairs of a query that is not padding and a key that it sees, in the context or in its own block."""
    return sum(int(np.asarray(x, np.int64).sum()) for x in _seen_by_query(seen))


@jax.jit
def _seen_by_query(seen: Visibility) -> list[Array]:
    """How many keys each query sees, int32: in the context; in its own block, where there are blocks."""

    def seen_by(rows: Layout, keys: Keys) -> Array:
        return _allowed(rows, keys, seen.window).sum(-1, dtype=jnp.int32)

    # one query at a time of every batch row: no mask of the whole row
    by_query = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0)[..., None], seen.rows)
    counts = [jax.lax.map(lambda rows: seen_by(rows, seen.keys), by_query, batch_size=64)]
    if seen.rows.num_blocks:
        blocks = seen.rows.blocks()
        counts.append(seen_by(blocks, blocks.keys))
    return counts


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def attend_tiles(
    query: Array, context: tuple[Array, Array], own: tuple[Array, Array], seen: Visibility, sizes: tuple[int, ...]
) -> Array:
    """`attention.attend`, tile by tile. Rows of padding give 0, and so does a row that sees nothing.

    Args:
      query: [B, T, H, D].
      context, own: as `attend` takes them.
      seen: the row's layout, the context's fields and the layer's window.
      sizes: tile sides, largest first, each a multiple of the next.
    """
    return _forward(query, context, own, seen, sizes)[0]


def _forward(query, context, own, seen, sizes):
    """(output, log of the softmax's denominator [B, T, K, G])."""
    grouped, context, padded = _padded(query, context, seen, sizes[0])
    wide = wide_dtype(query.dtype)
    state = _with_own_blocks(grouped, own, seen, wide)

    def tile(at: "_Tile", masked: bool, state):
        scores = at.scores(at.queries(grouped), at.keys(context[0]), padded if masked else None, wide)  # [K, member, S]
        top, total, mixed = (at.queries(x) for x in state)
        new_top = jnp.maximum(top, scores.max(-1))
        weights = jnp.exp(scores - new_top[..., None])
        shrink = jnp.exp(top - new_top)
        total = total * shrink + weights.sum(-1)
        value = at.keys(context[1])
        more = product("@", weights.astype(value.dtype), value)
        mixed = mixed * shrink[..., None] + more
        return tuple(at.put_queries(x, new) for x, new in zip(state, (new_top, total, mixed), strict=True))

    top, total, mixed = (x[:, : query.shape[1]] for x in _each_tile(tile, state, padded, sizes))
    total = jnp.where(total > 0, total, 1)
    return (mixed / total[..., None]).astype(query.dtype).reshape(query.shape), top + jnp.log(total)


def _forward_rule(query, context, own, seen, sizes):
    out, log_total = _forward(query, context, own, seen, sizes)
    return out, (query, context, own, seen, out, log_total)


def _backward_rule(sizes, saved, gradient):
    query, context, own, seen, out, log_total = saved
    wide = wide_dtype(query.dtype)
    inner = (gradient.astype(wide) * out.astype(wide)).sum(-1).reshape(log_total.shape)
    own_query, own_gradients = _own_blocks_backward(query, own, seen, gradient, log_total, inner)

    shape, length = own_query.shape, context[0].shape[1]
    grouped, context, padded = _padded(query, context, seen, sizes[0])
    own_query, gradient, log_total, inner = (
        _fill(x, grouped.shape[1]) for x in (own_query, gradient.reshape(shape), log_total, inner)
    )
    state = (own_query, *(jnp.zeros(x.shape, wide) for x in context))

    def tile(at: "_Tile", masked: bool, state):
        query, key, value, out = at.queries(grouped), *(at.keys(x) for x in context), at.queries(gradient)
        scores = at.scores(query, key, padded if masked else None, wide)
        weights = jnp.exp(scores - at.queries(log_total)[..., None])
        slope = product("kqd,ksd->kqs", out, value)
        slope = weights * (slope - at.queries(inner)[..., None]) * query.shape[-1] ** -0.5
        slope, weights = slope.astype(query.dtype), weights.astype(query.dtype)
        more_query = product("@", slope, key)
        # Transposing the small factors and not the scores is five times faster on CPU.
        more_key, more_value = (
            product("@", small.swapaxes(1, 2), scores).swapaxes(1, 2)
            for small, scores in ((query, slope), (out, weights))
        )
        return (
            at.put_queries(state[0], at.queries(state[0]) + more_query),
            at.put_keys(state[1], at.keys(state[1]) + more_key),
            at.put_keys(state[2], at.keys(state[2]) + more_value),
        )

    dq, dk, dv = _each_tile(tile, state, padded, sizes)
    dq = dq[:, : query.shape[1]].reshape(query.shape)
    context_gradients = tuple(x[:, :length].astype(like.dtype) for x, like in zip((dk, dv), context, strict=True))
    return dq.astype(query.dtype), context_gradients, own_gradients, None


attend_tiles.defvjp(_forward_rule, _backward_rule)


class _Tile(NamedTuple):
    """Where one tile stands, and how to read and write its part of arrays with leading axes [B, T or S].

    Inside a tile the key heads come first. Each has its own matrix products, whose rows are the queries of its whole
    group of heads ("member" below: query * groups + group).
    """

    batch: Array
    first_query: Array
    first_key: Array
    size: int

    def _get(self, x: Array, first: Array) -> Array:
        start = (self.batch, first, *(jnp.int32(0),) * (x.ndim - 2))
        return jax.lax.dynamic_slice(x, start, (1, self.size, *x.shape[2:]))[0]

    def _put(self, x: Array, tile: Array, first: Array) -> Array:
        return jax.lax.dynamic_update_slice(x, tile[None], (self.batch, first, *(jnp.int32(0),) * (x.ndim - 2)))

    def queries(self, x: Array) -> Array:
        """[B, T, K, G, ...] -> [K, member, ...]."""
        x = self._get(x, self.first_query).swapaxes(0, 1)
        return x.reshape(x.shape[0], -1, *x.shape[3:])

    def keys(self, x: Array) -> Array:
        """[B, S, K, ...] -> [K, S, ...]."""
        return self._get(x, self.first_key).swapaxes(0, 1)

    def put_queries(self, x: Array, tile: Array) -> Array:
        tile = tile.reshape(tile.shape[0], self.size, -1, *tile.shape[2:])
        return self._put(x, tile.swapaxes(0, 1), self.first_query)

    def put_keys(self, x: Array, tile: Array) -> Array:
        return self._put(x, tile.swapaxes(0, 1), self.first_key)

    def scores(self, query: Array, key: Array, seen: Visibility | None, wide) -> Array:
        """[K, member, S], scaled; hidden pairs get the lowest number unless `seen` is None."""
        scores = product("kqd,ksd->kqs", query, key) * query.shape[-1] ** -0.5
        if seen is None:
            return scores
        rows = jax.tree.map(lambda x: self._get(x, self.first_query), seen.rows)
        keys = jax.tree.map(lambda x: self._get(x, self.first_key), seen.keys)
        by_tile = scores.reshape(scores.shape[0], self.size, -1, self.size)  # [K, T, G, S] of the tile
        allowed = _allowed(rows, keys, seen.window)[:, None]
        return jnp.where(allowed, by_tile, _lowest(wide)).reshape(scores.shape)


def _each_tile(tile, state, seen: Visibility, sizes: tuple[int, ...]):
    """Runs `tile(where, masked, state)` over the work list; only its smallest tiles need a mask."""
    row, context = seen.rows.document.shape[1], seen.keys.document.shape[1]
    for size, (order, count) in zip(sizes, worklist(seen, sizes), strict=True):
        tiles = row // size, context // size

        def step(i: Array, state, size=size, order=order, tiles=tiles):
            rest, key_tile = jnp.divmod(order[i], tiles[1])
            batch, query_tile = jnp.divmod(rest, tiles[0])
            return tile(_Tile(batch, query_tile * size, key_tile * size, size), size == sizes[-1], state)

        state = jax.lax.fori_loop(0, count, step, state)
    return state


def _with_own_blocks(grouped: Array, own, seen: Visibility, wide):
    """The softmax's state when mask tokens have met their own block, and context tokens nothing yet.

    (largest score, denominator, weighted sum of values), [B, T, K, G (, D)].
    """
    # Above every hidden score and below every other, so that exp(hidden - top) is 0 even while nothing was seen.
    top = jnp.full(grouped.shape[:-1], _lowest(wide) / 2, wide)
    total, mixed = jnp.zeros(top.shape, wide), jnp.zeros(grouped.shape, wide)
    if not seen.rows.num_blocks:
        return top, total, mixed
    clean, end = seen.rows.clean_size, seen.rows.document.shape[1]
    scores, value = _own_scores(grouped, own, seen, wide), _by_block(own[1], seen.rows)
    own_top = jnp.maximum(scores.max(-1), _lowest(wide) / 2)
    weights = jnp.exp(scores - own_top[..., None])
    own_mixed = product("bnkqgj,bnjkd->bnkqgd", weights.astype(value.dtype), value)
    return tuple(
        whole.at[:, clean:end].set(_by_row(part))
        for whole, part in zip((top, total, mixed), (own_top, weights.sum(-1), own_mixed), strict=True)
    )


def _own_scores(grouped: Array, own, seen: Visibility, wide) -> Array:
    """Scores of mask tokens and their own block, [B, N, K, slot, G, slot]; hidden ones the lowest."""
    query, key = _by_block(grouped[:, seen.rows.clean_size :], seen.rows), _by_block(own[0], seen.rows)
    scores = product("bnqkgd,bnjkd->bnkqgj", query, key) * query.shape[-1] ** -0.5
    blocks = seen.rows.blocks()
    allowed = _allowed(blocks, blocks.keys, seen.window)
    return jnp.where(allowed[:, :, None, :, None], scores, _lowest(wide))


def _own_blocks_backward(query, own, seen: Visibility, gradient, log_total, inner):
    """Gradients through the own-block part: (query's [B, T, K, G, D], own's)."""
    wide = wide_dtype(query.dtype)
    shape = (*log_total.shape, query.shape[-1])
    dq = jnp.zeros(shape, wide)
    if not seen.rows.num_blocks:
        return dq, jax.tree.map(jnp.zeros_like, own)
    grouped = query.reshape(shape)
    clean = seen.rows.clean_size

    def draft(x: Array) -> Array:
        return _by_block(x[:, clean:], seen.rows)

    key, value = (_by_block(x, seen.rows) for x in own)
    out = draft(gradient.reshape(shape))
    weights = jnp.exp(_own_scores(grouped, own, seen, wide) - jnp.moveaxis(draft(log_total), 2, 3)[..., None])
    slope = product("bnqkgd,bnjkd->bnkqgj", out, value)
    slope = weights * (slope - jnp.moveaxis(draft(inner), 2, 3)[..., None]) * query.shape[-1] ** -0.5
    slope, weights = slope.astype(query.dtype), weights.astype(query.dtype)
    dq = dq.at[:, clean:].set(_by_row(product("bnkqgj,bnjkd->bnkqgd", slope, key)))
    dk = product("bnkqgj,bnqkgd->bnjkd", slope, draft(grouped))
    dv = product("bnkqgj,bnqkgd->bnjkd", weights, out)
    return dq, tuple(x.reshape(like.shape).astype(like.dtype) for x, like in zip((dk, dv), own, strict=True))


def _by_block(x: Array, rows: Layout) -> Array:
    """[B, mask tokens, ...] (or more slots after them) -> [B, N, slot, ...]."""
    blocks, size = rows.num_blocks, rows.block_size
    return x[:, : blocks * size].reshape(x.shape[0], blocks, size, *x.shape[2:])


def _by_row(x: Array) -> Array:
    """[B, N, K, slot, ...] -> [B, mask token, K, ...]."""
    x = jnp.moveaxis(x, 2, 3)
    return x.reshape(x.shape[0], -1, *x.shape[3:])


def _allowed(rows: Layout, keys: Keys, window: Array | None) -> Array:
    """`visible`, but padding sees nothing: nobody reads its rows, and tiles of it need not be computed."""
    return visible(rows, keys, window) & (rows.document != PADDING)[..., None]


def _padded(query: Array, context, seen: Visibility, size: int):
    """Whole tiles: (query [B, T, K, G, D], context, seen) with padding after both axes."""
    batch, row, heads, dim = query.shape
    length, kv_heads = context[0].shape[1:3]
    rows, keys = -(-row // size) * size, -(-length // size) * size
    grouped = _fill(query.reshape(batch, row, kv_heads, heads // kv_heads, dim), rows)
    return grouped, tuple(_fill(x, keys) for x in context), _whole_tiles(seen, size)


def _whole_tiles(seen: Visibility, size: int) -> Visibility:
    """`seen` with padding after both axes, up to a multiple of `size`."""

    def filled(x: Array) -> Array:
        return _fill(x, -(-x.shape[1] // size) * size, PADDING)

    return Visibility(jax.tree.map(filled, seen.rows), jax.tree.map(filled, seen.keys), seen.window)


def _fill(x: Array, length: int, value: Any = 0) -> Array:
    return jnp.pad(x, ((0, 0), (0, length - x.shape[1]), *((0, 0),) * (x.ndim - 2)), constant_values=value)


def _lowest(wide):
    return jnp.finfo(wide).min
