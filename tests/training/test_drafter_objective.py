"""Drafters' losses against every term written out; what is frozen gets no gradient; a step trains."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.architecture.test_drafters import Drafting
from tests.helpers import fresh_state, random_tokens, random_variables, small_config
from zaya_jax.architecture import Zaya
from zaya_jax.errors import UserError
from zaya_jax.training.drafter_objective import FROZEN_TARGET, DrafterObjective
from zaya_jax.training.objective import Objective
from zaya_jax.training.optimizer import OptimizerConfig
from zaya_jax.training.state import make_train_step

DOCUMENT = np.array([[0] * 5 + [1] * 6 + [-1], [0] * 12, [-1] * 12])
ANSWER = np.array([[0, 0, 1, 1, 1, 0, 0, 0, 1, 1, 1, 0], [0] * 4 + [1] * 8, [0] * 12])
OBJECTIVES = {
    "dflash": DrafterObjective("dflash", block_size=4, loss_on="answers", blocks_per_row=3, slot_decay=0.7),
    "eagle3": DrafterObjective("eagle3", block_size=3, distill=1.0, slot_decay=0.8),
    "mtp": DrafterObjective("mtp", block_size=3, alpha=3.0, loss_on="answers", slot_decay=0.6),
    "medusa": DrafterObjective("medusa", block_size=3, own_head=True, distill=0.5, distance="lk"),
}


@functools.cache
def setup(name: str):
    objective = OBJECTIVES[name]
    config = small_config(drafter=objective.drafter)
    tokens = random_tokens(config, 3, 12)
    batch = jax.tree.map(jnp.asarray, {"tokens": tokens, "document": DOCUMENT, "answer": ANSWER})
    drawn = objective.draw(jax.random.key(1), 3, 12)
    return objective, Zaya(config), random_variables(config), batch, drawn


@functools.cache
def gradients_of(name: str):
    objective, model, variables, batch, drawn = setup(name)

    @jax.jit
    def run(params, batch, drawn):
        def loss(params):
            sums = objective.sums(model, {**variables, "params": params}, batch, drawn)
            return objective.loss(sums, objective.counts(batch, drawn)), sums

        return jax.value_and_grad(loss, has_aux=True)(params)

    return run(variables["params"], batch, drawn)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_each_term_is_what_it_says(name):
    objective, model, variables, batch, drawn = setup(name)
    (loss, sums), _ = gradients_of(name)
    anchored, drafts = name == "dflash", objective.block_size - 1
    first = np.asarray(objective.slots(batch, drawn)[0])

    @jax.jit
    def distributions(variables, batch, first):
        d = Drafting(model, variables)
        drafted = d.train(batch["tokens"], batch["document"], first)
        plain = d.call(objective.layout(batch, {}), method="__call__").logits
        return jax.nn.log_softmax(drafted), jax.nn.log_softmax(plain)

    log_q, log_p = map(np.asarray, distributions(variables, batch, first))
    tokens = np.asarray(batch["tokens"])
    nll, soft, correct, count = (np.zeros(drafts) for _ in range(4))
    for r in range(3):
        for n, begin in enumerate(first[r]):
            for s in range(drafts):
                at = begin + s + (1 if anchored else 2)
                if at >= 12 or DOCUMENT[r, at] != DOCUMENT[r, begin] or DOCUMENT[r, at] < 0:
                    continue
                if objective.loss_on == "answers" and not ANSWER[r, at]:
                    continue
                q, p = log_q[r, n, s], np.exp(log_p[r, at - 1])
                nll[s] -= q[tokens[r, at]]
                cross, taken = -(p * q).sum(), np.minimum(p, np.exp(q)).sum()
                share = np.exp(-3 * taken) if objective.distance == "lk" else 1
                soft[s] += share * cross + (1 - share) * (1 - taken)
                correct[s] += q.argmax() == tokens[r, at]
                count[s] += 1
    assert count.min() > 0
    np.testing.assert_allclose(sums["draft_nll"], nll, rtol=2e-5)
    np.testing.assert_array_equal(sums["draft_count"], count)
    np.testing.assert_array_equal(sums["draft_correct"], correct)
    np.testing.assert_array_equal(objective.counts(batch, drawn)["draft_count"], count)
    if objective.distill:
        np.testing.assert_allclose(sums["draft_soft_nll"], soft, rtol=2e-5)
    weight = objective.slot_decay ** np.arange(drafts)
    mixed = (1 - objective.distill) * nll + objective.distill * soft
    drafted = (weight * mixed).sum() / (weight * count).sum()
    ar = sums["ar_nll"] / sums["ar_count"]
    np.testing.assert_allclose(loss, (objective.alpha * ar + drafted) / (1 + objective.alpha), rtol=2e-5)
    if anchored:  # every block begins with a token that has a loss
        assert all(ANSWER[r, f] for r in range(2) for f in first[r])
        assert (first[2] == 12).all()


@pytest.mark.parametrize("name", ["dflash", "eagle3", "mtp", "medusa"])
def test_gradients_stop_at_a_frozen_target_and_reach_one_that_is_trained_along(name):
    objective, *_ = setup(name)
    _, grads = gradients_of(name)
    size = {name: max(np.abs(x).max() for x in jax.tree.leaves(leaf)) for name, leaf in grads.items()}
    own = {name for name in size if name.startswith("drafter")}
    assert all(size[name] > 1e-6 for name in own)
    assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(grads["drafter"]))  # no parameter is idle
    for part in set(size) - own:
        assert (size[part] > 0) == bool(objective.alpha), part


def test_a_step_trains_the_drafter_alone():
    objective, model, variables, batch, _ = setup("dflash")
    optimizer = OptimizerConfig(learning_rate=0.01, freeze=FROZEN_TARGET, balancing_rate=0.0)
    step, state = make_train_step(model, objective, optimizer), fresh_state(variables, optimizer)
    losses = []
    for _ in range(20):
        state, metrics = step(state, batch, 1.0)
        losses.append(float(metrics["draft_loss"]))
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    params = jax.device_get(state.params)
    for name, leaf in variables["params"].items():
        same = [np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (leaf, params[name])), strict=True)]
        assert not any(same) if name.startswith("drafter") else all(same), name
    assert metrics["draft_loss_by_slot"].shape == (3,)


def test_what_no_objective_can_be_is_refused():
    for fields, words in (
        (dict(kind="dflash", block_size=1), "Objective.block_size: got 1, may be at least 2"),
        (dict(kind="eagle3", blocks_per_row=3), "Objective.blocks_per_row: got 3, may be 0 where kind is 'eagle3'"),
        (dict(kind="mtp", layers=2), "Objective.layers: got 2, may be 1 where kind is 'mtp'"),
        (dict(kind="mtp", masking="random"), "Objective.masking: got 'random', may be 'full' where"),
    ):
        with pytest.raises(UserError, match=f"^{words}"):
            DrafterObjective(**fields)
    with pytest.raises(UserError, match=r"^Objective.kind: got 'mtp', which is the kind of DrafterObjective"):
        Objective("mtp")
