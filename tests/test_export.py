"""Lowering: the train step and the whole generation export for CPU, CUDA and ROCm.

Both run on CPU to the same numbers.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from tests.helpers import fresh_state, random_tokens, random_variables, small_config
from zaya_jax.architecture import Zaya
from zaya_jax.sampling import SamplerConfig
from zaya_jax.sampling.loop import Prompts, Sizes, run, start
from zaya_jax.sampling.options import options_of, plan_of
from zaya_jax.training.objective import Objective
from zaya_jax.training.optimizer import OptimizerConfig
from zaya_jax.training.state import make_train_step

PLATFORMS = ("cpu", "cuda", "rocm")


def round_trip(f, *args):
    """f exported, serialised, read back and called: its flat outputs."""
    leaves, tree = jax.tree.flatten(args)

    def flat(*leaves):
        return jax.tree.leaves(f(*jax.tree.unflatten(tree, leaves)))

    exported = export.export(jax.jit(flat), platforms=PLATFORMS)(*leaves)
    assert exported.platforms == PLATFORMS
    read = export.deserialize(exported.serialize())
    return read.call(*leaves)


@pytest.mark.slow
def test_train_step():
    config = small_config(dtype="float32")
    model, optimizer = Zaya(config), OptimizerConfig()
    state = fresh_state(random_variables(config), optimizer)
    batch = {"tokens": jnp.asarray(random_tokens(config, 4, 16)), "document": jnp.zeros((4, 16), jnp.int32)}
    step = make_train_step(model, Objective("tidar", 4), optimizer)
    got = round_trip(lambda *args: step(*args), state, batch, jnp.float32(1.0))
    expected = jax.tree.leaves(step(jax.tree.map(jnp.copy, state), batch, 1.0))
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_generation():
    config = small_config()
    model, variables = Zaya(config), random_variables(config)
    sampler = SamplerConfig("single_pass", 4, target="mix_stale", temperature=0.8, top_p=0.9, stop_tokens=(2,))
    plan, options = plan_of(sampler), options_of(sampler)
    tokens, count = jnp.asarray(random_tokens(config, 3, 8)), jnp.array([8, 3, 5])
    limit, data = jnp.int32(20), jax.random.key_data(jax.random.split(jax.random.key(1), 6))
    seen = jnp.zeros((3, config.vocab_size), bool)

    def generation(variables, tokens, count, seen, data, limit, options):
        keys = jax.random.wrap_key_data(data)
        prompts, sizes = Prompts(tokens, count, seen), Sizes(buffer=32, samples=2, capacity=64)
        state = start(model, variables, prompts, keys, limit, options, plan=plan, sizes=sizes)
        state, _ = run(model, variables, state, keys, limit, jnp.int32(100), jnp.int32(6), options, plan=plan)
        return state.tokens, state.accepted, state.progress.count

    args = (variables, tokens, count, seen, data, limit, options)
    for a, b in zip(round_trip(generation, *args), generation(*args), strict=True):
        np.testing.assert_array_equal(a, b)
