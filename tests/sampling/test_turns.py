"""Samples that share a prefill, sessions, stop strings, streaming, and logits that are not finite."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.sampling.test_generate import NEW, model_of, programs, prompts_of
from zaya_jax.sampling import SamplerConfig, generate

pytestmark = pytest.mark.early

MODES = {
    "autoregressive": SamplerConfig("autoregressive", temperature=0.9),
    "single_pass": SamplerConfig("single_pass", 4, temperature=0.9, repetition_penalty=1.2),
    "two_pass": SamplerConfig("two_pass", 4, temperature=0.9),
    "block_diffusion": SamplerConfig("block_diffusion", 4, temperature=0.9, threshold=0.4),
}


class Letters:
    """Token t is the t-th letter."""

    def decode(self, ids):
        return "".join(chr(ord("a") + t) for t in ids)


@pytest.mark.parametrize(
    "mode", ["single_pass", *(pytest.param(m, marks=pytest.mark.slow) for m in MODES if m != "single_pass")]
)
def test_samples_are_rows_of_their_own(mode):
    """Sharing a prefill changes nothing: n samples = n copies of the prompt."""
    model, variables = model_of()
    prompts, seeds = prompts_of(model, (3, 7)), [1, 2, 3, 4]
    shared = generate(model, variables, prompts, MODES[mode], NEW, seeds, samples=2)
    copies = [p for p in prompts for _ in range(2)]
    apart = generate(model, variables, copies, MODES[mode], NEW, seeds)
    assert shared.tokens == apart.tokens and shared.accepted == apart.accepted
    assert len(set(map(tuple, shared.tokens))) > 2


@pytest.mark.parametrize("mode", ["autoregressive", "single_pass", pytest.param("two_pass", marks=pytest.mark.slow)])
@pytest.mark.parametrize("stop_tokens", [(), (2, 3, 7)])
def test_two_turns_are_one_concatenated_prompt(mode, stop_tokens):
    """Rows of different lengths, ended by stop tokens in the middle of a block or by the limit."""
    model, variables = model_of()
    sampler = MODES[mode].__class__(**{**vars(MODES[mode]), "stop_tokens": stop_tokens})
    prompts, new = prompts_of(model), 9  # few enough for all that follows to fit into two sizes of cache
    seeds = list(range(20, 20 + len(prompts)))
    first = generate(model, variables, prompts, sampler, new, seeds)
    more = [[5, 1, 4][: 1 + i % 3] for i in range(len(prompts))]
    second = generate(model, variables, more, sampler, new, seeds, session=first.session)
    whole = [p + t + m for p, t, m in zip(prompts, first.tokens, more, strict=True)]
    expected = generate(model, variables, whole, sampler, new, seeds)
    assert second.tokens == expected.tokens
    assert second.session.texts == [w + t for w, t in zip(whole, expected.tokens, strict=True)]
    lengths = np.asarray(first.session.cache.length)
    unread = [len(p) + len(t) - n for p, t, n in zip(prompts, first.tokens, lengths, strict=True)]
    assert set(unread) <= {0, 1} and 1 in unread  # nothing is read twice
    if stop_tokens and mode == "single_pass":
        assert 0 in unread  # some row stopped inside a block
    third = generate(model, variables, [[3]] * len(prompts), sampler, new, seeds, session=second.session)
    whole = [t + [3] for t in second.session.texts]
    assert third.tokens == generate(model, variables, whole, sampler, new, seeds).tokens


def test_a_baselines_session_reads_its_last_block_again():
    model, variables = model_of()
    sampler = MODES["block_diffusion"]
    prompts, seeds = prompts_of(model), [1, 2, 3, 4]
    first = generate(model, variables, prompts, sampler, 9, seeds)
    second = generate(model, variables, [[4]] * 4, sampler, 9, seeds, session=first.session)
    whole = [[*prompt, *new, 4] for prompt, new in zip(prompts, first.tokens, strict=True)]
    assert second.tokens == generate(model, variables, whole, sampler, 9, seeds).tokens


@pytest.mark.parametrize(
    "mode", [pytest.param(mode, marks=pytest.mark.slow) if mode == "two_pass" else mode for mode in MODES]
)
def test_stop_strings_cut_after_the_token_that_completes_one(mode):
    model, variables = model_of()
    prompts, seeds = prompts_of(model), [5, 6, 7, 8]
    free = generate(model, variables, prompts, MODES[mode], 20, seeds)
    texts = [Letters().decode(t) for t in free.tokens]
    stop = texts[0][6:8]  # occurs, across a token boundary
    sampler = MODES[mode].__class__(**{**vars(MODES[mode]), "stop_strings": (stop, "zzz")})
    got = generate(model, variables, prompts, sampler, 20, seeds, tokenizer=Letters())
    for row, text in enumerate(texts):
        end = text.index(stop) + len(stop) if stop in text else len(text)
        assert got.tokens[row] == free.tokens[row][:end]
        assert sum(got.accepted[row]) == end == len(got.log_probabilities[row])
        assert got.finish[row] == ("stop_string" if stop in text else "length")
    # A session resumes after the cut, whatever was read after it.
    if mode != "block_diffusion":
        more = generate(model, variables, [[1]] * 4, MODES[mode], 8, seeds, session=got.session)
        whole = [p + t + [1] for p, t in zip(prompts, got.tokens, strict=True)]
        assert more.tokens == generate(model, variables, whole, MODES[mode], 8, seeds).tokens


def test_a_stop_string_does_not_end_a_row_before_its_minimum():
    model, variables = model_of()
    sampler = SamplerConfig("single_pass", 4, stop_strings=("a", "b", "c", "d", "e", "f", "g"), min_new_tokens=9)
    got = generate(model, variables, prompts_of(model), sampler, 30, tokenizer=Letters())
    assert all(len(t) >= 10 for t in got.tokens) and "stop_string" in got.finish


@pytest.mark.parametrize("mode", list(MODES))
def test_streaming_shows_everything_once(mode):
    model, variables = model_of()
    prompts = prompts_of(model)

    class Watcher:
        def __init__(self):
            self.text, self.drafts, self.ended = [[] for _ in prompts], [], 0

        def put(self, tokens):
            for row, new in zip(self.text, tokens, strict=True):
                row.extend(new)

        def put_draft(self, tokens):
            self.drafts.append(([len(t) for t in self.text], tokens))

        def end(self):
            self.ended += 1

    watcher = Watcher()
    streamed = generate(model, variables, prompts, MODES[mode], NEW, [1, 2, 3, 4], streamer=watcher)
    silent = generate(model, variables, prompts, MODES[mode], NEW, [1, 2, 3, 4])
    assert streamed.tokens == silent.tokens == watcher.text and watcher.ended == 1
    if mode == "single_pass":  # a draft that was accepted is what then was put
        shown = kept = 0
        for before, drafts in watcher.drafts:
            for row, (n, draft) in enumerate(zip(before, drafts, strict=True)):
                shown += len(draft)
                following = silent.tokens[row][n : n + len(draft)]
                kept += sum(np.cumprod([a == b for a, b in zip(draft, following, strict=False)]))
        assert shown > kept > 0


def test_sampling_options_compile_nothing():
    """Everything that is not a size: compare `SamplerConfig`'s docstring."""
    model, variables = model_of()
    prompts = prompts_of(model)
    for mode in ("single_pass", "two_pass", "block_diffusion"):
        size = MODES[mode].block_size
        generate(model, variables, prompts, SamplerConfig(mode, size), NEW)
        before = programs()
        for options in (
            dict(temperature=0.0), dict(temperature=2.0, draft_temperature=0.0), dict(top_k=3, top_p=0.5, min_p=0.1),
            dict(draft_top_k=2, draft_top_p=0.4), dict(stop_tokens=(1, 2, 3)), dict(threshold=0.2, reveal=3),
        ):  # fmt: skip
            generate(model, variables, [p + [1, 2] for p in prompts], SamplerConfig(mode, size, **options), 30, seed=9)
        if mode != "block_diffusion":
            options = dict(repetition_penalty=1.5, min_new_tokens=4, stop_tokens=(3,))
            generate(model, variables, prompts, SamplerConfig(mode, size, **options), 5)
        assert programs() == before


