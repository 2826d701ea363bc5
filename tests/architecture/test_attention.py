"""Attention tile by tile against the dense mask, and the list of tiles against the mask it may not contradict."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import export

from tests.helpers import built, fresh_state, random_tokens, small_config
from zaya_jax.architecture import PADDING, Execution, Layout, Zaya, preset
from zaya_jax.architecture.attention.direct import LEAST_TO_SPLIT, attend, attend_dense, count_pairs, is_small
from zaya_jax.architecture.attention.tiled import Visibility, attend_tiles, table, worklist
from zaya_jax.architecture.cache import cached_keys
from zaya_jax.architecture.execution import DEFAULT
from zaya_jax.architecture.layout import visible
from zaya_jax.parallel import MeshConfig, make_placement
from zaya_jax.training.objective import Objective
from zaya_jax.training.optimizer import OptimizerConfig
from zaya_jax.training.state import init_variables, make_train_step

pytestmark = pytest.mark.early

EVERYTHING = np.iinfo(np.int32).max  # a window that hides nothing
CLEAN, BATCH, DIM = 24, 2, 4
assert_close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-12)


@st.composite
def documents(draw, batch=BATCH, size=CLEAN):
    """Packed rows int32 [batch, size]: documents with ids in any order, padding left and right, perhaps that alone."""
    rows = []
    for _ in range(batch):
        cuts = sorted(draw(st.sets(st.integers(1, size - 1), max_size=4)))
        ids = np.array(draw(st.permutations(range(5))))
        row = ids[np.searchsorted(cuts, np.arange(size), side="right")]
        if draw(st.booleans()):
            row[: draw(st.integers(0, size))] = PADDING
        if draw(st.booleans()):
            row[size - draw(st.integers(0, size)) :] = PADDING
        rows.append(row)
    return np.stack(rows).astype(np.int32)


def random_arrays(seed: int, *shapes) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape) for shape in shapes]


@functools.cache
def both(block_size: int, sizes: tuple[int, ...], heads: int, kv_heads: int):
    """Jitted: (output, gradients) of the tiles and of the reference; padding's rows, which nobody reads, count 0."""

    @jax.jit
    def run(document, offset, window, query, key, value, weight):
        layout = Layout.tidar(jnp.zeros((BATCH, CLEAN), jnp.int32), block_size, offset, document=document)
        real = (layout.document != PADDING)[..., None, None]

        def tiled(query, key, value):
            context, own = ((key[:, part], value[:, part]) for part in (slice(CLEAN), slice(CLEAN, None)))
            return attend_tiles(query, context, own, Visibility(layout, layout.clean_rows().keys, window), sizes)

        def dense(query, key, value):
            return jnp.where(real, attend_dense(query, key, value, layout, window), 0)

        def with_gradient(f):
            out, back = jax.vjp(f, query, key, value)
            return out, back(jnp.where(real, weight, 0))

        return with_gradient(tiled), with_gradient(dense)

    return run


