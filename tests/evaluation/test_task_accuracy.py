"""Evaluation of samplers: the same problems for all, resumable files, pass@k and comparisons from the same answers."""

import dataclasses
import functools
import json

import numpy as np
import pytest

from tests.helpers import random_variables
from zaya_jax.architecture import Zaya, preset
from zaya_jax.errors import UserError
from zaya_jax.evaluation import answers
from zaya_jax.evaluation.answers import Answers, fingerprint
from zaya_jax.evaluation.pass_at_k import pass_at_k, permutation_p_value
from zaya_jax.evaluation.task_accuracy import (
    EvaluationProtocol,
    NamedSampler,
    TaskResult,
    _best_list,
    most_tokens_per_forward,
    run_sampler,
    run_task,
    speedup_interval,
    task_rows,
    tokens_per_decoding_forward,
)
from zaya_jax.sampling import SamplerConfig, generate
from zaya_jax.tasks import make_task
from zaya_jax.text.tokenizers import ByteTokenizer

pytestmark = pytest.mark.early

TASK, TOKENIZER = make_task("addition", digits=1), ByteTokenizer()
# batches of two problems, twice each: one size for all
PROTOCOL = EvaluationProtocol(prompts=6, samples=2, batch=4, max_new_tokens=4, seed=7)
LOSSLESS = NamedSampler("lossless", SamplerConfig("single_pass", block_size=2, temperature=1.0, stop_tokens=(257,)))


@functools.cache
def setup():
    config = preset("tiny")
    return Zaya(config), random_variables(config)


def answers_of(result: TaskResult) -> tuple:
    return result.tokens, result.accepted, result.correct


def run(path=None, sampler=LOSSLESS, protocol=PROTOCOL, variables=None):
    model, own = setup()
    return run_sampler(model, variables or own, TOKENIZER, TASK, protocol.problems(TASK), sampler, protocol, path)


def test_a_killed_evaluation_resumes_to_the_same_answers(tmp_path):
    path = tmp_path / "answers.jsonl"
    whole = run(path)
    assert answers_of(whole) == answers_of(run()) and len(whole.tokens) == 12
    lines = path.read_text().splitlines(keepends=True)
    assert len(lines) == 1 + 6
    for kept in ("".join(lines[:3]), "".join(lines[:4]) + lines[4][:10], lines[0][:5], ""):
        path.write_text(kept)
        resumed = run(path)
        assert answers_of(resumed) == answers_of(whole)
        # A text that is made again stands in another row of its batch; some CPUs' products round by the row.
        np.testing.assert_allclose(resumed.log_target, whole.log_target, atol=1e-5)
        again = [json.loads(line) for line in path.read_text().splitlines()]
        assert [line.get("problem") for line in again] == [None, 0, 1, 2, 3, 4, 5]
    before = path.read_text()
    assert answers_of(run(path)) == answers_of(whole)
    assert path.read_text() == before  # nothing was left to do


@pytest.mark.slow
def test_the_targets_entropy_is_that_of_its_own_samples(tmp_path):
    (model, variables), problems = setup(), PROTOCOL.problems(TASK)
    path = tmp_path / "answers.jsonl"
    result = run(path)
    prompts = [TASK.encode(problem, TOKENIZER) for problem in problems for _ in range(2)]
    out = generate(model, variables, prompts, LOSSLESS.config, 4, [7 + row for row in range(12)])
    told = [sum(row) for row in out.log_probabilities]
    np.testing.assert_allclose(result.log_target, told, atol=1e-5)
    entropy = result.row(PROTOCOL)["entropy"]
    assert entropy == pytest.approx(-sum(told) / sum(map(len, out.tokens)), abs=1e-5) and 0 < entropy < 8
    first, *lines = path.read_text().splitlines()
    older = [json.dumps({k: v for k, v in json.loads(line).items() if k != "log_target"}) for line in lines[:4]]
    path.write_text("\n".join([first, *older]) + "\n")
    assert run(path).row(PROTOCOL)["entropy"] is None  # not known of all
    path.write_text("\n".join([first, lines[0].replace('"log_target": [', '"log_target": [1, ')]) + "\n")
    with pytest.raises(UserError, match=r"line 2: log_target: got .*, may be a list of 2 numbers of at most 0"):
        run(path)


