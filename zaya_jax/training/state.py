"""The training state and one training step."""

import functools
import math
from collections.abc import Callable
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from zaya_jax.architecture import Layout, Zaya
from zaya_jax.architecture.moe.router import BALANCING
from zaya_jax.parallel import Placement
from zaya_jax.training.gradients import make_gradients, make_sums, widen
from zaya_jax.training.objective import Objective
from zaya_jax.training.optimizer import (
    OptimizerConfig,
    balancing_error,
    frozen_parameters,
    hold,
    make_optimizer,
    with_frozen,
)

Array = jax.Array
RECENT_STEPS = 20  # about so many losses does `TrainState.recent_loss` average


class TrainState(struct.PyTreeNode):
    """All that a run needs to resume, but for the data position; a pytree of arrays."""

    step: Array  # int32 []
    params: dict
    balancing: dict  # the "balancing" collection; empty without a router
    opt_state: optax.OptState
    balancing_opt_state: optax.OptState
    rng: Array  # uint32 key data; step s uses fold_in(rng, s)
    ema: dict  # average of the parameters, float32 or wider; empty where there is none
    recent_loss: Array  # float32 []: average of the last few losses, which a spike is measured against; nan: none yet
    skipped: Array  # int32 []: steps of this phase that changed nothing

    @property
    def variables(self) -> dict:
        return {"params": self.params, BALANCING: self.balancing}

    @property
    def ema_variables(self) -> dict:
        """`variables` with the averaged parameters, in the parameters' own dtypes."""
        averaged = jax.tree.map(lambda average, leaf: average.astype(leaf.dtype), self.ema, self.params)
        return {"params": averaged, BALANCING: self.balancing}


def init_variables(model: Zaya, seed: int, placement: Placement | None = None) -> dict:
    """Fresh parameters and balancing biases, each made where it will lie."""
    layout = Layout.causal(jnp.zeros((1, 2), jnp.int32))
    places = None
    if placement is not None:
        places = placement.shardings(jax.eval_shape(model.init, jax.random.key(seed), layout))
    return jax.jit(model.init, out_shardings=places)(jax.random.key(seed), layout)


def init_state(variables: dict, optimizer: OptimizerConfig, seed: int) -> TrainState:
    """The state at the start of a phase: given variables, fresh optimizer.

    Raises:
      UserError: the optimizer's `freeze` matches nothing.
    """
    params, balancing = variables["params"], variables.get(BALANCING, {})
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        balancing=balancing,
        opt_state=make_optimizer(optimizer).init(params),
        balancing_opt_state=optax.adam(1.0).init(balancing),
        rng=jax.random.key_data(jax.random.key(seed)),
        ema=widen(params) if optimizer.ema_decay else {},
        recent_loss=jnp.full((), jnp.nan, jnp.float32),
        skipped=jnp.zeros((), jnp.int32),
    )


def make_train_step(
    model: Zaya,
    objective: Objective,
    optimizer: OptimizerConfig,
    placement: Placement | None = None,
    skip_bad: bool = False,
) -> Callable[..., tuple[TrainState, dict[str, Array]]]:
    """A jitted (state, batch, share of the peak rate, spike factor) -> (state, metrics).

    The old state's buffers are given away. A step is bad if its loss or its gradient's norm is not finite, or its loss
    is above spike factor x `recent_loss`; without the last argument (infinity) no loss is too high. The metrics say so
    in `bad`, and in `recent_loss` what the loss was compared with.

    Args:
      placement: of the state and the batch; None for one device. The random draws are made for the whole batch before
        it is split, so the numbers differ between placements by rounding alone.
      skip_bad: a bad step changes nothing but the step's number (hence draws and rate), `recent_loss` and `skipped`.
    """
    optimizer = optimizer.without_schedule()
    # flax modules are hashable; its dataclass_transform (eq without frozen) does not say so
    return _train_step(model, objective, optimizer, placement, skip_bad)  # pyrefly: ignore[bad-argument-type]


