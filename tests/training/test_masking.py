"""Objectives of other masked-diffusion recipes: each against a plain reference, block by block; and none leaks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import drawn_by, random_tokens, random_variables, small_config
from zaya_jax.architecture import MASK, Layout, Zaya
from zaya_jax.errors import UserError
from zaya_jax.training.objective import Objective

ROW, BLOCK = 12, 4
DOCUMENT = np.array([[0] * 5 + [1] * 6 + [-1], [0] * 12])
INVERSE = dict(masking="random", weight="inverse", least_rate=1e-3)
RECIPES = {
    "random, unweighted": dict(masking="random"),
    "SBD": dict(masking="random", rate_of="row", smallest_block=2, average="tokens"),
    "BD3, linear": dict(**INVERSE, average="tokens"),
    "BD3, linear, no AR": dict(**INVERSE, average="tokens", alpha=0.0),
    "BD3, clipped": dict(**{**INVERSE, "least_rate": 0.45, "most_rate": 0.95}, average="tokens"),
    "SDAR": dict(**INVERSE, rate_of="row", average="tokens", alpha=0.0),
    "LLaDA": dict(**INVERSE, rate_of="row", average="tokens", alpha=0.0, row_layout="whole"),
    "LLaDA on answers, masked": dict(**INVERSE, rate_of="row", alpha=0.0, row_layout="whole", loss_on="answers"),
    "complementary": dict(masking="complementary"),
    "complementary, weighted, distilled": dict(masking="complementary", weight="inverse", least_rate=0.2,
                                               most_rate=0.8, distill=0.5, slot_decay=0.8),
    "BD3, distilled by total variation": dict(**INVERSE, distill=0.75, distance="tv"),
}  # fmt: skip
OBJECTIVES = {name: Objective("tidar", BLOCK, **fields) for name, fields in RECIPES.items()}


@functools.cache
def setup():
    config = small_config()
    batch = {
        "tokens": jnp.asarray(random_tokens(config, *DOCUMENT.shape)), "document": jnp.asarray(DOCUMENT),
        "answer": jnp.asarray(np.random.default_rng(1).integers(0, 2, DOCUMENT.shape)),
    }  # fmt: skip
    return Zaya(config), random_variables(config), batch


@functools.partial(jax.jit, static_argnames="size")
def block_alone(tokens, before, block, size):
    """Log-probabilities: of the text's tokens [12, V], and of one block after `before` of them [size, V]."""
    model, variables, _ = setup()
    layout = Layout.verify_and_draft(tokens[None], 0, before[None, None], size, jnp.array([ROW]))
    layout = layout.replace(tokens=jnp.concatenate([tokens, block])[None])
    logits = jax.nn.log_softmax(model.apply(variables, layout).logits)[0]
    return logits[:ROW], logits[ROW:]


def blocks_of(objective: Objective, drawn, row: int) -> list[tuple[int, int]]:
    """Row index of each block's first slot, and how many slots it has."""
    if objective.row_layout == "whole":
        starts = [i for i in range(ROW) if i == 0 or DOCUMENT[row, i] != DOCUMENT[row, i - 1]]
        return [(a, b - a) for a, b in zip(starts, [*starts[1:], ROW], strict=True)]
    if "size" in drawn:
        size, first = int(drawn["size"][row]), int(drawn["first"][row, 0])
    else:
        size, first = BLOCK, int(drawn["offset"][row])
    return [(start, size) for start in range(first, ROW, size)]


