"""A config's list of training phases, checked whole: `phases` names sections, in order.

A section says how long, on what, with which optimizer (`configs.common.phase`); and, where it differs from the rest of
the run, `row_length`, `rope_theta`, `mixture`, `packing` and `mesh`. `start` says where its weights come from: an
earlier phase (None: the one before it), a checkpoint's folder, or "scratch". A phase of 0 steps is left out, and who
would start from it starts where it would have. `optimizer_state` "continue" takes the optimizer's moments, the
balancing controller's and averages over from the start; "fresh" begins them anew. Without a `rope_theta` of its own a
phase has its start's.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any, cast

import jax
from flax import traverse_util
from ml_collections import ConfigDict

from zaya_jax.architecture import Execution, ZayaConfig
from zaya_jax.architecture.config import NO_MASK, THETA
from zaya_jax.architecture.training_layouts import LAYOUTS
from zaya_jax.checks import ROWS, Integer, Items, Text, Unset, check, shown
from zaya_jax.data.pipeline import PACKINGS
from zaya_jax.errors import UserError
from zaya_jax.interop.editing.adapters import fresh_adapters
from zaya_jax.interop.editing.mask import add_mask_token
from zaya_jax.interop.formats.names import abstract_variables
from zaya_jax.interop.pretrained import load_pretrained
from zaya_jax.parallel import MeshConfig, Placement, make_placement
from zaya_jax.paths import absolute
from zaya_jax.runs import fields
from zaya_jax.runs.mixture import Mixtures, MixtureSource
from zaya_jax.training.loop import Phase
from zaya_jax.training.objective import Objective, objective_type
from zaya_jax.training.optimizer import OptimizerConfig, frozen_parameters
from zaya_jax.training.state import init_state

SCRATCH = "scratch"
ROW_LENGTH = Integer(2)  # a next token takes two
# Fields of a section that are not `Phase`'s own.
OURS = ("batch_size", "start", "optimizer_state", "row_length", "rope_theta", "mixture", "packing", "mesh")
PHASE = {*fields.names_of(Phase), *OURS} - {"name"}  # which is the section's own
NEEDED = ("steps", "batch_size", "objective", "optimizer")


@dataclasses.dataclass(frozen=True)
class Stage:
    """One phase of a run."""

    phase: Phase
    model: ZayaConfig  # with this phase's rotary base
    execution: Execution
    row_length: int
    batch_size: int
    mixture: tuple[MixtureSource, ...]
    packing: str
    start: str | Path | None  # an earlier stage, a checkpoint's folder, or None: from scratch
    continues: bool  # the optimizer's state comes over from `start`, too
    mesh: MeshConfig
    data_seed: int  # stages as far from their beginning read the same data; those before them read it in other orders

    def placement(self, devices: list | None = None) -> Placement | None:
        """The stage laid over `devices` (jax.devices() by default); `make_placement` says what it raises."""
        objective = self.phase.objective
        block_size = objective.block_size if objective.drafts else 1
        if self.mesh.context > 1 and objective.drafts and not LAYOUTS[objective.row_layout].splits:
            got = f"got {self.mesh.context}, may be 1 where objective.row_layout is {objective.row_layout!r}"
            raise UserError(f"{self.phase.name}: mesh.context: {got}, whose rows devices cannot share")
        rows = self.batch_size // self.phase.optimizer.accumulate
        try:
            return make_placement(self.mesh, self.model, rows, self.row_length, block_size, devices, self.execution)
        except UserError as error:
            raise UserError(f"{self.phase.name}: {error}") from error


def is_phase(section: Any) -> bool:
    """Whether a config's field can be a phase."""
    return isinstance(section, ConfigDict) and any(name in section for name in ("steps", "objective", "optimizer"))


def phase_names(config: ConfigDict) -> tuple[str, ...]:
    """`phases`. UserError unless it is a list of different sections that hold a phase each."""
    fields.section("", config, set(config), needed=["phases"])
    known = sorted(name for name in config if is_phase(config[name]))
    given = (config.phases,) if isinstance(config.phases, str) else config.phases
    names = tuple(check("phases", given, Items(Text())))
    wrong = next((name for i, name in enumerate(names) if name not in known or name in names[:i]), None)
    if wrong is not None or not names:
        got = shown(wrong) + " twice" * (wrong in known) if names else "none"
        raise UserError(f"phases: got {got}, may be different ones of the sections {', '.join(known)}")
    for name in names:
        fields.section(name, config[name], PHASE, NEEDED)
    return names