def test_prompt_lengths_share_programs():
    model, variables = model_of()
    sampler = SamplerConfig("autoregressive")
    before = programs()
    for length in range(1, 32, 5):
        generate(model, variables, [[1] * length] * 5, sampler, 20)  # as many rows as no other test has
    assert programs() == before + 2  # one start, one run


@pytest.mark.parametrize("mode", list(MODES))
def test_logits_that_are_not_finite_are_one_clear_error(mode):
    model, variables = model_of()
    broken = jax.tree.map(lambda x: x, variables)
    broken["params"]["embed_tokens"] = variables["params"]["embed_tokens"].at[3].set(jnp.nan)  # logit 3 is NaN
    with pytest.raises(FloatingPointError, match="logits are not finite after 0 new tokens"):
        generate(model, broken, [[1, 2]] * 4, MODES[mode], 5)


@pytest.mark.parametrize(
    ("sampler", "arguments", "names"),
    [
        (SamplerConfig(stop_strings=("x",)), {}, "tokenizer: got None"),
        (SamplerConfig(min_new_tokens=9), {}, "min_new_tokens: got 9, may be at most max_new_tokens"),
        (SamplerConfig(), dict(samples=0), "samples: got 0"),
        (SamplerConfig(), dict(seed=[1]), "seed: got 1 seeds"),
        (SamplerConfig(stop_tokens=(17,)), {}, "stop_tokens: got 17"),
    ],
)
def test_contradictions_are_refused_before_compiling(sampler, arguments, names):
    model, variables = model_of()
    before = programs()
    with pytest.raises(ValueError, match=names):
        generate(model, variables, [[1], [2]], sampler, 4, **arguments)
    assert programs() == before


def test_sessions_are_checked():
    model, variables = model_of()
    sampler = SamplerConfig("autoregressive", stop_tokens=(2,))
    session = generate(model, variables, [[1], [2], [3], [4]], sampler, 4).session
    with pytest.raises(ValueError, match="prompts: got 1, may be 4"):
        generate(model, variables, [[1]], sampler, 4, session=session)
    with pytest.raises(ValueError, match="samples: got 2, may be 1 with a session"):
        generate(model, variables, [[1], [2], [3], [4]], sampler, 4, session=session, samples=2)
    with pytest.raises(ValueError, match="max_position_embeddings"):
        generate(model, variables, [[1] * 4090, [2], [3], [4]], sampler, 4, session=session)