def test_the_most_tokens_per_forward_a_text_allows():
    sampler = SamplerConfig("single_pass", block_size=4)
    # one token from the prefill, then blocks: 1, 1 + 1, 1 + 4, 1 + 4 + 1, 1 + 4 + 4 + 4
    assert most_tokens_per_forward([1, 2, 5, 6, 13], sampler) == 27 / (1 + 2 + 2 + 3 + 4)
    assert most_tokens_per_forward([1, 9], SamplerConfig("autoregressive")) == 1
    assert most_tokens_per_forward([9], SamplerConfig("two_pass", block_size=4)) is None
    row = run().row(PROTOCOL)
    assert 1 <= row["tokens_per_forward"] <= row["most_tokens_per_forward"]


@pytest.mark.slow
def test_tokens_per_forward_without_the_prefill():
    assert tokens_per_decoding_forward([[1, 4, 2], [1], [1, 3]]) == 9 / 3
    assert tokens_per_decoding_forward([[1]]) is None
    plain = run(sampler=NamedSampler("autoregressive", SamplerConfig("autoregressive", stop_tokens=(257,))))
    assert tokens_per_decoding_forward(plain.accepted) == 1


def test_more_problems_resume_after_fewer(tmp_path):
    path = tmp_path / "answers.jsonl"
    few = dataclasses.replace(PROTOCOL, prompts=2)
    first = run(path, protocol=few)
    assert answers_of(run(path)) == answers_of(run())
    assert answers_of(run(path, protocol=few)) == answers_of(first)  # and back


def test_other_answers_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "answers.jsonl"
    run(path)
    hotter = NamedSampler("lossless", dataclasses.replace(LOSSLESS.config, temperature=0.5))
    others = {
        "seed was 7, is 8": dict(protocol=dataclasses.replace(PROTOCOL, seed=8)),
        "sampler was": dict(sampler=hotter),
        "weights was": dict(variables=random_variables(preset("tiny"), seed=1)),
    }
    for message, change in others.items():
        with pytest.raises(ValueError, match=message):
            run(path, **change)
    whole = path.read_text()
    with monkeypatch.context() as patch:  # another tokenizer, say
        patch.setattr(type(TASK), "encode", lambda task, problem, tokenizer: tokenizer.encode(f" {problem.prompt}"))
        with pytest.raises(UserError, match="first_prompt was"):
            run(path)
        first, *lines = whole.splitlines(keepends=True)
        made_by = {key: value for key, value in json.loads(first)["made_by"].items() if key != "first_prompt"}
        path.write_text("".join([json.dumps({"made_by": made_by}) + "\n", *lines]))
        run(path)  # a file of before does not say
    path.write_text("not ours\n")
    with pytest.raises(ValueError, match=r"answers\.jsonl line 1: not JSON"):
        run(path)
    path.write_text("{}\n")
    with pytest.raises(ValueError, match="not a file of answers"):
        run(path)


def test_a_trials_numbers_are_integers():
    assert (
        EvaluationProtocol(*map(np.int64, (6, 2, 4, 4, 7))) == PROTOCOL
        and type(EvaluationProtocol(*map(np.int64, (6, 2, 4, 4, 7))).seed) is int
    )
    for field, value in dict(prompts=0, samples=1.5, batch=True, max_new_tokens=None, seed=-1).items():
        with pytest.raises(ValueError, match=rf"^EvaluationProtocol\.{field}: got .*, may be an integer of at least"):
            dataclasses.replace(PROTOCOL, **{field: value})


def test_a_budget_is_chosen_by_smoothed_evidence(monkeypatch):
    """As by `generate`: texts that always yield one length do not ask for an anchor there alone."""
    found = TaskResult(LOSSLESS, 1, [], [[1, 6, 6, 6, 6]] * 30, [], 1.0, 1)
    monkeypatch.setattr("zaya_jax.evaluation.task_accuracy.run_sampler", lambda *args: found)
    sampler = SamplerConfig(block_size=8)
    assert _best_list(*setup(), TOKENIZER, TASK, sampler, PROTOCOL, 1) == (1,)
    assert _best_list(*setup(), TOKENIZER, TASK, sampler, PROTOCOL, 2)[0] == 1


def test_a_checksum_tells_weights_apart_and_not_their_place_in_memory():
    variables = setup()[1]
    assert fingerprint(variables) == fingerprint(random_variables(preset("tiny")))
    assert fingerprint(variables) != fingerprint(random_variables(preset("tiny"), seed=1))
    for shape in ((), (0,), (3, 0), (5000,), (2, 3, 7), (3, 2000), (700, 3), (2, 600, 5)):
        leaf = np.arange(np.prod(shape, dtype=int)).reshape(shape)
        np.testing.assert_array_equal(answers._first(leaf, 1024), leaf.reshape(-1)[:1024])


