"""Which form of the experts' products a training step takes on a GPU: the one whose compiled kernels move fewer bytes.

`block_padded` copies an expert for each of its blocks, forward and backward; `ragged_dot` copies none where the
compiler has a grouped product (gfx942 in bfloat16), and elsewhere computes every expert for every token. Neither the
GPU's name nor JAX's version says which, so both are compiled for the device and read.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import SingleDeviceSharding

from zaya_jax.aot import traffic
from zaya_jax.architecture import Execution, ZayaConfig
from zaya_jax.architecture.moe.experts import dispatch

FORMS = ("block_padded", "ragged_dot")  # the first of equals is taken


def settled(execution: Execution, config: ZayaConfig, tokens: int, device: jax.Device) -> Execution:
    """`execution` for a training step on such devices, each of which has all experts: "auto" becomes one of `FORMS`.

    On a CPU it stays: block-padded experts were measured to be faster there (docs/hardware.md#experts-on-a-cpu).

    Args:
      tokens: what a device's experts see at once, context and mask tokens.
      device: one that this process may compile for.
    """
    if execution.expert_backend != "auto" or config.feed_forward != "moe" or device.platform == "cpu":
        return execution
    # a form's bytes follow from these alone, whatever else a stage has
    shape = (config.num_experts, config.hidden_size, config.moe_intermediate_size)
    chosen = _fewest(shape, tokens, config.dtype, config.param_dtype, device)
    return dataclasses.replace(execution, expert_backend=FORMS[chosen])


def bytes_moved(
    form: str, shape: tuple[int, int, int], tokens: int, dtype: str, param_dtype: str, device: jax.Device
) -> int:
    """Bytes that one layer's experts move, forward and backward, in a program compiled for the device.

    Args:
      form: as `Execution.expert_backend`.
      shape: experts, M (the stream's width), F (an expert's inner width).
    """
    experts, width, inner = shape

    def loss(x, gate_up, down, choice):
        return jnp.sum(dispatch(form, x, choice, gate_up.astype(dtype), down.astype(dtype)).astype(jnp.float32) ** 2)

    def of(kind: str, *dims: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(dims, kind, sharding=SingleDeviceSharding(device))

    weights = of(param_dtype, experts, width, 2 * inner), of(param_dtype, experts, inner, width)
    step = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    compiled = step.trace(of(dtype, tokens, width), *weights, of("int32", tokens)).lower().compile()
    return traffic.total(traffic.kernels(compiled.as_text() or "", steps=False))


@functools.cache
def _fewest(shape: tuple[int, int, int], tokens: int, dtype: str, param_dtype: str, device: jax.Device) -> int:
    moved = [bytes_moved(form, shape, tokens, dtype, param_dtype, device) for form in FORMS]
    chosen = moved.index(min(moved))
    if jax.process_count() > 1:  # one program for all: process 0's choice
        chosen = int(multihost_utils.broadcast_one_to_all(np.int32(chosen)))
    return chosen
