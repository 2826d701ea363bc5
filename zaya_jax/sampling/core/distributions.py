"""The arithmetic of speculative sampling: distributions, logits processing, acceptance, residual (arXiv 2211.17192).

docs/method.md#why-it-is-lossless says what it rests on.

All of it in at least float32 and in logarithms, from the logits that drew the draft: bfloat16 probabilities make the
residual useless. A distribution is an array of log-probabilities [..., V]; -inf is "never".
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array
FLOOR = -1e8  # of a possible token's log-probability: far below what noise (at most 90, or 710 in float64) can lift


class LogitsProcessing(NamedTuple):
    """How logits become a distribution; run-time scalars, in transformers' order."""

    temperature: Array  # 0: one-hot at the first argmax
    top_k: Array  # int32; 0: all
    top_p: Array  # 1: all
    min_p: Array  # 0: all

    @property
    def warm(self) -> Array:
        """bool []: is anything left to chance?"""
        return self.temperature > 0

    @property
    def truncates(self) -> Array:
        """bool []: does anything but the temperature change a warm distribution?"""
        return (self.top_k > 0) | (self.top_p < 1) | (self.min_p > 0)


def log_distribution(logits: Array, processing: LogitsProcessing) -> Array:
    """log softmax(logits / temperature), truncated by top-k, top-p and min-p and normalised again.

    Which truncations apply is decided at run time; the sort they need is skipped when none does.
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    return jax.lax.cond(processing.warm, _warm_law, _greedy_law, logits, processing)


def _warm_law(logits: Array, processing: LogitsProcessing) -> Array:
    # Shifted before the division, which then cannot overflow to +inf; and floored, because XLA's vectorised exp on CPU
    # returns rubbish below about -1.5e9. A token at the floor has probability 0 in any float, one at -inf is barred.
    shifted = logits - jnp.max(logits, axis=-1, keepdims=True)
    scaled = jnp.maximum(shifted / processing.temperature.astype(logits.dtype), FLOOR)
    distribution = jax.nn.log_softmax(jnp.where(shifted == -jnp.inf, -jnp.inf, scaled), axis=-1)
    return jax.lax.cond(processing.truncates, truncate, _whole, distribution, processing)


def _greedy_law(logits: Array, processing: LogitsProcessing) -> Array:
    best = first_argmax(logits)[..., None]
    return jnp.where(jnp.arange(logits.shape[-1]) == best, 0.0, -jnp.inf).astype(logits.dtype)


def first_argmax(values: Array) -> Array:
    """jnp.argmax along the last axis, int32 [...]; the last index where there is a NaN.

    As two reductions of one value each, which XLA's CPU backend vectorises; argmax reduces pairs, one by one.
    """
    last = values.shape[-1] - 1
    best = jnp.max(values, axis=-1, keepdims=True)
    return jnp.min(jnp.where(values == best, jnp.arange(last + 1, dtype=jnp.int32), last), axis=-1)


def truncate(distribution: Array, processing: LogitsProcessing) -> Array:
    """Top-k, then top-p of what is left, then min-p; tokens as likely as the last one kept are kept too.

    top-p keeps the fewest likeliest tokens whose probability reaches top_p; min-p those with at least min_p times the
    likeliest one's probability.
    """
    vocab = distribution.shape[-1]
    ordered = -jnp.sort(-distribution, axis=-1)
    k = jnp.where(processing.top_k > 0, jnp.minimum(processing.top_k, vocab), vocab)
    rank = jnp.arange(vocab)
    left = jnp.where(rank < k, jnp.exp(ordered), 0)
    before = jnp.cumsum(left, axis=-1) - left  # probability of the likelier ones
    nucleus = (rank < k) & ((before < processing.top_p * left.sum(-1, keepdims=True)) | (rank == 0))
    least = jnp.min(jnp.where(nucleus, ordered, jnp.inf), axis=-1, keepdims=True)
    least = jnp.maximum(least, ordered[..., :1] + jnp.log(processing.min_p))
    return jax.nn.log_softmax(jnp.where(distribution >= least, distribution, -jnp.inf), axis=-1)


def _whole(distribution: Array, processing: LogitsProcessing) -> Array:
    return distribution


def penalise(logits: Array, seen: Array, penalty: Array) -> Array:
    """Repetition penalty: where `seen` (bool [..., V]), positive logits / penalty and negative ones * penalty."""
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    return jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)


def mix(autoregressive: Array, draft: Array, beta: Array) -> Array:
    """(1 - beta) * AR logits + beta * draft logits: a geometric mean of the two distributions, before temperature."""
    dtype = jnp.promote_types(autoregressive.dtype, jnp.float32)
    return (1 - beta) * autoregressive.astype(dtype) + beta * draft.astype(dtype)


def log_acceptance(log_p: Array, log_q: Array, token: Array, index: Array | None = None) -> Array:
    """log min(1, p(token) / q(token)), for tokens drawn from q; [...] of distributions [..., V], tokens [...].

    Args:
      index: where the tokens stand in q, if it is over other tokens than p; the token itself by default.
    """
    return jnp.minimum(at_token(log_p, token) - at_token(log_q, token if index is None else index), 0)


def log_residual(log_p: Array, log_q: Array) -> Array:
    """log of max(p - q, 0), not normalised: what is left to draw from after a rejection.

    p * (1 - q / p) through expm1, so that nearly equal distributions lose no digits. A row with nothing left (p = q up
    to rounding, where a rejection has probability 0) gives p itself.
    """
    ratio = jnp.where(log_p > -jnp.inf, log_q - jnp.where(log_p > -jnp.inf, log_p, 0), jnp.inf)
    left = jnp.maximum(-jnp.expm1(jnp.minimum(ratio, 0)), 0)
    residual = jnp.where(left > 0, log_p + jnp.log(jnp.where(left > 0, left, 1)), -jnp.inf)
    empty = jnp.all(residual == -jnp.inf, axis=-1, keepdims=True)
    return jnp.where(empty, log_p, residual)


def at_token(distribution: Array, token: Array) -> Array:
    """distribution [..., V] at token int [...]: [...]."""
    return jnp.take_along_axis(distribution, token[..., None], axis=-1)[..., 0]
