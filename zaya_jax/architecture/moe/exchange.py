"""Experts that are spread over devices, with tokens sent to those alone that have their experts. Dropless.

`experts.across` gives every device the tokens of all. Here each device sorts its tokens by expert, sends each run of
them where its expert is (`jax.lax.ragged_all_to_all`, which moves what it is told and no padding), and gets the results
back the same way. What could arrive has room for every token of every device, as there; what moves is what is sent.
"""

import functools

import jax
import jax.numpy as jnp

from zaya_jax.architecture.moe.experts import across, sequential_vjp

Array = jax.Array


def exchanged(axis: tuple[str, ...], x: Array, choice: Array, gate_up: Array, down: Array) -> Array:
    """`experts.across`, arguments and result, by sending tokens.

    Args:
      axis: names of the surrounding `shard_map`.
      choice: of all experts; num_experts for skip, which is not sent.
      gate_up, down: this device's experts.
    """
    held, devices = gate_up.shape[0], jax.lax.axis_size(axis)
    experts, me = held * devices, jax.lax.axis_index(axis)
    order = jnp.argsort(choice, stable=True)  # by expert, so by device, those without an expert last
    counts = (choice[:, None] == jnp.arange(experts, dtype=choice.dtype)).sum(0, dtype=jnp.int32)
    counts = jax.lax.all_gather(counts, axis).reshape(devices, devices, held)  # [from, to, expert]
    sizes = counts.sum(-1, dtype=jnp.int32)  # [from, to]
    arrived = _sent(axis, False, x[order], sizes)
    out = sequential_vjp(arrived, _experts_of(counts[:, me], arrived.shape[0]), gate_up, down, experts)
    back = _sent(axis, True, out, sizes)
    place = jnp.zeros_like(order).at[order].set(jnp.arange(order.size, dtype=order.dtype), unique_indices=True)
    return back[place]


def across_by_bytes(axis: tuple[str, ...], x: Array, choice: Array, gate_up: Array, down: Array) -> Array:
    """Whichever of the two moves fewer bytes, of those that the backend has: XLA's CPU cannot send ragged arrays."""
    devices, (tokens, width) = jax.lax.axis_size(axis), x.shape
    gathered, sent = bytes_moved(devices, tokens, width, gate_up.shape[0] * devices, x.dtype.itemsize)
    if gathered <= sent:
        return across(axis, x, choice, gate_up, down)
    each = functools.partial(across, axis), functools.partial(exchanged, axis)
    return jax.lax.platform_dependent(x, choice, gate_up, down, cpu=each[0], default=each[1])


def bytes_moved(devices: int, tokens: int, width: int, experts: int, itemsize: int) -> tuple[int, int]:
    """Bytes that a device gets in a layer's forward: (gathering all tokens, sending each where it belongs).

    The second where experts are evenly chosen; the backward pass moves as much again.
    """
    gathered = (devices - 1) * tokens * (2 * width * itemsize + 4)
    return gathered, 2 * (devices - 1) * tokens * width * itemsize // devices + 4 * (devices - 1) * experts


def _experts_of(counts: Array, rows: int) -> Array:
    """The expert of each row that has arrived: int32 [rows], the number of experts where there is none.

    Args:
      counts: [from, expert], in which order rows stand.
    """
    ends = jnp.cumsum(counts.reshape(-1))
    run = jnp.searchsorted(ends, jnp.arange(rows), side="right")
    return jnp.where(run < ends.size, run % counts.shape[1], counts.shape[1]).astype(jnp.int32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _sent(axis: tuple[str, ...], back: bool, x: Array, sizes: Array) -> Array:
    """Rows sent where `sizes` says: int32 [from, to], in order of the receiver; or what has arrived, sent back.

    Returns:
      [devices * rows, M], arrived rows first, in order of their sender; back, [rows / devices, M]. Zeros elsewhere.
    """
    devices, me = sizes.shape[0], jax.lax.axis_index(axis)
    before_receiver = jnp.cumsum(sizes, axis=1) - sizes  # of each sender: where a receiver's rows begin
    before_sender = jnp.cumsum(sizes, axis=0) - sizes  # of each receiver: where a sender's rows arrive
    if not back:
        rows, at, to, places = x.shape[0] * devices, before_receiver[me], sizes[me], before_sender[me]
        incoming = sizes[:, me]
    else:
        rows, at, to, places = x.shape[0] // devices, before_sender[:, me], sizes[:, me], before_receiver[:, me]
        incoming = sizes[me]
    return _move(x, jnp.zeros((rows, x.shape[1]), x.dtype), at, to, places, incoming, axis)


def _move(x, into, at, to, places, incoming, axis):
    """`jax.lax.ragged_all_to_all`, which tests of a CPU replace."""
    return jax.lax.ragged_all_to_all(x, into, at, to, places, incoming, axis_name=axis)


def _sent_forward(axis, back, x, sizes):
    return _sent(axis, back, x, sizes), sizes


def _sent_backward(axis, back, sizes, gradient):
    return _sent(axis, not back, gradient, sizes), None


_sent.defvjp(_sent_forward, _sent_backward)
