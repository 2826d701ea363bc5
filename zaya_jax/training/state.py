"""The training state and one training step."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import struct

from zaya_jax.architecture import Layout, Zaya
from zaya_jax.architecture.moe import BALANCING
from zaya_jax.parallel import Placement
from zaya_jax.training.gradients import make_gradients, make_sums
from zaya_jax.training.objective import Objective
from zaya_jax.training.optimizer import OptimizerConfig, balancing_error, make_optimizer

Array = jax.Array


class TrainState(struct.PyTreeNode):
    """All that a run needs to go on, but for the data position; a pytree of arrays."""

    step: Array  # int32 []
    params: dict
    balancing: dict  # the "balancing" collection; empty without a router
    opt_state: optax.OptState
    balancing_opt_state: optax.OptState
    rng: Array  # uint32 key data; step s uses fold_in(rng, s)

    @property
    def variables(self) -> dict:
        return {"params": self.params, BALANCING: self.balancing}


def init_variables(model: Zaya, seed: int) -> dict:
    """Fresh parameters and balancing biases."""
    layout = Layout.causal(jnp.zeros((1, 2), jnp.int32))
    return jax.jit(model.init)(jax.random.key(seed), layout)


def init_state(variables: dict, optimizer: OptimizerConfig, seed: int) -> TrainState:
    """The state at the start of a phase: given variables, fresh optimizer."""
    params, balancing = variables["params"], variables.get(BALANCING, {})
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        balancing=balancing,
        opt_state=make_optimizer(optimizer).init(params),
        balancing_opt_state=optax.adam(1.0).init(balancing),
        rng=jax.random.key_data(jax.random.key(seed)),
    )


@functools.lru_cache(maxsize=8)  # phases that share all four (pretraining and its control, say) compile once
def make_train_step(
    model: Zaya, objective: Objective, optimizer: OptimizerConfig, placement: Placement | None = None
) -> Callable[[TrainState, dict[str, Array], float], tuple[TrainState, dict[str, Array]]]:
    """A jitted (state, batch, share of the peak rate) -> (state, metrics); the old state's buffers are given away.

    Args:
      placement: of the state and the batch; None for one device. The random draws are made for the whole batch before
        it is split, so the numbers differ between placements by rounding alone.
    """
    rule = make_optimizer(optimizer)
    balancing_rule = optax.adam(optimizer.balancing_rate)
    gradients = make_gradients(model, objective, placement)

    def train_step(state: TrainState, batch: dict[str, Array], rate: Array) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
        drawn = objective.draw(key, *batch["tokens"].shape)
        grads, sums = gradients(state.params, state.balancing, batch, drawn)
        updates, opt_state = rule.update(grads, state.opt_state, state.params)
        updates = jax.tree.map(lambda update: update * rate, updates)
        error = jax.tree.map(lambda leaf: balancing_error(sums["load"]).astype(leaf.dtype), state.balancing)
        nudge, balancing_opt_state = balancing_rule.update(error, state.balancing_opt_state)
        metrics = {"loss": objective.loss(sums, sums), "grad_norm": optax.tree.norm(grads), **summarise(sums)}
        state = state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            balancing=optax.apply_updates(state.balancing, nudge),
            opt_state=opt_state,
            balancing_opt_state=balancing_opt_state,
        )
        if placement is not None:
            state = jax.lax.with_sharding_constraint(state, placement.shardings(state))
        return state, metrics

    return jax.jit(train_step, donate_argnums=0)


def make_eval_step(model: Zaya, objective: Objective, seed: int = 0, placement: Placement | None = None):
    """A jitted (variables, batch, index) -> sums; the grid offsets depend on (seed, index) alone."""
    sums = make_sums(model, objective, placement)

    def eval_step(variables: dict, batch: dict[str, Array], index: Array) -> dict[str, Array]:
        key = jax.random.fold_in(jax.random.key(seed), index)
        return sums(variables, batch, objective.draw(key, *batch["tokens"].shape))

    return jax.jit(eval_step)


def summarise(sums: dict[str, Array]) -> dict[str, Array]:
    """Sums over tokens -> means: losses in nats, accuracies, and how evenly experts are used.

    expert_load_clean and expert_load_draft are the largest share of tokens any one expert gets, averaged over layers
    (1 / num_experts is perfect balance, 1 is collapse); expert_share_* keep every layer's and expert's share.
    """
    out = {"ar_loss": sums["ar_nll"] / jnp.maximum(sums["ar_count"], 1), "ar_tokens": sums["ar_count"]}
    kinds = ["clean"] if sums["load"].shape[-1] else []
    if "draft_nll" in sums:
        count = jnp.maximum(sums["draft_count"], 1)
        out["draft_loss"] = sums["draft_nll"].sum() / jnp.maximum(sums["draft_count"].sum(), 1)
        out["draft_loss_by_slot"] = sums["draft_nll"] / count
        out["draft_accuracy_by_slot"] = sums["draft_correct"] / count
        kinds += ["draft"] * len(kinds)
    for i, kind in enumerate(kinds):
        load = sums["load"][:, i].astype(jnp.float32)
        share = load / jnp.maximum(load.sum(-1, keepdims=True), 1)
        out[f"expert_load_{kind}"] = share.max(-1).mean()
        out[f"expert_share_{kind}"] = share
    return out
