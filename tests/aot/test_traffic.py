"""Bytes that compiled programs move: small programs of known traffic, and a decoding step that copies no weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import random_variables, small_config
from zaya_jax.aot.traffic import copies, kernels, per_step, total
from zaya_jax.architecture import Zaya, for_decoding
from zaya_jax.costs.roofline import forward_traffic
from zaya_jax.sampling.config import SamplerConfig
from zaya_jax.sampling.planning.cost import AUTOREGRESSIVE, step_program
from zaya_jax.sampling.strategies.base import Plan

FLOAT = 4


def moved(f, *args) -> list:
    return kernels(jax.jit(f).lower(*args).compile().as_text())


def test_a_product_reads_its_factors_and_writes_its_result_once():
    x, w = jnp.ones((8, 256)), jnp.ones((256, 512))
    found = moved(lambda x, w: x @ w, x, w)
    assert total(found) == FLOAT * (8 * 256 + 256 * 512 + 8 * 512)


def test_a_loop_counts_by_its_trips_and_a_slice_by_what_it_takes():
    x, w = jnp.ones((8, 128)), jnp.ones((6, 128, 128))
    found = moved(lambda x, w: jax.lax.scan(lambda x, w: (x @ w, None), x, w)[0], x, w)
    matrix = FLOAT * 128 * 128
    # taken out of the stack, written down and read again: three times what must move
    (taken,) = copies(found, matrix)
    assert (taken.reads, taken.writes, taken.times) == (matrix + 4, matrix, 6)  # and its index
    assert 3 * 6 * matrix <= total(found) <= 3.4 * 6 * matrix


def test_an_update_in_place_moves_what_it_puts_in():
    def f(cache, new, at):
        body = lambda i, cache: jax.lax.dynamic_update_slice(cache, new * 2, (at + i, 0))  # noqa: E731
        return jax.lax.fori_loop(0, 5, body, cache)

    cache, new = jnp.zeros((4096, 64)), jnp.ones((1, 64))
    compiled = jax.jit(f, donate_argnums=0).lower(cache, new, jnp.int32(3)).compile()
    found = kernels(compiled.as_text())
    assert total(found) < FLOAT * 4096 * 64 / 4
    assert not copies(found, FLOAT * 4096 * 64)


def test_a_gather_reads_the_rows_it_takes():
    table, ids = jnp.ones((1000, 64)), jnp.arange(10)
    assert total(moved(lambda table, ids: table[ids] + 1, table, ids)) < FLOAT * 1000 * 64 / 4


def test_a_step_is_a_round_of_a_loop_of_unknown_length():
    def f(x, n):
        return jax.lax.fori_loop(0, n, lambda i, x: jnp.sin(x) + i, x * 2)

    hlo = jax.jit(f).lower(jnp.ones((64, 64)), jnp.int32(3)).compile().as_text()
    found = kernels(hlo)
    array = FLOAT * 64 * 64
    assert 2 * array <= per_step(found) < 2.1 * array
    whole = kernels(hlo, steps=False)  # a train step has its loops within it
    assert per_step(whole) == 0 and total(whole) == total(found)
    assert total(found) - per_step(found) >= 2 * array
    assert per_step(moved(lambda x: x * 2, jnp.ones((64, 64)))) == 0


def test_of_a_conditional_the_branch_that_moves_least_counts():
    def f(on, x):
        return jax.lax.cond(on, lambda x: jnp.sort(jnp.sin(x) @ x, axis=1) @ x, lambda x: x, x)

    found = moved(f, jnp.bool_(True), jnp.ones((64, 64)))
    assert total(found) < 2.2 * FLOAT * 64 * 64  # a copy


def test_a_librarys_workspace_is_not_counted():
    hlo = """HloModule m

ENTRY %main (a: bf16[8,64], b: bf16[64,32]) -> bf16[8,32] {
  %a = bf16[8,64]{1,0} parameter(0)
  %b = bf16[64,32]{1,0} parameter(1)
  %product = (bf16[8,32]{1,0}, s8[4194304]{0}) custom-call(%a, %b), custom_call_target="__cublas$lt$matmul"
  ROOT %out = bf16[8,32]{1,0} get-tuple-element(%product), index=0
}
"""
    (found,) = kernels(hlo)
    assert (found.reads, found.writes) == (2 * (8 * 64 + 64 * 32), 2 * 8 * 32)


DRAFTING = Plan("single_pass", 4, (4,), "autoregressive")


@pytest.mark.parametrize(
    ("attention", "plan"),
    [
        ("cca", DRAFTING), ("gqa", AUTOREGRESSIVE), pytest.param("cca", AUTOREGRESSIVE, marks=pytest.mark.slow),
        pytest.param("gqa", DRAFTING, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_a_decoding_step_copies_no_weights(attention, plan):
    """Separate layers: nothing as large as a layer's smallest matrix is written, and little moves but what must."""
    config = small_config(
        attention=attention, feed_forward="dense", hidden_size=128, head_dim=16, moe_intermediate_size=256,
        num_attention_heads=8, num_key_value_heads=2, vocab_size=64,
    )  # fmt: skip
    model, variables = Zaya(config), random_variables(config)
    matrix = FLOAT * 128 * 128  # o_proj
    found = {}
    for name, (form, values) in {
        "stacked": (model, variables), "separate": for_decoding(model, variables),
    }.items():  # fmt: skip
        jitted, arguments = step_program(form, values, plan, 1, 16, 4, SamplerConfig(temperature=0.0))
        found[name] = kernels(jitted.lower(*arguments).compile().as_text())
    assert copies(found["stacked"], matrix)  # so this can fail
    assert [kernel for kernel in copies(found["separate"], matrix) if kernel.times > 1] == []
    steps = [kernel for kernel in found["separate"] if kernel.times == 4]
    must = forward_traffic(config, 1, 1, 16)
    per_step = total(steps) / 4
    assert must.weights < per_step
    assert per_step < 1.5 * (must.weights + must.cache) or plan.mode != "autoregressive"
    assert np.isfinite(per_step)


@pytest.mark.parametrize("plan", [AUTOREGRESSIVE, DRAFTING], ids=lambda p: p.mode)
def test_a_decoding_step_copies_no_expert(plan):
    """Experts in arrays of their own: no kernel writes one, and of 4 a step reads those that were chosen."""
    config = small_config(
        hidden_size=256, head_dim=32, moe_intermediate_size=512, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=64,
    )  # fmt: skip
    model, variables = for_decoding(Zaya(config), random_variables(config))
    jitted, arguments = step_program(model, variables, plan, 1, 16, 4, SamplerConfig(temperature=0.0))
    found = kernels(jitted.lower(*arguments).compile().as_text())
    smaller = FLOAT * 256 * 512  # of an expert's two matrices
    assert [kernel for kernel in copies(found, smaller) if kernel.times > 1] == []
    if plan == AUTOREGRESSIVE:
        must = forward_traffic(config, 1, 1, 16)
        assert total(kernel for kernel in found if kernel.times == 4) / 4 < 1.3 * (must.weights + must.cache)
