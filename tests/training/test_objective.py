"""Losses, targets and router balance against their definitions."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import drawn_by, fresh_state, random_tokens, random_variables, small_config
from zaya_jax.architecture import MASK, Layout, Zaya
from zaya_jax.training import objective as objective_module
from zaya_jax.training.objective import Objective
from zaya_jax.training.optimizer import OptimizerConfig, balancing_error, rates
from zaya_jax.training.state import make_train_step, summarise

pytestmark = pytest.mark.early

DOCUMENT = np.array([[0] * 5 + [1] * 6 + [-1], [0] * 12, [-1] * 12])


OPTIMIZER = OptimizerConfig(learning_rate=0.01, balancing_rate=0.02)  # one for all, so that a step is compiled once


@functools.cache
def setup():
    config = small_config()
    return Zaya(config), random_variables(config), {
        "tokens": jnp.asarray(random_tokens(config, 3, 12)), "document": jnp.asarray(DOCUMENT)
    }  # fmt: skip


@functools.cache
def sums_of(objective: Objective):
    """Jitted (variables, batch, drawn) -> the objective's sums."""
    return jax.jit(lambda variables, batch, drawn: objective.sums(setup()[0], variables, batch, drawn))


@functools.cache
def distributions(block_size: int):
    """Jitted (variables, batch, offset) -> log-probabilities of a TiDAR row."""

    def run(variables, batch, offset):
        layout = Layout.tidar(batch["tokens"], block_size, offset, document=batch["document"])
        return jax.nn.log_softmax(setup()[0].apply(variables, layout).logits)

    return jax.jit(run)


def naive_losses(variables, batch, block_size, offset, scored=None):
    """Mean CE of next tokens and of mask tokens, one term at a time; no loss on padding or across documents."""
    distribution = np.asarray(distributions(block_size)(variables, batch, np.array(offset)))
    tokens, ar, draft = np.asarray(batch["tokens"]), [], []
    for r, row in enumerate(DOCUMENT):
        for i in range(11):
            if row[i] == row[i + 1] != -1 and (scored is None or scored[r, i + 1]):
                ar.append(-distribution[r, i, tokens[r, i + 1]])
        for slot in range(distribution.shape[1] - 12):
            first = offset[r] + slot // block_size * block_size
            i = first + slot % block_size
            if i < 12 and row[i] == row[first] != -1 and (scored is None or scored[r, i]):
                draft.append(-distribution[r, 12 + slot, tokens[r, i]])
    return np.mean(ar), np.mean(draft)


def value_and_gradient(loss):
    """Compiled anew at each call, since what it reads may have changed."""
    return jax.jit(jax.value_and_grad(lambda params: loss(params)))


def test_distillation_and_slot_weights_are_what_they_say(monkeypatch):
    """Against every term written out; and the teacher is a constant."""
    model, variables, batch = setup()
    drawn, tokens = {"offset": jnp.array([0, 3, 1])}, np.asarray(batch["tokens"])
    distribution = np.asarray(distributions(4)(variables, batch, drawn["offset"]))
    total, weights = 0.0, 0.0
    for r, row in enumerate(DOCUMENT):
        for slot in range(distribution.shape[1] - 12):
            first = int(drawn["offset"][r]) + slot // 4 * 4
            i, weight = first + slot % 4, 0.7 ** (slot % 4)
            if i < 12 and row[i] == row[first] != -1:
                hard = soft = -distribution[r, 12 + slot, tokens[r, i]]
                if i > 0 and row[i - 1] == row[i]:
                    soft = -(np.exp(distribution[r, i - 1]) * distribution[r, 12 + slot]).sum()
                total, weights = total + weight * (0.75 * soft + 0.25 * hard), weights + weight
    objective = Objective("tidar", 4, 0.0, distill=0.75, slot_decay=0.7)

    def loss(params):
        sums = objective.sums(model, {**variables, "params": params}, batch, drawn)
        return objective.loss(sums, sums)

    value, gradient = value_and_gradient(loss)(variables["params"])
    np.testing.assert_allclose(value, total / weights, rtol=1e-5)
    monkeypatch.setattr(objective_module, "piece_size", lambda vocab_size: 5)
    compare = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(compare, value_and_gradient(loss)(variables["params"])[1], gradient)


def test_a_distilled_draft_does_not_move_its_teacher():
    """With drafts that already are the teacher's distribution the gradient is zero, as if the teacher did not move."""
    model, variables, _ = setup()
    hidden = np.random.default_rng(0).standard_normal((1, 6, model.config.hidden_size)).astype(np.float32)
    ids = np.zeros((1, 6), np.int32)

    def loss(variables, drafts, teacher):
        return objective_module.cross_entropy(model, variables, drafts, ids, ids == 0, teacher)[0].sum()

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    for gradient in gradients(variables, hidden, hidden):
        assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(jax.device_get(gradient))) < 1e-5
    moved = gradients(variables, hidden + np.float32(0.1), hidden)[1]
    assert np.abs(moved).max() > 1e-3


