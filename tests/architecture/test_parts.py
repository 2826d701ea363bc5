"""A row that several devices share is the row: parts under `jax.vmap`'s axis, whose collectives are shard_map's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import random_variables, small_config
from zaya_jax.architecture import Execution, Layout, Zaya
from zaya_jax.architecture.attention.direct import count_pairs
from zaya_jax.architecture.parts import share

LENGTH, BLOCK = 48, 2


def model_and_row(kind: str):
    sliding = dict(layer_types=("hybrid", "hybrid_sliding"), sliding_window=7)
    config = small_config(dtype="float64", param_dtype="float64", cca_time0=3, **sliding)
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, config.vocab_size, (2, LENGTH)).astype(np.int32)
    document = np.sort(rng.integers(0, 5, tokens.shape), axis=1).astype(np.int32)
    document[0, LENGTH // 2 - 1 :] = 9  # starts one token before a stretch
    document[1] = 3
    document[1, -3:] = -1
    if kind == "causal":
        layout = Layout.causal(tokens, document=document)
    else:
        layout = Layout.tidar(tokens, BLOCK, np.array([1, 0]), document=document)
    return config, random_variables(config), layout


@pytest.mark.parametrize(
    ("kind", "count", "stretches"),
    [
        ("tidar", 4, 2),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [("causal", 2, 2), ("tidar", 2, 2), ("causal", 4, 2), ("causal", 16, 1), ("tidar", 8, 1)]
        ),
    ],
)
def test_parts_give_the_whole_rows_hidden_states_and_gradients(kind, count, stretches, x64):
    """Three columns of history, and as many tokens or more in every stretch (16 parts: three each)."""
    config, variables, layout = model_and_row(kind)
    model = Zaya(config, Execution("dense"))  # vmap has no rule for the default experts
    parts = jax.eval_shape(lambda: layout.part(0, count, ("context",)))
    assert parts.stretches == stretches
    clean = layout.clean_size
    weight = np.random.default_rng(2).normal(size=(2, layout.tokens.shape[1], config.hidden_size))
    weight *= np.asarray(layout.document >= 0)[..., None]

    def of_whole(variables):
        return (model.apply(variables, layout, method="backbone")[0] * weight).sum()

    def of_parts(variables):
        def one(index):
            mine = layout.part(index, count, ("context",))
            own = [share(weight[:, part], index, count, stretches) for part in (slice(clean), slice(clean, None))]
            hidden = model.apply(variables, mine, method="backbone")[0]
            return (hidden * jnp.concatenate(own, axis=1)).sum()

        return jax.vmap(one, axis_name="context")(jnp.arange(count)).sum()

    expected, got = (jax.jit(jax.value_and_grad(f))(variables) for f in (of_whole, of_parts))
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(got), strict=True):
        np.testing.assert_allclose(b, a, atol=1e-12 * max(1.0, float(np.abs(a).max())), rtol=0)


@pytest.mark.parametrize("kind", ["causal", "tidar"])
@pytest.mark.parametrize("count", [2, 4, 8])
def test_devices_that_share_a_row_compute_equally_many_scores(kind, count):
    """Of one long document, the worst case: within 5%; in one stretch each the last part had nearly `count` times."""
    tokens = np.zeros((1, 4096), np.int32)
    layout = Layout.causal(tokens) if kind == "causal" else Layout.tidar(tokens, 16)
    parts = [layout.part(index, count, ("context",)) for index in range(count)]
    pairs = [count_pairs(part, None, 256, part.clean_keys) for part in parts]
    for name in ("executed", "visible"):
        found = [each[name] for each in pairs]
        assert max(found) <= 1.05 * min(found), (name, found)


def test_gathered_context_stands_as_in_the_text():
    layout = Layout.causal(np.arange(24, dtype=np.int32)[None])

    def one(index):
        mine = layout.part(index, 3, ("context",))
        return mine.gather(mine.tokens)

    gathered = jax.vmap(one, axis_name="context")(jnp.arange(3))
    np.testing.assert_array_equal(gathered, np.broadcast_to(np.arange(24), (3, 1, 24)))
