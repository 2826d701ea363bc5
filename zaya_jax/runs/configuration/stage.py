"""A training stage of a run: one phase with everything that its section leaves to the run."""

import dataclasses
from pathlib import Path

from zaya_jax.architecture import Execution, ZayaConfig
from zaya_jax.errors import UserError
from zaya_jax.parallel import MeshConfig, Placement, make_placement
from zaya_jax.rollouts.config import Rollouts
from zaya_jax.runs.configuration.mixture import MixtureSource
from zaya_jax.training.loop import Phase


@dataclasses.dataclass(frozen=True)
class Stage:
    """One phase of a run."""

    phase: Phase
    model: ZayaConfig  # with this phase's rotary base, and the drafter that it or an earlier phase trains
    execution: Execution
    row_length: int
    batch_size: int
    mixture: tuple[MixtureSource, ...]
    packing: str
    start: str | Path | None  # an earlier stage, a checkpoint's folder, or None: from scratch
    adapters: Path | None  # a folder of adapters for that checkpoint, where fresh ones are not to be trained
    continues: bool  # the optimizer's state comes over from `start`, too
    mesh: MeshConfig
    rollouts: Rollouts | None  # how a policy makes its batches
    data_seed: int  # stages as far from their beginning read the same data; those before them read it in other orders

    def placement(self, devices: list | None = None) -> Placement | None:
        """The stage laid over `devices` (jax.devices() by default); `make_placement` says what it raises."""
        objective = self.phase.objective
        block_size = objective.block_size if objective.masks else 1
        if self.mesh.context > 1 and objective.drafter is not None:
            got = f"got {self.mesh.context}, may be 1 where objective.kind is {objective.kind!r}"
            raise UserError(f"{self.phase.name}: mesh.context: {got}: devices cannot share such rows")
        if self.mesh.context > 1 and objective.masks and (field := objective.unshared):
            got = f"got {self.mesh.context}, may be 1 where objective.{field} is {getattr(objective, field)!r}"
            raise UserError(f"{self.phase.name}: mesh.context: {got}, whose rows devices cannot share")
        rows = self.batch_size // self.phase.optimizer.accumulate
        try:
            placed = make_placement(self.mesh, self.model, rows, self.row_length, block_size, devices, self.execution)
        except UserError as error:
            raise UserError(f"{self.phase.name}: {error}") from error
        batch = 0 if self.rollouts is None else self.rollouts.batch or 0
        if placed is not None and batch % (split := placed.split("batch")):
            got = f"got {batch}, may be a multiple of {split}, the devices that share them"
            raise UserError(f"{self.phase.name}.rollouts.batch: {got}")
        return placed
