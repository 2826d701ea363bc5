"""bfloat16: scores, softmax and logits are not rounded, and what is rounded is rounded once.

U is bfloat16's unit roundoff, 2^-8: rounding changes a number by at most U of it. Bounds count roundings; float32's own
errors are 2^16 times smaller and are covered by a hundredth of U.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.helpers import built, cast, fresh_state, random_tokens, random_variables, small_config
from zaya_jax.architecture import Execution, Layout, Zaya, init_cache
from zaya_jax.architecture.attention.direct import attend, attend_dense
from zaya_jax.architecture.attention.tiled import Visibility, attend_tiles
from zaya_jax.architecture.precision import lookup, product, rounded_once
from zaya_jax.sampling import SamplerConfig, generate
from zaya_jax.training import loop
from zaya_jax.training.objective import Objective
from zaya_jax.training.optimizer import OptimizerConfig
from zaya_jax.training.state import make_train_step

pytestmark = pytest.mark.early

U = 2.0**-8
CLEAN, BLOCK, HEADS, KV_HEADS, DIM = 24, 4, 4, 2, 16
ROW = 2 * CLEAN
BF16 = dict(dtype="bfloat16", param_dtype="bfloat16")


def rounded(*shape: int, seed: int, scale: float = 1.0) -> jax.Array:
    return jnp.asarray(scale * np.random.default_rng(seed).standard_normal(shape), jnp.bfloat16)


@functools.cache
def attention_case(temperature: float):
    """(layout, query, key, value): unit queries, keys of length `temperature` * sqrt(DIM), as CCA's trained ones."""
    drawn = [rounded(1, ROW, heads, DIM, seed=seed) for seed, heads in ((0, HEADS), (1, KV_HEADS))]
    query, key = (np.asarray(x, np.float32) for x in drawn)
    query, key = (x / np.linalg.norm(x, axis=-1, keepdims=True) * DIM**0.5 for x in (query, key))
    narrow = [jnp.asarray(x, jnp.bfloat16) for x in (query, key * temperature)]
    return tidar_layout(), *narrow, rounded(1, ROW, KV_HEADS, DIM, seed=2)


@functools.cache
def tidar_layout() -> Layout:
    return jax.jit(lambda: Layout.tidar(jnp.zeros((1, CLEAN), jnp.int32), BLOCK, 0))()


def exactly(layout: Layout, query, key, value) -> tuple[np.ndarray, np.ndarray]:
    """Attention of the same rounded numbers in float64: (output, the same with |value|)."""
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(x, np.float64)) for x in (query, key, value)]
        run = jax.jit(functools.partial(attend_dense, layout=layout, window=None))
        outs = (run(*wide[:2], v) for v in (wide[2], abs(wide[2])))
        return tuple(np.asarray(out) for out in outs)


@pytest.mark.parametrize("temperature", [1.0, 12.0])
@pytest.mark.parametrize("backend", ["dense", "direct", "tiles"])
def test_attention_rounds_its_weights_and_its_output_once(backend, temperature):
    """|error| <= U * sum p |v|, the weights' rounding, + U * |out|, the output's, however sharp the softmax is.

    The tiles and the direct form round exp(score - top) and divide by the sum of what was not rounded: the same bound.
    A score of 48 rounded before the softmax would change its weight by up to 1 - exp(-48 U) = 17%, not U = 0.4%.
    """
    layout, query, key, value = attention_case(temperature)
    if backend == "dense":
        out = jax.jit(functools.partial(attend_dense, layout=layout, window=None))(query, key, value)
    else:
        context, own = ((key[:, part], value[:, part]) for part in (slice(CLEAN), slice(CLEAN, None)))
        keys = layout.clean_rows().keys
        if backend == "tiles":
            seen = Visibility(layout, keys, np.int32(np.iinfo(np.int32).max))
            out = jax.jit(attend_tiles, static_argnums=4)(query, context, own, seen, (8, 4))
        else:
            run = jax.jit(functools.partial(attend, window=None, query_chunk=64))
            out = run(query, layout, context, keys, own)
    assert out.dtype == jnp.bfloat16
    expected, size = exactly(layout, query, key, value)
    bound = 1.01 * U * (size + abs(expected)) + 1e-6
    assert (abs(np.asarray(out, np.float64) - expected) <= bound).all()


