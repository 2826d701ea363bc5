"""A model whose layers stand in arrays of their own is the same model, and reads its weights where they lie."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.architecture.test_one_function import CONFIGS
from tests.helpers import random_tokens, random_variables, small_config
from zaya_jax.architecture import Layout, Zaya, for_decoding, init_cache
from zaya_jax.architecture import separate as separate_module
from zaya_jax.architecture.separate import separate
from zaya_jax.errors import UserError
from zaya_jax.sampling import SamplerConfig, generate

DEFAULT = ("all of cca's", "llama", "adapters on drafts")  # every kind of part between them


@functools.partial(jax.jit, static_argnums=0)
def read_and_verify(model, variables, tokens):
    """Six tokens, of which five are committed, then four verified and drafted after: both logits, the cache."""
    cache = init_cache(model.config, 2, 32, model.separate)
    first = model.apply(variables, Layout.verify_and_draft(tokens[:, :6], cache.length), cache)
    cache = first.cache.commit(jnp.array([5, 4]))
    second = model.apply(variables, Layout.verify_and_draft(tokens[:, 6:10], cache.length, (2, 4), 4), cache)
    return first.logits, second.logits, second.cache.commit(jnp.array([3, 1]))


@pytest.mark.parametrize(
    "name", [name if name in DEFAULT else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS]
)
def test_equals_the_stacked_model(name, x64):
    config = small_config(dtype="float64", param_dtype="float64", **CONFIGS[name])
    variables = random_variables(config)
    tokens = random_tokens(config, 2, 10)
    *expected, stacked = read_and_verify(Zaya(config), variables, tokens)
    *got, cache = read_and_verify(*for_decoding(Zaya(config), variables), tokens)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)
    for field in ("key", "value", "conv", "delayed"):
        np.testing.assert_allclose(np.concatenate(getattr(cache, field)), getattr(stacked, field), rtol=0, atol=1e-12)
    np.testing.assert_array_equal(cache.length, stacked.length)


def test_experts_in_arrays_of_their_own_are_the_same_model(x64, monkeypatch):
    config = small_config(dtype="float64", param_dtype="float64")
    variables, tokens = random_variables(config), random_tokens(config, 2, 10)
    *expected, stacked = read_and_verify(Zaya(config), variables, tokens)
    monkeypatch.setattr(separate_module, "OWN_EXPERT", 0)
    model, values = for_decoding(Zaya(config), variables)
    assert "gate_up_proj" not in values["params"]["layers"]["0"]["mlp"]
    *got, cache = read_and_verify(model, values, tokens)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)
    np.testing.assert_allclose(np.concatenate(cache.key), stacked.key, rtol=0, atol=1e-12)
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (values, variables)]
    assert sizes[0] == sizes[1]


def test_what_is_lowered_for_a_gpu_is_the_same_model(x64, monkeypatch):
    """Its branches computed here: few rows padded, experts in place or in rounds, context and drafts at once."""

    def one_more(model, variables, tokens):
        first, second, cache = read_and_verify.__wrapped__(model, variables, tokens)
        third = model.apply(variables, Layout.verify_and_draft(tokens[:, 9:], cache.length), cache)
        return first, second, third.logits

    config = small_config(dtype="float64", param_dtype="float64")
    variables, tokens = random_variables(config), random_tokens(config, 2, 10)
    expected = jax.jit(functools.partial(one_more, Zaya(config)))(variables, tokens)
    try:
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(jax.lax, "platform_dependent", lambda *args, default, cpu: default(*args))
            jax.clear_caches()  # of parts that are traced once for all programs
            for model, values in ((Zaya(config), variables), for_decoding(Zaya(config), variables)):
                got = jax.jit(functools.partial(one_more, model))(values, tokens)
                for a, b in zip(got, expected, strict=True):
                    np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)
    finally:
        jax.clear_caches()


@pytest.mark.parametrize("own_experts", [False, True])
def test_given_up_arrays_are_deleted_and_no_others(own_experts):
    config = small_config()
    held = random_variables(config)
    variables = jax.tree.map(jnp.copy, held)
    out = separate(variables, release=True, own_experts=own_experts)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(variables["params"]["layers"]))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(out))
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (out, held)]
    assert sizes[0] == sizes[1]
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((separate(held), held)))


def test_what_is_separate_already_is_refused():
    out = separate(random_variables(small_config()))
    with pytest.raises(UserError, match=r"^variables: got layers in separate arrays, may be"):
        separate(out)
    model = Zaya(small_config(), separate=True)
    assert for_decoding(model, out) == (model, out)


def test_a_session_of_the_other_form_is_refused():
    config = small_config()
    model, variables = Zaya(config), random_variables(config)
    sampler = SamplerConfig("autoregressive", temperature=0.0)
    session = generate(model, variables, [[1, 2]], sampler, 2).session
    with pytest.raises(UserError, match=r"^session: got a cache of a model with stacked layers, may be one of this"):
        generate(*for_decoding(model, variables), [[3]], sampler, 2, session=session)


def test_bfloat16_is_widened_only_when_asked():
    config = small_config(dtype="bfloat16", param_dtype="bfloat16")
    model, variables = Zaya(config), random_variables(config)
    assert for_decoding(model, variables)[0].config.dtype == "bfloat16"
    wide, params = for_decoding(model, variables, widen=True)
    assert (wide.config.dtype, wide.config.param_dtype) == ("float32", "float32")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params["params"])} == {"float32"}
