"""Experts that are spread over devices, in equal shares and in order: two dropless ways for tokens to get to them.

Both give each token its expert's output, and differ in what goes over the network. With n devices that hold T tokens
each, of M channels (counted by `sent_bytes`):

- "all_gather": every device gets the tokens of all, computes those that chose its own experts, and the results are
  added up where they belong: (n - 1) T M values there and as many back, a device.
- "all_to_all": each token goes to the device of its expert alone, by `jax.lax.ragged_all_to_all`: T M values there and
  as many back at most, T (n - 1) / n where experts are chosen evenly. XLA's CPU has no such operation.

The buffers are the same: whoever holds the one expert that everybody chose must take all n T tokens.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from zaya_jax.architecture.moe.experts import sequential_vjp

Array = jax.Array
Axis = tuple[str, ...]


def all_gather(axis: Axis, x: Array, choice: Array, gate_up: Array, down: Array) -> Array:
    """x [token, M] and choice int32 [token] of all experts (their number = skip) -> outputs [token, M], zero for skip.

    At most one device adds something other than zero for each token, so nothing is rounded on the way.

    Args:
      axis: names of the surrounding `shard_map`.
      gate_up, down: this device's experts.
    """
    held = gate_up.shape[0]
    x, choice = (jax.lax.all_gather(z, axis, tiled=True) for z in (x, choice))
    mine = choice - jax.lax.axis_index(axis) * held
    mine = jnp.where((mine >= 0) & (mine < held), mine, held)
    out = sequential_vjp(x, mine, gate_up, down, held * jax.lax.axis_size(axis))
    return jax.lax.psum_scatter(out, axis, tiled=True)


def all_to_all(axis: Axis, x: Array, choice: Array, gate_up: Array, down: Array) -> Array:
    """`all_gather`'s result; skipped tokens stay where they are."""
    held, devices, tokens = gate_up.shape[0], jax.lax.axis_size(axis), x.shape[0]
    owner = choice // held  # `devices` for skip
    order = jnp.argsort(owner, stable=True)  # by the device that they go to; skipped ones last
    counts = jax.lax.all_gather((owner[:, None] == jnp.arange(devices)).sum(axis=0, dtype=jnp.int32), axis)
    me = jax.lax.axis_index(axis)
    out_of, into = counts[me], counts[:, me]  # tokens that go to each device, and that come from each

    # Where a device's tokens begin: among those that it sends, by receiver; among those that it gets, by sender.
    among_sent, among_got = _before(counts, 1), _before(counts, 0)
    there = (among_sent[me], out_of, among_got[me], into)
    back = (among_got[:, me], into, among_sent[:, me], out_of)

    def send(values: Array, into: Array, route: tuple[Array, ...]) -> Array:
        return jax.lax.ragged_all_to_all(values, into, *route, axis_name=axis)

    got = send(x[order], jnp.zeros((devices * tokens, x.shape[1]), x.dtype), there)
    theirs = send(choice[order], jnp.full((devices * tokens,), -1, choice.dtype), there)
    mine = jnp.where(theirs < 0, held, theirs - me * held)
    out = sequential_vjp(got, mine, gate_up, down, held * devices)
    returned = send(out, jnp.zeros_like(x), back)
    place = jnp.zeros((tokens,), jnp.int32).at[order].set(jnp.arange(tokens, dtype=jnp.int32), unique_indices=True)
    return returned[place]


def _before(counts: Array, axis: int) -> Array:
    """Exclusive cumulative sums."""
    return jnp.cumsum(counts, axis=axis) - counts


EXCHANGES: dict[str, Callable[..., Array]] = {"all_gather": all_gather, "all_to_all": all_to_all}


def cheapest_exchange(platform: str) -> str:
    """The one that sends fewer bytes, of those that a platform ("cpu", "cuda", "rocm", "gpu", ...) has."""
    return "all_gather" if platform == "cpu" else "all_to_all"


def sent_bytes(exchange: str, devices: int, tokens: int, hidden: int, size: int) -> float:
    """Bytes that a device sends in a layer's forward where all experts are chosen alike; its backward sends as many.

    Args:
      tokens: a device's own.
      size: bytes of a channel.
    """
    others = devices - 1 if exchange == "all_gather" else (devices - 1) / devices
    return 2 * others * tokens * hidden * size
