"""Temperatures and penalties at the ends of what float32 holds: greedy's text, a flat distribution, or a refusal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.sampling.test_generate import model_of, prompts_of
from zaya_jax.sampling import SamplerConfig, generate
from zaya_jax.sampling.core.distributions import LogitsProcessing, log_distribution, penalise

pytestmark = pytest.mark.early

COLD = (1e-6, 3e-7, 1e-8, 3e-9, 1e-9, 1e-10, 1e-20, 1.2e-38, 1e-40, 1e-46, 5e-324)


def distribution(logits, temperature, **others) -> np.ndarray:
    processing = LogitsProcessing(
        np.float32(temperature), np.int32(others.get("top_k", 0)), np.float32(others.get("top_p", 1)),
        np.float32(others.get("min_p", 0)),
    )  # fmt: skip
    return np.asarray(jax.jit(log_distribution)(logits, processing))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 1e4, 1e30])
@pytest.mark.parametrize("others", [{}, dict(top_k=3), dict(top_p=0.9), dict(min_p=0.1)], ids=str)
def test_a_cold_law_is_one_token(dtype, scale, others):
    """Down to the smallest normal number: no NaN, no infinity but for what never happens, the likeliest token alone."""
    logits = jnp.asarray(scale * np.random.default_rng(0).standard_normal((5, 260)), dtype)
    best = np.asarray(jnp.argmax(logits, axis=-1))
    for temperature in (1e-6, 3e-9, 1e-12, 1e-20, 1.2e-38):
        found = distribution(logits, temperature, **others)
        assert not np.isnan(found).any() and found.max() <= 0
        assert (found.argmax(-1) == best).all()
        np.testing.assert_allclose(np.exp(found).sum(-1), 1, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_hot_law_is_flat_and_keeps_what_is_barred(dtype):
    logits = jnp.asarray([[1.0, -50.0, 300.0, -jnp.inf]], dtype)
    for temperature in (1e10, 1e30, 1e38, np.finfo(np.float32).max):
        np.testing.assert_allclose(np.exp(distribution(logits, temperature)), [[1 / 3, 1 / 3, 1 / 3, 0]], atol=1e-6)


def test_a_law_at_ordinary_temperatures_is_the_softmax():
    logits = np.random.default_rng(1).standard_normal((4, 50)).astype(np.float32) * 5
    for temperature in (0.05, 0.7, 1.0, 3.0):
        exact = logits.astype(np.float64) / temperature
        exact -= np.log(np.exp(exact).sum(-1, keepdims=True))
        np.testing.assert_allclose(distribution(logits, temperature), exact, rtol=1e-5, atol=1e-5)
    assert (distribution(logits, 1.0) == np.asarray(jax.jit(jax.nn.log_softmax)(logits))).all()  # to the bit


@pytest.mark.parametrize("penalty", [1e-6, 1e6])
def test_a_penalty_keeps_logits_finite(penalty):
    logits = jnp.asarray([1e30, -1e30, 3.0])
    assert np.isfinite(penalise(logits, jnp.ones(3, bool), np.float32(penalty))).all()


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("mode", "dtype"),
    [
        (dict(mode="autoregressive"), "float32"), slow(dict(mode="two_pass"), "float32"),
        (dict(mode="single_pass", target="mix_stale"), "float32"),
        slow(dict(mode="single_pass", target="mix_fresh"), "float32"),
        (dict(mode="block_diffusion"), "float32"), (dict(mode="single_pass"), "bfloat16"),
    ],
    ids=str,
)  # fmt: skip
def test_cold_texts_are_greedy_texts(mode, dtype):
    model, variables = model_of(dtype=dtype)
    prompts = prompts_of(model)
    greedy = generate(model, variables, prompts, SamplerConfig(**mode, block_size=4, temperature=0.0), 12)
    for temperature in COLD[1:]:
        assert SamplerConfig(**mode, temperature=temperature).temperature == 0
    for temperature in (3e-9, 1e-46):
        sampler = SamplerConfig(**mode, block_size=4, temperature=temperature)
        cold = generate(model, variables, prompts, sampler, 12)
        assert cold.tokens == greedy.tokens
    assert np.isfinite(np.array(greedy.log_probabilities)).all()
    # the coldest that is not greedy, and the hottest: every number is one
    for temperature in (1e-6, 1e38):
        got = generate(model, variables, prompts, SamplerConfig(**mode, block_size=4, temperature=temperature), 12)
        assert np.isfinite(np.array(got.log_probabilities)).all()
    if mode["mode"] != "block_diffusion":
        np.testing.assert_allclose(got.log_probabilities, -np.log(17), rtol=1e-5)


@pytest.mark.parametrize("drafts", [1e-45, 1e-9, 1e-6, 1e38])
def test_the_drafts_temperature_changes_speed_only(drafts):
    model, variables = model_of()
    prompts = prompts_of(model)
    for target in ("autoregressive", "mix_stale"):
        got = generate(
            model, variables, prompts,
            SamplerConfig(block_size=4, temperature=0.7, draft_temperature=drafts, target=target), 12, seed=3,
        )  # fmt: skip
        logs = np.array(got.log_probabilities)
        assert np.isfinite(logs).all() and (logs <= 0).all()
    greedy = generate(model, variables, prompts, SamplerConfig("autoregressive", temperature=0.0), 12)
    mixed = generate(
        model, variables, prompts, SamplerConfig(block_size=4, temperature=0.0, draft_temperature=drafts), 12, seed=1
    )
    assert mixed.tokens == greedy.tokens


@pytest.mark.parametrize("value", [float("inf"), float("nan"), -1e-50, 1e39, 10**400, True, "1", None, 1j, np.inf])
def test_what_is_no_temperature_is_refused(value):
    with pytest.raises(
        ValueError, match=r"SamplerConfig.temperature: got .*, may be a finite number of at least 0"
    ) as e:
        SamplerConfig(temperature=value)
    assert "\n" not in str(e.value)
    with pytest.raises(ValueError, match="repetition_penalty"):
        SamplerConfig(repetition_penalty=1e-40)
