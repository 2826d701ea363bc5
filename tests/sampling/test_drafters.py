"""Drafters: whatever proposes, the output is the target's; states and counters are what they are said to be.

What look-ups find and which trees are grown: test_lookups_and_trees.py.
"""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from tests.helpers import random_variables, small_config
from tests.sampling.enumeration import NEW, PROMPTS, SIZE, tiny_model
from tests.sampling.test_lossless import PROCESSING, TEMPERATURES, autoregressive_law, gap
from zaya_jax.architecture import Layout, Zaya, init_cache
from zaya_jax.errors import UserError
from zaya_jax.sampling import Prompt, SamplerConfig, generate, generate_queue, register_drafter, with_history
from zaya_jax.sampling.drafters import Drafter, Proposal
from zaya_jax.sampling.drafters.base import _REGISTERED
from zaya_jax.sampling.drafters.ngram import NGram, Text
from zaya_jax.sampling.planning.work import step_work
from zaya_jax.sampling.strategies.base import draft

pytestmark = pytest.mark.early


class Copy(Drafter):
    """The target itself, a forward for each draft: its drafts' distribution is the target's."""

    def target_forwards(self, draft_length):
        return (1,) * draft_length

    def propose(self, setup, state, pending_token, cache):
        one, token, found = jnp.ones_like(pending_token), pending_token, []
        for _ in range(setup.plan.draft_length):
            hidden, pending = setup.forward(Layout.verify_and_draft(token[:, None], cache.length), cache)
            cache = pending.commit(one)
            found.append(draft(setup, setup.head(hidden), jnp.ones((len(token), 1), bool), cache.length))
            token = found[-1].tokens[:, 0]
        tokens, logits = (jnp.concatenate([getattr(x, name) for x in found], 1) for name in ("tokens", "logits"))
        return Proposal(tokens, jnp.ones(tokens.shape, bool), logits)


class OneBranch(NGram):
    """Prompt lookup's chain, said to be a tree."""

    trees = True

    def propose(self, setup, state, pending_token, cache):
        chain = super().propose(setup, state, pending_token, cache)
        return chain.replace(parent=jnp.broadcast_to(jnp.arange(chain.tokens.shape[1]), chain.tokens.shape))


class OwnLength(NGram):
    """Prompt lookup that trusts no position but its own count of what it observed."""

    def init(self, setup, batch, capacity):
        return Counted(super().init(setup, batch, capacity), jnp.zeros((batch,), jnp.int32))

    def observe(self, setup, state, rows):
        return Counted(super().observe(setup, state.text, rows._replace(first=state.count)), state.count + rows.count)

    def propose(self, setup, state, pending_token, cache):
        return super().propose(setup, state.text, pending_token, cache.replace(length=state.count))


class Counted(struct.PyTreeNode):
    text: Text
    count: jax.Array

    def grow(self, capacity):
        return self.replace(text=self.text.grow(capacity))


@pytest.fixture(autouse=True, scope="module")
def registered():
    before = dict(_REGISTERED.entries)
    register_drafter(Copy("copy", "The target itself."))
    register_drafter(OneBranch("one_branch", "Prompt lookup as a tree."))
    register_drafter(OwnLength("own_length", "Prompt lookup that counts for itself."))
    yield
    _REGISTERED.entries.clear()
    _REGISTERED.entries.update(before)


DRAFTERS = {
    "ngram": dict(drafter="ngram", draft_length=SIZE),
    "mask_block": dict(drafter="mask_block", draft_length=2),
    "copy": dict(drafter="copy", draft_length=2),
    "tree": dict(drafter="mask_block", draft_length=2, tree_size=3),
    "tree with 3-grams": dict(drafter="mask_block", draft_length=2, tree_size=4, ngram_weight=0.8),
}


# What a default run enumerates; all of it is what the slow tests do. A drafter's program is compiled once a model.
QUICK = {("zaya", drafter): ("everything", (0.6, 1.7)) for drafter in ("ngram", "mask_block", "tree")}
QUICK["llama", "ngram"] = ("everything",)


def cases(options):
    """[(model, drafter, option)], those that are not quick marked slow."""
    out = []
    for name, drafter, option in itertools.product(("zaya", "llama"), DRAFTERS, options):
        quick = option in QUICK.get((name, drafter), ())
        marks = () if quick else pytest.mark.slow
        out.append(pytest.param(name, drafter, option, marks=marks, id=f"{name}-{drafter}-{option}"))
    return out


