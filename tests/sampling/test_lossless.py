"""Contract 4: the output distribution, enumerated whole, is the one written down in numpy here.

Lossless samplers have the distribution of plain autoregression, under every truncation and penalty; the mixing samplers
have exactly the distribution of their definition (docs/method.md#mixing), and are measured against autoregression.
"""

import functools

import jax
import numpy as np
import pytest

from tests.sampling.enumeration import (
    NEW,
    PROMPTS,
    SIZE,
    VOCAB,
    Distribution,
    logits_after,
    sampler_distribution,
    tiny_model,
    total_variation,
)  # fmt: skip
from zaya_jax.sampling import SamplerConfig, generate

pytestmark = pytest.mark.early


def distribution_of(logits: np.ndarray, sampler: SamplerConfig, text=(), new: int = NEW) -> np.ndarray:
    """The target's distribution, spelled out: penalty, minimum length, temperature, top-k, top-p, min-p."""
    logits = np.array(logits, float)
    for token in set(text):
        up = logits[token] > 0
        logits[token] = logits[token] / sampler.repetition_penalty if up else logits[token] * sampler.repetition_penalty
    if new < sampler.min_new_tokens:
        logits[list(sampler.stop_tokens)] = -np.inf
    if sampler.temperature == 0:
        return np.eye(VOCAB)[np.argmax(logits)]
    distribution = np.exp(logits / sampler.temperature - np.max(logits / sampler.temperature))
    distribution /= distribution.sum()
    if sampler.top_k:
        distribution[np.argsort(-distribution)[sampler.top_k :]] = 0
        distribution /= distribution.sum()
    order = np.argsort(-distribution)
    kept = [t for i, t in enumerate(order) if i == 0 or distribution[order[:i]].sum() < sampler.top_p]
    distribution[[t for t in order if t not in kept]] = 0
    distribution /= distribution.sum()
    distribution[distribution < sampler.min_p * distribution.max()] = 0
    return distribution / distribution.sum()


def autoregressive_law(sampler: SamplerConfig, name: str = "zaya") -> list[Distribution]:
    """p(continuation) from the plain forward pass, a token at a time."""

    def grow(prompt, new: tuple[int, ...], weight: float, out: Distribution) -> Distribution:
        if len(new) == NEW or (new and new[-1] in sampler.stop_tokens):
            out[new] = weight
            return out
        text = (*prompt, *new)
        for token, p in enumerate(distribution_of(logits_after(text, name=name), sampler, text, len(new))):
            if p > 0:
                grow(prompt, (*new, token), weight * p, out)
        return out

    return [grow(tuple(p), (), 1.0, {}) for p in PROMPTS]


def gap(sampler: SamplerConfig, drafted: tuple[int, ...] = (), name: str = "zaya") -> float:
    """Total variation between the sampler and autoregression."""
    found = sampler_distribution(sampler, drafted, name)
    for distribution in found:
        assert abs(sum(distribution.values()) - 1) < 1e-12
    return total_variation(found, autoregressive_law(sampler, name))


ANCHORS = ["all", (1, 3), *(pytest.param(each, marks=pytest.mark.slow) for each in ((1,), (2,), (3,)))]
TEMPERATURES = [(1.0, None), (0.6, 1.7), (1.3, 0.0), (0.0, 1.0)]
PROCESSING = {
    "top_k": dict(top_k=2),
    "top_p": dict(top_p=0.6),
    "min_p": dict(min_p=0.3),
    "all truncations": dict(top_k=2, top_p=0.9, min_p=0.2, temperature=1.4),
    "truncated drafts": dict(draft_top_k=1, draft_temperature=1.2),
    "both truncated": dict(top_p=0.7, draft_top_p=0.5, temperature=1.2),
    "penalty": dict(repetition_penalty=1.6),
    "reward": dict(repetition_penalty=0.7, temperature=0.0),
    "stop": dict(stop_tokens=(1,)),
    "minimum": dict(stop_tokens=(0, 1), min_new_tokens=2),
    "everything": dict(
        stop_tokens=(2,), min_new_tokens=1, repetition_penalty=1.3, top_p=0.9, min_p=0.1, draft_temperature=0.0
    ),
}


