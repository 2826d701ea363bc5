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
SAMPLERS = [
    SamplerConfig("autoregressive", temperature=0.9, stop_tokens=(15, 6)),
    SamplerConfig("single_pass", 4, (1, 3), temperature=0.9, stop_tokens=(15, 6)),
    SamplerConfig("two_pass", 4, temperature=0.0, stop_tokens=(15, 6)),
]


def many(model, count=11) -> list[Prompt]:
    given = prompts_of(model, (3, 9, 1, 6))
    return [Prompt([*given[i % 4], i % 7], seed=i) for i in range(count)]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: sampler.mode)
def test_a_sequence_is_what_it_is_alone(sampler):
    model, variables = model_of()
    prompts = many(model)
    alone = generate(model, variables, [p.tokens for p in prompts], sampler, NEW, [p.seed for p in prompts])
    for order, batch in ((np.arange(11), 3), (np.arange(11)[::-1], 3)):
        found = {}
        rows = [prompts[i] for i in order]
        out = list(generate_queue(model, variables, rows, sampler, NEW, longest=10, batch=batch))
        found, work = {int(order[sequence.index]): sequence for sequence, _ in out}, out[-1][1]
        assert len(found) == 11 and 0 < work.busy <= work.row_steps
        for i in range(11):
            assert found[i].tokens == alone.tokens[i] and found[i].accepted == alone.accepted[i]
            np.testing.assert_allclose(found[i].log_probabilities, alone.log_probabilities[i], atol=1e-5)
            assert found[i].finish == alone.finish[i]
        assert work.busy == sum(len(found[i].accepted) - 1 for i in range(11)) // (1 + (sampler.mode == "two_pass"))


def test_stop_strings_end_sequences_as_they_do_in_generate():
    model, variables = model_of()
    sampler = SamplerConfig("single_pass", 4, (1, 3), temperature=0.9, stop_strings=("p", "bk"))
    prompts = many(model, 7)
    alone = generate(
        model, variables, [p.tokens for p in prompts], sampler, NEW, [p.seed for p in prompts], tokenizer=Letters()
    )
    queue = generate_queue(model, variables, prompts, sampler, NEW, longest=10, batch=3, tokenizer=Letters())
    found = {sequence.index: sequence for sequence, _ in queue}
    assert "stop_string" in alone.finish
    assert [(found[i].tokens, found[i].finish) for i in range(7)] == list(zip(alone.tokens, alone.finish, strict=True))


def test_prompts_are_drawn_as_room_is_made_and_rows_rarely_idle():
    """Of 60 sequences of very different lengths, with rows refilled one or two at a time."""
    model, variables = model_of()
    drawn = 0

    def endless():
        nonlocal drawn
        for prompt in many(model, 10**6):
            drawn += 1
            yield prompt

    sampler = SamplerConfig("single_pass", 4, (1, 3), temperature=0.9, stop_tokens=(15, 6))
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
    alone = generate(model, variables, [p.tokens for p in prompts], sampler, NEW, [p.seed for p in prompts])
    laid = placement.put(variables)
    queue = generate_queue(model, laid, prompts, sampler, NEW, longest=10, batch=4, placement=placement)
    found = {sequence.index: sequence for sequence, _ in queue}
    assert [found[i].tokens for i in range(9)] == alone.tokens
    assert [found[i].accepted for i in range(9)] == alone.accepted
    with pytest.raises(UserError, match="batch: got 3, may be a multiple of 2"):
        next(generate_queue(model, laid, prompts, sampler, NEW, longest=10, batch=3, placement=placement))


def test_the_last_sequences_have_half_a_batch(monkeypatch):
    """Halved twice while nothing waits: the tokens stay, and fewer rows idle."""
    model, variables = model_of()
    prompts, sampler = many(model, 10), SAMPLERS[1]
    alone = generate(model, variables, [p.tokens for p in prompts], sampler, NEW, [p.seed for p in prompts])
    idle = {}
    for least in (16, 1):
        monkeypatch.setattr(continuous, "SMALLEST_HALF", least)
        compile_queue(model, variables, prompts, sampler, NEW, longest=10, batch=4)
        out = list(generate_queue(model, variables, prompts, sampler, NEW, longest=10, batch=4))
        found = {sequence.index: sequence for sequence, _ in out}
        assert [found[i].tokens for i in range(10)] == alone.tokens
        assert out[-1][1].busy == sum(len(sequence.accepted) - 1 for sequence, _ in out)
        idle[least] = out[-1][1].idle
    assert idle[1] < idle[16]


@pytest.mark.parametrize("kind", [None, pytest.param("eagle3", marks=pytest.mark.slow)])
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
    queue = generate_queue(model, variables, prompts, sampler, NEW, longest=10, batch=3)
    began = time.perf_counter()
    out = list(in_order(queue))
    took = time.perf_counter() - began
    assert [sequence.index for sequence in out] == list(range(11))
    assert all(sequence.seconds > 0 for sequence in out) and sum(sequence.seconds for sequence in out) <= took
