"""A run's settings: what its config names, found and checked whole before anything is computed or written."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from zaya_jax.architecture import ZayaConfig
from zaya_jax.checks import Name, check, no_such, rules_of, shown
from zaya_jax.errors import UserError
from zaya_jax.evaluation.samplers import NamedSampler, known_samplers, make_samplers
from zaya_jax.evaluation.task_accuracy import EvaluationProtocol
from zaya_jax.interop.formats.adapter_folder import read_about
from zaya_jax.parallel import MeshConfig
from zaya_jax.paths import absolute
from zaya_jax.runs.configuration.cross_checks import Found, cross_check
from zaya_jax.runs.configuration.mixture import Mixtures, MixtureSource
from zaya_jax.runs.configuration.stage import Stage
from zaya_jax.runs.configuration.tree import SCRATCH, Evaluation, PhaseSection, RunConfig, read_tree
from zaya_jax.sampling import SamplerConfig
from zaya_jax.sampling.drafters import find_drafter
from zaya_jax.tasks import BENCHMARKS, TASKS, ChatTask, Task, make_task
from zaya_jax.text.templates import BESIDE_TOKENIZER, ChatTemplate, beside_tokenizer, load_template
from zaya_jax.text.tokenizers import Tokenizer, for_model, load_tokenizer

Start = str | Path | None  # of a stage: an earlier one, a checkpoint's folder, or None: from scratch


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a config file asks for."""

    name: str
    seed: int
    cpu_devices: int
    tokenizer: Tokenizer
    model: ZayaConfig
    task_documents: int
    validation_batches: int
    stages: dict[str, Stage]  # the phases that have steps, in order
    sources: dict[str, MixtureSource]  # of all stages' mixtures
    sampled: str  # the stage whose model is sampled
    tasks: tuple[Task, ...]  # to evaluate on
    texts: tuple[str, ...]  # sources of text whose held-out documents are continued
    samplers: tuple[NamedSampler, ...]
    protocol: EvaluationProtocol
    anchor_budget: int  # 0: all anchors
    measures_cost: bool


def read(config: ConfigDict, trained: Tokenizer | None = None) -> Settings:
    """Reads a config: each field by itself, then what it names, then one part against the other.

    Args:
      trained: the tokenizer that the run has trained, where `tokenizer` is "bpe:N".

    Raises:
      UserError, FileNotFoundError: one line that names the field, what it got and what it may be.
    """
    run = read_tree(config)
    tokenizer = trained or load_tokenizer(run.tokenizer)
    fitted = for_model(tokenizer, run.model.vocab_size)
    template = find_template(run.data.chat_template, run.tokenizer, fitted).on(run.data.chat_date)
    mixtures = Mixtures(template, run.data.thinking)
    stages = _stages(run, mixtures)
    sampled = _sampled(run.evaluate.phase, stages)
    cross_check(Found(run, tokenizer, template, mixtures.sources, stages, sampled))
    objective, budget = stages[sampled].phase.objective, run.evaluate.anchor_budget
    return Settings(
        name=run.name,
        seed=run.seed,
        cpu_devices=run.cpu_devices,
        tokenizer=fitted,
        model=run.model,
        task_documents=run.data.task_documents,
        validation_batches=run.data.validation_batches,
        stages=stages,
        sources=mixtures.sources,
        sampled=sampled,
        tasks=_tasks(run.evaluate, mixtures.sources, template),
        texts=_texts(run.evaluate, mixtures.sources),
        samplers=_samplers(run.evaluate, stages[sampled], fitted),
        protocol=run.evaluate.protocol(),
        measures_cost=run.evaluate.cost and objective.masks,
        anchor_budget=budget if budget < objective.block_size else 0,
    )


def find_template(spec: str, tokenizer_spec: str, tokenizer: Tokenizer) -> ChatTemplate:
    """data.chat_template; "tokenizer": what lies in the folder that `tokenizer` names."""
    if spec != BESIDE_TOKENIZER:
        return load_template(spec, tokenizer)
    template = beside_tokenizer(tokenizer_spec, tokenizer)
    if template is None:
        raise UserError(f"data.chat_template: got {spec!r}, but there is none beside {tokenizer_spec}")
    return template


def _stages(run: RunConfig, mixtures: Mixtures) -> dict[str, Stage]:
    """The stages by name, in order; phases of no steps are left out."""
    stages: dict[str, Stage] = {}
    starts: dict[str, Start] = {}
    for section in run.phases:
        starts[section.name] = _start(section, starts, stages)
        if section.steps:
            stages[section.name] = _stage(run, section, mixtures, starts[section.name], stages)
    if not stages:
        names = tuple(section.name for section in run.phases)
        raise UserError(f"phases: got {names}, may be some of which at least one has steps above 0")
    return stages


