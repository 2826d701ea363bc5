"""What a run needs of memory, held against what is there, before anything is compiled or made.

A bound from below: of what is an estimate (`training_memory`) half counts, since XLA was measured to take between half
and twice as much. What is refused would fail; not all that is let through fits.
"""

import dataclasses
import math
from collections.abc import Container

import jax
from flax import traverse_util

from zaya_jax.aot.experts import settled
from zaya_jax.architecture import Zaya
from zaya_jax.costs.flops import (
    Split,
    Trained,
    TrainingMemory,
    parameter_count,
    rows_of_a_step,
    training_memory,
)
from zaya_jax.interop.formats.names import abstract_variables
from zaya_jax.memory import binary, device_memory, host_memory, require
from zaya_jax.parallel import Placement
from zaya_jax.runs.configuration.settings import Settings
from zaya_jax.runs.configuration.stage import Stage
from zaya_jax.sampling.decoding import require_cache
from zaya_jax.training.optimizer import frozen_parameters, moving

CHANGE = "{name}.batch_size, {name}.row_length or the model may be smaller, {name}.optimizer.accumulate larger, " \
    "execution.remat 'full', or the mesh over more devices"  # fmt: skip
BATCH_BYTES = 3 * 4  # of a token: itself, its document, whether it is an answer; int32 each


def check(setup: Settings, placements: dict[str, Placement | None], trained: Container[str] = ()) -> None:
    """UserError, naming the phase or field, for what cannot fit the memory of the devices that are here.

    Args:
      placements: of each stage, over devices that are here.
      trained: stages that need no step any more.
    """
    for name, stage in setup.stages.items():
        if name in trained:
            continue
        placement = placements[name]
        memory = stage_memory(on_devices(stage, placement), split_of(placement))
        device, sharers = (None, 1) if placement is None else (placement.mesh.devices.flat[0], placement.mesh.size)
        parts = f"parameters {binary(memory.parameters)}, the optimizer's state {binary(memory.optimizer)}, "
        parts += f"activations and gradients about {binary(memory.gradients + memory.logits + memory.activations)}"
        require(
            f"{name}: a training step", least(memory), device_memory(device, sharers), CHANGE.format(name=name),
            parts,
        )  # fmt: skip
        tokens = stage.batch_size * stage.row_length * BATCH_BYTES
        held = setup.validation_batches * len(stage.mixture) * tokens
        change = f"data.validation_batches, {name}.batch_size or {name}.row_length may be smaller"
        require(f"data.validation_batches: {setup.validation_batches} of {name}", held, host_memory(), change)
    protocol = setup.protocol
    at_once = max(1, protocol.batch // protocol.samples)  # prompts, as `run_sampler` cuts them
    rows = min(protocol.prompts, at_once) * protocol.samples
    if setup.samplers and (setup.tasks or setup.texts):
        change = "evaluate.batch, evaluate.samples or evaluate.max_new_tokens may be smaller"
        require_cache(setup.stages[setup.sampled].model, rows, protocol.max_new_tokens, "evaluate", change)


def stage_memory(stage: Stage, split: Split) -> TrainingMemory:
    """Of one device, during a step; a batch that is accumulated holds the activations of one piece."""
    objective, optimizer = stage.phase.objective, stage.phase.optimizer
    return training_memory(
        stage.model, stage.batch_size // optimizer.accumulate, stage.row_length, objective.masks,
        objective.block_size, optimizer.name, optimizer.ema_decay > 0, split, stage.execution, trained(stage),
    )  # fmt: skip


def on_devices(stage: Stage, placement: Placement | None, device: jax.Device | None = None) -> Stage:
    """The stage as its step is compiled: execution.expert_backend "auto" is what these devices make of it.

    Args:
      device: where it runs if there is no placement; this process's first by default.
    """
    split, objective = split_of(placement), stage.phase.objective
    if split.experts > 1:  # tokens go to their experts' devices: `moe.across`
        return stage
    if placement is None:
        device = device or jax.local_devices()[0]
    else:
        mine = placement.mesh.local_devices
        device = mine[0] if mine else placement.mesh.devices.flat[0]
    pieces = stage.phase.optimizer.accumulate
    tokens = rows_of_a_step(
        stage.batch_size // pieces, stage.row_length, objective.masks, objective.block_size, split, trained(stage)
    )
    return dataclasses.replace(stage, execution=settled(stage.execution, stage.model, sum(tokens), device))


def trained(stage: Stage) -> Trained:
    """What a stage's step trains, of its `freeze` and its objective."""
    objective, optimizer = stage.phase.objective, stage.phase.optimizer
    blocks = objective.blocks_per_row
    if not optimizer.freeze:
        return Trained(blocks=blocks)
    params = traverse_util.unflatten_dict(abstract_variables(stage.model))["params"]
    frozen = frozen_parameters(optimizer, params)
    free = jax.tree.map(lambda held, leaf: 0 if held is True else leaf.size, frozen, params)
    count = sum(jax.tree.leaves(free))
    passes = 2 if count < parameter_count(stage.model).total // 2 else 3
    constant = objective.context_is_constant(Zaya(stage.model), frozen)
    constant |= objective.drafter is not None and not objective.alpha
    return Trained(count, 1 if constant else passes, passes, blocks, moving(frozen, params))


def least(memory: TrainingMemory) -> int:
    """Bytes that a step takes for certain."""
    estimated = memory.logits + memory.activations + memory.gradients
    return memory.parameters + memory.average + memory.optimizer + estimated // 2


def split_of(placement: Placement | None) -> Split:
    """How many ways a placement cuts what `training_memory` counts."""
    if placement is None:
        return Split()
    experts = placement.split("expert")
    along = math.prod(placement.mesh.shape[n] for n in placement.names("embed") if n not in placement.names("expert"))
    return Split(along, experts, placement.split("batch"), placement.split("sequence"))
