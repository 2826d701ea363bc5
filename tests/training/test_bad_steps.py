"""A loss that is not finite, or jumps: stop or skip, with the batch written down."""

import dataclasses
import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import fresh_state, random_variables, small_config
from zaya_jax.architecture import Zaya
from zaya_jax.interop.formats.native import load_native, write_model_file
from zaya_jax.training import bad_steps
from zaya_jax.training.checkpoints import Checkpoints
from zaya_jax.training.logging.metrics import MetricWriter, read_metrics
from zaya_jax.training.loop import Phase, train
from zaya_jax.training.objective import Objective
from zaya_jax.training.optimizer import OptimizerConfig
from zaya_jax.training.state import _recent, make_train_step

CONFIG = small_config(tie_word_embeddings=False, feed_forward="dense")
OPTIMIZER = OptimizerConfig(learning_rate=0.05, warmup_steps=0, schedule="constant", ema_decay=0.5)
PHASE = Phase(
    "convert", Objective("autoregressive"), OPTIMIZER, steps=14, log_every=3, save_every=5, on_bad_step="skip",
    spike_factor=1.5, evaluate_ema=True,
)  # fmt: skip
POISON = 15  # a token whose embedding is not a number
NAN_STEPS, SPIKES = (6, 12), (10,)


class Scripted:
    """The same batch over and over, but for one with a poisoned row, and one of tokens that never came before."""

    def __init__(self):
        self.done = 0

    def __iter__(self):
        return self

    def __next__(self):
        self.done += 1
        rng = np.random.default_rng(0)
        tokens = rng.integers(0, 4, (4, 12)).astype(np.int32)
        if self.done in NAN_STEPS:
            tokens[1, 5] = POISON
        if self.done in SPIKES:
            tokens = tokens + 8
        return {"tokens": tokens, "document": np.zeros_like(tokens)}

    def get_state(self):
        return {"done": self.done}

    def set_state(self, state):
        self.done = state["done"]


def variables() -> dict:
    """Small random weights, and one embedding that is not a number."""
    fresh = random_variables(CONFIG, scale=0.05)
    embedding = fresh["params"]["embed_tokens"].at[POISON].set(jnp.nan)
    return {**fresh, "params": {**fresh["params"], "embed_tokens": embedding}}


def run(directory, phase=PHASE):
    """The phase on the scripted batches; evaluation tells the averaged parameters' sum, so that they can be seen."""
    with Checkpoints(directory / "steps") as checkpoints:
        writer = MetricWriter(directory / "metrics.jsonl")
        see = lambda v: {"norm": v["params"]["norm"]["weight"].sum()}  # noqa: E731
        return train(Zaya(CONFIG), variables(), phase, Scripted(), checkpoints, writer, evaluate=see)


@pytest.fixture(scope="module")
def skipped(tmp_path_factory):
    directory = tmp_path_factory.mktemp("skipped")
    return directory, run(directory)


def test_bad_steps_change_nothing(skipped):
    """Against the same steps without the bad ones, bit for bit; the step's number counts on."""
    directory, final = skipped
    step = make_train_step(Zaya(CONFIG), PHASE.objective, OPTIMIZER, skip_bad=True)
    state = fresh_state(variables(), OPTIMIZER, PHASE.seed)
    data = Scripted()
    for number in range(1, PHASE.steps + 1):
        batch = next(data)
        if number in NAN_STEPS + SPIKES:
            state = state.replace(step=state.step + 1)
        else:
            state, _ = step(state, batch, 1.0, math.inf)
    parts = ("params", "opt_state", "ema", "balancing", "step")
    jax.tree.map(
        functools.partial(np.testing.assert_array_equal, strict=True),
        *[[getattr(s, part) for part in parts] for s in (state, final)],
    )
    assert int(final.skipped) == 3
    lines = read_metrics(directory / "metrics.jsonl")
    logged = {line["step"]: line for line in lines if line["stage"] == "convert"}
    assert [line["skipped_steps"] for line in logged.values()] == [0, 1, 1, 3, 3]
    assert "loss" not in logged[6] and "loss" not in logged[12] and math.isfinite(logged[9]["loss"])
    assert "bad" not in logged[9] and "recent_loss" not in logged[9]
    averaged = [line["norm"] for line in lines if line["stage"] == "convert/validation"]
    assert averaged == [float(final.ema["norm"]["weight"].sum())]
    json.loads((directory / "metrics.jsonl").read_text().splitlines()[1], parse_constant=pytest.fail)  # no NaN in JSON


def test_the_average_can_be_read_alone(skipped):
    """In the parameters' place; a checkpoint that has none says so."""
    directory, final = skipped
    write_model_file(directory / "steps", CONFIG)
    for ema, expected in ((True, final.ema), (False, final.params)):
        jax.tree.map(np.testing.assert_array_equal, load_native(directory / "steps", ema)[1]["params"], expected)
    assert not np.array_equal(final.ema["norm"]["weight"], final.params["norm"]["weight"])


def test_bad_batches_are_written_down_and_found_again(skipped):
    lines = read_metrics(skipped[0] / "bad_steps.jsonl")
    assert [(line["stage"], line["step"]) for line in lines] == [("convert", step) for step in (6, 10, 12)]
    assert [line["loss"] for line in lines[::2]] == ["nan", "nan"]
    spike = lines[1]
    assert spike["loss"] > 1.5 * spike["recent_loss"] and math.isfinite(spike["grad_norm"])
    data = Scripted()
    for line in lines:
        data.set_state(line["data"])
        batch = next(data)
        assert data.done == line["step"]
        assert bad_steps.row_hashes(batch) == line["rows"]
    good = bad_steps.row_hashes(next(Scripted()))
    assert [a == b for a, b in zip(good, lines[0]["rows"], strict=True)] == [True, False, True, True]


