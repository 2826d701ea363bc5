"""Gradients of an objective at one checkpoint, drawn over and over: what of their noise is data, rates, masks."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zaya_jax.architecture import Zaya
from zaya_jax.architecture.moe.router import BALANCING
from zaya_jax.evaluation.variance import Split, Squares, split_variance, squares_of
from zaya_jax.training.objective import Objective

Array = jax.Array
GROUPS = {"embedding": ("embed",), "router": ("router",), "experts": ("expert",), "attention": ("attn", "attention")}
OTHER = "other"  # norms, residual scales, a head of its own
WHOLE = "all"
AT_ONCE = 4096  # rows whose weights are drawn


class Estimate(NamedTuple):
    """A number and the standard error of it: the jackknife over data draws."""

    value: float
    error: float


class Noise(NamedTuple):
    """What was drawn at one checkpoint."""

    loss: Split
    gradient: dict[str, Split]  # by parameter group, and of all
    relative: dict[str, Estimate]  # "data", "rate", "mask", "noise": variance over |E g|^2; "cosine"; of all parameters


def group_of(path: tuple[Any, ...]) -> str:
    """The group of a parameter's path; what names itself in it first."""
    name = "/".join(str(getattr(part, "key", part)) for part in path).lower()
    return next((group for group, words in GROUPS.items() if any(word in name for word in words)), OTHER)


def draw_noise(
    model: Zaya,
    variables: dict,
    objective: Objective,
    batches: Sequence[dict[str, np.ndarray]],
    rates: int = 8,
    masks: int = 8,
    seed: int = 0,
) -> Noise:
    """The variance of an objective's loss and gradient over data, rates and masks: nested draws at fixed parameters.

    Args:
      batches: the data draws, of one shape; at least 2.
      rates, masks: draws of rates (and of where blocks stand) for each batch, and of masks for each of these.

    Raises:
      UserError: fewer than 2 of any.
    """
    names = [group_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(variables["params"])]
    draw = _drawer(model, objective, masks)  # pyrefly: ignore[bad-argument-type]
    losses, means, of_draws, of_rates = [], [], [], []
    for number, batch in enumerate(batches):
        key = jax.random.fold_in(jax.random.key(seed), number)
        found = [jax.device_get(draw(variables, batch, jax.random.fold_in(key, rate))) for rate in range(rates)]
        loss, mean, squares, mean_squares = jax.tree.map(lambda *x: np.stack(x), *found)
        losses.append(loss)
        of_draws.append(squares.mean(0))
        of_rates.append(mean_squares.mean(0))
        means.append([leaf.mean(0).reshape(-1) for leaf in jax.tree.leaves(mean)])
    gram = np.array([[[float(a @ b) for a, b in zip(x, y, strict=True)] for y in means] for x in means])  # [D, D, leaf]
    counts = (len(batches), rates, masks)
    split = functools.partial(_split, np.array(of_draws), np.array(of_rates), gram)
    whole = np.ones(len(names), bool)
    groups = {WHOLE: whole} | {name: np.array([each == name for each in names]) for name in dict.fromkeys(names)}
    gradient = {name: split(members, np.arange(len(batches)), counts) for name, members in groups.items()}
    return Noise(
        split_variance(squares_of(np.array(losses)), counts), gradient, _with_errors(split, whole, len(batches), counts)
    )


def _split(
    of_draws: np.ndarray, of_rates: np.ndarray, gram: np.ndarray, members: np.ndarray, data: np.ndarray,
    counts: tuple[int, int, int],
) -> Split:  # fmt: skip
    """Of some parameters (bool [leaf]) over some data draws (int [n])."""
    between = gram[np.ix_(data, data)][..., members].sum(-1)
    squares = Squares(
        float(of_draws[data][:, members].sum(1).mean()), float(of_rates[data][:, members].sum(1).mean()),
        float(np.diagonal(between).mean()), float(between.mean()),
    )  # fmt: skip
    return split_variance(squares, (len(data), *counts[1:]))


def _with_errors(split: Callable[..., Split], whole: np.ndarray, data: int, counts) -> dict[str, Estimate]:
    def numbers(some: np.ndarray) -> dict[str, float]:
        found = split(whole, some, counts)
        shares = {name: getattr(found, name) / found.mean_square for name in ("data", "rate", "mask")}
        return {name: float(x) for name, x in (shares | {"noise": found.noise, "cosine": found.cosine}).items()}

    every = np.arange(data)
    value = numbers(every)
    if data < 3:  # nothing is left to jackknife
        return {name: Estimate(x, float("nan")) for name, x in value.items()}
    without = [numbers(np.delete(every, i)) for i in every]
    return {
        name: Estimate(x, float(np.sqrt((data - 1) * np.var([each[name] for each in without]))))
        for name, x in value.items()
    }


def draw_weights(objective: Objective, rows: int, row: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """What tokens' draft losses weigh by the objective's own draws: each row's mean and mean of squares, float [rows].

    Args:
      rows: a multiple of 4096, or fewer.
    """

    @jax.jit
    def some(key: Array) -> tuple[Array, Array]:
        weights = objective.weights(objective.draw(key, min(rows, AT_ONCE), row), min(rows, AT_ONCE), row)
        return weights.mean(1), (weights**2).mean(1)

    keys = jax.random.split(jax.random.key(seed), max(1, rows // AT_ONCE))
    first, second = zip(*(jax.device_get(some(key)) for key in keys), strict=True)
    return np.concatenate(first), np.concatenate(second)


@functools.lru_cache(maxsize=32)
def _drawer(model: Zaya, objective: Objective, masks: int):
    """(variables, batch, key) -> losses [masks], mean gradient, and by leaf: mean of squared norms, that of the mean.

    The key decides rates and places; masks are drawn anew for each of `masks` gradients.
    """

    @jax.jit
    def draw(variables: dict, batch: dict[str, Array], key: Array):
        where, mask = jax.random.split(key)

        def one(total, mask_key):
            drawn = objective.draw(where, *batch["tokens"].shape, mask_key=mask_key)

            def loss_of(params):
                sums = objective.sums(model, {"params": params, BALANCING: variables.get(BALANCING, {})}, batch, drawn)
                return objective.loss(sums, objective.counts(batch, drawn))

            loss, gradient = jax.value_and_grad(loss_of)(variables["params"])
            return jax.tree.map(jnp.add, total, (gradient, _leaf_squares(gradient))), loss

        zeros = (
            jax.tree.map(jnp.zeros_like, variables["params"]),
            jnp.zeros(len(jax.tree.leaves(variables["params"]))),
        )
        (gradient, squares), losses = jax.lax.scan(one, zeros, jax.random.split(mask, masks))
        mean = jax.tree.map(lambda x: x / masks, gradient)
        return losses, mean, squares / masks, _leaf_squares(mean)

    return draw


def _leaf_squares(tree: Any) -> Array:
    return jnp.stack([jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(tree)])