@pytest.mark.parametrize(("name", "drafter", "processing"), cases(PROCESSING))
def test_every_drafter_is_lossless_under_every_option(name, drafter, processing, x64):
    """The output distribution, enumerated whole, is autoregression's."""
    assert gap(SamplerConfig("drafter", **DRAFTERS[drafter], **PROCESSING[processing]), name=name) < 1e-9


@pytest.mark.parametrize(("name", "drafter", "temperatures"), cases(TEMPERATURES))
def test_every_drafter_is_lossless_at_every_temperature(name, drafter, temperatures, x64):
    options = dict(zip(("temperature", "draft_temperature"), temperatures, strict=True))
    assert gap(SamplerConfig("drafter", **DRAFTERS[drafter], **options), name=name) < 1e-9


@pytest.mark.slow
def test_the_third_token_of_sampled_drafts_is_drawn_from_the_law():
    """Keyed noise, 4,000 rows: a wrong q of the ratio rule shows first where two drafts were accepted."""
    with jax.enable_x64(True):
        sampler = SamplerConfig("drafter", drafter="mask_block", draft_length=3, draft_temperature=1.5)
        law, (model, variables), rows = autoregressive_law(sampler)[0], tiny_model(), 4000
        got = generate(model, variables, [PROMPTS[0]], sampler, NEW, seed=5, samples=rows)
    expected = [rows * sum(p for text, p in law.items() if text[2] == token) for token in range(3)]
    counts = np.bincount([text[2] for text in got.tokens], minlength=3)
    assert ((counts - expected) ** 2 / expected).sum() < 13.8  # chi-square of 2 degrees of freedom, p = 0.001


@functools.cache
def small_model(**changes):
    config = small_config(**changes)
    return Zaya(config), random_variables(config)


TEXTS = [[1, 2, 3, 4, 5, 1, 2, 3], [4, 4, 4], [9], [2]]  # four rows, as every test has: one program serves them
PLAIN = SamplerConfig("autoregressive")
LOOKUP = SamplerConfig("drafter", drafter="ngram")
TREE = SamplerConfig("drafter", drafter="mask_block", draft_length=3, tree_size=7, ngram_weight=0.2)


@functools.cache
def plain_tokens(temperature: float, new: int = 24):
    sampler = dataclasses.replace(PLAIN, temperature=temperature)
    return generate(*small_model(), TEXTS, sampler, new, seed=3).tokens


@pytest.mark.parametrize(
    ("temperature", "sampler"),
    [
        pytest.param(0.0, LOOKUP, id="greedy chain"),
        pytest.param(0.0, TREE, id="greedy tree", marks=pytest.mark.slow),
        pytest.param(1.0, LOOKUP, id="chain"),
        pytest.param(1.0, TREE, id="tree"),
    ],
)
def test_fixed_drafts_give_the_autoregressive_sample_itself(temperature, sampler):
    """With one seed, token for token: the noise that decides a position is autoregression's."""
    sampler = dataclasses.replace(sampler, temperature=temperature)
    got = generate(*small_model(), TEXTS, sampler, 24, seed=3)
    assert got.tokens == plain_tokens(temperature)
    assert temperature or got.tokens_per_forward * (1 + ("mask" in str(sampler.drafter))) > 1.5
    assert sum(map(sum, got.accepted)) == sum(map(len, got.tokens))


def looked_up(anchors) -> SamplerConfig:
    return SamplerConfig("single_pass", 4, anchors, temperature=0.0, lookup=2)


# What one branch point alone does is compared with autoregression below.
@pytest.mark.parametrize("anchors", [pytest.param((1,), marks=pytest.mark.slow), "all"], ids=str)
def test_what_the_text_suggests_takes_the_place_of_drafts(anchors):
    """Greedily the text is autoregression's; where it repeats itself, more of a block is accepted."""
    got, without = (
        generate(*small_model(), TEXTS, dataclasses.replace(looked_up(anchors), lookup=least), 24) for least in (2, 0)
    )
    assert got.tokens == without.tokens == plain_tokens(0.0)
    assert got.tokens_per_forward > without.tokens_per_forward + 0.1


