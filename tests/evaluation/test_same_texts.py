"""The permutation test of texts: its p-values are uniform for one law, and small for two."""

import numpy as np
import pytest

from zaya_jax.evaluation import same_texts
from zaya_jax.evaluation.same_texts import alike, texts_p_value


def texts(rng: np.random.Generator, problems: int, samples: int, repeats: float = 0.0) -> list[list[int]]:
    """Random texts over five tokens, of a law of each problem's own; `repeats`: how often a token is the one before."""
    laws = np.random.default_rng(9).dirichlet(np.ones(5), problems)
    out = []
    for law in laws:
        for _ in range(samples):
            text = [int(rng.choice(5, p=law))]
            while len(text) < 8:
                text.append(text[-1] if rng.random() < repeats else int(rng.choice(5, p=law)))
            out.append(text[: rng.integers(5, 9)])
    return out


def test_what_two_texts_share():
    assert alike([1, 2, 3], [1, 2, 4]) == 2 + 2 + 1 and alike([1, 1, 2], [2, 1]) == 0 + 2 + 0 and alike([], [1]) == 0
    assert alike([1, 1, 1], [1, 1, 1]) == 3 + 3 + 2


def test_the_kernel_is_positive():
    found = texts(np.random.default_rng(0), 3, 6)
    gram = np.array([[alike(a, b) for b in found] for a in found], float)
    assert np.linalg.eigvalsh(gram).min() > -1e-9


def test_few_texts_are_no_evidence():
    assert texts_p_value([[1]] * 3, [[2]] * 3, 3) is None and texts_p_value([[1]], [[2]], 1) is None


def test_it_is_the_exact_test(monkeypatch):
    """One problem, two texts a side, all of one length: of three ways to split four, how many set them as far apart."""
    monkeypatch.setattr(same_texts, "RESAMPLES", 20_000)
    mine, other = [[1, 1], [1, 2], [0, 0], [0, 0]], [[0, 0], [0, 0], [2, 2], [1, 2]]
    four = [*mine[:2], *other[2:]]
    splits = [((0, 1), (2, 3)), ((0, 2), (1, 3)), ((0, 3), (1, 2))]
    within = [sum(alike(four[a], four[b]) for a, b in split) for split in splits]
    exact = np.mean([value >= within[0] for value in within])
    assert texts_p_value(mine, other, 4) == pytest.approx(exact, abs=0.02)


def test_p_values_are_uniform_for_one_law_and_small_for_two():
    rng = np.random.default_rng(1)
    same = [texts_p_value(texts(rng, 10, 4), texts(rng, 10, 4), 4, seed=seed) for seed in range(60)]
    assert 0.35 < np.mean(same) < 0.65 and np.mean([p < 0.1 for p in same]) < 0.25
    assert texts_p_value(texts(rng, 100, 8), texts(rng, 100, 8, repeats=0.6), 8) < 0.01


def test_lengths_and_other_numbers_count():
    rng = np.random.default_rng(3)
    mine, other = texts(rng, 20, 4), texts(rng, 20, 4)
    assert texts_p_value(mine, [text[:4] for text in other], 4) < 0.01
    assert texts_p_value(mine, other, 4) > 0.01
    scores = rng.normal(size=80).tolist(), rng.normal(1, size=80).tolist()
    assert texts_p_value(mine, other, 4, [scores]) < 0.01


def test_texts_that_share_a_seed_are_not_held_against_each_other():
    """Were they, texts drawn alike would seem nearer than chance allows, and hide that others differ."""
    rng = np.random.default_rng(2)
    mine = texts(rng, 40, 8)
    assert texts_p_value(mine, mine, 8) > 0.01
    changed = [text if i % 8 < 4 else [6] * len(text) for i, text in enumerate(mine)]
    assert texts_p_value(mine, changed, 8) < 0.01
