"""A run's config as dataclasses: every field with its type, what it may be, and its default.

`phases` names sections, in order. A section says how long, on what, with which optimizer (`configs.common.phase`); and,
where it differs from the rest of the run, `row_length`, `rope_theta`, `mixture`, `packing` and `mesh`. `start` says
where its weights come from: an earlier phase (None: the one before it), a checkpoint's folder, or "scratch". A phase of
0 steps is left out, and who would start from it starts where it would have. `optimizer_state` "continue" takes the
optimizer's moments, the balancing controller's and averages over from the start; "fresh" begins them anew. Without a
`rope_theta` of its own a phase has its start's.
"""

import dataclasses
import datetime
from typing import Annotated, Any

from ml_collections import ConfigDict

from zaya_jax.architecture import Execution, ZayaConfig
from zaya_jax.architecture.config import THETA
from zaya_jax.architecture.execution import DEFAULT as EXECUTION
from zaya_jax.architecture.execution import FIELDS
from zaya_jax.checks import (
    COUNT,
    ROWS,
    SEED,
    SWITCH,
    Integer,
    Items,
    Name,
    Number,
    Text,
    Unset,
    check,
    check_fields,
    folder_name,
    shown,
)
from zaya_jax.data.chat import THINKING
from zaya_jax.data.pipeline import PACKINGS
from zaya_jax.errors import UserError
from zaya_jax.evaluation.task_accuracy import EvaluationProtocol
from zaya_jax.parallel import MeshConfig
from zaya_jax.parallel.devices import CPU_DEVICES
from zaya_jax.rollouts.config import Rollouts
from zaya_jax.runs.configuration.reader import Made, has_default, names_of, read, section
from zaya_jax.sampling.config import LARGEST_BLOCK, SHARE, TEMPERATURE
from zaya_jax.training import drafter_objective  # registers its kinds
from zaya_jax.training.loop import Phase
from zaya_jax.training.objective import Objective, objective_type

SCRATCH = "scratch"
FROZEN_TARGET = drafter_objective.FROZEN_TARGET
ROW_LENGTH = Integer(2)  # a next token takes two
INGREDIENTS = ("text", "task", "chat", "packed")


def _thinking(given: Any, where: str) -> tuple[str, str]:
    if not isinstance(given, (tuple, list)) or len(given) != 2 or not all(map(Text().allows, given)):
        raise UserError(f"{where}: got {shown(given)}, may be what opens and what closes a thinking block: {THINKING}")
    return given[0], given[1]


def _date(given: Any, where: str) -> datetime.date:
    try:
        return datetime.date.fromisoformat(given)
    except (TypeError, ValueError):
        raise UserError(f"{where}: got {shown(given)}, may be a date such as '2026-11-28', or None") from None


def _options(given: Any, where: str) -> dict[str, Any]:
    if not isinstance(given, (dict, ConfigDict)):
        raise UserError(f"{where}: got {shown(given)}, may be a dict of the task's options")
    return dict(given)


def _plain(given: Any, where: str) -> Any:
    return given.to_dict() if isinstance(given, ConfigDict) else given


def _ingredients(given: Any, where: str) -> tuple["Ingredient", ...]:
    if not isinstance(given, (tuple, list)) or not given or tuple(given) == ("",):  # "--config.data.mixture="
        raise UserError(f"{where}: got {shown(given)}, may be a tuple of at least one ingredient")
    for i, item in enumerate(given):
        if not isinstance(item, (dict, ConfigDict)):  # a dict, as the command line gives it
            may_be = "{'text': 'stdlib', 'weight': 1.0}"
            raise UserError(f"{where}[{i}]: got {shown(item)}, may be such as {may_be}")
    return tuple(read(Ingredient, item, f"{where}[{i}]") for i, item in enumerate(given))


def _mesh(given: Any, where: str) -> MeshConfig:
    values = dict(section(where, given, names_of(MeshConfig)))
    if "rules" in values:
        rules = section(f"{where}.rules", values["rules"], values["rules"])
        for logical, names in rules.items():
            check(f"{where}.rules.{logical}", names, Items(Text()))
        values["rules"] = tuple((logical, tuple(names)) for logical, names in rules.items())
    return read(MeshConfig, values, where)