@functools.lru_cache(maxsize=8)  # phases that share all five (pretraining and its control, say) compile once
def _train_step(
    model: Zaya, objective: Objective, optimizer: OptimizerConfig, placement: Placement | None, skip_bad: bool
):
    """See `make_train_step`."""
    rule = make_optimizer(optimizer)
    balancing_rule = optax.adam(optimizer.balancing_rate)

    def held(params: dict) -> dict:
        return with_frozen(frozen_parameters(optimizer, params), params) if optimizer.freeze else params

    def gradients(params: dict, *rest) -> tuple[dict, dict[str, Array]]:
        constant = objective.context_is_constant(model, frozen_parameters(optimizer, params))
        return make_gradients(model, objective, placement, optimizer.accumulate, held, constant)(params, *rest)

    def train_step(
        state: TrainState, batch: dict[str, Array], rate: Array, spike_factor: Array | float = math.inf
    ) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
        drawn = objective.draw(key, *batch["tokens"].shape)
        grads, sums = gradients(state.params, state.balancing, batch, drawn)
        if optimizer.freeze:
            grads = hold(frozen_parameters(optimizer, state.params), grads)
        loss, norm = objective.loss(sums, sums), optax.tree.norm(grads)
        recent = state.recent_loss
        limit = jnp.where(jnp.isinf(spike_factor), jnp.inf, spike_factor * recent)  # a policy's loss may be negative
        bad = ~(jnp.isfinite(loss) & jnp.isfinite(norm)) | (loss > limit)
        new = _moved(optimizer, (rule, balancing_rule), state, grads, sums["load"], rate)
        if skip_bad:
            new = jax.tree.map(functools.partial(jnp.where, bad), state, new)
        new = new.replace(
            step=state.step + 1, recent_loss=_recent(recent, loss, limit), skipped=state.skipped + (bad & skip_bad)
        )
        metrics = {
            "loss": loss,
            "grad_norm": norm,
            **summarise(sums),
            **objective.metrics(sums),
            "bad": bad,
            "recent_loss": recent,
        }
        if skip_bad:
            metrics["skipped_steps"] = new.skipped
        if placement is not None:
            new = jax.lax.with_sharding_constraint(new, placement.shardings(new))
        return new, metrics

    return jax.jit(train_step, donate_argnums=0)


def _moved(
    optimizer: OptimizerConfig, rules: tuple[optax.GradientTransformation, optax.GradientTransformation],
    state: TrainState, grads: dict, load: Array, rate: Array,
) -> TrainState:  # fmt: skip
    """The state after an update, the counters aside.

    Args:
      rules: of the parameters and of the balancing biases.
    """
    rule, balancing_rule = rules
    updates, opt_state = rule.update(grads, state.opt_state, state.params)
    updates = jax.tree.map(lambda update: update * rate, updates)
    if optimizer.freeze:  # weight decay would move the layers that are frozen within a stacked parameter
        updates = hold(frozen_parameters(optimizer, state.params), updates)
    params = cast(dict, optax.apply_updates(state.params, updates))
    error = jax.tree.map(lambda leaf: balancing_error(load, optimizer.balance_skip).astype(leaf.dtype), state.balancing)
    nudge, balancing_opt_state = balancing_rule.update(error, state.balancing_opt_state)
    return state.replace(
        params=params,
        balancing=optax.apply_updates(state.balancing, nudge),
        opt_state=opt_state,
        balancing_opt_state=balancing_opt_state,
        ema=_averaged(optimizer.ema_decay, state.ema, params),
    )


def _averaged(decay: float, ema: dict, params: dict) -> dict:
    """The next average of the parameters; empty where there is none."""
    if not decay:
        return ema
    return jax.tree.map(lambda average, leaf: decay * average + (1 - decay) * leaf.astype(average.dtype), ema, params)


def _recent(recent: Array, loss: Array, limit: Array) -> Array:
    """The next average of recent losses.

    A spike counts as its limit, so that it moves the average little, and a lasting change of level is caught up with.
    """
    kept = jnp.where(loss > limit, limit, loss).astype(recent.dtype)
    moved = jnp.where(jnp.isnan(recent), kept, recent + (kept - recent) / RECENT_STEPS)
    return jnp.where(jnp.isfinite(loss), moved, recent)


def make_eval_step(model: Zaya, objective: Objective, seed: int = 0, placement: Placement | None = None):
    """(variables, batch on the host, index) -> sums, jitted; the grid offsets depend on (seed, index) alone.

    Args:
      placement: of the variables; the batch's rows are laid over it here.
    """
    sums = make_sums(model, objective, placement)

    def eval_step(variables: dict, batch: dict[str, Array], index: Array) -> dict[str, Array]:
        key = jax.random.fold_in(jax.random.key(seed), index)
        return sums(variables, batch, objective.draw(key, *batch["tokens"].shape))

    jitted = jax.jit(eval_step)
    if placement is None:
        return jitted
    return lambda variables, batch, index: jitted(variables, placement.put_batch(batch), np.int32(index))


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
