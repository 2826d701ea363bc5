"""The arithmetic of speculative sampling: laws, acceptance, residual (arXiv 2211.17192; tidar.md sections 2.2, 5).

All of it in at least float32 and in logarithms, from the logits that drew the draft: bfloat16 probabilities make the
residual useless (tidar.md section 5.8). A law is an array of log-probabilities [..., vocab]; -inf is "never".
"""

import jax
import jax.numpy as jnp

Array = jax.Array


def log_law(logits: Array, temperature: Array) -> Array:
    """log softmax(logits / temperature); at temperature 0, exactly one-hot at the first argmax."""
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    warm = jax.nn.log_softmax(logits / jnp.where(temperature > 0, temperature, 1), axis=-1)
    best = jnp.argmax(logits, axis=-1, keepdims=True)
    one_hot = jnp.where(jnp.arange(logits.shape[-1]) == best, 0.0, -jnp.inf).astype(logits.dtype)
    return jnp.where(temperature > 0, warm, one_hot)


def mix(autoregressive: Array, draft: Array, beta: Array) -> Array:
    """(1 - beta) * AR logits + beta * draft logits: a geometric mean of the two laws, before temperature."""
    dtype = jnp.promote_types(autoregressive.dtype, jnp.float32)
    return (1 - beta) * autoregressive.astype(dtype) + beta * draft.astype(dtype)


def log_acceptance(log_p: Array, log_q: Array, token: Array) -> Array:
    """log min(1, p(token) / q(token)), for tokens drawn from q; [...] from laws [..., vocab] and tokens [...]."""
    at = token[..., None]
    p, q = (jnp.take_along_axis(x, at, axis=-1)[..., 0] for x in (log_p, log_q))
    return jnp.minimum(p - q, 0)


def log_residual(log_p: Array, log_q: Array) -> Array:
    """log of max(p - q, 0), not normalised: what is left to draw from after a rejection.

    p * (1 - q / p) through expm1, so that nearly equal laws lose no digits. A row with nothing left (p = q up to
    rounding, where a rejection has probability 0) gives p itself.
    """
    ratio = jnp.where(log_p > -jnp.inf, log_q - jnp.where(log_p > -jnp.inf, log_p, 0), jnp.inf)
    left = jnp.maximum(-jnp.expm1(jnp.minimum(ratio, 0)), 0)
    residual = jnp.where(left > 0, log_p + jnp.log(jnp.where(left > 0, left, 1)), -jnp.inf)
    empty = jnp.all(residual == -jnp.inf, axis=-1, keepdims=True)
    return jnp.where(empty, log_p, residual)


def draw(law: Array, gumbel: Array) -> Array:
    """A token from an (unnormalised) log law by Gumbel-max; int32 [...]."""
    return jnp.argmax(law + gumbel, axis=-1).astype(jnp.int32)
