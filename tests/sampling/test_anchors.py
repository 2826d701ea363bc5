"""The cost model: acceptance, anchors, candidates; and what "auto" does with it."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import random_variables, small_config
from tests.sampling.test_generate import NEW, model_of, prompts_of
from zaya_jax.architecture import Zaya
from zaya_jax.architecture.config import NO_MASK
from zaya_jax.sampling import (
    Request,
    SamplerConfig,
    acceptance_curve,
    best_anchors,
    choose_sampler,
    evidence,
    expected_tokens,
    generate,
)
from zaya_jax.sampling.planning.auto import LOOKUP, candidates, drafter_candidates
from zaya_jax.sampling.planning.cost import cost_at

RUNS = st.lists(st.lists(st.integers(1, 5), max_size=8).map(lambda run: [1, *run]), min_size=1, max_size=4)
RATES = st.lists(st.floats(0.05, 0.95), min_size=5, max_size=5)


def simulated_tokens(acceptance, block_size, anchors, steps=20_000, seed=0) -> float:
    """Tokens per forward by playing the chain out."""
    rng = np.random.default_rng(seed)
    late, total = 0, 0
    for _ in range(steps):
        k = 1
        while late + k < block_size and rng.random() < acceptance[late + k - 1]:
            k += 1
        total += k
        lower = [a for a in anchors if a <= k]
        late = k - lower[-1] if lower else block_size - 1
    return total / steps


@settings(max_examples=10, deadline=None)
@given(RATES, st.sets(st.integers(2, 6)))
def test_expected_tokens_is_what_the_chain_does(rates, rest):
    anchors = sorted({1, *rest})
    assert expected_tokens(rates, 6, anchors) == pytest.approx(simulated_tokens(rates, 6, anchors), rel=0.03)


@given(st.floats(0, 0.99), st.integers(2, 16))
def test_all_anchors_at_a_flat_rate_is_the_closed_form(rate, size):
    """T = (1 - a^B) / (1 - a), docs/method.md#one-step."""
    flat = [rate] * (size - 1)
    assert expected_tokens(flat, size, range(1, size + 1)) == pytest.approx((1 - rate**size) / (1 - rate), rel=1e-6)
    assert expected_tokens(flat, size, ()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("rate", "budget", "published"),
    [(0.787, 1, 4.34), (0.787, 3, 4.54), (0.89, 1, 6.16), (0.89, 3, 7.30), (0.89, 5, 7.50)],
)
def test_budgets_reach_the_estimates_of_the_specification(rate, budget, published):
    """docs/method.md#branch-points, block 16, flat acceptance."""
    flat = [rate] * 15
    assert expected_tokens(flat, 16, best_anchors(flat, 16, budget)) == pytest.approx(published, abs=0.006)


@settings(max_examples=15, deadline=None)
@given(RATES, st.integers(1, 5))
def test_best_anchors_are_the_best(rates, budget):
    best = best_anchors(rates, 6, budget)
    every = max(expected_tokens(rates, 6, list(some)) for some in itertools.combinations(range(1, 7), budget))
    assert expected_tokens(rates, 6, best) == pytest.approx(every, rel=1e-9)


def test_one_by_one_where_there_are_too_many_lists(monkeypatch):
    flat = [0.85] * 15
    exact = expected_tokens(flat, 16, best_anchors(flat, 16, 4))
    monkeypatch.setattr("zaya_jax.sampling.planning.branch_points.EXACT_LIMIT", 10)
    greedy = best_anchors(flat, 16, 4)
    assert greedy[0] == 1 and len(set(greedy)) == 4
    assert exact * 0.99 < expected_tokens(flat, 16, greedy) <= exact


def test_acceptance_is_counted_where_it_was_tested():
    # the prefill's 1 and the last forward, which a stop may have cut, say nothing
    accepted = [[1, 3, 1, 2, 3, 3], [1, 1, 1]]
    curve = acceptance_curve(accepted, 4)  # counted: 3, 1, 2, 3, 1
    assert curve == pytest.approx((3 / 5, 2 / 3, 0))
    assert acceptance_curve([[1, 1, 1, 2]], 4) == (0, 0, 0)
    with pytest.raises(ValueError, match="longer generations"):
        acceptance_curve([[1, 2]], 4)