def _start(section: PhaseSection, earlier: dict[str, Start], stages: dict[str, Stage]) -> Start:
    """Where a phase starts; a checkpoint's folder is read by `load_pretrained`."""
    given = section.start or (list(earlier)[-1] if earlier else SCRATCH)
    if given == SCRATCH:
        return None
    if given in earlier:
        return given if given in stages else earlier[given]
    if not absolute(given).is_dir():
        may_be = f"an earlier phase ({', '.join(earlier) or 'none'}), a checkpoint's folder, or {SCRATCH!r}"
        raise FileNotFoundError(f"{section.name}.start: got {given!r}, may be {may_be}")
    return Path(given)


def _adapters(section: PhaseSection, start: Start) -> Path | None:
    if section.adapters is None:
        return None
    if not isinstance(start, Path):
        may_be = f"None where {section.name}.start is not a checkpoint's folder"
        raise UserError(f"{section.name}.adapters: got {section.adapters!r}, may be {may_be}")
    read_about(absolute(section.adapters))
    return Path(section.adapters)


def _stage(run: RunConfig, section: PhaseSection, mixtures: Mixtures, start: Start, stages: dict[str, Stage]) -> Stage:
    parent = stages[start] if isinstance(start, str) else None
    model = run.model if parent is None else parent.model
    if section.rope_theta is not None:
        model = model.replace(rope_theta=float(section.rope_theta))
    if section.objective.drafter is not None:
        model = model.replace(drafter=section.objective.drafter)
    return Stage(
        phase=section.phase(),
        model=model,
        execution=run.execution,
        row_length=run.of_phase(section, "row_length")[1],
        batch_size=section.batch_size,
        mixture=mixtures.find(*run.of_phase(section, "mixture")),
        packing=run.of_phase(section, "packing")[1],
        start=start,
        adapters=_adapters(section, start),
        mesh=section.mesh or run.mesh or MeshConfig(),
        rollouts=section.rollouts,
        continues=section.optimizer_state == "continue",
        data_seed=run.seed if parent is None else parent.data_seed + 1,
    )


def _sampled(name: str | None, stages: dict[str, Stage]) -> str:
    """The stage that `evaluate.phase` names: without it "convert", or the last one that drafts.

    Where none drafts, any may be named, and without a name it is the last one.
    """
    drafting = [stage for stage, its in stages.items() if its.phase.objective.drafts]
    if not drafting:
        return check("evaluate.phase", name or list(stages)[-1], Name(stages))
    name = name or ("convert" if "convert" in drafting else drafting[-1])
    if name not in drafting:
        raise UserError(f"evaluate.phase: got {shown(name)}, may be a phase that drafts: {', '.join(drafting)}")
    return name


def _tasks(evaluate: Evaluation, sources: dict[str, MixtureSource], template: ChatTemplate) -> tuple[Task, ...]:
    """What to evaluate on: tasks as they are trained on, asked in chats if so chosen."""
    trained = {source.task.name: source.task for source in reversed(sources.values()) if source.task is not None}
    texts = _texts(evaluate, sources)
    tasks = [_task(name, trained, texts) for name in evaluate.tasks if name not in texts]
    return tuple(ChatTask(task, template) for task in tasks) if evaluate.chat else tuple(tasks)


def _texts(evaluate: Evaluation, sources: dict[str, MixtureSource]) -> tuple[str, ...]:
    """The texts that `evaluate.tasks` names beside tasks; where it names nothing, every text there is."""
    texts = [name for name, source in sources.items() if source.is_text]
    return tuple(name for name in texts if not evaluate.tasks or name in evaluate.tasks)


def _task(name: str, trained: dict[str, Task], texts: Sequence[str]) -> Task:
    """As it is trained on; one that is not, with its options' defaults."""
    if name not in trained | TASKS | BENCHMARKS:
        raise no_such("evaluate.tasks", name, {*trained, *texts, *TASKS, *BENCHMARKS})
    return trained.get(name) or make_task(name)


def _samplers(evaluate: Evaluation, stage: Stage, tokenizer: Tokenizer) -> tuple[NamedSampler, ...]:
    """The samplers that the sampled stage's model can be asked with: all that are named, but for those that draft with
    mask tokens, which it may not have been trained with. UserError for a drafter that it has not.
    """
    objective, known = stage.phase.objective, known_samplers()
    names = [name for name in evaluate.samplers if objective.masks or not _needs_masks(known[name])]
    for name in names:
        if (drafter := known[name].get("drafter")) is not None:
            find_drafter(drafter).require(stage.model, {})
    block_size = check(
        f"{stage.phase.name}.objective.block_size", objective.block_size, rules_of(SamplerConfig)["block_size"]
    )
    chosen = {name: getattr(evaluate, name) for name in ("beta", "draft_temperature")}
    chosen["draft_length"] = evaluate.draft_length or max(1, block_size - 1)
    return make_samplers(names, evaluate.temperatures, block_size=block_size, stop_tokens=tokenizer.eos_ids, **chosen)


def _needs_masks(sampler: dict[str, Any]) -> bool:
    """Whether a sampler, of `known_samplers`, drafts with the model's mask tokens."""
    drafter = sampler.get("drafter")
    return sampler["mode"] != "autoregressive" if drafter is None else find_drafter(drafter).masks
