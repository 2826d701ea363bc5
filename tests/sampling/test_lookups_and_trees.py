"""What a drafter proposes: what prompt lookup finds in a text, and which trees are grown and what their rows see."""

import dataclasses
import functools
import heapq
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import built, random_tokens, random_variables, small_config
from zaya_jax.architecture import Layout, Zaya, init_cache
from zaya_jax.errors import UserError
from zaya_jax.sampling.drafters.ngram import NGram, Text, with_history
from zaya_jax.sampling.drafters.trees import Prior, best_first


def test_a_look_up_wants_as_many_tokens_as_asked():
    """After [.., 1, 2, 3, 1, 2] two tokens occurred before, three did not."""
    text, pending, at = Text(jnp.array([[5, 1, 2, 3, 1, 0, 0, 0]], jnp.int32)), jnp.array([2]), jnp.array([5])
    for least, exists in ((1, True), (2, True), (3, False)):
        tokens, found = NGram("mine", "A sentence.").look_up(text, pending, at, None, 4, least)
        assert found.tolist() == [[exists] * 4] and tokens.tolist() == [[3, 1, 2, 3]]


@functools.partial(jax.jit, static_argnums=3)
def look_up(text, last, history, longest):
    return NGram("x", "y", longest=longest)._look_up(text, last, history, 4)


def propose(text, history=(), longest=3):
    tokens = np.array([*text, *[7] * (16 - len(text))], np.int32)
    history = np.array([*[-1] * (8 - len(history)), *history], np.int32)
    found, exists = look_up(tokens, np.int32(len(text) - 1), history, longest)
    return [int(t) if e else None for t, e in zip(found, exists, strict=True)]


def test_prompt_lookup_proposes_what_followed():
    assert propose([5, 1, 2, 3, 8, 9, 6, 1, 2, 3]) == [8, 9, 6, 1]
    assert propose([1, 2, 8, 1, 2, 9, 5, 1, 2]) == [9, 5, 1, 2]  # the latest
    assert propose([0, 1, 2, 8, 3, 1, 2, 9, 0, 1, 2]) == [8, 3, 1, 2]  # the longest before the latest
    assert propose([0, 1, 2, 8, 3, 1, 2, 9, 0, 1, 2], longest=2) == [9, 0, 1, 2]
    assert propose([1, 2, 3]) == [None] * 4
    assert propose([3]) == [None] * 4
    assert propose([4, 6, 6]) == [6, 6, 6, 6]  # a period, continued
    assert propose([1, 2, 1, 2]) == [1, 2, 1, 2]
    # a history: longer matches of it alone, and no further than its text's end
    assert propose([5, 2, 3], history=[2, 3, 9, -1, 3, 8, -1]) == [9, None, None, None]
    assert propose([3, 4, 2, 3], history=[1, 3, 9, 9, -1]) == [4, 2, 3, 4]
    assert propose([2, 3], history=[3, -1, 2, -1]) == [None] * 4


def heap_tree(log_q, size):
    """Best first, as DDTree's paper has it: [(path of tokens, score)]."""
    order = np.argsort(-log_q, axis=1)
    heap, out = [(-log_q[0, order[0, 0]], (0,))], []
    while heap and len(out) < size:
        score, ranks = heapq.heappop(heap)
        if score == np.inf:
            break
        out.append((tuple(int(order[d, r]) for d, r in enumerate(ranks)), -score))
        at = len(ranks) - 1
        if ranks[-1] + 1 < log_q.shape[1]:
            last = log_q[at, order[at, ranks[-1]]]
            heapq.heappush(heap, (score + last - log_q[at, order[at, ranks[-1] + 1]], (*ranks[:-1], ranks[-1] + 1)))
        if len(ranks) < len(log_q):
            heapq.heappush(heap, (score - log_q[len(ranks), order[len(ranks), 0]], (*ranks, 0)))
    return out


def paths_of(proposal, row=0):
    tokens, parent, exists = (np.asarray(x)[row] for x in (proposal.tokens, proposal.parent, proposal.exists))
    paths = [()]
    for token, above in zip(tokens, parent, strict=True):
        paths.append((*paths[above], int(token)))
    return [path for path, there in zip(paths[1:], exists, strict=True) if there]


def test_trees_are_grown_best_first(x64):
    log_q = np.log(np.random.default_rng(0).dirichlet(np.full(6, 0.4), size=(2, 4)))
    log_q[1, 1:, 2:] = -np.inf
    got = jax.jit(best_first, static_argnums=1)(log_q, 12)
    for row in range(2):
        assert paths_of(got, row) == [path for path, _ in heap_tree(log_q[row], 12)]
    one_hot = np.where(np.eye(6)[None, [3, 1, 1, 0]], 0.0, -np.inf)
    assert paths_of(jax.jit(best_first, static_argnums=1)(one_hot, 6)) == [(3,), (3, 1), (3, 1, 1), (3, 1, 1, 0)]


