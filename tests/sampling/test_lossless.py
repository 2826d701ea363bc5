"""Contract 4: the output distribution, enumerated whole, is the AR model's.

The enumeration runs the sampler's own `prefill` and `step`. Instead of random numbers it forces every outcome in turn
(which draft, accepted or not, which settled token) and multiplies the probabilities that the step itself says it used.
So what is summed is the law of the very code that `generate` loops over, cache and batching included.
"""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import random_variables, small_config
from zaya_jax.architecture import Layout, Zaya, init_cache
from zaya_jax.sampling import SamplerConfig, generate
from zaya_jax.sampling.laws import log_law
from zaya_jax.sampling.noise import Purpose
from zaya_jax.sampling.step import Knobs, Plan, prefill, step

VOCAB, SIZE, NEW = 3, 3, 4
PROMPTS = ([1, 0, 2, 2], [2])  # two rows of one batch, of different lengths
BATCH = 2048  # rows the compiled step runs at once


class Forced(NamedTuple):
    """Outcomes instead of noise."""

    settled: jax.Array  # int32 [batch]
    drafts: jax.Array  # int32 [batch, SIZE - 1]
    accept: jax.Array  # bool [batch, SIZE - 1]

    def gumbel(self, purpose, position, shape, dtype):
        wanted = self.settled if purpose == Purpose.SETTLE else self.drafts
        return jnp.where(jnp.arange(shape[-1]) == wanted[..., None], 0.0, -jnp.inf).astype(dtype)

    def log_uniform(self, purpose, position, dtype):
        return jnp.where(self.accept, -jnp.inf, 1.0).astype(dtype)


@functools.cache
def tiny_model():
    with jax.enable_x64(True):
        config = small_config(
            vocab_size=VOCAB, hidden_size=8, num_hidden_layers=1, num_experts=2, dtype="float64", param_dtype="float64"
        )
        return Zaya(config), random_variables(config, seed=2, scale=0.55)


def ar_distribution(prompt, temperature) -> np.ndarray:
    """p(next NEW tokens) from the plain forward pass, [VOCAB ** NEW]."""
    model, variables = tiny_model()
    endings = np.array(list(itertools.product(range(VOCAB), repeat=NEW)))
    text = np.concatenate([np.tile(prompt, (len(endings), 1)), endings], axis=1)
    law = np.asarray(log_law(model.apply(variables, Layout.causal(text)).logits, temperature))
    law = law[:, len(prompt) - 1 : -1]
    return np.exp(np.take_along_axis(law, endings[..., None], 2)[..., 0].sum(1))


@functools.cache
def compiled(plan: Plan):
    """(prefill, step) with forced outcomes; they also return what the outcome's probability is made of."""
    model, variables = tiny_model()

    @jax.jit
    def start(tokens, count, cache, knobs, forced):
        proposal, cache, log_settled = prefill(model, variables, tokens, count, cache, plan, knobs, forced)
        obeyed = proposal.block[:, 0] == forced.settled  # not, if the law gives the forced token probability 0
        log_settled = jnp.where(obeyed, log_settled, -jnp.inf)
        return proposal, cache, log_settled + draft_log_probability(proposal, knobs, forced)

    @jax.jit
    def go(proposal, cache, knobs, forced):
        active = jnp.ones(proposal.block.shape[0], bool)
        proposal, cache, verdict = step(model, variables, proposal, cache, active, plan, knobs, forced)
        tested = jnp.arange(SIZE - 1) < verdict.accepted[:, None]  # accepted drafts, and the one that was rejected
        log_reject = jnp.log1p(-jnp.exp(verdict.log_accept))
        log_survival = jnp.where(tested, jnp.where(forced.accept, verdict.log_accept, log_reject), 0).sum(1)
        law = jax.nn.log_softmax(verdict.log_settle)
        log_settled = jnp.take_along_axis(law, forced.settled[:, None], 1)[:, 0]
        log_weight = log_survival + log_settled + draft_log_probability(proposal, knobs, forced)
        return proposal, cache, verdict.produced, verdict.accepted, log_weight

    def draft_log_probability(proposal, knobs, forced):
        law = log_law(proposal.logits, knobs.draft_temperature)
        drawn = jnp.take_along_axis(law, forced.drafts[..., None], 2)[..., 0]
        # A slot nobody drew from is enumerated once, as token 0.
        return jnp.where(proposal.drafted, drawn, jnp.where(forced.drafts == 0, 0.0, -jnp.inf)).sum(1)

    return start, go


