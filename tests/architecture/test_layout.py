"""The Layout's fields against their definition, written out slowly."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import built
from zaya_jax.architecture import CONTEXT, MASK, PADDING, START, Layout


@st.composite
def packed_rows(draw):
    """A row of 11 slots (one shape: eager jax compiles per shape): left padding, documents, right padding."""
    cuts = sorted(draw(st.sets(st.integers(1, 10), max_size=4)))
    document = np.searchsorted(cuts, np.arange(11), side="right")
    if cuts and draw(st.booleans()):
        document[: cuts[0]] = PADDING
    if cuts and draw(st.booleans()):
        document[cuts[-1] :] = PADDING
    return document[None].astype(np.int32)


def slow_visibility(layout: Layout, row: int, window=None) -> np.ndarray:
    """The rule of docs/method.md#a-forward-reads-a-layout, one pair at a time."""
    f = {name: np.asarray(getattr(layout, name)[row]) for name in ("position", "document", "horizon", "block")}
    size = len(f["position"])
    out = np.zeros((size, size), bool)
    for q in range(size):
        for k in range(size):
            clean = f["block"][k] == 0 and f["position"][k] < f["horizon"][q]
            mutual = f["block"][k] == f["block"][q] != 0
            near = window is None or f["position"][q] - f["position"][k] < window
            out[q, k] = f["document"][q] == f["document"][k] and (clean or mutual) and near
    return out


@functools.cache
def row_and_targets(block_size: int):
    """Jitted: a row, and what its mask tokens are to become."""

    @jax.jit
    def run(tokens, offset, document):
        layout = Layout.tidar(tokens, block_size, offset, document=document)
        return layout, layout.draft_targets(offset)

    return run


visibility = jax.jit(Layout.visibility)


def seen_by(layout: Layout, window: int | None = None) -> jax.Array:
    return visibility(layout, None if window is None else np.int32(window))


@jax.jit
def next_tokens(tokens, document):
    return Layout.causal(tokens, document=document).clean_targets()