@pytest.mark.slow
def test_measured_acceptance_predicts_measured_tokens():
    """The chain against the sampler itself: the rate of all anchors foretells the T of fewer, on one model."""
    model, variables = model_of(0, 0.35)
    prompts = prompts_of(model) * 16
    run = lambda anchors: generate(  # noqa: E731
        model, variables, prompts, SamplerConfig("single_pass", 4, anchors, temperature=0.7), 60, seed=3
    )
    everywhere = run("all")
    curve = acceptance_curve(everywhere.accepted, 4)
    assert expected_tokens(curve, 4, (1, 2, 3, 4)) == pytest.approx(everywhere.tokens_per_forward, rel=0.05)
    assert expected_tokens(curve, 4, (1,)) == pytest.approx(run((1,)).tokens_per_forward, rel=0.1)


def replayed(runs, block_size, anchors) -> float:
    """Tokens per forward by walking over every text, one forward at a time."""
    forwards = 0
    for run in runs:
        ends = list(itertools.accumulate(run))
        position, late, forwards = ends[0], 0, forwards + 1
        while position < ends[-1]:
            accepted = min(next(e for e in ends if e > position) - position, block_size - late)
            lower = [a for a in anchors if a <= accepted]
            late = min(accepted - lower[-1], block_size - 1) if lower else block_size - 1
            position, forwards = position + accepted, forwards + 1
    return sum(map(sum, runs)) / forwards


@given(RUNS, st.integers(5, 7), st.sets(st.integers(1, 5)))
def test_runs_are_replayed_over_their_texts(runs, size, anchors):
    assert expected_tokens(runs, size, sorted(anchors)) == pytest.approx(replayed(runs, size, sorted(anchors)))
    everywhere = sum(map(sum, runs)) / sum(map(len, runs))  # what was run is what is replayed
    assert expected_tokens(runs, size, range(1, size + 1)) == pytest.approx(everywhere)


@settings(max_examples=15, deadline=None)
@given(RUNS, st.integers(1, 4))
def test_best_anchors_of_runs_are_the_best(runs, budget):
    best = best_anchors(runs, 5, budget)
    every = max(replayed(runs, 5, some) for some in itertools.combinations(range(1, 6), budget))
    assert replayed(runs, 5, best) == pytest.approx(every)


def test_few_forwards_are_read_as_a_curve():
    short = [[1, 6, 3, 6, 2]]
    assert evidence(short, 8) == acceptance_curve(short, 8, 0.5)
    assert evidence(short * 20, 8) == short * 20 + [[1, 1, 6, 3, 6, 2]] * 20
    assert evidence([[1]], 3) == (0.5, 0.5)  # nothing was tested: the prior alone
    assert acceptance_curve([[1, 3, 1]], 4, 0.5) == (0.75, 0.75, 0.25)


@pytest.mark.parametrize("texts", [8, 40])
@pytest.mark.parametrize("budget", [1, 2, 3])
def test_a_list_is_not_chosen_for_one_kind_of_text_alone(texts, budget):
    """Texts that always yield six asked for an anchor at 6, which yields 1.11 on texts that yield two to six."""
    same = [[1, 6, 6, 6, 6]] * texts
    rng = np.random.default_rng(0)
    others = [[1, *rng.integers(2, 7, 12).tolist()] for _ in range(20)]
    chosen = best_anchors(evidence(same, 8), 8, budget)
    assert chosen[0] == 1
    best = max(expected_tokens(others, 8, some) for some in itertools.combinations(range(1, 9), budget))
    assert expected_tokens(others, 8, chosen) > 0.7 * best