def outcomes() -> Forced:
    """All distinguishable outcomes of a step: how many drafts survive, the settled token, the next drafts."""
    rows = [
        (s, d, [i < a for i in range(SIZE - 1)])
        for a in range(SIZE)
        for s in range(VOCAB)
        for d in itertools.product(range(VOCAB), repeat=SIZE - 1)
    ]
    return Forced(*(np.array(x) for x in zip(*rows, strict=True)))


def repeat_rows(tree, index):
    """Takes batch rows `index` of a (Proposal, Cache) pair; in the cache the batch is axis 1, but for length."""
    proposal, cache = tree
    proposal = jax.tree.map(lambda x: x[index], proposal)
    length = cache.length[index]
    return proposal, jax.tree.map(lambda x: x[:, index], cache.replace(length=None)).replace(length=length)


def merge(emitted, weight, pair):
    """Adds up states that have emitted the same and will go on the same."""
    proposal, _ = pair
    keys = {}
    for i, w in enumerate(weight):
        if w > 0:
            logits = np.round(np.asarray(proposal.logits[i], np.float64), 9) + 0.0
            key = (emitted[i], proposal.block[i].tobytes(), proposal.drafted[i].tobytes(), logits.tobytes())
            first, total = keys.get(key, (i, 0.0))
            keys[key] = (first, total + w)
    index = np.array([i for i, _ in keys.values()])
    return [emitted[i] for i in index], np.array([w for _, w in keys.values()]), repeat_rows(pair, index)