def reference(objective: Objective, batch, drawn, rates) -> float:
    """The loss, one block at a time; rates float [B, T] are the mask rates."""
    tokens, answer = np.asarray(batch["tokens"]), np.asarray(batch["answer"])
    ar, draft, masked, asked = [], [], 0.0, 0.0
    copies = [lambda shown: shown] + [lambda shown: not shown] * (objective.masking == "complementary")
    for r, copy in ((r, c) for c in copies for r in range(len(tokens))):
        for start, size in blocks_of(objective, drawn, r):
            members = [i for i in range(start, min(start + size, ROW)) if DOCUMENT[r, i] == DOCUMENT[r, start] != -1]
            if not members:
                continue
            begin = int(np.flatnonzero(DOCUMENT[r] == DOCUMENT[r, start])[0])
            text = np.zeros(ROW, np.int32)
            text[: ROW - begin] = tokens[r, begin:]
            in_loss = {i: objective.loss_on == "all" or answer[r, i] for i in members}
            block = np.full(size, MASK, np.int32)
            for i in members:
                shown = copy(bool(drawn["reveal"][r, i]))
                if shown or (objective.row_layout == "whole" and not in_loss[i]):
                    block[i - start] = tokens[r, i]
            plain, drafted = map(np.asarray, block_alone(text, np.int32(start - begin), block, size))
            for i in members:
                decay = objective.slot_decay ** ((i - start) % BLOCK)
                asked += decay * in_loss[i]
                if block[i - start] != MASK or not in_loss[i]:
                    continue
                q, rate = drafted[i - start], rates[r, i] if copy(False) is False else 1 - rates[r, i]
                loss = soft = -q[tokens[r, i]]
                if objective.distill and i > begin:
                    p = np.exp(plain[i - begin - 1])
                    soft = np.abs(p - np.exp(q)).sum() / 2 if objective.distance == "tv" else -(p * q).sum()
                loss = (1 - objective.distill) * loss + objective.distill * soft
                draft.append(decay * loss / (rate if objective.weight == "inverse" else 1))
                masked += decay
        for i in range(ROW - 1):
            if DOCUMENT[r, i] == DOCUMENT[r, i + 1] != -1 and (objective.loss_on == "all" or answer[r, i + 1]):
                begin = int(np.flatnonzero(DOCUMENT[r] == DOCUMENT[r, i])[0])
                text = np.zeros(ROW, np.int32)
                text[: ROW - begin] = tokens[r, begin:]
                plain = block_alone(text, np.int32(0), np.full(BLOCK, MASK, np.int32), BLOCK)[0]
                ar.append(-float(plain[i - begin, tokens[r, i + 1]]))
    loss = sum(draft) / (asked if objective.average == "tokens" else masked)
    return (objective.alpha * np.mean(ar) + loss) / (1 + objective.alpha)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_loss_is_the_references(name):
    objective = OBJECTIVES[name]
    model, variables, batch = setup()
    key = jax.random.key(5)
    drawn = drawn_by(objective, key, *DOCUMENT.shape)
    weighted = Objective(**{**vars(objective), "weight": "inverse", "least_rate": objective.least_rate or 1e-12})
    rates = drawn_by(weighted, key, *DOCUMENT.shape)["rate"]
    assert 0 < np.asarray(drawn["reveal"]).mean() < 1

    @jax.jit
    def run(batch, drawn):
        sums, counts = objective.sums(model, variables, batch, drawn), objective.counts(batch, drawn)
        return objective.loss(sums, counts), objective.loss(sums, sums)

    for loss in run(batch, drawn):
        np.testing.assert_allclose(loss, reference(objective, batch, drawn, rates), rtol=2e-5)


@pytest.mark.parametrize(
    "name",
    ["SBD", "LLaDA", *(pytest.param(name, marks=pytest.mark.slow) for name in ("BD3, linear", "complementary"))],
)
def test_a_masked_tokens_value_reaches_no_prediction_of_its_block(name):
    """The Jacobian by the stream, x64: mask tokens see context before their block, their own block, nothing else."""
    objective = OBJECTIVES[name]
    with jax.enable_x64(True):
        config = small_config(hidden_size=8, dtype="float64", param_dtype="float64")
        model, variables, batch = Zaya(config), random_variables(config, seed=3), setup()[2]

        @jax.jit
        def jacobian(layout):
            def hidden(stream):
                return model.apply(variables, layout, None, stream, method="backbone")[0]

            stream = np.random.default_rng(0).standard_normal((*layout.tokens.shape, 8))
            return jnp.abs(jax.jacfwd(hidden)(stream)).sum((0, 2, 3, 5))

        for seed in range(2):
            batch, drawn = objective._paired(batch, drawn_by(objective, jax.random.key(seed), *DOCUMENT.shape))
            layout = jax.device_get(jax.jit(objective.layout)(batch, drawn))
            found = [jacobian(jax.tree.map(lambda x, r=r: x[r : r + 1], layout)) for r in range(len(layout.tokens))]
            _check_reach(np.stack(found), layout)
            batch = setup()[2]


