"""Contract 3: nothing leaks. Jacobians are zero exactly where visibility and succession say so."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import built, random_variables, small_config
from zaya_jax.architecture import START, Execution, Layout, Zaya

ROW = 9
MODELS = {
    "taps 2 and 2": {},
    "taps 3 and 1": dict(cca_time0=3, cca_time1=1),
    "taps 1 and 3": dict(cca_time0=1, cca_time1=3),
    "adapters": dict(lora_rank=2, lora_rows="drafts"),
    "llama": dict(
        attention="gqa", qk_norm="rms", feed_forward="dense", residual_scaling=False, partial_rotary_factor=1.0
    ),
}


def reach(layout: Layout, config) -> np.ndarray:
    """Which inputs each row's output depends on, by following the two rules: bool [row, row].

    In one layer a row reaches, of every key it attends to, the key's value (its token and its predecessor's delayed
    half) and, if there is more than one key to weigh, the keys' and its own convolution history. Layers compose.
    """
    before = np.asarray(layout.predecessor[0])
    seen = np.asarray(layout.visibility()[0])
    size = len(before)

    def history(row: int, steps: int) -> set[int]:
        found = {row}
        for _ in range(steps):
            row = before[row]
            if row == START:
                break
            found.add(int(row))
        return found

    one = np.zeros((size, size), bool)
    for q in range(size):
        keys = np.flatnonzero(seen[q])
        parts = [{q}] + [history(int(k), int(config.has("delayed_value"))) for k in keys]
        if len(keys) > 1:
            parts += [history(int(r), config.conv_history) for r in (q, *keys)]
        one[q, list(set.union(*parts))] = True
    total = np.eye(size, dtype=bool)
    for _ in range(config.num_hidden_layers):
        total = one.astype(int) @ total.astype(int) > 0
    return total


@functools.cache
def jacobian_of(name: str, block_size: int):
    """A compiled (document, offset) -> (its layout, |d hidden / d stream| summed over channels, [row, row])."""
    with jax.enable_x64(True):
        config = small_config(
            **MODELS[name], hidden_size=8, num_hidden_layers=2, dtype="float64", param_dtype="float64"
        )
        model, variables = Zaya(config), random_variables(config, seed=3)

    @jax.jit
    def jacobian(document, offset):
        layout = Layout.tidar(np.zeros((1, ROW), np.int32), block_size, offset, document=document)

        def hidden(stream):
            return model.apply(variables, layout, None, stream, method="backbone")[0]

        stream = np.random.default_rng(0).standard_normal((*layout.tokens.shape, config.hidden_size))
        return layout, jnp.abs(jax.jacfwd(hidden)(stream)).sum((0, 2, 3, 5))

    return config, jacobian


@st.composite
def documents(draw):
    cuts = sorted(draw(st.sets(st.integers(1, ROW - 1), max_size=3)))
    ids = np.zeros(ROW, np.int32)
    for cut in cuts:
        ids[cut:] += 1
    if draw(st.booleans()):
        ids[: cuts[0] if cuts else 1] = -1  # the first piece is left padding
    return ids[None]


@settings(max_examples=40)
@given(documents(), st.integers(0, 2), st.sampled_from([*((name, 3) for name in MODELS), ("taps 3 and 1", 2)]))
def test_jacobian_is_zero_exactly_where_the_rules_say_so(document, offset, kind):
    _, block_size = kind
    config, jacobian = jacobian_of(*kind)
    with jax.enable_x64(True):
        layout, found = jax.device_get(jacobian(document, np.int32(offset % block_size)))
    expected = reach(layout, config)
    assert found[~expected].max(initial=0) == 0, "an output depends on a token that it must not see"
    assert found[expected].min() > 0, "an output does not depend on a token that it should see"


def test_a_flat_convolution_would_be_caught(x64):
    """The negative control: with the row index for succession, the clean half stays right and every draft leaks."""
    config = small_config(hidden_size=8, dtype="float64", param_dtype="float64", succession="row")
    layout = built(Layout.tidar, np.zeros((1, ROW), np.int32), block_size=3)
    stream = np.random.default_rng(0).standard_normal((1, layout.tokens.shape[1], 8))
    model, variables = Zaya(config), random_variables(config, seed=3)

    def hidden(stream):
        return model.apply(variables, layout, None, stream, method="backbone")[0]

    found = np.asarray(jax.jit(lambda x: jnp.abs(jax.jacfwd(hidden)(x)).sum((0, 2, 3, 5)))(stream))
    leaks = (found > 0) & ~reach(layout, config)
    assert not leaks[:ROW].any()
    assert leaks[ROW:].any()


@pytest.mark.parametrize("backend", ["dense", "block_padded", "gather"])
def test_no_row_depends_on_its_batch_neighbours(backend, x64):
    """Dropless dispatch: changing one row of the batch leaves the other bit for bit alone."""
    config = small_config(dtype="float64", param_dtype="float64")
    model, variables = Zaya(config, Execution(backend)), random_variables(config)
    tokens = np.random.default_rng(0).integers(0, 17, (3, 8))
    other = tokens.copy()
    other[1:] = (other[1:] + 5) % 17
    run = jax.jit(lambda tokens: model.apply(variables, Layout.tidar(tokens, 4)).logits)
    np.testing.assert_allclose(run(tokens)[0], run(other)[0], rtol=0, atol=1e-13)