@pytest.mark.slow
@pytest.mark.parametrize("anchors", [(1,), "all"], ids=str)
def test_what_the_text_suggests_is_the_same_in_a_queue_and_in_a_second_turn(anchors):
    model, variables = small_model()
    sampler = looked_up(anchors)
    got = generate(model, variables, TEXTS, sampler, 24)
    assert got.tokens == plain_tokens(0.0)
    prompts = [Prompt(text, 0) for text in TEXTS]
    queue = {one.index: one for one, _ in generate_queue(model, variables, prompts, sampler, 24, longest=8, batch=2)}
    assert [queue[i].tokens for i in range(4)] == got.tokens
    assert [queue[i].accepted for i in range(4)] == got.accepted
    begun = generate(model, variables, TEXTS, sampler, 12)
    more = generate(model, variables, [[token] for token in (1, 2, 3, 4)], sampler, 12, session=begun.session)
    whole = [[*text, *row, token] for text, row, token in zip(TEXTS, begun.tokens, (1, 2, 3, 4), strict=True)]
    anew = generate(model, variables, whole, sampler, 12)
    assert (more.tokens, more.accepted) == (anew.tokens, anew.accepted)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_tree_of_one_branch_is_the_chain_bit_for_bit(temperature):
    chain = dataclasses.replace(LOOKUP, temperature=temperature)
    tree = dataclasses.replace(chain, drafter="one_branch", tree_size=chain.draft_length)
    a, b = (generate(*small_model(), TEXTS, sampler, 24, seed=1) for sampler in (chain, tree))
    assert (a.tokens, a.accepted, a.log_probabilities) == (b.tokens, b.accepted, b.log_probabilities)
    for x, y in zip(*(jax.tree.leaves(each.session.cache.replace(drafter=None)) for each in (a, b)), strict=True):
        kept = int(a.session.cache.length.min())
        x, y = (z[..., :kept, :] if z.ndim == 5 else z for z in (x, y))
        np.testing.assert_array_equal(x, y)


@pytest.mark.slow
def test_a_copy_of_the_target_is_always_accepted():
    """In every slot; and of its forwards each counts."""
    sampler = SamplerConfig("drafter", drafter="copy", draft_length=2)
    got = generate(*small_model(), TEXTS[:2], sampler, 22, seed=0)
    for row in got.accepted:
        assert row == [1] + [0, 0, 3] * 7
    assert got.rows_per_forward == (2 + 3) / 3


LLAMA = dict(attention="gqa", feed_forward="dense", residual_scaling=False)


@pytest.mark.parametrize("changes", [{}, pytest.param(LLAMA, marks=pytest.mark.slow)], ids=["zaya", "llama"])
@pytest.mark.parametrize("sampler", [pytest.param(LOOKUP, marks=pytest.mark.slow), TREE], ids=["chain", "tree"])
def test_what_is_committed_is_what_reading_the_text_leaves(sampler, changes, x64):
    """Of every accepted length: keys, values, convolutions' columns, and what the drafter remembers."""
    model, variables = small_model(dtype="float64", param_dtype="float64", **changes)
    sampler = dataclasses.replace(sampler, temperature=0.0)
    lengths = set()
    for new in range(1, 14):
        got = generate(model, variables, TEXTS, sampler, new, seed=2)
        lengths |= {n for row in got.accepted for n in row}
        cache, length = got.session.cache, np.asarray(got.session.cache.length)
        texts = np.zeros((len(TEXTS), 32), np.int32)
        for row, text in enumerate(got.session.texts):
            texts[row, : length[row]] = text[: length[row]]
            assert length[row] in (len(text), len(text) - 1)
        read = _read(model, variables, texts, length)
        for row, n in enumerate(length):
            for name in ("key", "value"):
                x, y = (np.asarray(getattr(each, name))[:, row, :, :n] for each in (cache, read))
                np.testing.assert_allclose(x, y, atol=1e-9)
            remembered = cache.drafter[sampler.drafter].tokens[row, :n]
            np.testing.assert_array_equal(remembered, texts[row, :n])
        np.testing.assert_allclose(cache.conv, read.conv, atol=1e-9)
        np.testing.assert_allclose(cache.delayed, read.delayed, atol=1e-9)
    assert len(lengths - {0}) > 2


@functools.partial(jax.jit, static_argnums=0)
def _read(model, variables, texts, length):
    layout = Layout.verify_and_draft(texts, 0, count=length)
    cache = init_cache(model.config, len(texts), 32)
    _, cache, _ = model.apply(variables, layout, cache, method="backbone")
    return cache.commit(length)


