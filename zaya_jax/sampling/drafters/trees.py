"""A tree of drafts out of a block's marginals: the likeliest paths, each position drawn without the others.

Best first (DDTree, arXiv 2604.12989): a node's score is the sum of log q along its path, and the tree grows by the best
child of all its nodes. Marginals know nothing of each other, so the likeliest tokens of two positions may never follow
each other; the text's own 3-grams can say so (PRESTO): each node's score then also has `weight` times their log p.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from zaya_jax.sampling.drafters.base import Proposal

Array = jax.Array
WIDEST = 64  # children of a node that are looked at
SMOOTHING = 1.0  # occurrences that a shorter context's statistics count for


class Prior(NamedTuple):
    """Statistics of a text, for the scores of what may follow it."""

    text: Array  # int32 [B, S]
    length: Array  # int32 [B]: its tokens; the newest one stands before the tree
    weight: Array  # of log p, beside log q


class _Tree(NamedTuple):
    """A tree that grows; row 0 is the root, rows not grown yet have the score -inf."""

    tokens: Array  # int32 [1 + size]
    parent: Array  # int32 [1 + size]
    depth: Array  # int32 [1 + size]
    score: Array  # [1 + size]
    gain: Array  # [1 + size, width]: each row's children by what they add to its score, best first
    child: Array  # int32 [1 + size, width]: their tokens
    used: Array  # int32 [1 + size]: how many of them are in the tree


def best_first(log_q: Array, size: int, prior: Prior | None = None) -> Proposal:
    """A tree's proposal.

    Args:
      log_q: [B, n, V], the distributions of the n positions after the pending token; -inf is never proposed.
      size: nodes, static.
      prior: None, or a weight of 0: the marginals alone.
    """
    if prior is None:
        tokens, exists, parent = jax.vmap(lambda log_q: _grow(log_q, None, size))(log_q)
    else:
        weighed = jax.vmap(lambda log_q, text, length: _grow(log_q, Prior(text, length, prior.weight), size))
        tokens, exists, parent = weighed(log_q, prior.text, prior.length)
    return Proposal(tokens, exists, parent=parent)


def _grow(log_q: Array, prior: Prior | None, size: int) -> tuple[Array, Array, Array]:
    """Of one text: (tokens, whether they exist, parents) [size]; log_q [n, V]."""
    length, vocab = log_q.shape
    width = min(vocab, size, WIDEST)
    likely, ids = jax.lax.top_k(log_q, width)  # [n, width]

    def children(before: Array, token: Array, depth: Array) -> tuple[Array, Array]:
        """(gain, tokens) [width] of the children of a row at `depth` whose token comes after `before`."""
        at = jnp.minimum(depth, length - 1)
        gain = jnp.where(depth < length, likely[at], -jnp.inf)
        if prior is None:
            return gain, ids[at]

        def weighed() -> tuple[Array, Array]:
            total = gain + prior.weight * _log_trigram(prior, before, token, ids[at], vocab).astype(gain.dtype)
            order = jnp.argsort(-total)
            return total[order], ids[at][order]

        return jax.lax.cond(prior.weight > 0, weighed, lambda: (gain, ids[at]))

    def grown(tree: _Tree, row: Array) -> tuple[_Tree, None]:
        rank = jnp.minimum(tree.used, width - 1)[:, None]
        offer = tree.score + jnp.take_along_axis(tree.gain, rank, axis=1)[:, 0]
        offer = jnp.where(tree.used < width, offer, -jnp.inf)
        parent = jnp.argmax(offer).astype(jnp.int32)
        token, depth = tree.child[parent, rank[parent, 0]], tree.depth[parent] + 1
        gain, child = children(tree.tokens[parent], token, depth)
        return _Tree(
            tokens=tree.tokens.at[row].set(token),
            parent=tree.parent.at[row].set(parent),
            depth=tree.depth.at[row].set(depth),
            score=tree.score.at[row].set(offer[parent]),
            gain=tree.gain.at[row].set(gain),
            child=tree.child.at[row].set(child),
            used=tree.used.at[parent].add(1),
        ), None

    rows = size + 1
    zeros = jnp.zeros((rows,), jnp.int32)
    before = newest = zeros[0]
    if prior is not None:
        before, newest = prior.text[jnp.maximum(prior.length - 2, 0)], prior.text[prior.length - 1]
    gain, child = children(before, newest, zeros[0])
    tree = _Tree(
        tokens=zeros.at[0].set(newest),
        parent=zeros,
        depth=zeros,
        score=jnp.full((rows,), -jnp.inf, log_q.dtype).at[0].set(0),
        gain=jnp.full((rows, width), -jnp.inf, log_q.dtype).at[0].set(gain),
        child=jnp.zeros((rows, width), jnp.int32).at[0].set(child),
        used=zeros,
    )
    tree, _ = jax.lax.scan(grown, tree, jnp.arange(1, rows, dtype=jnp.int32))
    return tree.tokens[1:], tree.score[1:] > -jnp.inf, tree.parent[1:]


def _log_trigram(prior: Prior, before: Array, token: Array, candidates: Array, vocab: int) -> Array:
    """log p(candidate | before, token) [n], by the text's 3-grams, those smoothed by its 2-grams, and those evenly."""
    text = prior.text
    index = jnp.arange(text.shape[0])
    two = (text == token) & (index < prior.length - 1)  # where something follows
    three = two & (jnp.roll(text, 1) == before) & (index > 0)
    following = jnp.roll(text, -1)[:, None] == candidates  # [S, n]

    def share(where: Array, otherwise: Array) -> Array:
        found = (following & where[:, None]).sum(0).astype(jnp.float32)
        return (found + SMOOTHING * otherwise) / (where.sum().astype(jnp.float32) + SMOOTHING)

    even = jnp.full(candidates.shape, 1 / vocab, jnp.float32)
    return jnp.log(share(three, share(two, even)))
