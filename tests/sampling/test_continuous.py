"""Continuous batching: each sequence is what `generate` gives alone, whatever stood beside it, and rows rarely idle."""

import time

import numpy as np
import pytest

from tests.sampling.test_generate import model_of, prompts_of
from tests.sampling.test_learned_drafters import model_of as drafting_model
from tests.sampling.test_turns import Letters
from zaya_jax.errors import UserError
from zaya_jax.parallel import MeshConfig, make_placement
from zaya_jax.sampling import SamplerConfig, continuous, generate
from zaya_jax.sampling.continuous import Prompt, compile_queue, generate_queue, in_order

NEW = 18
BATCH = (
    4  # of every queue but one, and of what it is compared with: the programs that tests/sampling/test_generate.py has
)
SAMPLERS = [
    SamplerConfig("autoregressive", temperature=0.9, stop_tokens=(15, 6)),
    SamplerConfig("single_pass", 4, (2, 3), temperature=0.9, stop_tokens=(15, 6)),
    SamplerConfig("two_pass", 4, temperature=0.0, stop_tokens=(15, 6)),
]


def many(model, count=11) -> list[Prompt]:
    given = prompts_of(model, (3, 9, 1, 6))
    return [Prompt([*given[i % 4], i % 7], seed=i) for i in range(count)]


def alone(model, variables, prompts: list[Prompt], sampler, **options) -> list[tuple]:
    """(tokens, accepted, log-probabilities, finish) of each by `generate`, four at a time."""
    out = []
    for first in range(0, len(prompts), BATCH):
        part = [prompts[i % len(prompts)] for i in range(first, first + BATCH)]
        got = generate(model, variables, [p.tokens for p in part], sampler, NEW, [p.seed for p in part], **options)
        out += zip(got.tokens, got.accepted, got.log_probabilities, got.finish, strict=True)
    return out[: len(prompts)]


@pytest.mark.parametrize(
    "sampler", [*SAMPLERS[:2], pytest.param(SAMPLERS[2], marks=pytest.mark.slow)], ids=lambda sampler: sampler.mode
)
def test_a_sequence_is_what_it_is_alone(sampler):
    model, variables = model_of()
    prompts = many(model)
    expected = alone(model, variables, prompts, sampler)
    for order in (np.arange(11), np.arange(11)[::-1]):
        found = {}
        rows = [prompts[i] for i in order]
        out = list(generate_queue(model, variables, rows, sampler, NEW, longest=10, batch=BATCH))
        found, work = {int(order[sequence.index]): sequence for sequence, _ in out}, out[-1][1]
        assert len(found) == 11 and 0 < work.busy <= work.row_steps
        for i in range(11):
            tokens, accepted, log_probabilities, finish = expected[i]
            assert (found[i].tokens, found[i].accepted, found[i].finish) == (tokens, accepted, finish)
            np.testing.assert_allclose(found[i].log_probabilities, log_probabilities, atol=1e-5)
        assert work.busy == sum(len(found[i].accepted) - 1 for i in range(11)) // (1 + (sampler.mode == "two_pass"))


def test_stop_strings_end_sequences_as_they_do_in_generate():
    model, variables = model_of()
    sampler = SamplerConfig("single_pass", 4, (2, 3), temperature=0.9, stop_strings=("p", "bk"))
    prompts = many(model, 7)
    expected = alone(model, variables, prompts, sampler, tokenizer=Letters())
    queue = generate_queue(model, variables, prompts, sampler, NEW, longest=10, batch=BATCH, tokenizer=Letters())
    found = {sequence.index: sequence for sequence, _ in queue}
    assert "stop_string" in {finish for *_, finish in expected}
    assert [(found[i].tokens, found[i].finish) for i in range(7)] == [(each[0], each[3]) for each in expected]


def test_prompts_are_drawn_as_room_is_made_and_rows_rarely_idle():
    """Of 60 sequences of very different lengths, with rows refilled one or two at a time."""
    model, variables = model_of()
    drawn = 0

    def endless():
        nonlocal drawn
        for prompt in many(model, 10**6):
            drawn += 1
            yield prompt

    sampler = SamplerConfig("single_pass", 4, (2, 3), temperature=0.9, stop_tokens=(15, 6))
    out = []
    for each in generate_queue(model, variables, endless(), sampler, NEW, longest=10, batch=8):
        out.append(each)
        assert drawn <= len(out) + 8 + 1  # one is looked at ahead of its turn
        if len(out) == 60:
            break
    lengths = np.array([len(sequence.accepted) - 1 for sequence, _ in out])
    groups = lengths[:56].reshape(-1, 8)
    static = 1 - groups.sum() / (8 * groups.max(1).sum())  # as `generate` would idle
    assert out[-1][1].idle < static / 3  # the eight that have not ended are not counted as busy yet


