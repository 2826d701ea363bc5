"""The loss's sums and gradients over a batch, on one device or mapped over many.

Over many, everything is explicit: each device runs its own rows (and part of each row) on its own share of the weights;
what must be fetched is fetched where it is needed (architecture/shards.py), and one sum over devices ends it.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from zaya_jax.architecture import Zaya
from zaya_jax.architecture.moe.router import BALANCING
from zaya_jax.errors import UserError
from zaya_jax.parallel import Placement
from zaya_jax.training.objective import Objective

Array = jax.Array
Sums = dict[str, Array]


def widen(tree: Any) -> Any:
    """Every leaf in float32 at least: where sums of many small terms must not be rounded away."""
    return jax.tree.map(lambda x: x.astype(jnp.promote_types(jnp.float32, x.dtype)), tree)


def make_sums(model: Zaya, objective: Objective, placement: Placement | None) -> Callable[..., Sums]:
    """(variables, batch, drawn) -> `Objective.sums` of the whole batch; arguments laid out as `placement` says."""
    if placement is None:
        return lambda variables, batch, drawn: objective.sums(model, variables, batch, drawn)
    local = _local_sums(model, objective, placement)

    def sums(variables: dict, batch: dict[str, Array], drawn: dict[str, Array]) -> Sums:
        def run(params, balancing, batch, drawn):
            return jax.lax.psum(local(params, balancing, batch, drawn), placement.mesh.axis_names)

        return _mapped(run, placement, variables["params"], lambda _: PartitionSpec())(
            variables["params"], variables.get(BALANCING, {}), batch, drawn
        )

    return sums


def make_gradients(
    model: Zaya,
    objective: Objective,
    placement: Placement | None,
    accumulate: int = 1,
    held: Callable[[dict], dict] = lambda params: params,
    constant_context: bool = False,
):
    """(params, balancing, batch, drawn) -> (gradients of the batch's mean loss, the batch's sums).

    Args:
      held: parameters -> parameters, some of them constants, whose gradients are zeros.
      constant_context: see `Objective.sums`; without effect where devices share rows.
      accumulate: micro-batches that a batch is run in, one after the other. Each divides by the whole batch's counts,
        so their gradients and sums add up to the whole batch's.
    """
    if placement is not None and placement.shards.names("sequence"):
        constant_context = False
    gradients = _micro_gradients(model, objective, placement, held, constant_context)

    def whole(params, balancing, batch: dict[str, Array], drawn: dict[str, Array]) -> tuple[dict, Sums]:
        counts, rows = objective.counts(batch, drawn), batch["tokens"].shape[0]
        if accumulate == 1:
            return gradients(params, balancing, batch, drawn, counts)
        if rows % accumulate:
            may_be = f"a divisor of the batch's rows ({rows})"
            raise UserError(f"OptimizerConfig.accumulate: got {accumulate}, may be {may_be}")

        def micro(total, piece):
            rows, draws = piece
            return jax.tree.map(jnp.add, total, gradients(params, balancing, rows, draws, counts)), None

        # Strided, so that rows that are split over devices stay where they are.
        pieces = jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), (batch, drawn))
        first_rows, first_draws = jax.tree.map(lambda x: x[0], pieces)
        _, of_sums = jax.eval_shape(gradients, params, balancing, first_rows, first_draws, counts)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (jax.eval_shape(widen, params), of_sums))
        grads, sums = jax.lax.scan(micro, zeros, pieces)[0]
        return jax.tree.map(lambda grad, leaf: grad.astype(leaf.dtype), grads, params), sums

    return whole


def _micro_gradients(
    model: Zaya, objective: Objective, placement: Placement | None, held: Callable[[dict], dict], constant_context: bool
):
    """(params, balancing, batch, drawn, counts) -> (gradients of the loss over `counts` tokens, the batch's sums)."""

    def backward(sums_of: Callable[..., Sums], params, balancing, batch, drawn, counts):
        def loss(params):
            sums = sums_of(held(params), balancing, batch, drawn)
            return objective.loss(sums, counts), sums

        return jax.grad(loss, has_aux=True)(params)

    if placement is None:

        def sums_of(params, balancing, batch, drawn) -> Sums:
            return objective.sums(
                model, {"params": params, BALANCING: balancing}, batch, drawn, constant_context=constant_context
            )

        return functools.partial(backward, sums_of)

    local, everywhere = _local_sums(model, objective, placement, constant_context), placement.mesh.axis_names

    def run(*args):
        grads, sums = backward(local, *args)
        # along the names that split a weight, fetching it has added its gradients up already
        grads = jax.tree.map(lambda g, spec: _add_up(g, spec, everywhere), grads, placement.specs(grads))
        return grads, jax.lax.psum(sums, everywhere)

    def gradients(params, *rest):
        mapped = _mapped(run, placement, params, lambda specs: (specs, PartitionSpec()), PartitionSpec())
        return mapped(params, *rest)

    return gradients


def _local_sums(model: Zaya, objective: Objective, placement: Placement, constant_context: bool = False):
    """One device's share of the sums, inside the map."""
    shards = placement.shards
    mapped_model = Zaya(model.config, model.execution, shards)

    def sums(params, balancing, batch, drawn) -> Sums:
        outside = shards.gather({name: leaf for name, leaf in params.items() if name != "layers"})
        variables = {"params": {**outside, "layers": params["layers"]}, BALANCING: balancing}
        return objective.sums(
            mapped_model, variables, batch, drawn, shards.names("sequence"), constant_context=constant_context
        )

    return sums


def _mapped(run, placement: Placement, params, out_specs: Callable[[Any], Any], *more_specs):
    rows, specs = PartitionSpec(placement.names("batch") or None), placement.specs(params)
    in_specs = (specs, PartitionSpec(), rows, rows, *more_specs)
    return jax.shard_map(
        run, mesh=placement.mesh, in_specs=in_specs, out_specs=out_specs(specs), check_vma=False
    )  # fmt: skip


def _add_up(gradient: Array, spec: PartitionSpec, everywhere: tuple[str, ...]) -> Array:
    split = {name for names in spec if names for name in ((names,) if isinstance(names, str) else names)}
    rest = tuple(name for name in everywhere if name not in split)
    return jax.lax.psum(gradient, rest) if rest else gradient
