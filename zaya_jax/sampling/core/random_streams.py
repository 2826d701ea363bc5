"""Where a sampler's randomness comes from.

Every random number belongs to (row's key, absolute position, purpose). So a row's tokens depend neither on the rows
beside it nor on how many forwards it took to get there. A position's draft may be drawn again by a later forward, but
it is tested at most once and drawn at most once, so no number decides two things. Where a drawing that is thrown away
decides something nevertheless (block_diffusion reveals what was drawn with confidence), the drawing's number belongs to
the key as well.
"""

import enum
import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from zaya_jax.checks import KEY, check
from zaya_jax.errors import UserError
from zaya_jax.sampling.core.distributions import first_argmax
from zaya_jax.sampling.values import plain_tuple

Array = jax.Array


class Purpose(enum.IntEnum):
    DRAFT = 0  # a draft's token
    ACCEPT = 1  # whether a draft survives
    PENDING = 2  # the token after the last accepted one


_PURPOSES = np.array(list(Purpose), np.uint32)


class Noise(Protocol):
    """What a sampling step asks for; tests answer with forced outcomes instead."""

    def draw(
        self, purpose: Purpose, position: Array, distribution: Array, warm: Array, again: Array | None = None,
        at: Array | None = None,
    ) -> Array:  # fmt: skip
        """A token from each (unnormalised) log distribution [B, ..., V]; position and result int32 [B, ...].

        Where `warm` (bool []) is False, every distribution holds one token alone, and no randomness is needed. `again`
        (int32 [B, ...]) numbers the drawings of one position whose noise must not be the same. With `at` (int32 [B, n])
        positions are [B, m], and the distribution [b, i] stands at the position [b, at[b, i]]: several stand at one.
        """
        ...

    def accept(self, position: Array, log_probability: Array) -> Array:
        """Whether something happens, bool [B, n], given the log of its probability; position int32 [B, n]."""
        ...


class KeyedNoise(struct.PyTreeNode):
    """The real thing: one key per row and purpose."""

    streams: Array  # key array [purpose, B]

    @classmethod
    def of(cls, keys: Array) -> "KeyedNoise":
        """Of one key per row, [B]; made once, outside of a sampler's loop."""
        return cls(jax.vmap(lambda purpose: jax.vmap(lambda key: jax.random.fold_in(key, purpose))(keys))(_PURPOSES))

    def draw(
        self, purpose: Purpose, position: Array, distribution: Array, warm: Array, again: Array | None = None,
        at: Array | None = None,
    ) -> Array:  # fmt: skip
        """By Gumbel-max."""

        def shaken(distribution: Array) -> Array:
            gumbel = lambda key: jax.random.gumbel(key, distribution.shape[-1:], distribution.dtype)  # noqa: E731
            noise = self._each(purpose, position, gumbel, again)
            return distribution + (noise if at is None else jnp.take_along_axis(noise, at[..., None], axis=1))

        return first_argmax(jax.lax.cond(warm, shaken, lambda distribution: distribution, distribution))

    def accept(self, position: Array, log_probability: Array) -> Array:
        tiny = jnp.finfo(log_probability.dtype).tiny  # u in (0, 1): what has probability 0 never happens

        def drawn(log_probability: Array) -> Array:
            uniform = lambda key: jax.random.uniform(key, (), log_probability.dtype, minval=tiny)  # noqa: E731
            return jnp.log(self._each(Purpose.ACCEPT, position, uniform)) <= log_probability

        # Greedy steps decide nothing by chance, and on a CPU the numbers are many small kernels.
        open_ = jnp.any((log_probability < 0) & (log_probability > -jnp.inf))
        return jax.lax.cond(open_, drawn, lambda log_probability: log_probability >= 0, log_probability)

    def _each(
        self, purpose: Purpose, position: Array, f: Callable[[Array], Array], again: Array | None = None
    ) -> Array:
        def one(key: Array, numbers: tuple[Array, ...]) -> Array:
            return f(functools.reduce(jax.random.fold_in, numbers, key))

        def row(key: Array, numbers: tuple[Array, ...]) -> Array:
            flat = jax.vmap(functools.partial(one, key))(tuple(x.reshape(-1) for x in numbers))
            return flat.reshape(*numbers[0].shape, *flat.shape[1:])

        return jax.vmap(row)(self.streams[int(purpose)], (position,) if again is None else (position, again))


def row_keys(seed: int | Sequence[int], rows: int) -> Array:
    """A key for each row, [B].

    Args:
      seed: one int (row r's key is derived from it and r), or one int a row, for rows that must be reproducible alone.

    Raises:
      UserError: a sequence whose length is not `rows`, or a seed that is not in [0, 2**32).
    """
    given: Any = plain_tuple(seed)
    single = not isinstance(given, tuple)
    seeds: tuple[Any, ...] = (given,) if single else given
    for s in seeds:
        check("seed", s, KEY)
    if single:
        return _split(np.uint32(seeds[0]), rows)
    if len(seeds) != rows:
        raise UserError(f"seed: got {len(seeds)} seeds, may be one int or one for each of the {rows} rows")
    return _keys(np.array(seeds, np.uint32))


@functools.partial(jax.jit, static_argnames="rows")
def _split(seed: Array, rows: int) -> Array:
    return jax.random.split(jax.random.key(seed), rows)


@jax.jit
def _keys(seeds: Array) -> Array:
    return jax.vmap(jax.random.key)(seeds)