def test_distances_are_what_they_say():
    rng = np.random.default_rng(0)
    p, logits = rng.dirichlet(np.ones(5), 3), rng.standard_normal((3, 5))
    q = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    cross, variation = -(p * np.log(q)).sum(-1), np.abs(p - q).sum(-1) / 2
    share = np.exp(-3 * (1 - variation))
    expected = {"kl": cross, "tv": variation, "lk": share * cross + (1 - share) * variation}
    for kind, values in expected.items():
        got = jax.jit(functools.partial(objective_module.distance_of, kind))(p, logits)
        np.testing.assert_allclose(got, values, rtol=1e-5)

    @jax.jit
    def gradients(logits):
        return [
            jax.grad(lambda x, kind=kind: objective_module.distance_of(kind, p, x).sum())(logits) for kind in expected
        ]

    kl, tv, lk = jax.device_get(gradients(logits))
    mixed = share[:, None] * kl + (1 - share)[:, None] * tv
    np.testing.assert_allclose(lk, mixed, rtol=1e-4, atol=1e-6)  # the share is held constant


def test_the_distance_is_the_objectives():
    """Total variation, averaged over slots with a teacher; the others keep the token's loss."""
    _, variables, batch = setup()
    drawn = {"offset": jnp.array([0, 3, 1])}
    distribution = np.exp(np.asarray(distributions(4)(variables, batch, drawn["offset"])))
    sums = sums_of(Objective("tidar", 4, distill=1.0, distance="tv"))(variables, batch, drawn)
    total = 0.0
    for r, row in enumerate(DOCUMENT):
        for slot in range(distribution.shape[1] - 12):
            first = int(drawn["offset"][r]) + slot // 4 * 4
            i = first + slot % 4
            if i < 12 and row[i] == row[first] != -1:
                teacher = i > 0 and row[i - 1] == row[i]
                total += (
                    np.abs(distribution[r, i - 1] - distribution[r, 12 + slot]).sum() / 2 if teacher
                    else -np.log(distribution[r, 12 + slot, int(batch["tokens"][r, i])])
                )  # fmt: skip
    np.testing.assert_allclose(sums["draft_soft_nll"].sum(), total, rtol=1e-4)
    with pytest.raises(ValueError, match=r"Objective\.distance: got 'l2', may be"):
        Objective("tidar", 4, distance="l2")


def test_tidar_loss_is_the_papers():
    """The sums are one program's for every alpha, which weighs them afterwards."""
    _, variables, batch = setup()
    objective = Objective("tidar", 4)
    drawn = {"offset": jnp.array([0, 3, 1])}
    sums = sums_of(objective)(variables, batch, drawn)
    ar, draft = naive_losses(variables, batch, 4, [0, 3, 1])
    metrics = summarise(sums)
    np.testing.assert_allclose(metrics["ar_loss"], ar, rtol=1e-5)
    np.testing.assert_allclose(metrics["draft_loss"], draft, rtol=1e-5)
    for alpha in (1.0, 0.3):
        loss = dataclasses.replace(objective, alpha=alpha).loss(sums, sums)
        np.testing.assert_allclose(loss, (alpha * ar + draft) / (1 + alpha), rtol=1e-5)
    assert sums["draft_count"].shape == (4,)
    scored = np.random.default_rng(0).random((3, 12)) < 0.5
    answers = dataclasses.replace(objective, loss_on="answers")
    metrics = summarise(sums_of(answers)(variables, {**batch, "answer": jnp.asarray(scored, jnp.int32)}, drawn))
    expected = naive_losses(variables, batch, 4, [0, 3, 1], scored)
    np.testing.assert_allclose((metrics["ar_loss"], metrics["draft_loss"]), expected, rtol=1e-5)
    plain = Objective("autoregressive")
    np.testing.assert_allclose(plain.loss(*[sums_of(plain)(variables, batch, {})] * 2), ar, rtol=1e-5)


def test_padding_rows_change_nothing():
    """A batch with a whole row of padding has the loss and the expert load of the batch without it."""
    _, variables, batch = setup()
    run, offset = sums_of(Objective("tidar", 4)), np.array([0, 3, 1])
    whole = run(variables, batch, {"offset": offset})
    part = run(variables, jax.tree.map(lambda x: x[:2], batch), {"offset": offset[:2]})
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), whole, part)


@pytest.mark.slow
def test_chunked_cross_entropy_is_the_whole(monkeypatch):
    model, variables, batch = setup()
    objective, drawn = Objective("tidar", 4), {"offset": jnp.array([0, 3, 1])}

    def loss(params):
        sums = objective.sums(model, {**variables, "params": params}, batch, drawn)
        return objective.loss(sums, sums)

    whole = value_and_gradient(loss)(variables["params"])
    monkeypatch.setattr(objective_module, "piece_size", lambda vocab_size: 7)
    pieces = value_and_gradient(loss)(variables["params"])
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), whole, pieces)