def read_stages(config: ConfigDict, model: ZayaConfig, execution: Execution, mixtures: Mixtures) -> dict[str, Stage]:
    """The stages of a run by name, in order; those of no steps are left out.

    Raises:
      UserError, FileNotFoundError: one line that names the field, what it got and what it may be.
    """
    names = phase_names(config)
    stages: dict[str, Stage] = {}
    starts: dict[str, str | Path | None] = {}
    for i, name in enumerate(names):
        starts[name] = _start(name, config[name], names[:i], starts, stages)
        if config[name].steps != 0:
            stages[name] = _stage(name, config, model, execution, mixtures, starts[name], stages)
    if not stages:
        raise UserError(f"phases: got {names}, may be some of which at least one has steps above 0")
    return stages


def load_start(model: ZayaConfig, folder: Path, field: str, placement: Placement | None = None, seed: int = 0) -> dict:
    """A checkpoint's variables, in the model's dtypes. UserError unless they are its own, by name and shape.

    A checkpoint without a mask token gets the model's: a new row where the model has just one more for it. One without
    adapters gets the model's, which add nothing yet.
    """
    theirs, variables = load_pretrained(folder, placement)
    if theirs.mask_token_id == NO_MASK and model.mask_token_id != NO_MASK:
        row = model.vocab_size == theirs.vocab_size + 1 and model.mask_token_id == theirs.vocab_size
        theirs, variables = add_mask_token(theirs, variables, None if row else model.mask_token_id)
    mine, flat = abstract_variables(model), cast(dict, traverse_util.flatten_dict(variables))
    if not theirs.lora_rank:
        flat |= fresh_adapters(model, seed)
    for path in sorted(mine | flat):
        got, may_be = (found[path].shape if path in found else "nothing" for found in (flat, mine))
        if got != may_be:
            raise UserError(f"{field}: {folder} has {got} for {'/'.join(path)}, may be the model's {may_be}")
    return traverse_util.unflatten_dict({path: leaf.astype(mine[path].dtype) for path, leaf in flat.items()})


def _stage(
    name: str,
    config: ConfigDict,
    model: ZayaConfig,
    execution: Execution,
    mixtures: Mixtures,
    start: str | Path | None,
    stages: dict[str, Stage],
) -> Stage:
    section, parent = config[name], stages[start] if isinstance(start, str) else None
    phase = _phase(name, section, config.seed)
    model = model if parent is None else parent.model
    theta = section.get("rope_theta")
    if theta is not None:
        model = model.replace(rope_theta=float(check(f"{name}.rope_theta", theta, THETA)))

    def own(field: str) -> tuple[str, Any]:
        """(where it stands, value): the section's, else the data's."""
        mine = section.get(field)
        return (f"data.{field}", config.data[field]) if mine is None else (f"{name}.{field}", mine)

    row_length = check(*own("row_length"), ROW_LENGTH)
    if row_length > model.max_position_embeddings:
        raise UserError(
            f"{own('row_length')[0]}: got {row_length}, may be at most model.max_position_embeddings "
            f"({model.max_position_embeddings})"
        )
    objective = phase.objective
    if objective.drafts and objective.block_size > row_length:
        got = f"got {objective.block_size}, may be at most {own('row_length')[0]} ({row_length})"
        raise UserError(f"{name}.objective.block_size: {got}")
    where, items = own("mixture")
    batch_size = check(f"{name}.batch_size", section.batch_size, ROWS)
    _check_optimizer(name, phase.optimizer, model, batch_size)
    return Stage(
        phase=phase,
        model=model,
        execution=execution,
        row_length=row_length,
        batch_size=batch_size,
        mixture=mixtures.read(items, where),
        packing=fields.choice(*own("packing"), PACKINGS),
        start=start,
        mesh=_mesh(name, config),
        continues=_continues(name, section, phase, model, parent),
        data_seed=config.seed if parent is None else parent.data_seed + 1,
    )