def _check_reach(found: np.ndarray, layout: Layout) -> None:
    """found [B, row, row]: which input moves which output."""
    drafts, clean = layout.draft_rows(), layout.clean_rows()
    document, block = np.asarray(drafts.document), np.asarray(drafts.block)
    for r in range(len(found)):
        for q in np.flatnonzero(document[r] != -1):
            same = (np.asarray(clean.document[r]) == document[r, q]) & (
                np.asarray(clean.position[r]) < int(drafts.horizon[r, q])
            )
            mine = (block[r] == block[r, q]) & (document[r] == document[r, q])
            allowed = np.concatenate([same, mine])
            reached = found[r, ROW + q] > 0
            assert not (reached & ~allowed).any(), "a mask token depends on another block or on text it must not see"
            assert reached[np.flatnonzero(allowed)].any()
            # every text position at or after the block's start is reached through the block's own slots alone
            assert not reached[:ROW][np.asarray(clean.position[r]) >= int(drafts.horizon[r, q])].any()


def test_a_drawn_block_size_fills_the_row():
    """Every token from the first block on is drafted once, whatever the size; sizes are drawn evenly."""
    objective = Objective("tidar", 16, smallest_block=2)
    batch = {"tokens": jnp.arange(40)[None].repeat(3, 0), "document": jnp.zeros((3, 40), jnp.int32)}

    @jax.jit
    def run(key):
        drawn = objective.draw(key, 3, 40)
        layout = objective.layout(batch, drawn)
        return drawn, layout.draft_targets(first=drawn["first"]), layout.draft_rows()

    sizes = []
    for seed in range(60):
        drawn, (ids, has), rows = jax.device_get(run(jax.random.key(seed)))
        size = int(drawn["size"][0])
        sizes.append(size)
        for r in range(3):
            offset = int(drawn["first"][r, 0])
            assert 0 <= offset < size
            assert ids[r][has[r]].tolist() == list(range(offset, 40))
            real = rows.document[r] != -1
            assert np.bincount(rows.block[r][real])[offset + 1 :: size].tolist() == [size] * -(-(40 - offset) // size)
    assert set(sizes) <= set(range(2, 17)) and len(set(sizes)) >= 13


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        (dict(weight="inverse"), "Objective.weight: got 'inverse', may be 'none' where masking is 'full'"),
        (dict(masking="random", weight="inverse"), "Objective.least_rate: got 0.0, may be above 0"),
        (dict(masking="random", least_rate=0.9, most_rate=0.5), "Objective.least_rate: got 0.9, may be at most"),
        (dict(masking="random", row_layout="whole"), "Objective.rate_of: got 'block', may be 'row' where"),
        (dict(smallest_block=9), "Objective.smallest_block: got 9, may be 0, or 1 .. block_size"),
        (dict(row_layout="whole", smallest_block=2), "Objective.smallest_block: got 2"),
        (dict(smallest_block=2, blocks_per_row=2), "Objective.blocks_per_row: got 2, may be 0 where"),
        (dict(average="rows"), "Objective.average: got 'rows', may be"),
    ],
)
def test_bad_masking_names_the_field(fields, names):
    with pytest.raises(UserError, match=names):
        Objective("tidar", 8, **fields)