@settings(max_examples=15, deadline=None)
@given(RUNS, st.integers(1, 4))
def test_smoothing_leaves_the_order_of_lists_with_an_anchor_at_one(runs, budget):
    smooth = evidence(runs * 100, 5)
    lists = [(1, *some) for some in itertools.combinations(range(2, 6), budget - 1)]
    best = max(lists, key=lambda some: expected_tokens(smooth, 5, some))
    assert expected_tokens(runs, 5, best) == pytest.approx(max(expected_tokens(runs, 5, some) for some in lists))


def test_replay_knows_the_text():
    """Runs of two and four tokens and no others; a curve has to fear that a run of one leaves nothing drafted."""
    runs = [[1, 2, 4, 4, 4, 4]] * 3
    assert best_anchors(runs, 4, 2) == (2, 4)
    assert expected_tokens(runs, 4, (2, 4)) == expected_tokens(runs, 4, range(1, 5))
    assert 1 in best_anchors([0.9, 0.6, 0.9], 4, 2)


def test_a_budget_becomes_a_list():
    flat = (0.8,) * 7
    runs = [[1, 2, 4, 4, 4, 4]]
    assert SamplerConfig(block_size=4, anchors=2, acceptance=runs).anchor_list == (2, 4)
    with pytest.raises(ValueError, match=r"acceptance: got \(1, -2\), may be runs"):
        SamplerConfig(anchors=2, acceptance=[[1, -2]])
    assert SamplerConfig(anchors=2, acceptance=flat).anchor_list == best_anchors(flat, 8, 2)
    assert SamplerConfig(anchors=8).anchors == "all"
    assert SamplerConfig(anchors=3, acceptance=flat).rows_per_forward == 8 * 4


def test_cost_is_interpolated_and_extrapolated():
    cost = {1: 1.0, 8: 2.0, 72: 10.0}
    assert [cost_at(cost, r) for r in (1, 8, 40, 72, 136)] == pytest.approx([1, 2, 6, 10, 18])
    assert cost_at({4: 3.0}, 100) == 3.0


def test_candidates_prefer_what_is_cheap_for_its_tokens():
    rates = (0.8,) * 7
    free = candidates(rates, {1: 1.0, 72: 1.0}, 8)[0]  # rows cost nothing: all anchors of the largest block
    assert (free.block_size, free.anchors) == (8, tuple(range(1, 9)))
    dear = candidates(rates, {1: 1.0, 72: 72.0}, 8)[0]  # every row costs as much: nothing but autoregression
    assert dear.anchors == () and dear.speedup == 1.0
    between = candidates(rates, {1: 1.0, 4: 1.2, 16: 2.0, 72: 12.0}, 8)[0]
    assert 1 < between.rows < 72 and between.speedup == pytest.approx(
        expected_tokens(rates, between.block_size, between.anchors)
        / cost_at({1: 1.0, 4: 1.2, 16: 2.0, 72: 12.0}, between.rows)
    )
    with pytest.raises(ValueError, match="include 1"):
        candidates(rates, {8: 1.0}, 8)


@pytest.mark.parametrize(
    ("forward", "racer", "mode", "because"),
    [
        (1.0, 0.5, "single_pass", "won the race with 2.00x"),
        (1.0, 1.0, "autoregressive", "lost the race with 1.00x"),
        (50.0, 0.5, "autoregressive", "not predicted to pay"),
    ],
)
def test_auto_takes_what_wins_the_race(forward, racer, mode, because, monkeypatch):
    """The clock is replaced, so that every verdict can be had on any machine; the rest is real."""
    model, variables = model_of()

    def clock(slow):
        def medians(calls, repeats, label):
            for call in calls.values():
                call()
            return {name: 1.0 if i == 0 else slow for i, name in enumerate(calls)}

        return medians

    monkeypatch.setattr("zaya_jax.sampling.planning.cost.medians", clock(forward))
    monkeypatch.setattr("zaya_jax.sampling.planning.auto.medians", clock(racer))
    monkeypatch.setattr("zaya_jax.sampling.planning.auto.drafters_of", lambda *model: ())
    sampler = SamplerConfig("auto", 2, temperature=0.8, top_k=9, stop_tokens=(2,))
    prompts = prompts_of(model)
    got = generate(model, variables, prompts, sampler, NEW, seed=1)
    assert got.sampler.mode == mode and because in got.reason
    assert (got.sampler.top_k, got.sampler.stop_tokens) == (9, (2,))
    assert got.tokens == generate(model, variables, prompts, got.sampler, NEW, seed=1).tokens