@given(packed_rows(), st.sampled_from([1, 3, 4]), st.integers(0, 3), st.sampled_from([None, 1, 3]))
def test_tidar_rows_obey_the_definition(document, block_size, offset, window):
    offset %= block_size
    size = document.shape[1]
    tokens = np.arange(100, 100 + size)[None]
    layout, targets = jax.device_get(row_and_targets(block_size)(tokens, np.int32(offset), document))
    blocks = -(-size // block_size)
    assert layout.tokens.shape == (1, size + blocks * block_size)
    np.testing.assert_array_equal(seen_by(layout, window)[0], slow_visibility(layout, 0, window))

    doc = document[0]
    start = {i: max(j for j in range(i + 1) if j == 0 or doc[j] != doc[j - 1]) for i in range(size)}
    for i in range(size):
        assert layout.position[0, i] == i - start[i]
        assert layout.horizon[0, i] == i - start[i] + 1
        assert layout.predecessor[0, i] == (START if i == start[i] else i - 1)
        assert layout.block[0, i] == 0
    targets, has = (x[0] for x in targets)
    for b in range(blocks):
        first = offset + b * block_size
        for t in range(block_size):
            slot = size + b * block_size + t
            assert layout.tokens[0, slot] == MASK
            assert layout.block[0, slot] == b + 1
            if t:
                assert layout.predecessor[0, slot] == slot - 1
            if first >= size:
                assert layout.document[0, slot] == PADDING
                assert not has[slot - size]
                continue
            assert layout.document[0, slot] == doc[first]
            assert layout.position[0, slot] == first - start[first] + t
            assert layout.horizon[0, slot] == first - start[first]
            if t == 0:
                assert layout.predecessor[0, slot] == (START if first == start[first] else first - 1)
            in_document = first + t < size and doc[first + t] == doc[first] != PADDING
            assert has[slot - size] == in_document
            if in_document:
                assert targets[slot - size] == tokens[0, first + t]


@given(packed_rows())
def test_next_token_targets(document):
    tokens = np.arange(50, 50 + document.shape[1])[None]
    ids, has = (np.asarray(x)[0] for x in next_tokens(tokens, document))
    doc = document[0]
    for i in range(len(doc)):
        expected = i + 1 < len(doc) and doc[i + 1] == doc[i] != PADDING
        assert has[i] == expected
        if expected:
            assert ids[i] == tokens[0, i + 1]


def test_valid_marks_padding_left_or_right():
    tokens = np.arange(8).reshape(2, 4)
    valid = np.array([[False, False, True, True], [True, True, True, False]])
    layout = built(Layout.causal, tokens, valid=valid)
    np.testing.assert_array_equal(layout.document, [[PADDING, PADDING, 0, 0], [0, 0, 0, PADDING]])
    np.testing.assert_array_equal(layout.position[0, 2:], [0, 1])
    np.testing.assert_array_equal(layout.predecessor[:, 2], [START, 1])


def test_verify_and_draft_fields():
    tokens, start = np.array([[5, 6, 7]] * 2), np.array([0, 4])
    layout = jax.device_get(built(Layout.verify_and_draft, tokens, start=start, anchors=(1, 3), block_size=2))
    np.testing.assert_array_equal(layout.tokens[1], [5, 6, 7, MASK, MASK, MASK, MASK])
    np.testing.assert_array_equal(layout.position[1], [4, 5, 6, 5, 6, 7, 8])
    np.testing.assert_array_equal(layout.horizon[1], [5, 6, 7, 5, 5, 7, 7])
    np.testing.assert_array_equal(layout.block[1], [0, 0, 0, 1, 1, 2, 2])
    np.testing.assert_array_equal(layout.predecessor[1], [CONTEXT, 0, 1, 0, 3, 2, 5])
    assert layout.predecessor[0, 0] == START
    # S rows never see a block, no block sees another, block j sees tokens 1 .. j (docs/method.md#one-step)
    seen = np.asarray(seen_by(layout)[0])
    assert seen.tolist() == slow_visibility(layout, 0).tolist()
    assert not seen[:3, 3:].any()
    assert not seen[3:5, 5:].any()
    np.testing.assert_array_equal(seen[3, :3], [True, False, False])
    np.testing.assert_array_equal(seen[5, :3], [True, True, True])


def test_revealed_slots_show_their_token_and_have_no_target():
    tokens = np.arange(10, 18)[None]
    reveal = np.zeros((1, 8), bool)
    reveal[0, [1, 6]] = True
    layout = built(Layout.tidar, tokens, block_size=4, offset=1, reveal=reveal)
    drafts = np.asarray(layout.draft_rows().tokens[0])
    np.testing.assert_array_equal(drafts, [11, MASK, MASK, MASK, MASK, 16, MASK, MASK])
    has = np.asarray(jax.jit(lambda layout: layout.draft_targets(1)[1])(layout)[0])
    np.testing.assert_array_equal(has, [False, True, True, True, True, False, True, False])


def test_constructors_are_jittable_with_traced_offsets_and_anchors():
    tokens = np.arange(12).reshape(2, 6)
    eager = Layout.tidar(tokens, 2, jnp.array([0, 1]))
    jitted = jax.jit(Layout.tidar.__func__, static_argnums=(0, 2))(Layout, tokens, 2, jnp.array([0, 1]))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), eager, jitted))
    anchors, count = np.array([[2], [6]]), np.array([2, 6])
    traced = jax.device_get(built(Layout.verify_and_draft, tokens, anchors=anchors, block_size=3, count=count))
    np.testing.assert_array_equal(traced.position[:, 6], [2, 6])
    np.testing.assert_array_equal(traced.predecessor[:, 6], [1, 5])


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda: Layout.tidar(np.zeros((1, 4)), 0), "block_size: got 0"),
        (lambda: Layout.tidar(np.zeros((1, 4)), 2, 2), "offset: got 2"),
        (lambda: Layout.causal(np.zeros(4)), "tokens: got shape"),
        (lambda: Layout.causal(np.zeros((1, 4)), np.ones((1, 3))), "valid: got shape"),
        (lambda: Layout.verify_and_draft(np.zeros((1, 4)), 0, (5,), 2), "anchors: got 5"),
        (lambda: Layout.verify_and_draft(np.zeros((1, 4)), 0, (1,)), "block_size: got 0"),
    ],
)
def test_bad_arguments_are_named(call, names):
    with pytest.raises(ValueError, match=names):
        call()


def test_render_shows_who_sees_whom():
    picture = Layout.tidar(np.array([[7, 8]]), 2).render().splitlines()
    assert picture == [
        "      7 @0    #...",
        "      8 @1    ##..",
        "   MASK @0    ..oo",
        "   MASK @1    ..oo",
    ]