@pytest.mark.parametrize("anchors", ANCHORS, ids=str)
@pytest.mark.parametrize(("temperature", "draft_temperature"), TEMPERATURES)
def test_lossless_sampling_is_exactly_autoregressive(anchors, temperature, draft_temperature, x64):
    sampler = SamplerConfig("single_pass", SIZE, anchors, temperature=temperature, draft_temperature=draft_temperature)
    assert gap(sampler) < 1e-9


@pytest.mark.parametrize("processing", list(PROCESSING))
@pytest.mark.parametrize("mode", ["autoregressive", "single_pass", "budgeted", "two_pass"])
def test_truncations_penalties_and_stops_stay_lossless(mode, processing, x64):
    shape = dict(mode="single_pass", anchors=(1, 3)) if mode == "budgeted" else dict(mode=mode)
    assert gap(SamplerConfig(block_size=SIZE, **shape, **PROCESSING[processing])) < 1e-9


@pytest.mark.parametrize(("temperature", "draft_temperature"), TEMPERATURES)
def test_two_passes_are_exactly_autoregressive(temperature, draft_temperature, x64):
    sampler = SamplerConfig("two_pass", SIZE, temperature=temperature, draft_temperature=draft_temperature)
    assert gap(sampler) < 1e-9


@pytest.mark.parametrize("lookup", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("processing", ["everything", "stop", pytest.param("penalty", marks=pytest.mark.slow)])
def test_drafts_that_the_text_replaces_stay_lossless(processing, lookup, x64):
    """With anchors that leave slots without a draft, which look-ups fill; and tokens that are never drafted."""
    sampler = SamplerConfig("single_pass", SIZE, (1,), lookup=lookup, **PROCESSING[processing])
    assert gap(sampler) < 1e-9 and gap(sampler, (0, 1)) < 1e-9


@pytest.mark.parametrize("drafted", [pytest.param((1,), marks=pytest.mark.slow), (0, 1)], ids=str)
@pytest.mark.parametrize(
    ("mode", "processing"), [("single_pass", "both truncated"), ("single_pass", "penalty"), ("two_pass", "stop")]
)
def test_tokens_that_are_never_drafted_are_sampled_as_often_as_by_autoregression(mode, processing, drafted, x64):
    anchors = {"anchors": (1, 3)} if mode == "single_pass" else {}
    assert gap(SamplerConfig(mode, SIZE, **anchors, **PROCESSING[processing]), drafted) < 1e-9


def mixed(plain: np.ndarray, draft: np.ndarray, beta: float) -> np.ndarray:
    return (1 - beta) * plain + beta * draft


def mix_stale_law(sampler: SamplerConfig) -> list[Distribution]:
    """By definition: a token x whose position has a mask token follows the distribution m of the averaged logits. It
    came from the draft with probability min(m, q)(x), and then the block's next slot is tested; or else the block ends
    with it and the next one is drafted after the tokens before it."""

    def after(text, accepted: int):
        """Mask tokens for the positions after the pending token text[-1], `accepted` tokens after the last forward."""
        lower = [a for a in sampler.anchor_list if a <= accepted]
        if not lower:
            return ()
        late = accepted - lower[-1]
        return tuple(logits_after(text[:-1], len(text) - 1 - late)[late + 1 :])

    def grow(prompt, new, weight, slots, pending_at, out: Distribution) -> Distribution:
        if len(new) == NEW or (new and new[-1] in sampler.stop_tokens):
            out[new] = out.get(new, 0.0) + weight
            return out
        text = (*prompt, *new)
        plain = logits_after(text)
        following = len(new) - pending_at + 1  # accepted length if this token ends the block
        if not slots:  # nothing is tested: the AR distribution, and the block ends
            for token, p in enumerate(distribution_of(plain, sampler, text, len(new))):
                if p > 0:
                    more = (*new, token)
                    grow(prompt, more, weight * p, after((*prompt, *more), following), len(more), out)
            return out
        m = distribution_of(mixed(plain, slots[0], sampler.beta), sampler, text, len(new))
        q = distribution_of(slots[0], draft_of(sampler))
        for token in range(VOCAB):
            more, kept = (*new, token), min(m[token], q[token])
            if kept > 0:
                grow(prompt, more, weight * kept, slots[1:], pending_at, out)
            if m[token] > kept:
                rest = weight * (m[token] - kept)
                grow(prompt, more, rest, after((*prompt, *more), following), len(more), out)
        return out

    def start(prompt) -> Distribution:
        out: Distribution = {}
        for token, p in enumerate(distribution_of(logits_after(prompt), sampler, prompt, 0)):
            slots = tuple(logits_after(prompt, len(prompt))[1:]) if sampler.anchor_list else ()
            if p > 0:
                grow(prompt, (token,), p, slots, 1, out)
        return out

    return [start(tuple(p)) for p in PROMPTS]


def draft_of(sampler: SamplerConfig) -> SamplerConfig:
    """A sampler whose target's distribution is this one's draft distribution."""
    temperature = sampler.temperature if sampler.draft_temperature is None else sampler.draft_temperature
    return SamplerConfig(temperature=temperature, top_k=sampler.draft_top_k, top_p=sampler.draft_top_p)


def mix_fresh_law(sampler: SamplerConfig) -> list[Distribution]:
    """By definition a language model: AR logits averaged with the first slot of the block after the text."""

    def grow(prompt, new, weight, out: Distribution) -> Distribution:
        if len(new) == NEW:
            out[new] = weight
            return out
        text = (*prompt, *new)
        logits = mixed(logits_after(text), logits_after(text, len(text))[0], sampler.beta)
        for token, p in enumerate(distribution_of(logits, sampler, text, len(new))):
            if p > 0:
                grow(prompt, (*new, token), weight * p, out)
        return out

    return [grow(tuple(p), (), 1.0, {}) for p in PROMPTS]


@pytest.mark.parametrize(
    "fields",
    [
        dict(beta=0.5), dict(beta=0.3, draft_temperature=1.6), dict(beta=1.0, anchors=(1, 3)),
        pytest.param(dict(beta=0.7, anchors=(2,)), marks=pytest.mark.slow),
        dict(beta=0.6, top_p=0.8, repetition_penalty=1.3, draft_top_k=2), dict(beta=0.5, temperature=0.0),
        dict(beta=0.4, stop_tokens=(1,), min_new_tokens=1),
    ],
    ids=str,
)  # fmt: skip
def test_stale_mixing_has_the_law_of_its_definition(fields, x64):
    sampler = SamplerConfig("single_pass", SIZE, target="mix_stale", **fields)
    assert total_variation(sampler_distribution(sampler), mix_stale_law(sampler)) < 1e-9


@pytest.mark.parametrize("fields", [dict(beta=0.5), dict(beta=0.8, temperature=0.6, top_k=2)], ids=str)
def test_fresh_mixing_has_the_law_of_its_definition(fields, x64):
    sampler = SamplerConfig("single_pass", SIZE, target="mix_fresh", **fields)
    assert total_variation(sampler_distribution(sampler), mix_fresh_law(sampler)) < 1e-9


@pytest.mark.parametrize(
    ("mode", "target"),
    [
        ("single_pass", "mix_stale"),
        ("single_pass", "mix_fresh"),
        pytest.param("two_pass", "mix_stale", marks=pytest.mark.slow),
    ],
)
def test_the_yardstick_measures_the_mixing_samplers(mode, target, x64):
    """They are lossy, and the enumeration sees it; at beta = 0 nothing is mixed and they are lossless."""
    sampler = functools.partial(SamplerConfig, mode, SIZE, target=target, temperature=1.0)
    assert gap(sampler(beta=0.5)) > 1e-2
    assert gap(sampler(beta=0.0)) < 1e-9


def test_generate_draws_from_the_law():
    """The noise end of it: 6,000 rows of `generate` with keyed noise against the exact distribution (chi-square)."""
    with jax.enable_x64(True):
        sampler = SamplerConfig("single_pass", SIZE, temperature=1.0)
        distribution = autoregressive_law(sampler)[0]
        model, variables = tiny_model()
        rows = 6000
        got = generate(model, variables, [PROMPTS[0]], sampler, NEW, seed=20, samples=rows)
    texts = [tuple(t) for t in got.tokens]
    often = [text for text, p in distribution.items() if p * rows >= 5]
    assert len(often) > 10
    statistic = sum((texts.count(t) - distribution[t] * rows) ** 2 / (distribution[t] * rows) for t in often)
    assert abs(statistic - len(often)) < 4 * np.sqrt(2 * len(often))