def test_work_is_counted_in_the_program():
    """Section 1.2's formulas: chains of K cost K + 1 rows, trees of m nodes 1 + m, drafting forwards their own."""
    model, variables = small_model()
    parameters = sum(x.size for x in jax.tree.leaves(variables["params"]))  # the head is the embedding

    def work(**fields):
        return step_work(model, variables, SamplerConfig(**fields))

    assert work(mode="autoregressive").target == (1,)
    assert work(mode="drafter", drafter="ngram", draft_length=5).target == (6,)
    assert work(mode="drafter", drafter="mask_block", draft_length=4).target == (5, 5)
    assert work(mode="drafter", drafter="mask_block", draft_length=4, tree_size=9).target == (5, 10)
    assert work(mode="single_pass", block_size=3).target == (12,)
    tree = dict(mode="drafter", drafter="mask_block", draft_length=4, tree_size=9)
    for fields in (dict(mode="two_pass"), tree):
        sampler = SamplerConfig(**fields)
        found = step_work(model, variables, sampler)
        assert sampler.rows_per_forward * found.target_forwards == found.target_rows
        assert found.forward_equivalents == found.target_forwards and found.row_equivalents == found.target_rows
        assert found.parameters == parameters and not found.draft


def test_a_stop_inside_a_draft_ends_the_text_and_the_count():
    model, variables = small_model()
    free = generate(model, variables, TEXTS, dataclasses.replace(LOOKUP, temperature=0.0), 24)
    runs = next(row for row in free.accepted if max(row) > 2)
    row = free.accepted.index(runs)
    text = free.tokens[row]
    ends = np.cumsum(runs)
    inside = next(i for i, n in enumerate(runs) if n > 2)
    stop = text[ends[inside] - 2]  # one before the last of that step's tokens
    sampler = dataclasses.replace(LOOKUP, temperature=0.0, stop_tokens=(stop,))
    got = generate(model, variables, TEXTS, sampler, 24)
    assert got.tokens[row] == text[: text.index(stop) + 1] and got.finish[row] == "stop_token"
    assert sum(got.accepted[row]) == len(got.tokens[row])


@pytest.mark.parametrize("sampler", [LOOKUP, pytest.param(TREE, marks=pytest.mark.slow)], ids=["chain", "tree"])
def test_queue_samples_and_streamer_see_the_same_texts(sampler):
    model, variables = small_model()
    prompts = [Prompt(text, seed) for seed, text in enumerate(TEXTS)]
    alone = generate(model, variables, [p.tokens for p in prompts], sampler, 12, seed=[p.seed for p in prompts])
    found = {one.index: one for one, _ in generate_queue(model, variables, prompts, sampler, 12, longest=8, batch=2)}
    assert [found[i].tokens for i in range(4)] == alone.tokens
    assert [found[i].accepted for i in range(4)] == alone.accepted

    class Streamer:
        rows = [[]] * 4

        def put(self, tokens):
            self.rows = [[*row, *new] for row, new in zip(self.rows, tokens, strict=True)]

        def put_draft(self, tokens):
            assert tokens == [[]] * 4

        def end(self):
            pass

    streamer = Streamer()
    both = generate(model, variables, TEXTS[:2], sampler, 12, seed=4, samples=2, streamer=streamer)
    assert both.tokens == streamer.rows
    repeated = [text for text in TEXTS[:2] for _ in range(2)]
    assert both.tokens == generate(model, variables, repeated, sampler, 12, seed=4).tokens


@pytest.mark.parametrize(
    "before",
    [LOOKUP, *(pytest.param(other, marks=pytest.mark.slow) for other in (PLAIN, TREE))],
    ids=["itself", "without", "another"],
)
def test_sessions_remember_for_the_drafter_or_read_again(before):
    """A second turn is that of the whole text, whatever made the first; its drafter has then seen all of it."""
    model, variables = small_model()
    first = generate(model, variables, TEXTS, before, 7, seed=1)
    new = [[3, 1], [2], [4, 4], [5]]
    got = generate(model, variables, new, LOOKUP, 12, seed=2, session=first.session)
    whole = generate(
        model, variables, [a + b for a, b in zip(first.session.texts, new, strict=True)], LOOKUP, 12, seed=2
    )
    assert got.tokens == whole.tokens and got.accepted == whole.accepted
    after = generate(model, variables, new, PLAIN, 2, session=got.session)
    assert after.session.cache.drafter is None