def sampler_distribution(plan: Plan, knobs: Knobs, rows) -> np.ndarray:
    """p(row, next NEW tokens) of the sampler for a batch of PROMPTS, [row, VOCAB ** NEW]."""
    model, _ = tiny_model()
    start, go = compiled(plan)
    total = np.zeros((len(rows), VOCAB**NEW))
    width = max(map(len, rows))
    tokens = np.array([list(p) + [0] * (width - len(p)) for p in rows])
    first = [
        (r, s, d)
        for r in range(len(rows))
        for s in range(VOCAB)
        for d in itertools.product(range(VOCAB), repeat=SIZE - 1)
    ]
    which, settled, drafts = (np.array(x) for x in zip(*first, strict=True))
    forced = Forced(settled, drafts, np.zeros((len(first), SIZE - 1), bool))
    cache = init_cache(model.config, len(first), width + NEW + 2 * SIZE + SIZE)
    count = np.array([len(rows[r]) for r in which])
    proposal, cache, log_weight = jax.device_get(start(tokens[which], count, cache, knobs, forced))
    emitted = [(int(r), int(s)) for r, s in zip(which, settled, strict=True)]
    emitted, weight, pair = merge(emitted, np.exp(log_weight), (proposal, cache))

    every = outcomes()
    while emitted:
        grown = ([], [], [])
        pieces = []
        for at in range(0, len(emitted), BATCH // len(every.settled)):
            index = np.arange(at, min(at + BATCH // len(every.settled), len(emitted)))
            index = np.repeat(index, len(every.settled))
            padded = np.resize(index, BATCH)
            forced = Forced(*(np.resize(np.tile(x.T, len(index) // len(x)).T, (BATCH, *x.shape[1:])) for x in every))
            p, c, produced, accepted, log_weight = jax.device_get(go(*repeat_rows(pair, padded), knobs, forced))
            probability = np.exp(log_weight[: len(index)]) * weight[index]
            keep = []
            for i in np.flatnonzero(probability > 0):
                row, *so_far = emitted[index[i]]
                text = (*so_far, *produced[i, : accepted[i]].tolist())
                if len(text) >= NEW:
                    total[row, int(np.dot(text[:NEW], VOCAB ** np.arange(NEW)[::-1]))] += probability[i]
                    continue
                keep.append(i)
                grown[0].append((row, *text))
                grown[1].append(probability[i])
            if keep:
                pieces.append(repeat_rows((p, c), np.array(keep)))
        if not grown[0]:
            break
        joined = jax.tree.map(lambda *x: np.concatenate(x), *[p for p, _ in pieces])
        caches = [c for _, c in pieces]
        length = np.concatenate([c.length for c in caches])
        cache = jax.tree.map(lambda *x: np.concatenate(x, 1), *[c.replace(length=None) for c in caches])
        emitted, weight, pair = merge(grown[0], np.array(grown[1]), (joined, cache.replace(length=length)))
    return total


def knobs_of(sampler: SamplerConfig) -> Knobs:
    draft = sampler.temperature if sampler.draft_temperature is None else sampler.draft_temperature
    return Knobs(*(jnp.float64(x) for x in (sampler.temperature, draft, sampler.beta)))


def total_variation(sampler: SamplerConfig) -> float:
    plan = Plan(SIZE, sampler.anchor_list, sampler.target)
    found = sampler_distribution(plan, knobs_of(sampler), PROMPTS)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-12)
    expected = np.stack([ar_distribution(p, sampler.temperature) for p in PROMPTS])
    return float(np.abs(found - expected).sum(1).max() / 2)


@pytest.mark.parametrize("anchors", ["all", (1,), (2,), (3,), (1, 3)], ids=str)
@pytest.mark.parametrize(("temperature", "draft_temperature"), [(1.0, None), (0.6, 1.7), (1.3, 0.0), (0.0, 1.0)])
def test_lossless_sampling_is_exactly_autoregressive(anchors, temperature, draft_temperature, x64):
    sampler = SamplerConfig("single_pass", SIZE, anchors, temperature=temperature, draft_temperature=draft_temperature)
    assert total_variation(sampler) < 1e-9


@pytest.mark.parametrize("target", ["mix_stale", "mix_fresh"])
def test_the_yardstick_measures_the_mixing_samplers(target, x64):
    """They are lossy, and the enumeration sees it; at beta = 0 nothing is mixed and they are lossless."""
    lossy = SamplerConfig("single_pass", SIZE, target=target, beta=0.5, temperature=1.0)
    assert total_variation(lossy) > 1e-2
    lossless = SamplerConfig("single_pass", SIZE, target=target, beta=0.0, temperature=1.0)
    assert total_variation(lossless) < 1e-9


def test_generate_draws_from_the_law():
    """The noise end of it: 6,000 rows of `generate`, keyed noise and all, against the exact law (chi-square)."""
    with jax.enable_x64(True):
        expected = ar_distribution(PROMPTS[0], 1.0)
        model, variables = tiny_model()
        rows = 6000
        sampler = SamplerConfig("single_pass", SIZE, temperature=1.0)
        got = generate(model, variables, [PROMPTS[0]] * rows, sampler, NEW, seed=20)
    index = np.array([np.dot(t, VOCAB ** np.arange(NEW)[::-1]) for t in got.tokens])
    observed = np.bincount(index, minlength=VOCAB**NEW)
    often = expected * rows >= 5
    assert often.sum() > 10
    statistic = ((observed - expected * rows) ** 2 / (expected * rows))[often].sum()
    degrees = often.sum()
    assert abs(statistic - degrees) < 4 * np.sqrt(2 * degrees)