def test_offsets_are_uniform_and_random_masking_reveals_a_uniform_share():
    objective = Objective("tidar", 4, masking="random")
    batch = {"tokens": jnp.ones((4000, 16), jnp.int32), "document": jnp.zeros((4000, 16), jnp.int32)}

    @jax.jit
    def run(key):
        drawn = objective.draw(key, 4000, 16)
        layout = objective.layout(batch, drawn)
        return drawn, layout, layout.draft_targets(drawn["offset"])[1]

    drawn, layout, has = jax.device_get(run(jax.random.key(0)))
    counts = np.bincount(drawn["offset"], minlength=4)
    assert counts.size == 4 and counts.min() > 850
    hidden = np.asarray(layout.blocks().tokens == MASK)[:, 1].sum(1)  # a block that lies inside the row
    # a share drawn uniformly makes every number of hidden slots equally likely
    assert np.bincount(hidden, minlength=5).min() > 4000 / 5 * 0.85
    assert not np.asarray(has & (layout.draft_rows().tokens != MASK)).any()
    assert drawn_by(Objective("tidar", 4), jax.random.key(0), 2, 16).keys() == {"offset"}


def test_clean_and_draft_rows_balance_apart():
    """A collapse of the few draft rows is not hidden after many balanced clean rows."""
    load = jnp.array([[[100, 100, 100, 100, 0], [8, 0, 0, 0, 0]]])
    np.testing.assert_allclose(balancing_error(load)[0], [0.375, -0.125, -0.125, -0.125, 0], atol=1e-6)
    clean_only = jnp.array([[[300, 100, 0, 0, 0], [0, 0, 0, 0, 0]]])
    np.testing.assert_allclose(balancing_error(clean_only)[0], [0.5, 0, -0.25, -0.25, 0], atol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_step_learns_balances_and_leaves_skip_alone(name):
    model, variables, batch = setup()
    optimizer = dataclasses.replace(OPTIMIZER, name=name)
    step = make_train_step(model, Objective("tidar", 4), optimizer)
    state = fresh_state(variables, optimizer)
    before = jax.device_get(state.balancing)
    losses = []
    for _ in range(12):
        state, metrics = step(state, batch, 1.0)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0] - 0.3
    biases = jax.tree.leaves(state.balancing)[0]
    np.testing.assert_array_equal(biases[:, -1], jax.tree.leaves(before)[0][:, -1])
    assert np.abs(biases - jax.tree.leaves(before)[0])[:, :-1].max() > 0.01
    assert int(state.step) == 12


def test_balancing_alone_evens_out_a_collapsed_router():
    model, variables, batch = setup()
    biased = jax.tree.map(lambda b: b.at[:, 0].add(0.5), variables["balancing"])
    step = make_train_step(model, Objective("tidar", 4), OPTIMIZER)
    state = fresh_state({**variables, "balancing": biased}, OPTIMIZER)
    loads = []
    for _ in range(40):
        state, metrics = step(state, batch, 1e-7)  # the parameters stay
        loads.append((float(metrics["expert_load_clean"]), float(metrics["expert_load_draft"])))
    assert loads[0][0] > 0.9
    assert loads[-1][0] < 0.75 * loads[0][0]


def test_bfloat16_compute_keeps_float32_masters():
    model, variables, batch = setup()
    low = Zaya(model.config.replace(dtype="bfloat16"))
    losses = []
    for m in (model, low):
        state = fresh_state(variables, OPTIMIZER)
        state, metrics = make_train_step(m, Objective("tidar", 4), OPTIMIZER)(state, batch, 1.0)
        losses.append(float(metrics["loss"]))
        assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    assert 0 < abs(losses[0] - losses[1]) < 0.05 * losses[0]


def test_schedule_warms_up_and_decays():
    config = OptimizerConfig(warmup_steps=10, final_learning_rate=0.1)
    shares = rates(config, 100)
    assert shares[:3] == pytest.approx([1 / 11, 2 / 11, 3 / 11])
    assert max(shares) == pytest.approx(1.0) == shares[10]
    assert shares[100] == pytest.approx(0.1)
    assert all(a >= b for a, b in itertools.pairwise(shares[10:]))


@pytest.mark.parametrize(
    ("kind", "kwargs", "names"),
    [
        (Objective, dict(block_size=0), "Objective.block_size: got 0"),
        (Objective, dict(kind="bert"), "Objective.kind: got 'bert'"),
        (Objective, dict(alpha=-1), "Objective.alpha"),
        (Objective, dict(masking="some"), "Objective.masking"),
        (OptimizerConfig, dict(name="sgd"), "OptimizerConfig.name: got 'sgd'"),
        (OptimizerConfig, dict(learning_rate=0), "OptimizerConfig.learning_rate: got 0"),
    ],
)
def test_bad_settings_name_the_field(kind, kwargs, names):
    with pytest.raises(ValueError, match=names):
        kind(**kwargs)
