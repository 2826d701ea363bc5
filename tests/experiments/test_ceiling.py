"""The ceiling of list programs: exact distributions, and the samplers' own rule."""

import numpy as np
import pytest

from experiments.ceiling import END, SPREAD, Posterior, programs, sample, summary
from zaya_jax.tasks import make_task
from zaya_jax.tasks.list_programs import ListPrograms


@pytest.fixture
def distributions() -> Posterior:
    """Of a prompt that leaves several programs open."""
    task = make_task("list_programs", max_operations=2)
    assert isinstance(task, ListPrograms)
    found = Posterior(task, [([1, 2], [2, 3]), ([4, 4], [5, 5])])
    assert len(found.weights) > 2
    return found


def test_the_prior_is_the_tasks():
    """The weights of all programs, and how often the task poses each."""
    task = make_task("list_programs", max_operations=2)
    prior = {text: weight for text, (weight, _) in programs(2).items()}
    assert sum(prior.values()) == pytest.approx(1)
    posed = [problem.solution for problem in task.problems("test", 3000, 5)]
    assert set(posed) <= {text.removesuffix(END) for text in prior}
    # problems that show nothing are not posed, so the shares agree in kind alone
    for text in ("sorted(x)\n", "[v+1 for v in x]\n"):
        assert posed.count(text) / 3000 == pytest.approx(prior[text + END], abs=0.012)


def test_laws_are_the_posteriors(distributions):
    for prefix in ("", "[v", "[v+1 for v in "):
        distribution = np.exp(distributions.distribution(prefix))
        assert distribution.sum() == pytest.approx(1)
        here = {text: weight for text, weight in distributions.weights.items() if text.startswith(prefix)}
        for letter, share in zip(distributions.letters, distribution, strict=True):
            expected = sum(w for text, w in here.items() if text[len(prefix)] == letter) / sum(here.values())
            assert share == pytest.approx(expected, abs=SPREAD)
    later = np.exp(distributions.distribution("", 400))
    assert later[distributions.letters.index(END)] > 1 - SPREAD


@pytest.mark.slow
def test_the_lossless_rule_gives_the_posterior(distributions):
    """How long the answers are, against the posterior's lengths; and mixing is bound by the same ceiling."""
    rng = np.random.default_rng(0)
    lengths = [sum(sample(distributions, 8, 0.0, rng)) for _ in range(600)]
    total = sum(distributions.weights.values())
    for length in sorted({len(text) for text in distributions.weights}):
        share = sum(w for text, w in distributions.weights.items() if len(text) == length) / total
        assert lengths.count(length) / 600 == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / 600) + 0.01)
    for beta in (0.0, 0.5):
        measured = summary([sample(distributions, 16, beta, rng) for _ in range(20)])
        assert 1 < measured["tokens_per_forward"] <= measured["most_tokens_per_forward"]


def test_nothing_is_refused_where_one_program_is_left():
    task = make_task("list_programs", max_operations=1)
    assert isinstance(task, ListPrograms)
    distributions = Posterior(task, [([3, -1, 2], [9, 1, 4])])
    assert list(distributions.weights) == [f"[v*v for v in x]\n{END}"]
    assert sample(distributions, 16, 0.0, np.random.default_rng(1)) == [1, 16, 1]
