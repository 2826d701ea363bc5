"""Experts spread over devices: both ways for tokens to get to them give every expert on every token, gradients too.

XLA's CPU has no ragged all-to-all: `exchanged` is its definition, by an all-gather. What a GPU is given is compiled in
tests/aot.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from zaya_jax.architecture import Execution, preset
from zaya_jax.architecture.moe import across
from zaya_jax.architecture.moe.experts import dense
from zaya_jax.errors import UserError
from zaya_jax.parallel import MeshConfig, make_placement

EXPERTS, TOKENS, WIDTH, INNER = 4, 12, 5, 3  # tokens of all devices


def exchanged(operand, output, starts, sent, places, got, *, axis_name):
    """`jax.lax.ragged_all_to_all`: from each device rows starts.. of its operand, `sent` of them, to `places` there."""
    operands, starts, sent, places = (jax.lax.all_gather(each, axis_name) for each in (operand, starts, sent, places))
    me = jax.lax.axis_index(axis_name)
    np.testing.assert_equal(got.shape, sent.shape[:1])
    row = jnp.arange(output.shape[0])
    here = (row >= places[:, me, None]) & (row < places[:, me, None] + sent[:, me, None])  # [sender, row]
    sender = jnp.argmax(here, axis=0)
    values = operands[sender, starts[sender, me] + row - places[sender, me]]
    return jnp.where(here.any(axis=0).reshape(-1, *(1,) * (output.ndim - 1)), values, output)


@pytest.fixture(scope="module")
def functions():
    """Outputs and gradients of (x, gate_up, down) under fixed weights of the output: of `dense`, and by exchange."""
    rng = np.random.default_rng(0)
    outer = rng.normal(size=(TOKENS, WIDTH))

    def of(f):
        def value(x, gate_up, down, choice):
            out = f(x, choice, gate_up, down)
            return (out * outer).sum(), out

        return jax.jit(jax.value_and_grad(value, argnums=(0, 1, 2), has_aux=True))

    def mapped(devices, exchange):
        mesh = jax.make_mesh((devices,), ("expert",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
        split = PartitionSpec("expert")
        f = functools.partial(exchange, ("expert",))
        return of(jax.shard_map(f, mesh=mesh, in_specs=(split,) * 4, out_specs=split, check_vma=False))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.lax, "ragged_all_to_all", exchanged)
        yield of(dense), {name: mapped(2, f) for name, f in across.EXCHANGES.items()}


CHOICES = {
    "any": np.random.default_rng(1).integers(0, EXPERTS + 1, TOKENS),
    "one expert is everybody's": np.full(TOKENS, 2),
    "all skip": np.full(TOKENS, EXPERTS),
    "one device sends, the other skips": np.r_[[3, 0, 0, 2, 1, 3], np.full(TOKENS - 6, EXPERTS)],
    "each to the other": np.r_[np.full(TOKENS // 2, 3), np.zeros(TOKENS // 2)],
}


@pytest.mark.parametrize("name", across.EXCHANGES)
@pytest.mark.parametrize("choice", CHOICES.values(), ids=list(CHOICES))
def test_every_exchange_is_every_expert_on_every_token(functions, name, choice, x64):
    reference, exchanges = functions
    rng = np.random.default_rng(2)
    x, gate_up, down = (
        rng.normal(size=shape) for shape in ((TOKENS, WIDTH), (EXPERTS, WIDTH, 2 * INNER), (EXPERTS, INNER, WIDTH))
    )
    choice = choice.astype(np.int32)
    (_, right), right_gradients = reference(x, gate_up, down, choice)
    (_, out), gradients = exchanges[name](x, gate_up, down, choice)
    np.testing.assert_allclose(out, right, atol=1e-13)
    for ours, theirs in zip(gradients, right_gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_a_cpu_gathers_and_others_send_each_token_to_its_expert():
    assert across.cheapest_exchange("cpu") == "all_gather"
    assert across.cheapest_exchange("rocm") == across.cheapest_exchange("gpu") == "all_to_all"
    config, mesh = preset("tiny"), MeshConfig(expert=2)
    assert make_placement(mesh, config, 2, 32).shards.exchange == "all_gather"
    with pytest.raises(UserError, match="expert_exchange: got 'all_to_all', may be 'auto' or 'all_gather' on a CPU"):
        make_placement(mesh, config, 2, 32, execution=Execution(expert_exchange="all_to_all"))


def test_an_all_to_all_sends_what_moves():
    gathered, sent = (across.sent_bytes(name, 8, 1024, 2048, 2) for name in across.EXCHANGES)
    assert sent == 2 * 7 * 128 * 2048 * 2  # of 1,024 tokens, there and back, an eighth stays on its device
    assert gathered == 8 * sent
