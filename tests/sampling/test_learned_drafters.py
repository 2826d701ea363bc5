"""Models with a drafter of their own, sampled: the same tokens as without, and drafts that are right are accepted."""

import functools

import jax
import numpy as np
import pytest

from tests.helpers import random_variables, small_config
from tests.sampling import enumeration
from tests.sampling.test_lossless import PROCESSING, gap
from zaya_jax.architecture import Zaya
from zaya_jax.architecture.drafters.config import DrafterConfig
from zaya_jax.errors import UserError
from zaya_jax.sampling import SamplerConfig, generate
from zaya_jax.sampling.planning.work import step_work

KINDS = {
    "dflash": DrafterConfig("dflash", drafts=4, layers=2),
    "eagle3": DrafterConfig("eagle3", drafts=2, own_head=True),
    "mtp": DrafterConfig("mtp", drafts=3),
    "medusa": DrafterConfig("medusa", drafts=3, own_head=True),
}
LLAMA = dict(attention="gqa", feed_forward="dense", residual_scaling=False, partial_rotary_factor=1.0)
# Tiny models whose whole output is enumerated: each drafter beside one of the two targets.
enumeration.MODELS.update(
    {
        kind: dict(drafter=DrafterConfig(kind, drafts=2), **(LLAMA if kind in ("eagle3", "medusa") else {}))
        for kind in KINDS
    }
)
PROMPTS = ([1, 2, 3, 4, 5], [7], [3, 1])


@functools.cache
def model_of(kind: str | None, llama: bool, constant: bool = False):
    config = small_config(
        **(LLAMA if llama else {}),
        drafter=kind and KINDS[kind],
        tie_word_embeddings=not constant,
        lm_head_bias=constant,
    )
    variables = random_variables(config)
    if constant:  # whatever came before: the head's bias alone decides
        params = dict(variables["params"])
        params["lm_head"] = jax.tree.map(np.zeros_like, params["lm_head"])
        if "drafter_head" in params:
            params["drafter_head"] = np.zeros_like(params["drafter_head"])
        variables = {**variables, "params": params}
    return Zaya(config), variables


def run(kind: str, llama: bool, temperature: float, constant: bool = False):
    model, variables = model_of(kind, llama, constant)
    sampler = SamplerConfig("drafter", drafter=kind, draft_length=4, temperature=temperature)
    return generate(model, variables, PROMPTS, sampler, 20, seed=3)


@pytest.mark.parametrize(("kind", "llama"), [("dflash", False), ("eagle3", True), ("mtp", False), ("medusa", True)])
def test_drafts_change_no_token_of_a_greedy_text(kind, llama):
    """More drafts than the drafter was trained for, fewer, as many; prompts of one token and of several."""
    model, variables = model_of(kind, llama)
    plain = generate(model, variables, PROMPTS, SamplerConfig("autoregressive", temperature=0.0), 20, seed=3)
    assert run(kind, llama, 0.0).tokens == plain.tokens


@pytest.mark.parametrize("kind", KINDS)
def test_a_drafter_that_knows_the_target_is_always_accepted(kind):
    """The target's distribution is one for all texts, and the drafter reads the same head."""
    drafts = min(4, KINDS[kind].drafts) if kind == "medusa" else 4
    for temperature in (0.0, 1.0):
        out = run(kind, False, temperature, constant=True)
        for accepted in out.accepted:  # the prompt's forward yields one token, the last one what was left
            assert accepted[0] == 1 and set(accepted[1:-1]) == {drafts + 1}, (temperature, accepted)


TEMPERATURES = dict(
    sampled=dict(temperature=0.6, draft_temperature=1.7), likeliest=dict(temperature=1.3, draft_temperature=0.0)
)


@pytest.mark.parametrize("options", ["sampled", pytest.param("likeliest", marks=pytest.mark.slow), "everything"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_drafter_is_lossless(kind, options, x64):
    """The output distribution, enumerated whole, is autoregression's."""
    options = (TEMPERATURES | PROCESSING)[options]
    assert gap(SamplerConfig("drafter", drafter=kind, draft_length=2, **options), name=kind) < 1e-9


def test_a_tree_of_a_blocks_marginals_is_lossless(x64):
    tree = dict(draft_length=2, tree_size=4, ngram_weight=0.3)
    assert gap(SamplerConfig("drafter", drafter="dflash", **tree), name="dflash") < 1e-9


def test_what_a_step_costs_is_counted():
    """The target's parameters without the drafter's; the drafter's passes with the head that each reads."""
    for kind, passes in (("dflash", 2), ("eagle3", 5), ("mtp", 5), ("medusa", 3)):
        model, variables = model_of(kind, False)
        work = step_work(model, variables, SamplerConfig("drafter", drafter=kind, draft_length=4))
        assert (work.target, work.draft_passes) == ((5,), passes), kind
        plain = Zaya(model.config.replace(drafter=None))
        assert work.parameters == step_work(plain, variables, SamplerConfig("autoregressive")).parameters


def test_a_copy_of_the_target_is_always_accepted():
    """A target whose next token depends on the newest one alone, and an MTP module that computes the same from the
    embedding it is given: a draft that followed any other token would be refused.
    """
    config = small_config(
        **LLAMA,
        num_hidden_layers=1,
        rms_norm_eps=1e-12,
        tie_word_embeddings=False,
        drafter=DrafterConfig("mtp", drafts=2),
    )
    params = jax.tree.map(np.array, random_variables(config, scale=1.0)["params"])
    layer, module, width = params["layers"], params["drafter"], config.hidden_size
    embedding = params["embed_tokens"]
    embedding /= np.sqrt((embedding**2).mean(axis=1, keepdims=True))  # a norm leaves it as it is
    layer["self_attn"]["o_proj"]["kernel"] *= 0
    module["self_attn"]["o_proj"]["kernel"] *= 0
    module["eh_proj"]["kernel"] = np.eye(2 * width, width, dtype=np.float32)
    module["enorm"]["weight"][:] = 1
    module["mlp"] = jax.tree.map(lambda x: x[0], layer["mlp"])
    module["post_attention_layernorm"]["weight"] = layer["post_attention_layernorm"]["weight"][0]
    module["norm"]["weight"] = params["norm"]["weight"]
    sampler = SamplerConfig("drafter", drafter="mtp", draft_length=3, temperature=1.0)
    out = generate(Zaya(config), {"params": params}, PROMPTS, sampler, 20, seed=1)
    assert len(set(sum(out.tokens, []))) > 5
    for accepted in out.accepted:
        assert accepted[0] == 1 and set(accepted[1:-1]) == {4}, accepted


def test_a_model_without_that_drafter_is_refused():
    model, variables = model_of("mtp", False)
    with pytest.raises(UserError, match=r"^SamplerConfig.drafter: got 'eagle3', which this model has not .* 'mtp'"):
        generate(model, variables, [[1]], SamplerConfig("drafter", drafter="eagle3"), 2)
    model, variables = model_of(None, False)
    with pytest.raises(UserError, match=r"^SamplerConfig.drafter: got 'mtp', which this .* needs no training"):
        generate(model, variables, [[1]], SamplerConfig("drafter", drafter="mtp"), 2)