def _objective(given: Any, where: str) -> Objective:
    kind: type[Objective] = Objective
    if isinstance(given, ConfigDict):  # else `read` says what it may be
        kind = objective_type(f"{where}.kind", given.get("kind", Objective.kind))
    return read(kind, given, where)


def _rollouts(given: Any, where: str) -> Rollouts:
    return read(Rollouts, given, where)


def _model(given: Any, where: str) -> ZayaConfig:
    if moved := [name for name in FIELDS if isinstance(given, ConfigDict) and name in given]:
        raise UserError(f"{where}.{moved[0]}: how a model is computed stands in execution.{moved[0]}")
    return read(ZayaConfig, given, where)


@dataclasses.dataclass(frozen=True)
class Ingredient:
    """A part of a mixture: {"text": SOURCE}, {"task": NAME, "options": {}}, {"chat": [paths]} or {"packed": FOLDER}."""

    text: Annotated[Any, Made(_plain)] = None  # see `prepare_text`
    task: Annotated[str | None, Unset(Text())] = None
    chat: Annotated[Any, Made(_plain)] = None  # see `prepare_chats`
    packed: Annotated[str | None, Unset(Text())] = None  # what experiments.prepare wrote: see `packed.PackedRows`
    weight: Annotated[float, Number(0, 1e9, above=True)] = 1.0  # its share of training rows
    options: Annotated[dict[str, Any], Made(_options)] = dataclasses.field(default_factory=dict)  # of the task
    as_chat: Annotated[bool, SWITCH] = False  # write the task's problems as chats

    def __post_init__(self) -> None:
        check_fields("Ingredient", self)
        kinds = [kind for kind in INGREDIENTS if getattr(self, kind) is not None]
        others = [name for name in ("options", "as_chat") if getattr(self, name) and kinds != ["task"]]
        if len(kinds) != 1 or others:
            got = repr(others[0]) if len(kinds) == 1 else " and ".join(map(repr, kinds)) or "nothing"
            may_be = "{text, weight}, {task, options, as_chat, weight}, {chat, weight} or {packed, weight}"
            raise UserError(f"got {got}, may be {may_be}")