def test_a_resumed_run_skips_the_same_steps(skipped, tmp_path, monkeypatch):
    class Killed(Exception):
        pass

    def dying(self):
        if self.done == 11:
            raise Killed
        return real(self)

    real = Scripted.__next__
    monkeypatch.setattr(Scripted, "__next__", dying)
    with pytest.raises(Killed):
        run(tmp_path)
    monkeypatch.undo()
    assert len(read_metrics(tmp_path / "bad_steps.jsonl")) >= 1
    final = run(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, final, skipped[1])
    assert (tmp_path / "bad_steps.jsonl").read_text() == (skipped[0] / "bad_steps.jsonl").read_text()


def test_a_bad_step_stops_the_run_and_no_checkpoint_is_after_it(tmp_path):
    phase = dataclasses.replace(PHASE, on_bad_step="stop", evaluate_ema=False)
    with pytest.raises(FloatingPointError) as error:
        run(tmp_path, phase)
    assert str(error.value) == (
        "convert step 6: loss is nan; lower optimizer.learning_rate; the batch is in bad_steps.jsonl"
    )
    assert [line["step"] for line in read_metrics(tmp_path / "bad_steps.jsonl")] == [6]
    with Checkpoints(tmp_path / "steps") as checkpoints:
        assert checkpoints.latest == 5


def told(bad: bool, loss: float, recent: float) -> dict:
    values = {"bad": bad, "loss": loss, "grad_norm": 1.0, "recent_loss": recent}
    return jax.device_put(values)


def see(watched: bad_steps.BadSteps, step: int, metrics: dict) -> None:
    watched.add(step, {"done": step - 1}, next(Scripted()), metrics)
    watched.look()


def test_a_spike_stops_the_run_in_one_line(tmp_path):
    watched = bad_steps.BadSteps("sft", MetricWriter(tmp_path / "metrics.jsonl"), skip=False, spike_factor=2.0)
    see(watched, 1, told(False, 3.0, math.nan))
    with pytest.raises(FloatingPointError) as error:
        see(watched, 2, told(True, 9.0, 3.0))
    line = "sft step 2: loss is 9, more than 2 (spike_factor) x the recent 3; the batch is in bad_steps.jsonl"
    assert str(error.value) == line


def test_a_verdict_is_late_by_a_few_steps_and_no_batch_is_lost(tmp_path):
    watched = bad_steps.BadSteps("sft", MetricWriter(tmp_path / "metrics.jsonl"), skip=True, spike_factor=2.0)
    seen = []
    for step in range(1, bad_steps.LAG + 4):
        watched.add(step, {"done": step - 1}, next(Scripted()), told(step == 2, 9.0, 3.0))
        seen.append((tmp_path / "bad_steps.jsonl").exists())
    assert seen == [False] * (bad_steps.LAG + 1) + [True] * 2
    assert [(line["step"], line["data"]) for line in read_metrics(tmp_path / "bad_steps.jsonl")] == [(2, {"done": 1})]


def test_skipping_has_an_end(tmp_path, monkeypatch):
    monkeypatch.setattr(bad_steps, "MOST_IN_A_ROW", 3)
    watched = bad_steps.BadSteps("sft", MetricWriter(tmp_path / "metrics.jsonl"), skip=True, spike_factor=2.0)
    for step, bad in enumerate([True, True, True, False, True, True, True], 1):
        see(watched, step, told(bad, math.inf, 3.0))
    with pytest.raises(FloatingPointError, match="sft step 8: 4 bad steps in a row: loss is inf; lower"):
        see(watched, 8, told(True, math.inf, 3.0))
    assert len(read_metrics(tmp_path / "bad_steps.jsonl")) == 7


def test_a_lasting_change_of_level_is_caught_up_with():
    """The recent average moves at spikes too, but a little: levels 1, then 8, with a factor of 2."""
    recent, seen = jnp.float32(1.0), []
    for _ in range(100):
        seen.append(bool(2 * recent < 8.0))
        recent = _recent(recent, jnp.float32(8.0), 2 * recent)
    assert seen.index(False) in range(20, bad_steps.MOST_IN_A_ROW) and not any(seen[seen.index(False) :])
    assert 7 < recent <= 8
    assert float(_recent(recent, jnp.float32(jnp.nan), 2 * recent)) == float(recent)
    assert float(_recent(jnp.float32(jnp.nan), jnp.float32(3.0), jnp.float32(jnp.nan))) == 3


@pytest.mark.parametrize(
    ("bad", "line"),
    [
        (dict(on_bad_step="ignore"), "convert.on_bad_step: got 'ignore', may be 'stop' or 'skip'"),
        (dict(spike_factor=0.5), "convert.spike_factor: got 0.5, may be 0"),
        (dict(optimizer=OptimizerConfig()), "convert.evaluate_ema: got True, may be False with optimizer.ema_decay 0"),
    ],
)
def test_bad_fields_are_named(bad, line):
    with pytest.raises(ValueError, match=line):
        dataclasses.replace(PHASE, **bad)