def test_tiles_ask_no_cpu_for_a_product_that_it_may_refuse():
    """XLA's CPU refuses some products of bfloat16 factors with a float32 result: `precision.product` widens factors."""
    layout, query, key, value = attention_case(1.0)
    seen = Visibility(layout, layout.clean_rows().keys, np.iinfo(np.int32).max)

    def total(query, key, value):
        context, own = ((key[:, part], value[:, part]) for part in (slice(CLEAN), slice(CLEAN, None)))
        return attend_tiles(query, context, own, seen, (8, 4)).astype(jnp.float32).sum()

    trace = jax.jit(jax.grad(total, (0, 1, 2))).trace(query, key, value)
    narrow = {
        platform: sum(
            "dot_general" in line and "bf16>, tensor" in line and "xf32>" in line.rpartition("->")[2]
            for line in trace.lower(lowering_platforms=(platform,)).as_text().splitlines()
        )
        for platform in ("cpu", "cuda")
    }
    assert narrow["cpu"] == 0 < narrow["cuda"]


def test_products_are_float32_of_the_rounded_factors_and_copy_no_factor():
    a, b = rounded(5, 7, seed=0), rounded(7, 3, seed=1)
    got = product("@", a, b)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, np.asarray(a, np.float32) @ np.asarray(b, np.float32), rtol=1e-5)
    # on a GPU (XLA's CPU widens factors anyway), and in the backward pass neither
    gradient = jax.jit(jax.value_and_grad(lambda a, b: product("@", a, b).sum(), (0, 1)))
    text = gradient.trace(a, b).lower(lowering_platforms=("cuda",)).as_text()
    assert "tensor<5x3xf32>" in text and "tensor<5x7xf32>" not in text and "tensor<7x3xf32>" not in text


def test_a_mask_row_looked_up_often_has_its_whole_gradient():
    table, ids = rounded(3, 2, seed=0), jnp.zeros((4096,), jnp.int32)
    gradient = jax.grad(lambda t: lookup(t, ids, jnp.bfloat16).astype(jnp.float32).sum())(table)
    np.testing.assert_array_equal(np.asarray(gradient, np.float32), [[4096, 4096], [0, 0], [0, 0]])


def test_rounded_once_changes_nothing_in_float32():
    x = jnp.arange(3.0)
    assert rounded_once(jnp.tanh, x).dtype == jnp.float32
    np.testing.assert_array_equal(rounded_once(jnp.tanh, x), jnp.tanh(x))


KINDS = {
    "zaya": {},
    "untied": dict(tie_word_embeddings=False, lm_head_bias=True, attention_bias=True),
    "llama": dict(attention="gqa", feed_forward="dense", residual_scaling=False, qk_norm="rms"),
    "adapters": dict(attention="gqa", feed_forward="dense", lora_rank=2, lora_alpha=1.0),
}


@functools.cache
def pair(kind: str):
    """(bfloat16 model, its variables, the float32 model of the very same numbers, those in float32)."""
    config = small_config(**KINDS[kind], **BF16)
    variables = dict(random_variables(config))
    variables["params"] = cast(variables["params"], "bfloat16")
    wide = variables | {"params": cast(variables["params"], "float32")}
    return Zaya(config), variables, Zaya(small_config(**KINDS[kind])), wide


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_float32_and_near_those_of_the_same_weights_in_float32(kind):
    """The head is exact for the hidden state it is given: its product of rounded numbers is not rounded again."""
    model, variables, wide_model, wide = pair(kind)
    layout = built(Layout.causal, random_tokens(model.config, 4, 12))
    out = jax.jit(model.apply)(variables, layout).logits
    assert out.dtype == jnp.float32
    hidden = rounded(4, 12, model.config.hidden_size, seed=3)
    head, exact = (
        jax.jit(functools.partial(m.apply, method="head"))(v, hidden.astype(dtype))
        for m, v, dtype in ((model, variables, jnp.bfloat16), (wide_model, wide, jnp.float32))
    )
    np.testing.assert_allclose(head, exact, rtol=0, atol=1e-5)
    expected = np.asarray(jax.jit(wide_model.apply)(wide, layout).logits)
    # two layers of about 20 roundings that one after the other reach the stream: independent ones add as a root
    error = np.sqrt(np.mean((np.asarray(out) - expected) ** 2)) / expected.std()
    assert 0 < error <= U * np.sqrt(2 * 20)