@dataclasses.dataclass(frozen=True)
class Data:
    """What all phases are trained on, but for those that say otherwise."""

    row_length: Annotated[int, ROW_LENGTH]  # tokens
    mixture: Annotated[tuple[Ingredient, ...], Made(_ingredients)]
    packing: Annotated[str, Name(PACKINGS)]
    task_documents: Annotated[int, COUNT]  # an epoch of a task source
    validation_batches: Annotated[int, Integer(1, 100_000)]
    chat_template: Annotated[str, Text()] = "plain"  # or `BESIDE_TOKENIZER`, a Jinja file, a Jinja text
    chat_date: Annotated[datetime.date | None, Made(_date, unset=True)] = None  # what a template is told that asks
    thinking: Annotated[tuple[str, str], Made(_thinking)] = THINKING  # what a chat that is too long is trimmed between

    def __post_init__(self) -> None:
        check_fields("Data", self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhaseSection(Phase):
    """A phase as the config says it; what is None is the run's."""

    steps: Annotated[int, Integer(0)]
    objective: Annotated[Objective, Made(_objective)]
    batch_size: Annotated[int, ROWS]
    start: Annotated[str | None, Unset(Text())] = None
    adapters: Annotated[str | None, Unset(Text())] = None
    optimizer_state: Annotated[str, Name(("fresh", "continue"))] = "fresh"
    row_length: Annotated[int | None, Unset(ROW_LENGTH)] = None
    rope_theta: Annotated[float | None, Unset(THETA)] = None
    mixture: Annotated[tuple[Ingredient, ...] | None, Made(_ingredients, unset=True)] = None
    packing: Annotated[str | None, Unset(Name(PACKINGS))] = None
    mesh: Annotated[MeshConfig | None, Made(_mesh, unset=True)] = None
    rollouts: Annotated[Rollouts | None, Made(_rollouts, unset=True)] = None  # of a policy: its objective's kind

    def phase(self) -> Phase:
        """What the training loop is told of it."""
        return Phase(**{name: getattr(self, name) for name in names_of(Phase)})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation(EvaluationProtocol):
    """How a run is evaluated; every sampler meets the same prompts with the same seeds."""

    tasks: Annotated[tuple[str, ...], Items(Text())]  # of the mixtures, or benchmarks
    samplers: Annotated[tuple[str, ...], Items(Text())]  # of `evaluation.samplers.known_samplers`
    temperatures: Annotated[tuple[float, ...], Items(TEMPERATURE, least=1)]
    draft_temperature: Annotated[float | None, Unset(TEMPERATURE)]  # None: the target's
    beta: Annotated[float, SHARE]
    draft_length: Annotated[int | None, Unset(Integer(1, LARGEST_BLOCK))] = (
        None  # of mode "drafter"; None: what the phase trains
    )
    anchor_budget: Annotated[int, Integer(0)]  # blocks that single_pass drafts a forward; 0: all
    cost: Annotated[bool, SWITCH]  # measure what a forward costs by query tokens, too
    phase: Annotated[str | None, Unset(Text())] = None  # whose model is sampled
    chat: Annotated[bool, SWITCH] = False  # ask the tasks as chats are trained on

    def protocol(self) -> EvaluationProtocol:
        return EvaluationProtocol(*(getattr(self, name) for name in names_of(EvaluationProtocol)))


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """A whole config file."""

    name: str
    seed: Annotated[int, SEED]
    cpu_devices: Annotated[int, CPU_DEVICES]
    tokenizer: Annotated[str, Text()]
    model: Annotated[ZayaConfig, Made(_model)]
    data: Data
    phases: tuple[PhaseSection, ...]
    evaluate: Evaluation
    execution: Execution = EXECUTION
    mesh: Annotated[MeshConfig | None, Made(_mesh, unset=True)] = None  # None: one of data alone

    def __post_init__(self) -> None:
        folder_name("name", self.name)
        check_fields("RunConfig", self)

    def of_phase(self, phase: PhaseSection, field: str) -> tuple[str, Any]:
        """(where it stands, value) of a field that is `data`'s where the phase has none of its own."""
        own = getattr(phase, field)
        return (f"data.{field}", getattr(self.data, field)) if own is None else (f"{phase.name}.{field}", own)


def is_phase(section: Any) -> bool:
    """Whether a config's field can be a phase."""
    return isinstance(section, ConfigDict) and any(name in section for name in ("steps", "objective", "optimizer"))


def read_tree(config: ConfigDict) -> RunConfig:
    """A config, each of its fields checked by itself.

    Raises:
      UserError: one line that names the field, what it got and what it may be.
    """
    known = sorted(name for name in config if is_phase(config[name]))
    needed = [field.name for field in dataclasses.fields(RunConfig) if not has_default(field)]
    section("", config, {*names_of(RunConfig), *known}, needed)
    check("seed", config.seed, SEED)
    return read(RunConfig, config, "", known=[*known, "phases"], phases=_phases(config, known))


def _phases(config: ConfigDict, known: list[str]) -> tuple[PhaseSection, ...]:
    """The sections that `phases` lists. UserError unless it is a list of different ones that hold a phase each."""
    given = (config.phases,) if isinstance(config.phases, str) else config.phases
    names = tuple(check("phases", given, Items(Text())))
    wrong = next((name for i, name in enumerate(names) if name not in known or name in names[:i]), None)
    if wrong is not None or not names:
        got = shown(wrong) + " twice" * (wrong in known) if names else "none"
        raise UserError(f"phases: got {got}, may be different ones of the sections {', '.join(known)}")
    return tuple(
        read(PhaseSection, config[name], name, known=["seed"], name=name, seed=config[name].get("seed", config.seed))
        for name in names
    )