def put_in_a_clock(monkeypatch):
    """By which every forward costs the same, and what races autoregression is twice as fast."""

    def medians(calls, repeats, label):
        for call in calls.values():
            call()
        return {name: 1.0 if i == 0 or "cost" in label else 0.5 for i, name in enumerate(calls)}

    monkeypatch.setattr("zaya_jax.sampling.planning.cost.medians", medians)
    monkeypatch.setattr("zaya_jax.sampling.planning.auto.medians", medians)


@pytest.mark.parametrize(("asked", "tried"), [(None, {0, LOOKUP}), pytest.param(2, {2}, marks=pytest.mark.slow)])
def test_auto_tries_drafts_with_and_without_lookup(asked, tried, monkeypatch):
    """Unless one was asked for; by the clock that is put in every forward costs the same."""
    model, variables = model_of()

    put_in_a_clock(monkeypatch)
    monkeypatch.setattr("zaya_jax.sampling.planning.auto.drafters_of", lambda *model: ())
    sampler = SamplerConfig("auto", 2, temperature=0.0, lookup=asked)
    choice = choose_sampler(model, variables, Request(prompts_of(model), 32), sampler)
    assert {each.lookup for each in choice.candidates if each.anchors} == tried
    assert sum(not each.anchors for each in choice.candidates) == 1  # autoregression, once
    best = choice.candidates[0]
    assert (choice.sampler.mode, choice.sampler.lookup) == ("single_pass", best.lookup)
    assert best.tokens == max(each.tokens for each in choice.candidates)
    assert SamplerConfig().lookup == 0


@pytest.mark.slow
def test_auto_takes_prompt_lookup_where_there_is_no_mask_token(monkeypatch):
    """Greedy texts of a random model repeat themselves; every step costs the same by the clock that is put in."""
    config = small_config(mask_token_id=NO_MASK)
    model, variables = Zaya(config), random_variables(config)

    put_in_a_clock(monkeypatch)
    got = generate(model, variables, [[1, 2, 3], [4]], SamplerConfig("auto", 4, temperature=0.0), 32)
    assert (got.sampler.mode, got.sampler.drafter) == ("drafter", "ngram") and got.sampler.draft_length in (1, 2, 3)
    assert "drafter ngram" in got.reason and "won the race with 2.00x" in got.reason
    plain = generate(model, variables, [[1, 2, 3], [4]], SamplerConfig("autoregressive", temperature=0.0), 32)
    assert got.tokens == plain.tokens and got.tokens_per_forward > 1


def test_steps_of_fewer_drafts_follow_from_those_of_many():
    found = drafter_candidates("ngram", [[1, 8, 1, 3], [1, 0, 4]], {3: 1.5, 7: 2.0}, 1.0, 7)
    assert [(c.block_size - 1, c.tokens) for c in found] == [(1, 16 / 9), (2, 16 / 7), (3, 16 / 5), (5, 16 / 5), (7, 4)]
    assert [c.cost for c in found] == [1.5, 1.5, 1.5, 1.75, 2.0]
    assert found[-1].speedup == 2 and str(found[-1]) == "drafter ngram, 7 drafts: 8 query tokens, T 4.00, 2.00x"
    assert drafter_candidates("ngram", [[1]], {3: 1.5}, 1.0, 3) == ()


def test_auto_with_nothing_to_draft_says_so():
    model, variables = model_of()
    got = generate(model, variables, prompts_of(model), SamplerConfig("auto", 1), NEW)
    assert got.sampler.mode == "autoregressive" and "nothing to draft" in got.reason
