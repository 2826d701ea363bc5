"""Rollouts as batches and as a phase: judged, laid out, in law the same whatever draws them, and resumed to the bit."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import scipy.stats

from tests.helpers import random_variables, small_config
from zaya_jax.architecture import Zaya
from zaya_jax.errors import UserError
from zaya_jax.parallel import MeshConfig, make_placement
from zaya_jax.rollouts.batches import Asked, RolloutBatches
from zaya_jax.rollouts.config import Rollouts
from zaya_jax.rollouts.held_out import held_out
from zaya_jax.rollouts.objective import PolicyObjective
from zaya_jax.tasks import make_task
from zaya_jax.tasks.base import Problem
from zaya_jax.text.tokenizers import ByteTokenizer
from zaya_jax.training.checkpoints import Checkpoints
from zaya_jax.training.logging.metrics import MetricWriter, read_metrics
from zaya_jax.training.loop import Phase, train
from zaya_jax.training.optimizer import OptimizerConfig

CONFIG = small_config(vocab_size=260)
TOKENIZER = ByteTokenizer()
POLICY = PolicyObjective(block_size=3)
ROLLOUTS = Rollouts(group=4, max_new_tokens=5, batch=4, held_out=0)
TIMES = ("rollout_seconds", "tokens_per_second")


@dataclasses.dataclass(frozen=True)
class Even(type(make_task("countdown"))):  # a reward that a random model meets about half of the time
    """Pays for an even first byte."""

    def reward(self, problem: Problem, completion: str) -> float:
        return float(bool(completion) and ord(completion[0]) % 2 == 0)


ASKED = Asked(((Even(), 2.0), (make_task("countdown", numbers=2), 1.0)), TOKENIZER, 24, 2, data_seed=1, seed=5)


@functools.cache
def model_and_variables():
    return Zaya(CONFIG), random_variables(CONFIG)


def batches(rollouts: Rollouts = ROLLOUTS, policy: PolicyObjective = POLICY, asked: Asked = ASKED) -> RolloutBatches:
    model, variables = model_and_variables()
    made = RolloutBatches(model, policy, rollouts, asked, variables)
    made.follow(variables)
    return made


def test_a_batch_is_prompts_answers_and_what_they_were_worth():
    made = batches()
    batch = next(made)
    assert {name: (x.shape, x.dtype.name) for name, x in batch.items()} == {
        **dict.fromkeys(("tokens", "document", "answer"), ((8, 24), "int32")),
        "log_rollout": ((8, 24), "float32"),
        **dict.fromkeys(("advantage", "weight"), ((8,), "float32")),
        "which": ((8, 8), "float32"),
    }
    problems = ASKED.draw(0)
    for row in range(8):
        prompt = TOKENIZER.opening + tuple(TOKENIZER.encode(problems[row // 4][1].prompt))
        n = int((batch["answer"][row] != 0).sum())
        assert tuple(batch["tokens"][row, : len(prompt)]) == tuple(prompt) and 1 <= n <= 5
        assert batch["answer"][row].tolist() == [0] * len(prompt) + [1] * n + [0] * (24 - len(prompt) - n)
        assert batch["document"][row].tolist() == [0] * (len(prompt) + n) + [-1] * (24 - len(prompt) - n)
        assert (batch["log_rollout"][row] < 0).sum() == n
    np.testing.assert_allclose(batch["advantage"].reshape(2, 4).sum(1), 0, atol=1e-6)
    facts = made.metrics()
    assert facts["rollout_tokens"] == (batch["answer"] != 0).sum() == facts["total_rollout_tokens"]
    assert facts["tokens_per_forward"] == facts["rollout_tokens"] / facts["rollout_forwards"]
    assert facts["skipped_groups"] == (batch["weight"].reshape(2, 4) == 0).all(1).sum()
    assert 0 <= facts["reward"] <= 1


def test_what_is_drawn_depends_on_the_seed_and_the_number_alone():
    one, other = batches(), batches(dataclasses.replace(ROLLOUTS, batch=8))
    first, second = next(one), next(one)
    np.testing.assert_array_equal(first["tokens"], next(other)["tokens"])  # however many stand side by side
    assert (first["tokens"] != second["tokens"]).any()
    fresh = batches()
    fresh.set_state({"number": 1, "left": 0, "totals": one.totals})
    np.testing.assert_array_equal(next(fresh)["tokens"], second["tokens"])
    names = {task.name for number in range(20) for task, _ in ASKED.draw(number)}
    assert names == {"countdown"} and len({task for n in range(20) for task, _ in ASKED.draw(n)}) == 2


def test_a_prompt_that_does_not_fit_is_named():
    with pytest.raises(UserError, match=r"row_length: got 8, may be at least \d+ tokens of countdown's prompt '"):
        next(batches(asked=dataclasses.replace(ASKED, row_length=8)))


@functools.cache
def counts_of(sampler: str, seed: int) -> list[np.ndarray]:
    """How often 300 rollouts of one prompt have each eighth of the bytes, at each of three positions."""
    many = dataclasses.replace(ROLLOUTS, group=300, max_new_tokens=3, batch=100, sampler=sampler)
    asked = dataclasses.replace(ASKED, tasks=((Even(), 1.0),), problems=1, seed=seed)
    batch = next(batches(many, asked=asked))
    start = int(np.argmax(batch["answer"][0]))
    return [np.bincount(batch["tokens"][:, start + t] // 8, minlength=33) for t in range(3)]


@pytest.mark.parametrize("sampler", ["lossless", pytest.param("lossless_two_pass", marks=pytest.mark.slow)])
def test_autoregressive_and_lossless_rollouts_have_one_distribution(sampler):
    """The first batch's tokens, by position: a chi-squared test of homogeneity, with keys of their own."""
    for t, counts in enumerate(zip(counts_of("autoregressive", 0), counts_of(sampler, 1), strict=True)):
        table = np.stack(counts)
        table = table[:, table.sum(0) >= 10]
        assert table.shape[1] > 3
        assert scipy.stats.chi2_contingency(table).pvalue > 1e-3, t