def test_the_texts_own_trigrams_order_a_tree(x64):
    """Every set of paths that a node's ancestors are in, scored by hand: the tree has the best of them."""
    rng = np.random.default_rng(1)
    text, weight, size = rng.integers(0, 4, 30), 0.7, 9
    log_q = np.log(rng.dirichlet(np.ones(4), size=3))

    def trigram(before, token, then):
        pairs = [(a, b) for a, b in itertools.pairwise(text)]
        triples = list(zip(text, text[1:], text[2:], strict=False))
        p2 = (pairs.count((token, then)) + 0.25) / (sum(a == token for a, _ in pairs) + 1)
        seen = [t for t in triples if t[:2] == (before, token)]
        return np.log((sum(t[2] == then for t in seen) + p2) / (len(seen) + 1))

    def score(path):
        whole = [*text[-2:], *path]
        grams = sum(trigram(*whole[i : i + 3]) for i in range(len(path)))
        return sum(log_q[d, t] for d, t in enumerate(path)) + weight * grams

    every = [path for n in (1, 2, 3) for path in itertools.product(range(4), repeat=n)]
    best = sorted(every, key=score, reverse=True)[:size]
    prior = Prior(np.array([[*text, 9, 9]], np.int32), np.array([30], np.int32), np.float64(weight))
    grow = jax.jit(best_first, static_argnums=1)
    assert paths_of(grow(log_q[None], size, prior)) == best
    assert paths_of(grow(log_q[None], size, prior._replace(weight=np.float64(0)))) == paths_of(grow(log_q[None], size))


def test_a_trees_rows_see_their_ancestors_and_come_after_their_parents():
    parent = np.array([[0, 1, 0, 3, 3, 1], [0, 0, 0, 1, 1, 2]])
    layout = built(Layout.verify_tree, np.ones((2, 7), np.int32), parent=parent, start=np.array([4, 0]))
    for row in range(2):
        above = np.eye(7, dtype=bool)
        for node, up in enumerate(parent[row], 1):
            above[node] |= above[up]
        np.testing.assert_array_equal(layout.visibility()[row], above)
        np.testing.assert_array_equal(layout.position[row], (4, 0)[row] + above.sum(1) - 1)
    assert layout.predecessor[0].tolist() == [-2, 0, 1, 0, 3, 3, 1] and layout.predecessor[1, 0] == -1


@pytest.mark.parametrize(
    "changes",
    [pytest.param({}, marks=pytest.mark.slow), dict(layer_types=("hybrid", "hybrid_sliding"), sliding_window=4)],
    ids=str,
)
def test_a_trees_logits_are_those_of_its_branches(changes, x64):
    """After each node, of the text that ends with it; computed at once or tile by tile."""
    config = small_config(dtype="float64", param_dtype="float64", **changes)
    model, variables = Zaya(config), random_variables(config)
    parent, text = np.array([[0, 1, 0, 3, 3, 1]]), random_tokens(model.config, 1, 6)
    tokens = random_tokens(model.config, 1, 7, seed=1)

    @jax.jit
    def read(text):
        cache = init_cache(model.config, 1, 24)
        _, cache, _ = model.apply(variables, Layout.verify_and_draft(text), cache, method="backbone")
        return cache.commit(jnp.array([text.shape[1]]))

    @functools.partial(jax.jit, static_argnums=2)
    def logits(cache, tokens, chunk):
        chunked = Zaya(model.config, dataclasses.replace(model.execution, query_chunk=chunk))
        layout = Layout.verify_tree(tokens, jnp.asarray(parent), text.shape[1])
        return chunked.apply(variables, layout, cache).logits[0]

    cache = read(text)
    causal = jax.jit(lambda tokens: model.apply(variables, Layout.causal(tokens)).logits[0])
    for chunk in (model.execution.query_chunk, 8):
        got = logits(cache, tokens, chunk)
        for node in range(7):
            path, at = [], node
            while at:
                path.insert(0, at)
                at = int(parent[0, at - 1])
            whole = np.concatenate([text[0], tokens[0, [0, *path]], np.zeros(4, int)])[None, : 6 + 7]
            np.testing.assert_allclose(got[node], causal(whole)[6 + len(path)], atol=1e-10)


def test_a_text_is_written_up_to_its_count():
    text = Text(jnp.zeros((2, 6), jnp.int32)).grow(8)
    text = text.write(jnp.array([[1, 2, 3], [4, 5, 6]]), jnp.array([0, 6]), jnp.array([2, 3]))
    assert text.tokens.tolist() == [[1, 2, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 4, 5]]


@pytest.mark.parametrize("texts", [5, None, [5], [None], [[[1]]], [[2**31]], [[2**70]], "ab"], ids=str)
def test_a_history_is_of_token_ids(texts):
    with pytest.raises(UserError, match=r"^texts: got .*, may be lists of token ids$"):
        with_history({}, texts)


@pytest.mark.parametrize("texts", [[], [[]], [[1, 2]], [np.array([1, 2])]], ids=str)
def test_a_history_of_token_ids(texts):
    found = with_history({}, texts)["drafters"]["ngram"]["history"]
    assert found.dtype == np.int32 and found.tolist() == [token for text in texts for token in (*text, -1)]