@pytest.mark.parametrize("kind", ["zaya", pytest.param("llama", marks=pytest.mark.slow)])
def test_chunks_are_the_whole_row_but_for_the_order_of_sums(kind):
    """The cache holds what a whole row computes, rounded alike: products differ by float32's order of summation, which
    now and then turns a rounding the other way."""
    model, variables, _, _ = pair(kind)
    tokens = random_tokens(model.config, 2, 12, seed=1)
    whole = jax.jit(model.apply)(variables, built(Layout.causal, tokens)).logits
    cache, parts = init_cache(model.config, 2, 12), []
    for start, size in ((0, 5), (5, 1), (6, 6)):
        layout = built(Layout.verify_and_draft, tokens[:, start : start + size], start=cache.length)
        out = jax.jit(model.apply)(variables, layout, cache)
        cache = out.cache.commit(jnp.full((2,), size, jnp.int32))
        parts.append(out.logits)
    error = np.sqrt(np.mean((np.concatenate(parts, 1) - np.asarray(whole)) ** 2)) / np.asarray(whole).std()
    assert error <= U


@pytest.mark.slow
def test_attention_backends_agree_in_a_whole_model():
    """Training by tiles and decoding by the direct form differ by what float32's order of sums can turn."""
    model, variables, _, _ = pair("zaya")
    layout = built(Layout.tidar, random_tokens(model.config, 2, 16), block_size=4, offset=1)
    outs = []
    for backend in ("dense", "tiled", "structured"):
        other = Zaya(small_config(**BF16), Execution(attention_backend=backend))
        outs.append(np.asarray(jax.jit(other.apply)(variables, layout).logits))
    for out in outs[1:]:
        assert np.sqrt(np.mean((out - outs[0]) ** 2)) / outs[0].std() <= 2 * U


@pytest.mark.parametrize("backend", ["tiled", pytest.param("structured", marks=pytest.mark.slow)])
def test_sharp_attention_gives_the_distribution_of_the_same_weights_in_float32(backend):
    """Keys of twelve times the length, as trained ones may have: by KL, for training by tiles and for decoding.

    A dense model, whose experts no rounding can change. With logits off by e (rms over the deviation, at most as above)
    the KL divergence is about e^2 / 2 of the deviation's square; ten times that for the sharpest of few positions.
    """
    kind, how = dict(attention="cca", feed_forward="dense"), Execution(attention_backend=backend)
    config = small_config(**kind, **BF16)
    variables = jax.tree.map(lambda x: x, dict(random_variables(config)))
    attention = variables["params"]["layers"]["self_attn"]
    variables["params"]["layers"]["self_attn"] = attention | {"temp": jnp.full_like(attention["temp"], 12)}
    params = cast(variables["params"], "bfloat16")
    wide = cast(params, "float32")
    layout, laws = built(Layout.causal, random_tokens(config, 8, 32, seed=5)), []
    for model, given in ((Zaya(config, how), params), (Zaya(small_config(**kind), how), wide)):
        logits = jax.jit(model.apply)(variables | {"params": given}, layout).logits
        laws.append(np.asarray(jax.nn.log_softmax(logits), np.float64))
    divergence = (np.exp(laws[1]) * (laws[1] - laws[0])).sum(-1)
    error = U * np.sqrt(2 * 20) * laws[1].std()
    assert 0 < divergence.mean() <= error**2 / 2 and divergence.max() <= 10 * error**2 / 2


@pytest.mark.parametrize("backend", ["structured", pytest.param("tiled", marks=pytest.mark.slow)])
def test_gradients_are_finite_and_near_those_of_the_same_weights_in_float32(backend):
    """A dense model, whose experts no rounding can change.

    The forward pass and the backward pass round about 20 times a layer each, and independent roundings add as a root:
    sqrt(80) U for two layers; 16 U leaves as much again for the few values that a small model's gradients are sums of.
    """
    kind, how = dict(attention="cca", feed_forward="dense"), Execution(attention_backend=backend)
    config = small_config(**kind, **BF16)
    variables = dict(random_variables(config))
    params = cast(variables["params"], "bfloat16")
    batch = {"tokens": jnp.asarray(random_tokens(config, 2, 16, seed=2)), "document": jnp.zeros((2, 16), jnp.int32)}
    objective = Objective("tidar", block_size=BLOCK)

    def gradient(model, params):
        def loss(params):
            sums = objective.sums(model, {**variables, "params": params}, batch, {"offset": jnp.array([0, 1])})
            return objective.loss(sums, sums)

        return jax.jit(jax.grad(loss))(params)

    got = gradient(Zaya(config, how), params)
    wanted = gradient(Zaya(small_config(**kind), how), cast(params, "float32"))
    for (path, one), other in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(wanted), strict=True):
        one, other = (np.asarray(x).astype(np.float32).ravel() for x in (one, other))
        assert np.isfinite(one).all(), path
        assert np.linalg.norm(one - other) <= 16 * U * np.linalg.norm(other) + 1e-6, path


