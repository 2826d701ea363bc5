"""What the backbone exports for drafters: the stream that enters chosen layers, the same whichever way it was run."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.architecture.test_one_function import CONFIGS
from tests.helpers import random_tokens, random_variables, small_config
from zaya_jax.architecture import Layout, Zaya, for_decoding, init_cache
from zaya_jax.errors import UserError

TAPS = (2, 0, 1)  # what leaves the last layer, the embedded tokens, what enters the second layer


def float64_model(name: str):
    config = small_config(dtype="float64", param_dtype="float64", **CONFIGS[name])
    return Zaya(config), random_variables(config)


@functools.partial(jax.jit, static_argnums=(0, 3))
def features(model, variables, layout, taps=TAPS):
    return model.apply(variables, layout, taps=taps, method="features")[0]


@functools.partial(jax.jit, static_argnums=0)
def cached_features(model, variables, tokens):
    """Six tokens, of which five and four are committed; the other tokens after those."""
    cache = init_cache(model.config, 2, 32, model.separate)

    def read(tokens, cache):
        layout = Layout.verify_and_draft(tokens, cache.length)
        return model.apply(variables, layout, cache, TAPS, method="features")

    first, cache, _ = read(tokens[:, :6], cache)
    kept = jnp.array([5, 4])
    rest = jnp.take_along_axis(tokens, kept[:, None] + jnp.arange(4), axis=1)
    second, _, _ = read(rest, cache.commit(kept))
    return first, second


@pytest.mark.parametrize("name", [pytest.param("plain", marks=pytest.mark.slow), "llama"])
def test_taps_are_the_streams_that_enter_layers(name, x64):
    model, variables = float64_model(name)
    tokens = random_tokens(model.config, 2, 8)
    layout = Layout.tidar(tokens, block_size=4, offset=1)
    params = variables["params"]
    # a model of the first layer alone ends with what enters the second
    first = {**params, "layers": jax.tree.map(lambda x: x[:1], params["layers"])}
    if "router_states_scale" in first:
        first["router_states_scale"] = first["router_states_scale"][:0]
    balancing = jax.tree.map(lambda x: x[:1], variables.get("balancing", {}))
    short = Zaya(model.config.replace(num_hidden_layers=1, layer_types=model.config.layer_kinds[:1]))

    @jax.jit
    def both(variables, first, layout):
        def norm(x):
            return model.apply(variables, x, method=lambda model, x: model.norm(x))

        got, *_ = model.apply(variables, layout, taps=TAPS, method="features")
        taps = norm(got.taps[:, :, 0]), got.taps[:, :, 1], norm(got.taps[:, :, 2])
        hidden, *_ = model.apply(variables, layout, method="backbone")
        embedded = model.apply(variables, layout.tokens, method="embed")
        before, *_ = short.apply(first, layout, method="backbone")
        return (got.hidden, *taps), (hidden, hidden, embedded, before)

    for got, expected in zip(*both(variables, {"params": first, "balancing": balancing}, layout), strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["all of cca's", pytest.param("llama", marks=pytest.mark.slow)])
def test_a_cached_forward_in_either_form_exports_a_rows_features(name, x64):
    model, variables = float64_model(name)
    tokens = random_tokens(model.config, 2, 10)
    whole = features(model, variables, Layout.causal(tokens))
    for form in ((model, variables), for_decoding(model, variables)):
        first, second = cached_features(*form, tokens)
        for field in ("hidden", "taps"):
            expected = getattr(whole, field)
            np.testing.assert_allclose(getattr(first, field), expected[:, :6], rtol=0, atol=1e-11)
            for row, kept in enumerate((5, 4)):
                np.testing.assert_allclose(
                    getattr(second, field)[row], expected[row, kept : kept + 4], rtol=0, atol=1e-11
                )


def test_nothing_is_computed_that_is_not_asked_for():
    model = Zaya(small_config())
    variables, layout = random_variables(model.config), Layout.causal(np.zeros((1, 4), np.int32))

    def trace(**asked):
        return str(jax.make_jaxpr(lambda v: model.apply(v, layout, **asked)[0])(variables))

    # the empty array of no taps is one line
    assert trace(method="features").count("\n") <= trace(method="backbone").count("\n") + 1
    assert trace(method="features", taps=(1,)).count("\n") > trace(method="backbone").count("\n") + 1


def test_a_layer_that_is_not_there_is_refused():
    model = Zaya(small_config())
    with pytest.raises(UserError, match=r"^taps: got 3, may be in 0 .. 2"):
        model.apply(random_variables(model.config), Layout.causal([[1]]), taps=(0, 3), method="features")
