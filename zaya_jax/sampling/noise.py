"""Where a sampler's randomness comes from.

Every random number belongs to (row's key, absolute position, purpose). So a row's tokens depend neither on the rows
beside it nor on how many forwards it took to get there. A position's draft may be drawn again by a later forward, but
it is tested at most once and settled at most once, so no number decides two things.
"""

import enum
from collections.abc import Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

Array = jax.Array


class Purpose(enum.IntEnum):
    DRAFT = 0  # a draft's token
    ACCEPT = 1  # whether a draft survives
    SETTLE = 2  # the token after the last accepted one


class Noise(Protocol):
    """What a sampling step asks for; tests answer with forced outcomes instead."""

    def gumbel(self, purpose: Purpose, position: Array, shape: tuple[int, ...], dtype) -> Array:
        """Standard Gumbel numbers [*position.shape, *shape]; position int32 [batch, ...]."""
        ...

    def log_uniform(self, purpose: Purpose, position: Array, dtype) -> Array:
        """log u, u uniform in (0, 1), [*position.shape]; never -inf."""
        ...


class KeyedNoise(struct.PyTreeNode):
    """The real thing: one key per row."""

    keys: Array  # key array [batch]

    def gumbel(self, purpose: Purpose, position: Array, shape: tuple[int, ...], dtype) -> Array:
        return self._each(purpose, position, lambda key: jax.random.gumbel(key, shape, dtype))

    def log_uniform(self, purpose: Purpose, position: Array, dtype) -> Array:
        tiny = jnp.finfo(dtype).tiny
        return self._each(purpose, position, lambda key: jnp.log(jax.random.uniform(key, (), dtype, minval=tiny)))

    def _each(self, purpose: Purpose, position: Array, f) -> Array:
        def row(key: Array, positions: Array) -> Array:
            key = jax.random.fold_in(key, int(purpose))
            flat = jax.vmap(lambda p: f(jax.random.fold_in(key, p)))(positions.reshape(-1))
            return flat.reshape(*positions.shape, *flat.shape[1:])

        return jax.vmap(row)(self.keys, position)


def row_keys(seed: int | Sequence[int], rows: int) -> Array:
    """A key for each row, [rows].

    Args:
      seed: one int (row r's key is derived from it and r), or one int a row, for rows that must be reproducible alone.

    Raises:
      ValueError: a sequence whose length is not `rows`.
    """
    if isinstance(seed, int | np.integer):
        return jax.random.split(jax.random.key(int(seed)), rows)
    if len(seed) != rows:
        raise ValueError(f"seed: got {len(seed)} seeds, may be one int or one for each of the {rows} prompts")
    return jnp.stack([jax.random.key(int(s)) for s in seed])
