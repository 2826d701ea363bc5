"""Models with a drafter of their own, sampled: the same tokens as without, and drafts that are right are accepted."""

import functools

import jax
import numpy as np
import pytest

from tests.helpers import random_variables, small_config
from tests.sampling import enumeration
from tests.sampling.test_lossless import PROCESSING, gap
from zaya_jax.architecture import Zaya, init_cache
from zaya_jax.architecture.drafters.config import DrafterConfig
from zaya_jax.errors import UserError
from zaya_jax.sampling import SamplerConfig, generate
from zaya_jax.sampling.core.random_streams import KeyedNoise, row_keys
from zaya_jax.sampling.drafters import Rows, find_drafter
from zaya_jax.sampling.options import options_of, plan_of
from zaya_jax.sampling.planning.work import step_work
from zaya_jax.sampling.strategies.base import make_setup
from zaya_jax.sampling.strategies.propose_and_verify import with_drafter

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


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


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


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "llama"), [("dflash", False), ("eagle3", True), ("mtp", False), ("medusa", True)])
def test_drafts_change_no_token_of_a_greedy_text(kind, llama):
    """More drafts than the drafter was trained for, fewer, as many; prompts of one token and of several."""
    model, variables = model_of(kind, llama)
    plain = generate(model, variables, PROMPTS, SamplerConfig("autoregressive", temperature=0.0), 20, seed=3)
    assert run(kind, llama, 0.0).tokens == plain.tokens


@pytest.mark.parametrize("kind", ["dflash", slow("mtp"), slow("eagle3"), slow("medusa")])
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


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("dflash", "sampled"), ("eagle3", "everything"), ("mtp", "sampled"), ("medusa", "everything"),
        slow("dflash", "everything"), slow("eagle3", "sampled"), slow("mtp", "everything"), slow("medusa", "sampled"),
        *(slow(kind, "likeliest") for kind in KINDS),
    ],
)  # fmt: skip
def test_every_drafter_is_lossless(kind, options, x64):
    """The output distribution, enumerated whole, is autoregression's."""
    options = (TEMPERATURES | PROCESSING)[options]
    assert gap(SamplerConfig("drafter", drafter=kind, draft_length=2, **options), name=kind) < 1e-9


def test_a_tree_of_a_blocks_marginals_is_lossless(x64):
    tree = dict(draft_length=2, tree_size=4, ngram_weight=0.3)
    assert gap(SamplerConfig("drafter", drafter="dflash", **tree), name="dflash") < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["eagle3", "mtp"])
def test_a_tree_of_a_recursion_is_lossless(kind, x64):
    assert gap(SamplerConfig("drafter", drafter=kind, draft_length=2, tree_size=5), name=kind) < 1e-9


@pytest.mark.parametrize("kind", ["mtp", slow("dflash")])
def test_drafts_of_some_tokens_alone_are_lossless(kind, x64):
    """A draft vocabulary of two of the three tokens."""
    assert gap(SamplerConfig("drafter", drafter=kind, draft_length=2), drafted=(0, 1), name=kind) < 1e-9


def test_a_recursions_tree_holds_the_likeliest_paths():
    """Against every path written out; and its first path is the greedy chain."""
    model, variables = model_of("mtp", False)
    size, depth = 9, 3

    @jax.jit
    def run(variables):
        def propose(**fields):
            plan = plan_of(SamplerConfig("drafter", drafter="mtp", draft_length=depth, **fields))
            setup = make_setup(model, variables, plan, options_of(SamplerConfig()), KeyedNoise.of(row_keys(0, 2)))
            cache = with_drafter(setup, init_cache(model.config, 2, 24))
            drafter = find_drafter("mtp")
            hidden = jax.random.normal(jax.random.key(3), (2, 4, model.config.hidden_size))
            tokens = jax.random.randint(jax.random.key(4), (2, 4), 0, model.config.vocab_size)
            rows = Rows(tokens, tokens, cache.length, jax.numpy.array([4, 3]), hidden)
            state = drafter.observe(setup, cache.drafter["mtp"], rows)
            return state, drafter.propose(setup, state, tokens[:, 0], cache)

        state, tree = propose(tree_size=size)
        # every path of `depth` tokens: the first token's choices, then each one's, by the recursion itself
        vocab = model.config.vocab_size
        apply = functools.partial(model.apply, variables)
        hidden, so_far = apply("first", state, method="draft")
        log_q = [jax.nn.log_softmax(apply(hidden, method="draft_head"))]
        for level in range(1, depth):
            nodes = jax.numpy.repeat(jax.numpy.arange(vocab ** (level - 1)), vocab)
            so_far = so_far.of(jax.numpy.broadcast_to(nodes, (2, vocab**level)))
            tokens = jax.numpy.broadcast_to(jax.numpy.arange(vocab**level) % vocab, (2, vocab**level))
            hidden, so_far = apply("next", state, so_far, apply(tokens, method="embed"), method="draft")
            log_q.append(jax.nn.log_softmax(apply(hidden, method="draft_head")))
        return tree, log_q

    tree, log_q = jax.device_get(run(variables))
    for b in range(2):
        scores = {(): 0.0}
        for level in log_q:
            longest = max(map(len, scores))
            for path in [path for path in scores if len(path) == longest]:
                index = functools.reduce(lambda at, token: at * level.shape[-1] + token, path, 0)
                scores |= {(*path, t): scores[path] + level[b, index, t] for t in range(level.shape[-1])}
        best = sorted((path for path in scores if path), key=lambda path: -scores[path])[:size]
        found = [()]
        for token, parent in zip(tree.tokens[b], tree.parent[b], strict=True):
            found.append((*found[parent], int(token)))
        assert tree.exists[b].all() and (tree.parent[b] <= np.arange(size)).all()
        assert set(found[1:]) == set(best)


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
    params["lm_head"]["kernel"] *= 0.3  # so that many tokens follow each
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