def test_refusals_name_what_is_wrong():
    model, variables = model_of()
    sampler = SamplerConfig("autoregressive")
    for prompts, changes, message in (
        ([Prompt([1] * 11, 0)], {}, r"prompts\[0\]: got 11 tokens, may be at most longest \(10\)"),
        ([Prompt([1], 0), Prompt([], 0)], {}, r"prompts\[1\]: got no tokens"),
        ([Prompt([1], 0)], {"sampler": SamplerConfig("auto")}, "mode: got 'auto', may be"),
    ):
        with pytest.raises(ValueError, match=message):
            list(generate_queue(model, variables, prompts, changes.get("sampler", sampler), NEW, longest=10))
    assert list(generate_queue(model, variables, [], sampler, NEW, longest=10)) == []


def test_a_queue_of_any_length_holds_one_prompt_ahead(monkeypatch):
    """Without a model: a hundred thousand prompts, one row, a step each."""

    class OneRow:
        admitted, work = 1, None

        def __init__(self, *_):
            self.number = None

        @property
        def free(self):
            return int(self.number is None)

        @property
        def running(self):
            return 1 - self.free

        def admit(self, prompts):
            ((self.number, _),) = prompts

        def advance(self, more):
            assert more == (self.number < 99_999)
            number, self.number = self.number, None
            return [number]

    monkeypatch.setattr(continuous, "_Queue", OneRow)
    prompts = (Prompt([1], 0) for _ in range(100_000))
    found = [number for number, _ in generate_queue(None, None, prompts, SamplerConfig("autoregressive"), 1, longest=1)]
    assert found == list(range(100_000))


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [{"data": 2}, {"fsdp": 2}, {"expert": 2}])
def test_devices_that_share_a_batch_give_the_tokens_of_one(mesh):
    model, variables = model_of()
    placement = make_placement(MeshConfig(**mesh), model.config, 4, 8)
    assert placement is not None
    prompts, (_, sampler, _) = many(model, 9), SAMPLERS
    expected = alone(model, variables, prompts, sampler)
    laid = placement.put(variables)
    queue = generate_queue(model, laid, prompts, sampler, NEW, longest=10, batch=4, placement=placement)
    found = {sequence.index: sequence for sequence, _ in queue}
    assert [(found[i].tokens, found[i].accepted) for i in range(9)] == [each[:2] for each in expected]
    with pytest.raises(UserError, match="batch: got 3, may be a multiple of 2"):
        next(generate_queue(model, laid, prompts, sampler, NEW, longest=10, batch=3, placement=placement))


def test_the_last_sequences_have_half_a_batch(monkeypatch):
    """Halved twice while nothing waits: the tokens stay, and fewer rows idle."""
    model, variables = model_of()
    prompts, sampler = many(model, 10), SAMPLERS[1]
    expected = [each[0] for each in alone(model, variables, prompts, sampler)]
    idle = {}
    for least in (16, 1):
        monkeypatch.setattr(continuous, "SMALLEST_HALF", least)
        compile_queue(model, variables, prompts, sampler, NEW, longest=10, batch=BATCH)
        out = list(generate_queue(model, variables, prompts, sampler, NEW, longest=10, batch=BATCH))
        found = {sequence.index: sequence for sequence, _ in out}
        assert [found[i].tokens for i in range(10)] == expected
        assert out[-1][1].busy == sum(len(sequence.accepted) - 1 for sequence, _ in out)
        idle[least] = out[-1][1].idle
    assert idle[1] < idle[16]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [None, "eagle3"])
def test_a_drafters_state_goes_with_its_row(monkeypatch, kind):
    """Into free rows and into half a batch: its arrays begin with the batch, a cache's with the layers."""
    model, variables = drafting_model(kind, llama=False) if kind else model_of()
    prompts, stops = many(model, 7), dict(temperature=0.9, stop_tokens=(15, 6))
    sampler = SamplerConfig("drafter", drafter=kind or "ngram", draft_length=3, **stops)
    alone = generate(model, variables, [p.tokens for p in prompts], sampler, NEW, [p.seed for p in prompts])
    monkeypatch.setattr(continuous, "SMALLEST_HALF", 1)
    queue = generate_queue(model, variables, prompts, sampler, NEW, longest=10, batch=4)
    found = {sequence.index: sequence for sequence, _ in queue}
    assert [found[i].tokens for i in range(7)] == alone.tokens
    assert [found[i].accepted for i in range(7)] == alone.accepted


def test_sequences_come_in_order_and_know_their_time():
    model, variables = model_of()
    prompts, sampler = many(model), SAMPLERS[1]
    queue = generate_queue(model, variables, prompts, sampler, NEW, longest=10, batch=BATCH)
    began = time.perf_counter()
    out = list(in_order(queue))
    took = time.perf_counter() - began
    assert [sequence.index for sequence in out] == list(range(11))
    assert all(sequence.seconds > 0 for sequence in out) and sum(sequence.seconds for sequence in out) <= took