def test_row_seeds_do_not_depend_on_the_batch():
    assert answers_of(run(protocol=dataclasses.replace(PROTOCOL, batch=100))) == answers_of(run())


@pytest.mark.slow
def test_greedy_samplers_draw_one_sample_and_a_budget_of_anchors_is_chosen(tmp_path):
    model, variables = setup()
    protocol = dataclasses.replace(PROTOCOL, prompts=4)
    samplers = [
        NamedSampler(name, dataclasses.replace(LOSSLESS.config, mode=mode, temperature=t))
        for t in (0.0, 1.0) for name, mode in (("autoregressive", "autoregressive"), ("lossless", "single_pass"))
    ]  # fmt: skip
    results = run_task(model, variables, TOKENIZER, TASK, samplers, protocol, tmp_path / "a", anchor_budget=1)
    assert [r.samples for r in results] == [1, 1, 2, 2]
    assert results[0].tokens == results[1].tokens
    assert all(len(r.sampler.config.anchor_list) == 1 for r in results if r.sampler.name == "lossless")
    assert len(list((tmp_path / "a").iterdir())) == 4
    rows = task_rows(results, protocol)
    assert [row["rows_per_forward"] for row in rows] == [1, 4, 1, 4]
    assert rows[1]["identical_to_autoregressive"] == 1 and rows[1]["p_value"] == 1
    assert "p_value" not in rows[0] and rows[0]["speedup"] == 1


def result(name: str, correct: list[int], samples: int) -> TaskResult:
    sampler = dataclasses.replace(LOSSLESS.config, mode="autoregressive")
    return TaskResult(NamedSampler(name, sampler), samples, [[1]] * len(correct), [[1]] * len(correct), correct, 2.0, 1)


def test_pass_at_k_and_differences_come_from_the_same_answers():
    rng = np.random.default_rng(0)
    first, second = (rng.random((30, 16)) < rng.random((30, 1)) * 0.3 for _ in range(2))
    base, other = (result(n, x.reshape(-1).tolist(), 16) for n, x in (("autoregressive", first), ("mix", second)))
    row = other.row(PROTOCOL, base)
    assert row["accuracy"] == pytest.approx(second.mean())
    for k in (4, 16):
        expected = pass_at_k(16, second.sum(1), k).mean()
        assert row[f"pass_at_{k}"] == pytest.approx(expected)
        assert row[f"pass_at_{k}_low"] < expected < row[f"pass_at_{k}_high"]
    assert row["pass_at_16"] == second.any(1).mean()
    assert row["pass_at_16_difference"] == pytest.approx(second.any(1).mean() - first.any(1).mean())
    assert row["pass_at_16_difference_low"] < row["pass_at_16_difference"] < row["pass_at_16_difference_high"]
    assert row["p_value"] == permutation_p_value(second.mean(1), first.mean(1))
    assert "pass_at_16" not in result("few", [1, 0, 1, 0], 4).row(PROTOCOL)


def test_one_problem_is_enough_for_a_row():
    base, other = (result(name, [right], 1) for name, right in (("autoregressive", 0), ("lossless", 1)))
    row = other.row(PROTOCOL, base)
    assert row["p_value"] == 1 and row["accuracy_low"] < row["accuracy"] == 1
    row = result("mix", [1] * 16, 16).row(PROTOCOL, result("autoregressive", [0] * 16, 16))
    assert row["p_value"] == 1 and row["pass_at_16_difference_low"] == row["pass_at_16_difference"] == 1


def test_answers_without_a_path_stay_in_memory(tmp_path):
    answers = Answers(None, {"seed": 1})
    answers.add([{"problem": 0}])
    assert answers.lines == [{"problem": 0}]
    assert list(tmp_path.iterdir()) == []


def test_a_speedup_has_an_interval_from_four_batches_on():
    rng = np.random.default_rng(1)
    ours, theirs = ([(100, s) for s in rng.uniform(low, 1.2 * low, 40)] for low in (2.0, 1.0))
    low, high = speedup_interval(ours, theirs)
    assert 0.47 < low < 0.5 < high < 0.53
    assert speedup_interval(ours[:3], theirs[:3]) is None and speedup_interval(ours, theirs[:9]) is None


def test_rows_hold_what_every_forward_yielded():
    sampler = SamplerConfig(mode="single_pass", block_size=4)
    result = TaskResult(
        NamedSampler("lossless", sampler), 1, [[1] * 5, [1] * 3], [[1, 4], [1, 2]], [True, False], 2.0, 20
    )
    assert result.row(EvaluationProtocol(2, 1, 2, 8, 0))["forwards_by_tokens"] == [0, 2, 1, 0, 1]