def test_a_sampler_that_is_not_lossless_needs_weights():
    with pytest.raises(UserError, match=r"^objective\.importance_cap: got 0\.0, may be above 0 where"):
        Rollouts(sampler="mix_stale").check_policy(POLICY)
    Rollouts(sampler="mix_stale").check_policy(dataclasses.replace(POLICY, importance_cap=2.0))
    for field, value, words in (
        ("sampler", "losless", "did you mean"),
        ("sampler", "threshold", "block_diffusion draws in any order"),
        ("group", 1, "an integer of at least 2"),
        ("updates", 0, "an integer of at least 1"),
    ):
        with pytest.raises(UserError, match=rf"^Rollouts\.{field}: got .*{words}"):
            dataclasses.replace(ROLLOUTS, **{field: value})


class Killed(Exception):
    pass


class Dying(RolloutBatches):
    """Fails at its n-th batch."""

    after = 3

    def __next__(self):
        if self.after == 0:
            raise Killed
        self.after -= 1
        return super().__next__()


def phase(policy: PolicyObjective, steps: int = 5) -> Phase:
    return Phase("policy", policy, OptimizerConfig(learning_rate=1e-2), steps=steps, log_every=1, save_every=2)


@pytest.mark.slow
@pytest.mark.parametrize("updates", [1, 3])
def test_a_killed_phase_resumes_to_the_bit(tmp_path, updates):
    """Also between two updates on one batch of rollouts, which travels in the checkpoint."""
    model, variables = model_and_variables()
    policy = dataclasses.replace(POLICY, kl=0.1)
    rollouts = dataclasses.replace(ROLLOUTS, updates=updates)

    def run(folder, kind=RolloutBatches):
        made = kind(model, policy, rollouts, ASKED, variables)
        with Checkpoints(folder) as checkpoints:
            return train(model, variables, phase(policy), made, checkpoints, MetricWriter(folder / "metrics.jsonl"))

    whole = run(tmp_path / "whole")
    with pytest.raises(Killed):
        run(tmp_path / "killed", Dying)
    resumed = run(tmp_path / "killed")
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(one, other)
    one, other = (
        [{k: v for k, v in line.items() if k not in TIMES} for line in read_metrics(tmp_path / name / "metrics.jsonl")]
        for name in ("whole", "killed")
    )
    assert one == other and len(one) == 5
    assert all(line["log_probability_gap"] < 1e-4 for line in one[::updates])
    assert {"reward", "entropy", "tokens_per_forward", "approximate_kl", "grad_norm", "kl_loss", "draft_loss"} <= set(
        one[0]
    )


@pytest.mark.slow
def test_reward_rises(tmp_path):
    """A random model learns to write an even byte first."""
    model, variables = model_and_variables()
    asked = dataclasses.replace(ASKED, tasks=((Even(), 1.0),), problems=4)
    made = RolloutBatches(model, POLICY, dataclasses.replace(ROLLOUTS, group=8), asked)
    rewards = []

    class Writer(MetricWriter):
        def write(self, stage, step, metrics):
            rewards.append(metrics["reward"])

    with Checkpoints(tmp_path / "steps") as checkpoints:
        train(model, variables, phase(POLICY, 30), made, checkpoints, Writer(tmp_path / "metrics.jsonl"))
    assert np.mean(rewards[-5:]) > np.mean(rewards[:5]) + 0.2


def test_held_out_problems_are_the_same_at_every_call():
    model, variables = model_and_variables()
    sampler = ROLLOUTS.sampler_config(POLICY, TOKENIZER.eos_ids)
    first, second = (held_out(model, variables, TOKENIZER, [Even()], sampler, 2, 16, 5, 8, seed=3) for _ in range(2))
    assert first == second
    assert set(first) == {f"countdown/{name}" for name in ("pass_at_1", "pass_at_16", "reward", "tokens_per_forward")}
    assert 0 < first["countdown/reward"] < 1 <= first["countdown/tokens_per_forward"]


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [{"data": 2}, {"fsdp": 2}])
def test_two_devices_train_as_one(tmp_path, mesh):
    model, variables = model_and_variables()

    def run(folder, placement):
        made = RolloutBatches(model, POLICY, ROLLOUTS, ASKED, variables, placement)
        writer = MetricWriter(folder / "metrics.jsonl")
        with Checkpoints(folder) as checkpoints:
            train(model, variables, phase(POLICY, 2), made, checkpoints, writer, placement=placement)
        return read_metrics(folder / "metrics.jsonl")

    one = run(tmp_path / "one", None)
    two = run(tmp_path / "two", make_placement(MeshConfig(**mesh), CONFIG, 8, 24, 3))
    for mine, other in zip(one, two, strict=True):
        assert mine["rollout_forwards"] == other["rollout_forwards"] and mine["reward"] == other["reward"]
        for name in ("loss", "grad_norm", "entropy", "draft_loss"):
            assert mine[name] == pytest.approx(other[name], rel=1e-3)
        assert other["log_probability_gap"] < 1e-4
