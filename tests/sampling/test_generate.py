"""`generate` against its reference implementation, and what a caller may rely on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import random_tokens, random_variables, small_config
from tests.sampling.reference import reference_generate
from zaya_jax.architecture import Layout, Zaya
from zaya_jax.sampling import SamplerConfig, generate
from zaya_jax.sampling.core.random_streams import row_keys
from zaya_jax.sampling.loop import run, start

pytestmark = pytest.mark.early

NEW = 18


def programs() -> int:
    """Compiled programs of the loop so far."""
    return start._cache_size() + run._cache_size()


@functools.cache
def model_of(seed: int = 0, scale: float = 0.35, **changes):
    config = small_config(**changes)
    return Zaya(config), random_variables(config, seed, scale)


def prompts_of(model, lengths=(3, 9, 1, 6)):
    tokens = random_tokens(model.config, 16, seed=8)
    return [tokens[:n].tolist() for n in lengths]


def slow(sampler: SamplerConfig):
    return pytest.param(sampler, marks=pytest.mark.slow)


# Samplers that differ in options alone share a program: eight programs, and three more in the slow tests. After one
# accepted token, anchors (2, 3) have drafted nothing. Other files of this folder sample by the same programs.
@pytest.mark.parametrize(
    "sampler",
    [
        SamplerConfig("autoregressive", temperature=0.9),
        SamplerConfig("single_pass", 4, temperature=0.9),
        SamplerConfig("single_pass", 4, temperature=0.0),
        SamplerConfig("single_pass", 4, (2, 3), temperature=0.7, draft_temperature=0.0),
        SamplerConfig("single_pass", 4, (2, 3), temperature=0.7, draft_temperature=1.5, stop_tokens=(3, 5)),
        SamplerConfig("single_pass", 4, target="mix_stale", beta=0.4, temperature=0.8),
        SamplerConfig("single_pass", 4, target="mix_stale", beta=0.4, temperature=0.0),
        slow(SamplerConfig("single_pass", 3, (1, 3), target="mix_stale", beta=0.4, temperature=0.0)),
        SamplerConfig("single_pass", 4, target="mix_fresh", beta=0.3, temperature=0.8, stop_tokens=(1,)),
        slow(SamplerConfig("single_pass", 1, target="mix_fresh", beta=0.3, temperature=0.8)),
        SamplerConfig("single_pass", 4, temperature=0.9, top_k=5, draft_top_p=0.8, draft_top_k=9),
        SamplerConfig("single_pass", 4, (2, 3), temperature=1.2, top_p=0.7, min_p=0.05, draft_temperature=0.0),
        SamplerConfig("single_pass", 4, repetition_penalty=1.4, min_new_tokens=6, stop_tokens=(3, 5, 8)),
        SamplerConfig("autoregressive", repetition_penalty=1.4, min_new_tokens=6, stop_tokens=(3, 5, 8), top_p=0.9),
        SamplerConfig("two_pass", 4, temperature=0.9),
        SamplerConfig("two_pass", 4, temperature=0.0, repetition_penalty=0.8, stop_tokens=(2,)),
        slow(SamplerConfig("two_pass", 4, target="mix_stale", beta=0.5, temperature=0.8, top_k=6)),
        SamplerConfig("block_diffusion", 4, temperature=0.9, threshold=0.5),
        SamplerConfig("block_diffusion", 4, temperature=0.0, threshold=1.0, reveal=2, stop_tokens=(3,)),
        SamplerConfig("block_diffusion", 3, target="left_to_right", temperature=0.7, reveal=2),
        SamplerConfig("block_diffusion", 4, target="entropy_bounded", temperature=0.8, threshold=0.9),
    ],
    ids=str,
)
def test_the_loop_is_the_reference_implementation(sampler):
    """Same keys, same tokens: the batched, cached, jitted loop against a python loop without a cache."""
    model, variables = model_of()
    prompts = prompts_of(model)
    got = generate(model, variables, prompts, sampler, NEW, seed=[11, 12, 13, 14])
    for row, prompt in enumerate(prompts):
        key = jax.random.key(11 + row)
        expected = reference_generate(model, variables, prompt, sampler, NEW, key)
        assert (got.tokens[row], got.accepted[row]) == expected


ONE_HEAD = dict(num_key_value_heads=1, num_experts=16)
KERNELS = dict(cca_time0=3, cca_time1=3)


@pytest.mark.parametrize(
    ("seed", "changes", "lists"),
    [
        (3, {}, ("all", (2, 3))),
        pytest.param(0, ONE_HEAD | KERNELS, ("all", (1,)), marks=pytest.mark.slow),
        pytest.param(3, KERNELS, ("all",), marks=pytest.mark.slow),
        pytest.param(0, ONE_HEAD, ("all",), marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_greedy_lossless_is_greedy_autoregression(seed, changes, lists):
    """Contract 4, float32, and both are the argmax of the plain forward pass."""
    model, variables = model_of(seed, 0.6, **changes)
    prompts = prompts_of(model, (3, 9, 1, 12))
    plain = generate(model, variables, prompts, SamplerConfig("autoregressive", temperature=0.0), 32)
    for anchors in lists:
        fast = generate(model, variables, prompts, SamplerConfig("single_pass", 4, anchors, temperature=0.0), 32)
        assert fast.tokens == plain.tokens
        if anchors == "all":
            assert plain.forwards.sum() / 4 < fast.forwards.sum() < plain.forwards.sum()  # some accepted, some rejected
    assert len(set(sum(plain.tokens, []))) >= 5  # not one token for ever
    run = jax.jit(model.apply)
    for prompt, tokens in zip(prompts, plain.tokens, strict=True):
        text = np.zeros((1, 64), np.int32)
        text[0, : len(prompt) + 32] = prompt + tokens
        logits = run(variables, Layout.causal(text, np.arange(64)[None] < len(prompt) + 32)).logits[0]
        assert np.argmax(logits[len(prompt) - 1 : len(prompt) + 31], axis=-1).tolist() == tokens


def test_autoregression_is_one_token_a_forward():
    model, variables = model_of()
    got = generate(model, variables, prompts_of(model), SamplerConfig("autoregressive", temperature=1.0), NEW)
    assert got.tokens_per_forward == 1
    assert got.forwards.tolist() == [len(t) for t in got.tokens] == [NEW] * 4


@pytest.mark.parametrize(
    ("target", "size"), [("autoregressive", 4), pytest.param("mix_stale", 4, marks=pytest.mark.slow)]
)
def test_a_row_does_not_depend_on_its_neighbours(target, size):
    """Contract 5: neighbours, their lengths and padding change nothing."""
    model, variables = model_of()
    sampler = SamplerConfig("single_pass", size, target=target, temperature=0.8, stop_tokens=(2,))
    prompts = prompts_of(model, (3, 9, 1, 16))
    together = generate(model, variables, prompts, sampler, NEW, seed=[5, 6, 7, 8])
    for row, prompt in enumerate(prompts):
        alone = generate(model, variables, [prompt], sampler, NEW, seed=[5 + row])
        assert alone.tokens[0] == together.tokens[row]
        assert alone.accepted[0] == together.accepted[row]
        np.testing.assert_allclose(alone.log_probabilities[0], together.log_probabilities[row], atol=1e-4)


def test_books_balance_and_stop_tokens_end_rows():
    model, variables = model_of()
    sampler = SamplerConfig("single_pass", 4, temperature=1.0, stop_tokens=(1, 4))
    batches = [generate(model, variables, prompts_of(model), sampler, NEW, seed) for seed in (0, 10, 20, 30)]
    stopped, got = 0, batches[-1]
    for tokens, accepted in ((t, a) for got in batches for t, a in zip(got.tokens, got.accepted, strict=True)):
        assert sum(accepted) == len(tokens) <= NEW
        assert accepted[0] == 1 and all(1 <= a <= 4 for a in accepted)
        assert not set(tokens[:-1]) & {1, 4}
        stopped += tokens[-1] in (1, 4)
        assert tokens[-1] in (1, 4) or len(tokens) == NEW
    assert stopped > 0
    assert got.tokens_per_forward == sum(map(len, got.tokens)) / got.forwards.sum()
    assert got.rows_per_forward == 4 + 16


def test_log_probabilities_are_the_models_own():
    model, variables = model_of()
    prompts = prompts_of(model)
    for sampler in (SamplerConfig("autoregressive", temperature=0.7), SamplerConfig("single_pass", 4, temperature=0.7)):
        got = generate(model, variables, prompts, sampler, NEW)
        prompt, new = prompts[1], got.tokens[1]
        logits = jax.jit(model.apply)(variables, Layout.causal(jnp.asarray([prompt + new]))).logits[0] / 0.7
        expected = jax.nn.log_softmax(logits)[len(prompt) - 1 : -1]
        expected = np.take_along_axis(np.asarray(expected), np.array(new)[:, None], 1)[:, 0]
        np.testing.assert_allclose(got.log_probabilities[1], expected, atol=2e-4)


def test_run_time_values_compile_nothing():
    model, variables = model_of()
    prompts = prompts_of(model)
    generate(model, variables, prompts, SamplerConfig("single_pass", 4, target="mix_stale"), NEW)
    before = programs()
    for temperature, draft, beta, new, seed, stop in [(0.0, None, 0.1, 5, 3, ()), (2.0, 0.0, 0.9, 32, 4, (1, 2, 3))]:
        sampler = SamplerConfig(
            "single_pass",
            4,
            target="mix_stale",
            beta=beta,
            temperature=temperature,
            draft_temperature=draft,
            stop_tokens=stop,
        )
        generate(model, variables, [p + [1, 2] for p in prompts], sampler, new, seed=seed)
    assert programs() == before


def test_seeds_and_row_keys():
    model, variables = model_of()
    prompts = [[1, 2]] * 4
    sampler = SamplerConfig("single_pass", 4, temperature=1.5)
    a, b = (generate(model, variables, prompts, sampler, NEW, seed=s).tokens for s in (0, 0))
    assert a == b
    assert len({tuple(t) for t in a}) == 4  # rows of one seed differ
    assert generate(model, variables, prompts, sampler, NEW, seed=1).tokens != a
    with pytest.raises(ValueError, match="seed: got 2 seeds"):
        row_keys([1, 2], 3)


@pytest.mark.parametrize(
    ("kwargs", "names"),
    [
        (dict(mode="x"), "SamplerConfig.mode: got 'x'"),
        (dict(block_size=0), "SamplerConfig.block_size: got 0"),
        (dict(block_size=2.5), "SamplerConfig.block_size: got 2.5"),
        (dict(anchors=(0, 1)), "SamplerConfig.anchors"),
        (dict(anchors=(9,)), "SamplerConfig.anchors"),
        (dict(anchors=()), "SamplerConfig.anchors"),
        (dict(anchors="some"), "SamplerConfig.anchors"),
        (dict(target="best"), "SamplerConfig.target"),
        (dict(target="mix_fresh", anchors=(1,)), "SamplerConfig.anchors"),
        (dict(mode="autoregressive", target="mix_stale"), "SamplerConfig.target"),
        (dict(beta=1.5), "SamplerConfig.beta: got 1.5"),
        (dict(temperature=-1), "SamplerConfig.temperature: got -1"),
        (dict(temperature=float("nan")), "SamplerConfig.temperature"),
        (dict(draft_temperature="hot"), "SamplerConfig.draft_temperature"),
        (dict(stop_tokens=(-1,)), "SamplerConfig.stop_tokens"),
    ],
)
def test_bad_sampler_configs_name_the_field(kwargs, names):
    with pytest.raises(ValueError, match=names):
        SamplerConfig(**kwargs)


@pytest.mark.parametrize(
    ("prompts", "new", "names"),
    [
        ([], 4, "prompts: got none"),
        ([[1], []], 4, r"prompts\[1\]: got no tokens"),
        ([[1, 17]], 4, r"prompts\[0\]: got token 17, may be in \[0, 17\)"),
        ([[-1]], 4, r"prompts\[0\]: got \(-1,\), may be a list of token ids"),
        ([[1] * 4090], 40, "max_position_embeddings"),
        ([[1]], 0, "max_new_tokens: got 0"),
    ],
)
def test_bad_prompts_are_refused_before_compiling(prompts, new, names):
    model, variables = model_of()
    before = programs()
    with pytest.raises(ValueError, match=names):
        generate(model, variables, prompts, SamplerConfig(), new)
    assert programs() == before


def test_lossless_is_a_name_for_the_autoregressive_target():
    assert SamplerConfig(target="lossless") == SamplerConfig(target="autoregressive")
