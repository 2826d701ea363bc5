"""The loss's sums and gradients over a batch, on one device or mapped over many.

Over many, everything is explicit: each device runs its own rows (and part of each row) on its own share of the weights;
what must be fetched is fetched where it is needed (architecture/shards.py), and one sum over devices ends it.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec

from zaya_jax.architecture import Zaya
from zaya_jax.architecture.moe import BALANCING
from zaya_jax.parallel import Placement
from zaya_jax.training.objective import Objective

Array = jax.Array
Sums = dict[str, Array]


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


def make_gradients(model: Zaya, objective: Objective, placement: Placement | None):
    """(params, balancing, batch, drawn, counts) -> (gradients of the mean loss, the batch's sums).

    `counts` holds the token counts that the sums are divided by; None for the batch's own.
    """
    if placement is None:
        return _whole_gradients(model, objective)
    local, everywhere = _local_sums(model, objective, placement), placement.mesh.axis_names

    def run(params, balancing, batch, drawn, counts):
        def loss(params):
            sums = local(params, balancing, batch, drawn)
            own = jax.lax.psum({k: v for k, v in sums.items() if k.endswith("count")}, everywhere)
            return objective.loss(sums, own if counts is None else counts), sums

        grads, sums = jax.grad(loss, has_aux=True)(params)
        # along the names that split a weight, fetching it has added its gradients up already
        specs = placement.specs(grads)
        grads = jax.tree.map(lambda g, spec: _add_up(g, spec, everywhere), grads, specs)
        return grads, jax.lax.psum(sums, everywhere)

    def gradients(params, balancing, batch, drawn, counts=None):
        mapped = _mapped(run, placement, params, lambda specs: (specs, PartitionSpec()), PartitionSpec())
        return mapped(params, balancing, batch, drawn, counts)

    return gradients


def _whole_gradients(model: Zaya, objective: Objective):
    def gradients(params, balancing, batch, drawn, counts=None):
        def loss(params):
            sums = objective.sums(model, {"params": params, BALANCING: balancing}, batch, drawn)
            return objective.loss(sums, sums if counts is None else counts), sums

        return jax.grad(loss, has_aux=True)(params)

    return gradients


def _local_sums(model: Zaya, objective: Objective, placement: Placement):
    """One device's share of the sums, inside the map."""
    shards = placement.shards
    mapped_model = Zaya(model.config, shards)

    def sums(params, balancing, batch, drawn) -> Sums:
        outside = shards.gather({name: leaf for name, leaf in params.items() if name != "layers"})
        variables = {"params": {**outside, "layers": params["layers"]}, BALANCING: balancing}
        return objective.sums(mapped_model, variables, batch, drawn, shards.names("sequence"))

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