def _phase(name: str, section: ConfigDict, seed: int) -> Phase:
    values: dict[str, Any] = {key: value for key, value in section.items() if key not in OURS}
    given = section.objective
    kind: type = Objective
    if isinstance(given, ConfigDict):  # else `build` says what it may be
        kind = objective_type(f"{name}.objective.kind", given.get("kind", Objective.kind))
    values["objective"] = fields.build(kind, section.objective, f"{name}.objective")
    values["optimizer"] = fields.build(OptimizerConfig, section.optimizer, f"{name}.optimizer")
    values = {"name": name, "seed": seed, **values}
    try:
        return Phase(**values)
    except UserError as error:
        raise UserError(fields.named(error, Phase, name)) from error


def _check_optimizer(name: str, optimizer: OptimizerConfig, model: ZayaConfig, batch_size: int) -> None:
    """UserError unless the optimizer fits the model and the batch."""
    if batch_size % optimizer.accumulate:
        got = optimizer.accumulate
        raise UserError(f"{name}.optimizer.accumulate: got {got}, may be a divisor of batch_size ({batch_size})")
    frozen = model.lora_rank and model.lora_rows == "drafts" and "*" in optimizer.freeze
    if frozen and model.feed_forward == "moe" and optimizer.balancing_rate:
        may_be = "0 where the clean rows' model is frozen: its balancing biases are part of it"
        raise UserError(f"{name}.optimizer.balancing_rate: got {optimizer.balancing_rate}, may be {may_be}")
    if optimizer.freeze:
        params = traverse_util.unflatten_dict(abstract_variables(model))["params"]
        try:
            frozen_parameters(optimizer, params)
        except UserError as error:
            raise UserError(fields.named(error, OptimizerConfig, f"{name}.optimizer")) from error


def _mesh(name: str, config: ConfigDict) -> MeshConfig:
    """The phase's mesh, else the run's, else one of data alone."""
    own = config[name].get("mesh")
    where, given = ("mesh", config.get("mesh")) if own is None else (f"{name}.mesh", own)
    values = dict(fields.section(where, ConfigDict() if given is None else given, fields.names_of(MeshConfig)))
    if isinstance(values.get("rules"), ConfigDict):
        for logical, names in values["rules"].items():
            check(f"{where}.rules.{logical}", names, Items(Text()))
        values["rules"] = tuple((logical, tuple(names)) for logical, names in values["rules"].items())
    elif "rules" in values:
        raise UserError(f"{where}.rules: got {shown(values['rules'])}, may be a section (a ConfigDict)")
    return fields.build(MeshConfig, values, where)


def _start(
    name: str,
    section: ConfigDict,
    earlier: tuple[str, ...],
    starts: dict[str, str | Path | None],
    stages: dict[str, Stage],
) -> str | Path | None:
    """`Stage.start`; a checkpoint's folder is read by `load_pretrained`."""
    given = check(f"{name}.start", section.get("start"), Unset(Text())) or (earlier[-1] if earlier else SCRATCH)
    if given == SCRATCH:
        return None
    if given in earlier:
        return given if given in stages else starts[given]
    if not absolute(given).is_dir():
        may_be = f"an earlier phase ({', '.join(earlier) or 'none'}), a checkpoint's folder, or {SCRATCH!r}"
        raise FileNotFoundError(f"{name}.start: got {given!r}, may be {may_be}")
    return Path(given)


def _continues(name: str, section: ConfigDict, phase: Phase, model: ZayaConfig, parent: Stage | None) -> bool:
    """Whether the optimizer's state comes over; UserError where it cannot."""
    field = f"{name}.optimizer_state"
    if fields.choice(field, section.get("optimizer_state", "fresh"), ("fresh", "continue")) == "fresh":
        return False
    if parent is None:
        raise UserError(f"{field}: got 'continue', may be 'fresh' where a phase does not start from another")
    variables = traverse_util.unflatten_dict(abstract_variables(model))
    mine, theirs = (
        jax.eval_shape(functools.partial(init_state, optimizer=optimizer, seed=0), variables)
        for optimizer in (phase.optimizer, parent.phase.optimizer)
    )
    if jax.tree.structure(mine) != jax.tree.structure(theirs):
        raise UserError(
            f"{field}: got 'continue', may be 'fresh': the optimizer keeps other state than that of {parent.phase.name}"
        )
    return True