def test_a_row_that_a_stop_string_cut_is_observed_anew():
    """It is read again from its beginning, beside a row that resumes; what it was thought to say is forgotten."""

    class Letters:
        def decode(self, ids):
            return "".join(chr(ord("a") + i) for i in ids)

    model, variables = small_model()
    sampler = SamplerConfig("drafter", drafter="own_length", temperature=0.0)
    free = generate(model, variables, TEXTS, sampler, 24).tokens
    string = Letters().decode(free[0][2:4])
    stopping = dataclasses.replace(sampler, stop_strings=(string,))
    first = generate(model, variables, TEXTS, stopping, 24, tokenizer=Letters())
    assert "stop_string" in first.finish and 0 in first.session.cache.length
    new = [[3, 1], [2], [4, 4], [5]]
    got = generate(model, variables, new, sampler, 12, session=first.session)
    texts = [a + b for a, b in zip(first.session.texts, new, strict=True)]
    whole = generate(model, variables, texts, sampler, 12)
    assert got.tokens == whole.tokens and got.accepted == whole.accepted


def test_matches_in_other_texts_help_and_change_nothing():
    model, variables = small_model()
    told = with_history(variables, [plain_tokens(1.0)[0]])
    got = generate(model, told, TEXTS, LOOKUP, 24, seed=3)
    assert got.tokens == plain_tokens(1.0)
    assert len(got.accepted[0]) < len(generate(model, variables, TEXTS, LOOKUP, 24, seed=3).accepted[0])
    with pytest.raises(UserError, match=r"^texts: got \[\[0.5\]\], may be lists of token ids"):
        with_history(variables, [[0.5]])
    with pytest.raises(UserError, match=r"^history: got tokens that the model has not, may be in \[0, 17\)"):
        generate(model, with_history(variables, [[17]]), TEXTS, LOOKUP, 4)


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        (dict(mode="drafter"), r"SamplerConfig.drafter: got None, may be one of"),
        (dict(mode="drafter", drafter="ngrm"), "SamplerConfig.drafter: got 'ngrm', did you mean ngram"),
        (dict(drafter="ngram"), "SamplerConfig.drafter: got 'ngram', may be None when mode is 'single_pass'"),
        (dict(mode="drafter", drafter="ngram", tree_size=9), "SamplerConfig.tree_size: got 9, may be 0 when drafter"),
        (
            dict(mode="drafter", drafter="mask_block", draft_length=4, tree_size=3),
            r"SamplerConfig.tree_size: got 3, may be 0 or at least draft_length \(4\)",
        ),
        (dict(tree_size=9), "SamplerConfig.tree_size: got 9, may be 0 when mode is 'single_pass'"),
        (dict(mode="auto", ngram_weight=0.5), "SamplerConfig.ngram_weight: got 0.5, may be 0 when mode is 'auto'"),
        (
            dict(mode="drafter", drafter="mask_block", ngram_weight=0.5),
            "SamplerConfig.ngram_weight: got 0.5, may be 0 when tree_size is 0",
        ),
        (dict(mode="drafter", drafter="ngram", draft_length=0), "SamplerConfig.draft_length: got 0, may be an integer"),
        (dict(mode="drafter", drafter="ngram", target="mix_stale"), "SamplerConfig.target: got 'mix_stale'"),
        (dict(mode="drafter", drafter="ngram", ngram_weight=-1), "SamplerConfig.ngram_weight: got -1"),
    ],
)
def test_mistakes_are_one_line(fields, line):
    with pytest.raises(UserError, match=f"^{line}"):
        SamplerConfig(**fields)


def test_a_model_without_a_mask_token_is_drafted_for_by_lookup_alone():
    model, variables = small_model(mask_token_id=-1)
    generate(model, variables, TEXTS, LOOKUP, 4)
    with pytest.raises(UserError, match="the model has no mask token, so it cannot draft"):
        generate(model, variables, TEXTS, TREE, 4)


def test_a_drafter_that_proposes_something_else_is_told_while_it_is_traced():
    class Short(Drafter):
        def propose(self, setup, state, pending_token, cache):
            nothing = jnp.zeros((len(pending_token), 1), jnp.int32)
            return Proposal(nothing, nothing > 0)

    register_drafter(Short("short", "Proposes too little."))
    with pytest.raises(TypeError, match="drafter 'short' proposed 1 tokens"):
        step_work(*small_model(), SamplerConfig("drafter", drafter="short"))
    with pytest.raises(UserError, match=r"Drafter\.words: got ' ', may be a sentence"):
        register_drafter(Short("silent", " "))
    with pytest.raises(UserError, match=r"^drafter: got name 'ngram', may be none of .* \(it is zaya_jax's own\)"):
        register_drafter(Short("ngram", "Not mine."))
