"""A draft vocabulary: part of the head for the drafts; with all tokens in it, nothing changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import random_variables, small_config
from zaya_jax.architecture import Zaya
from zaya_jax.architecture.draft_vocabulary import COLLECTION, DraftVocabulary, with_draft_vocabulary
from zaya_jax.architecture.separate import separate
from zaya_jax.sampling import SamplerConfig, generate


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("apart", [True, False], ids=["separate", "stacked"])
def test_its_logits_are_the_heads(tied, apart):
    config = small_config(num_hidden_layers=1, tie_word_embeddings=tied, lm_head_bias=not tied)
    tokens = [7, 0, 3]
    variables = with_draft_vocabulary(config, random_variables(config), tokens)
    model, variables = Zaya(config, separate=apart), separate(variables) if apart else variables
    hidden = jax.random.normal(jax.random.key(0), (2, 5, config.hidden_size))
    vocabulary = model.apply(variables, method="draft_vocabulary")
    expected = model.apply(variables, hidden, method="head")
    np.testing.assert_allclose(vocabulary.logits(hidden), expected[..., sorted(tokens)], rtol=1e-5, atol=1e-5)


def test_a_distribution_over_it_is_one_over_all_tokens():
    vocabulary = DraftVocabulary(jnp.array([1, 4]), jnp.zeros((2, 3)), None)
    whole = vocabulary.whole(jnp.log(jnp.array([[0.25, 0.75]])), 6)
    np.testing.assert_allclose(np.exp(whole), [[0, 0.25, 0, 0, 0.75, 0]], rtol=1e-6)


@pytest.mark.parametrize("mode", ["single_pass", pytest.param("two_pass", marks=pytest.mark.slow)])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_all_tokens_are_no_restriction_and_few_change_no_greedy_text(mode, temperature):
    config = small_config()
    model, variables = Zaya(config), random_variables(config)
    sampler = SamplerConfig(mode, 4, temperature=temperature)
    arguments = ([[1, 2, 3], [4]], sampler, 12, 0)
    plain = generate(model, variables, *arguments)
    every = {**variables, COLLECTION: {"tokens": jnp.arange(config.vocab_size)}}
    assert generate(model, every, *arguments).tokens == plain.tokens
    few = with_draft_vocabulary(config, variables, range(0, config.vocab_size - 1, 3))
    other = generate(model, few, *arguments)
    assert temperature or other.tokens == plain.tokens
    if temperature == 0 and mode == "single_pass":
        assert other.forwards.sum() > plain.forwards.sum()  # fewer drafts are right


def test_a_target_that_mixes_reads_all_tokens():
    config = small_config()
    model, variables = Zaya(config), random_variables(config)
    few = with_draft_vocabulary(config, variables, [1])
    sampler = SamplerConfig("single_pass", 4, target="mix_stale", temperature=0.7)
    assert (
        generate(model, few, [[1, 2]], sampler, 8, 0).tokens
        == generate(model, variables, [[1, 2]], sampler, 8, 0).tokens
    )


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([], "got \\[\\], may be a list"),
        ([1, 1], "token 1 twice"),
        ([-1], "token -1, may be in"),
        ([10**6], "may be in"),
        ([1.5], "may be a list of token ids"),
    ],
)
def test_what_cannot_be_drafted_is_named(tokens, message):
    with pytest.raises(ValueError, match=f"draft_vocabulary: got .*{message}|draft_vocabulary: {message}"):
        with_draft_vocabulary(small_config(), {}, tokens)
    mask = small_config().mask_token_id
    with pytest.raises(ValueError, match=f"got token {mask}, may be .* and not the mask"):
        with_draft_vocabulary(small_config(), {}, [mask])