@settings(max_examples=25)
@given(
    documents(),
    st.sampled_from([(3, (4, 1), 4, 2), (4, (8, 2), 2, 2), (5, (7,), 4, 1)]),
    st.integers(0, 7),
    st.sampled_from([EVERYTHING, 1, 5]),
    st.integers(0, 99),
)
def test_tiles_are_the_dense_mask(document, kind, offset, window, seed):
    """Values and all gradients in float64; tiles that divide the row and tiles that do not; a traced window."""
    block_size, _, heads, kv_heads = kind
    row = CLEAN + -(-CLEAN // block_size) * block_size
    with jax.enable_x64(True):
        query, weight = random_arrays(seed, *[(BATCH, row, heads, DIM)] * 2)
        key, value = random_arrays(seed + 1, *[(BATCH, row, kv_heads, DIM)] * 2)
        offset = np.array([offset % block_size, 0], np.int32)
        got, expected = both(*kind)(document, offset, np.int32(window), query, key, value, weight)
        jax.tree.map(assert_close, got, expected)


LONG = 4 * LEAST_TO_SPLIT // 3  # in pieces, the last one shorter


@functools.cache
def in_pieces(block_size: int):
    """Jitted: (output, gradients) of `attend`, which cuts the row, of its tiles, and of the dense reference."""

    @jax.jit
    def run(document, offset, query, key, value, weight):
        layout = Layout.tidar(jnp.zeros((BATCH, LONG), jnp.int32), block_size, offset, document=document)
        real = (layout.document != PADDING)[..., None, None]

        def attended(query, key, value, tiles):
            context, own = ((key[:, part], value[:, part]) for part in (slice(LONG), slice(LONG, None)))
            return attend(query, layout, context, layout.clean_keys, own, None, 1024 if not tiles else 64, tiles)

        def with_gradient(f):
            out, back = jax.vjp(lambda *args: jnp.where(real, f(*args), 0), query, key, value)
            return out, back(weight)

        direct, tiled = (with_gradient(functools.partial(attended, tiles=tiles)) for tiles in (False, True))
        return direct, tiled, with_gradient(lambda *args: attend_dense(*args, layout, None))

    return run


@pytest.mark.slow
@settings(max_examples=15)
@given(documents(size=LONG), st.integers(0, 4), st.integers(0, 99))
def test_an_ordered_row_in_pieces_is_the_dense_mask(document, offset, seed):
    block_size = 5
    row = LONG + -(-LONG // block_size) * block_size
    with jax.enable_x64(True):
        query, weight = random_arrays(seed, *[(BATCH, row, 2, DIM)] * 2)
        key, value = random_arrays(seed + 1, *[(BATCH, row, 1, DIM)] * 2)
        offset = np.array([offset % block_size, 0], np.int32)
        direct, tiled, expected = in_pieces(block_size)(document, offset, query, key, value, weight)
        jax.tree.map(assert_close, direct, expected)
        jax.tree.map(assert_close, tiled, expected)


@functools.cache
def row_and_masks(block_size: int):
    """Jitted: the layout, and what its clean and its mask tokens see."""

    @jax.jit
    def build(document, offset):
        layout = Layout.tidar(jnp.zeros((BATCH, LONG), jnp.int32), block_size, offset, document=document)
        parts = layout.clean_rows(), layout.draft_rows()
        return layout, [(rows.document, visible(rows, layout.clean_keys)) for rows in parts]

    return build


@given(documents(size=LONG), st.sampled_from([1, 3, 8]), st.integers(0, 7))
def test_ordered_layouts_are(document, block_size, offset):
    """The first n context tokens, and the first whole blocks of n slots, see none but the first n context tokens."""
    layout, parts = row_and_masks(block_size)(document, np.int32(offset % block_size))
    assert layout.ordered
    index = np.arange(LONG)
    for (documents, seen), unit in zip(parts, (1, block_size), strict=True):
        end = (np.arange(documents.shape[1]) // unit + 1) * unit
        seen = np.asarray(seen) & (np.asarray(documents) != PADDING)[..., None]
        assert not (seen & (index >= end[:, None])).any()


def test_a_part_of_a_row_is_not_ordered():
    layout = jax.eval_shape(lambda: Layout.tidar(jnp.zeros((1, 8), jnp.int32), 4).part(1, 2, ("context",)))
    assert not layout.ordered and not layout.ordered_blocks


def test_blocks_in_any_order_are_the_dense_mask(x64):
    """As many as on a grid, from the row's end to its beginning: a piece of them sees all of the row."""
    first = np.arange(0, LONG, 5)[::-1]
    layout = built(Layout.blocks_at, np.zeros((1, LONG), np.int32), first=first[None], block_size=5)
    row = layout.tokens.shape[1]
    (query,), (key, value) = random_arrays(0, (1, row, 2, DIM)), random_arrays(1, *[(1, row, 1, DIM)] * 2)
    context, own = ((key[:, part], value[:, part]) for part in (slice(LONG), slice(LONG, None)))
    got = jax.jit(lambda *args: attend(args[0], layout, *args[1:], own, None, 1024))(query, context, layout.clean_keys)
    assert_close(got, jax.jit(lambda *args: attend_dense(*args, layout, None))(query, key, value))


@pytest.mark.parametrize("anchors", [pytest.param(None, marks=pytest.mark.slow), (1, 2, 3, 5)])
def test_a_context_longer_than_the_row(anchors, x64):
    """A cache: the context is not the row's own context tokens, and most of it belongs to nobody yet."""
    rows, capacity, size = 5, 40, 3
    start, tokens = np.array([20, 3]), np.zeros((2, rows), np.int32)
    named = dict(start=start, anchors=anchors, block_size=size, count=np.array([5, 4]))
    layout = built(Layout.verify_and_draft, tokens, **named)
    keys, row = cached_keys(capacity, start + rows), layout.document.shape[1]
    query, weight = random_arrays(0, *[(2, row, 4, DIM)] * 2)
    context, own = (tuple(random_arrays(n, *[(2, n, 2, DIM)] * 2)) for n in (capacity, row - rows))
    weight = np.where((layout.document != PADDING)[..., None, None], weight, 0)

    def run(query_chunk):
        assert is_small(row, capacity, query_chunk) == (query_chunk == 1024)
        f = lambda query, context, own, window: (  # noqa: E731
            attend(query, layout, context, keys, own, window, query_chunk) * weight
        ).sum()
        return jax.jit(jax.value_and_grad(f, (0, 1, 2)))

    tiled, direct = run(8), run(1024)
    for window in (EVERYTHING, 6):
        jax.tree.map(assert_close, *(f(query, context, own, np.int32(window)) for f in (tiled, direct)))


def test_rows_that_see_nothing_give_zero():
    """Padding, and a query whose document's keys are all outside the context: finite, and so are the gradients."""
    document = np.array([[PADDING] * 8, [0] * 4 + [PADDING] * 4])
    layout = jax.device_get(built(Layout.tidar, np.zeros((2, 8), np.int32), block_size=4, document=document))
    keys = layout.clean_rows().keys._replace(document=np.full((2, 8), 7))
    query, key, value = (x.astype(np.float32) for x in random_arrays(0, (2, 16, 2, 4), (2, 16, 1, 4), (2, 16, 1, 4)))

    def f(query, key, value):
        context, own = ((key[:, part], value[:, part]) for part in (slice(8), slice(8, None)))
        return attend_tiles(1e4 * query, context, own, Visibility(layout, keys, None), (4, 2))

    @jax.jit
    def run(query, key, value):
        out, back = jax.vjp(f, query, key, value)
        return out, back(jnp.ones_like(out))

    out, gradients = jax.device_get(run(query, key, value))
    assert not out[0].any()
    assert not out[1, :8].any()  # context tokens
    assert not out[1, 12:].any()  # the second block is padding
    assert out[1, 8:12].any()
    assert jax.tree.all(jax.tree.map(lambda x: bool(np.isfinite(x).all()), gradients))


def dense_mask(seen: Visibility) -> np.ndarray:
    rows, keys, window = jax.tree.map(np.asarray, seen)
    return np.asarray(visible(rows, keys, window)) & (rows.document != PADDING)[..., None]


def by_tile(mask: np.ndarray, size: int) -> np.ndarray:
    """[batch, row, context] -> [batch, query tile, key tile, size * size]."""
    batch, row, context = mask.shape
    tiles = mask.reshape(batch, row // size, size, context // size, size)
    return tiles.swapaxes(2, 3).reshape(batch, row // size, context // size, -1)


@functools.cache
def tables(sizes: tuple[int, ...]):
    """Jitted: for each size its table, its list of tiles and how many of the list count."""
    return jax.jit(
        lambda seen: [(table(seen, n), *found) for n, found in zip(sizes, worklist(seen, sizes), strict=True)]
    )


@settings(max_examples=60)
@given(
    documents(),
    st.sampled_from([(3, (8, 2)), (8, (6,)), (3, (6, 3))]),
    st.integers(0, 7),
    st.sampled_from([EVERYTHING, 1, 3, 9]),
    st.randoms(use_true_random=False),
    st.booleans(),
)
def test_a_skipped_tile_hides_everything(document, kind, offset, window, random, shuffled):
    """Contexts in any order and of any kind; every visible pair is in exactly one tile, and nothing runs unmasked
    that hides a pair."""
    block_size, sizes = kind
    tokens, offset = np.zeros((BATCH, CLEAN), np.int32), np.int32(offset % block_size)
    layout = jax.device_get(built(Layout.tidar, tokens, block_size=block_size, offset=offset, document=document))
    keys = layout.clean_rows().keys
    if shuffled:  # as if gathered from somewhere, with keys in it that are in blocks themselves
        order = random.sample(range(layout.document.shape[1]), CLEAN)
        keys = jax.tree.map(lambda x: np.asarray(x)[:, order], layout.keys)
    seen = Visibility(layout, keys, np.int32(window))
    mask = dense_mask(seen)
    covered, executed = np.zeros_like(mask, int), 0
    for size, (known, order, count) in zip(sizes, tables(sizes)(seen), strict=True):
        needed, whole, pairs = np.asarray(known.needed), np.asarray(known.whole), by_tile(mask, size)
        assert not (pairs.any(-1) & ~needed).any()
        assert pairs[whole].all()
        todo = np.bincount(np.asarray(order)[: int(count)], minlength=needed.size).reshape(needed.shape)
        covered += np.repeat(np.repeat(todo, size, 1), size, 2)
        executed += int(count) * size**2
        assert size == sizes[-1] or pairs[todo > 0].all()
    assert (covered[mask] == 1).all()
    assert covered.max() <= 1
    assert covered.sum() == executed


@pytest.mark.parametrize("size", [4096, pytest.param(16_384, marks=pytest.mark.slow)])
@pytest.mark.parametrize("mean", [None, 2048], ids=["one document", "packed"])
def test_executed_pairs_are_the_visible_ones(mean, size):
    """From 4k on, with blocks of 16: the tiles that the default sizes give compute at most 1.15 times what is seen."""
    block = 16
    lengths = [size] if mean is None else np.random.default_rng(0).integers(1, 2 * mean, 40)
    document = np.repeat(np.arange(len(lengths)), lengths)[None, :size]
    tokens = np.zeros((1, size), np.int32)
    layout = jax.device_get(built(Layout.tidar, tokens, block_size=block, offset=5, document=document))
    counted = count_pairs(layout, None, Execution().query_chunk)
    real = layout.document != PADDING
    assert counted["visible"] == (layout.horizon * real).sum() + block * real[:, size:].sum()
    assert counted["visible"] <= counted["executed"] <= 1.15 * counted["visible"]


def train_step_of(config, length: int, batch: int = 1, placement=None, execution=DEFAULT):
    """(jitted TiDAR step, its arguments) on packed documents."""
    optimizer = OptimizerConfig()
    step = make_train_step(Zaya(config, execution), Objective("tidar", 4), optimizer, placement)
    document = np.searchsorted([length // 3, length // 2], np.arange(length), side="right")
    data = {"tokens": random_tokens(config, batch, length), "document": np.tile(document.astype(np.int32), (batch, 1))}
    return step, (fresh_state(init_variables(Zaya(config), 0), optimizer), data, jnp.float32(1.0))


@pytest.mark.slow
def test_a_whole_train_step_by_tiles():
    """Inside the scan over layers, remat and shard_map, with sliding layers; and it exports for every platform."""
    config = small_config(layer_types=("hybrid", "hybrid_sliding"), sliding_window=5)
    tiled = Execution(query_chunk=8, remat="full")
    assert not is_small(48, 24, tiled.query_chunk)
    step, args = train_step_of(config, 24, batch=2)
    state, metrics = step(*args)
    placement = make_placement(MeshConfig(), config, 2, 24, execution=tiled)
    step, args = train_step_of(config, 24, 2, placement, tiled)
    assert export.export(step, platforms=("cpu", "cuda", "rocm"))(*args).mlir_module()
    tiled_state, tiled_metrics = step(*args)
    np.testing.assert_allclose(metrics["grad_norm"], tiled_metrics["grad_norm"], rtol=1e-5)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0, atol=2e-5), state.params, tiled_state.params)


def temporary_bytes(config, length: int, execution) -> int:
    step, args = train_step_of(config, length, execution=execution)
    return step.lower(*args).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.slow
def test_a_short_train_step_grows_linearly():
    how = Execution(remat="full", query_chunk=32)
    sizes = [temporary_bytes(small_config(), length, how) for length in (128, 256, 512)]
    assert sizes[1] <= 2.1 * sizes[0]
    assert sizes[2] <= 2.1 * sizes[1]


@pytest.mark.slow
def test_a_long_train_step_grows_linearly():
    config, how = preset("zaya1_300k"), Execution(remat="full")
    sizes = [temporary_bytes(config, length, how) for length in (4096, 8192, 16_384, 32_768)]
    assert max(b / a for a, b in itertools.pairwise(sizes)) <= 2.1