@pytest.mark.slow
def test_one_whole_train_step_of_a_mixture_is_float32s_rounded():
    """Parameters, moments and experts in bfloat16, biases in float32, beside float32 from the same numbers.

    Adam's first step is the rate times the gradient's sign, so a parameter may differ by its own rounding, U of it, and
    by eight roundings on the step's way, 8 U of the rate; where the gradient's sign is not sure, by twice the rate. It
    is sure above three times 16 U of a leaf's rms, the error that gradients may have (above).
    """
    model, variables, wide_model, wide = pair("zaya")
    rate = 2.0**-5
    optimizer = OptimizerConfig(learning_rate=rate, weight_decay=0.0)
    batch = {
        "tokens": jnp.asarray(random_tokens(model.config, 8, 16, seed=2)),
        "document": jnp.zeros((8, 16), jnp.int32),
    }
    sides = {}
    for name, one, start in (("low", model, variables), ("wide", wide_model, wide)):
        state = fresh_state(start, optimizer)
        sides[name] = make_train_step(one, Objective("tidar", BLOCK), optimizer)(state, batch, 1.0)
    (low, low_metrics), (after, metrics) = sides["low"], sides["wide"]
    layout = built(Layout.causal, batch["tokens"])
    deviation = float(jax.jit(wide_model.apply)(wide, layout).logits.std())
    assert 0 < abs(float(low_metrics["loss"]) - float(metrics["loss"])) <= U * np.sqrt(40) * deviation
    for one, other in zip(jax.tree.leaves(low.balancing), jax.tree.leaves(after.balancing), strict=True):
        assert one.dtype == jnp.float32
        np.testing.assert_allclose(one, other, rtol=0, atol=2.1 * optimizer.balancing_rate)
    gradients = jax.tree.leaves(optax.tree_utils.tree_get(after.opt_state, "mu"))
    sure_shares = []
    leaves = zip(jax.tree_util.tree_leaves_with_path(low.params), jax.tree.leaves(after.params), gradients, strict=True)
    for (path, got), wanted, gradient in leaves:
        assert got.dtype == jnp.bfloat16, path
        got, wanted, gradient = (np.asarray(x).astype(np.float64) for x in (got, wanted, gradient))
        sure = abs(gradient) > 3 * 16 * U * np.sqrt(np.mean(gradient**2))
        allowed = 1.01 * U * abs(wanted) + 8 * U * rate
        assert (abs(got - wanted) <= np.where(sure, allowed, allowed + 2 * rate)).all(), path
        sure_shares.append(sure.mean())
    assert np.mean(sure_shares) > 0.5


@pytest.mark.slow
def test_greedy_drafting_leaves_greedy_ar_text_only_where_two_tokens_are_nearly_tied():
    """Forwards of other sizes sum in another order, which turns a rounding here and there.

    Each of the likeliest two tokens' logits may be off by twice the rms that chunks may differ by (above), so they are
    within 4 U of the logits' deviation where the texts part.
    """
    model, variables, _, _ = pair("zaya")
    prompts, new = random_tokens(model.config, 16, 5, seed=4).tolist(), 12

    def texts(mode: str) -> list[list[int]]:
        sampler = SamplerConfig(mode, BLOCK, temperature=0.0)
        return generate(model, variables, prompts, sampler, new).tokens

    plain, drafted = texts("autoregressive"), texts("single_pass")
    same, run = 0, jax.jit(model.apply)
    for prompt, one, other in zip(prompts, plain, drafted, strict=True):
        apart = next((i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b), None)
        same += apart is None
        if apart is not None:
            text = np.zeros((1, 32), np.int32)  # one width: one program
            text[0, : len(prompt) + apart] = [*prompt, *one[:apart]]
            logits = np.asarray(run(variables, Layout.causal(text)).logits[0, len(prompt) + apart - 1])
            low, high = sorted((logits[one[apart]], logits[other[apart]]))
            assert high - low <= 4 * U * logits.std()
    assert same >= len(prompts) // 2


def test_a_phase_without_masters_says_so_before_it_starts(monkeypatch, capsys):
    def stop(*_):
        raise InterruptedError

    monkeypatch.setattr(loop, "_start", stop)
    for config, says in ((small_config(**BF16), True), (small_config(dtype="bfloat16"), False)):
        phase = loop.Phase(name="convert", steps=1, objective=Objective("tidar", BLOCK), optimizer=OptimizerConfig())
        with pytest.raises(InterruptedError):
            loop.train(Zaya(config), {}, phase, None, None, None)
        assert ("convert: trains bfloat16 parameters without float32 masters" in capsys.readouterr().out) == says
