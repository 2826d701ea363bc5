"""A run's config, checked whole before anything is computed or written."""

import dataclasses
import datetime
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from zaya_jax.architecture import Execution, ZayaConfig
from zaya_jax.architecture.execution import FIELDS as EXECUTION
from zaya_jax.checks import (
    COUNT,
    SEED,
    SWITCH,
    Integer,
    Items,
    Number,
    Rule,
    Text,
    Unset,
    check,
    check_all,
    folder_name,
    no_such,
    shown,
)
from zaya_jax.data.chat import THINKING
from zaya_jax.data.contents import Digests, of_tokenizer
from zaya_jax.errors import UserError
from zaya_jax.evaluation.task_accuracy import RULES as TRIAL_RULES
from zaya_jax.evaluation.task_accuracy import Arm, EvaluationProtocol
from zaya_jax.parallel.devices import CPU_DEVICES
from zaya_jax.runs import fields
from zaya_jax.runs.mixture import Mixtures, MixtureSource
from zaya_jax.runs.phases import ROW_LENGTH, Stage, is_phase, phase_names, read_stages
from zaya_jax.runs.tokens import BESIDE_TOKENIZER, beside_tokenizer
from zaya_jax.sampling import SamplerConfig, all_targets
from zaya_jax.tasks import BENCHMARKS, ChatTask, Task, make_task
from zaya_jax.text.templates import ChatTemplate, load_template
from zaya_jax.text.tokenizers import Tokenizer, for_model, ids_in_texts, load_tokenizer, may_be_mask

SECTIONS = {
    "name",
    "seed",
    "cpu_devices",
    "tokenizer",
    "model",
    "execution",
    "mesh",
    "data",
    "phases",
    "evaluate",
}  # and a section a phase
DATA = {
    "row_length", "mixture", "packing", "chat_template", "chat_date", "thinking", "task_documents",
    "validation_batches",
}  # fmt: skip
DATA_RULES: dict[str, Rule] = {  # of the numbers of `data`; each phase checks its own row_length
    "row_length": ROW_LENGTH,
    "task_documents": COUNT,
    "validation_batches": Integer(1, 100_000),
}
# Of `evaluate`; SamplerConfig checks the rest. A run of larger numbers is not an evaluation but a mistake.
EVALUATE: dict[str, Rule] = {
    "tasks": Items(Text()),
    "arms": Items(Text()),
    "temperatures": Items(Number(0), least=1),
    "cost": SWITCH,
    **TRIAL_RULES,
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """The typed form of a config file."""

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
    texts: tuple[str, ...]  # sources of text whose held-out documents are gone on with
    arms: tuple[Arm, ...]
    protocol: EvaluationProtocol
    anchor_budget: int  # 0: all anchors
    measures_cost: bool


def read(config: ConfigDict, trained: Tokenizer | None = None) -> Settings:
    """Checks a config.

    Args:
      trained: the tokenizer that the run has trained, where `tokenizer` is "bpe:N".

    Raises:
      UserError, FileNotFoundError: one line that names the field, what it got and what it may be.
    """
    phases = {name for name in config if is_phase(config[name])}
    fields.section("", config, SECTIONS | phases, needed=sorted(SECTIONS - {"execution", "mesh"}))
    fields.section("data", config.data, DATA, needed=sorted(DATA - {"chat_template", "chat_date", "thinking"}))
    sampled_by = {"beta", "draft_temperature", "anchor_budget"}
    needed = {*EVALUATE, *sampled_by}
    fields.section("evaluate", config.evaluate, needed | {"phase", "chat"}, sorted(needed))
    phase_names(config)
    folder_name("name", config.name)
    check("tokenizer", config.tokenizer, Text())
    check("seed", config.seed, SEED)
    check("cpu_devices", config.cpu_devices, CPU_DEVICES)
    tokenizer = trained or load_tokenizer(config.tokenizer)
    model = _model(config, tokenizer)
    tokenizer = for_model(tokenizer, model.vocab_size)
    check_all("data", config.data, DATA_RULES)
    template = _template(config, tokenizer)
    mixtures = Mixtures(template, _thinking(config.data.get("thinking", THINKING)))
    execution = fields.build(Execution, config.get("execution", {}), "execution")
    stages = read_stages(config, model, execution, mixtures)
    _check_date(config, template, mixtures)
    check_all("evaluate", config.evaluate, EVALUATE)
    check("evaluate.phase", config.evaluate.get("phase"), Unset(Text()))
    check("evaluate.chat", config.evaluate.get("chat", False), SWITCH)
    if config.evaluate.max_new_tokens >= model.max_position_embeddings:
        got, most = config.evaluate.max_new_tokens, model.max_position_embeddings
        raise UserError(f"evaluate.max_new_tokens: got {got}, may be below model.max_position_embeddings ({most})")
    sampled = _sampled(config.evaluate.get("phase"), stages)
    drafts = stages[sampled].phase.objective.drafts
    block_size = stages[sampled].phase.objective.block_size
    return Settings(
        name=config.name,
        seed=config.seed,
        cpu_devices=config.cpu_devices,
        tokenizer=tokenizer,
        model=model,
        task_documents=config.data.task_documents,
        validation_batches=config.data.validation_batches,
        stages=stages,
        sources=mixtures.sources,
        sampled=sampled,
        tasks=_tasks(config.evaluate, mixtures.sources, template),
        texts=_texts(config.evaluate, mixtures.sources),
        arms=tuple(
            arm
            for arm in _arms(config.evaluate, block_size, tokenizer)
            if drafts or arm.sampler.mode == "autoregressive"
        ),
        protocol=EvaluationProtocol(
            *(config.evaluate[name] for name in ("prompts", "samples", "batch", "max_new_tokens", "seed"))
        ),
        measures_cost=config.evaluate.cost and drafts,
        anchor_budget=_budget(config.evaluate.anchor_budget, block_size),
    )


def stage_keys(config: ConfigDict, setup: Settings, memory: Path | None = None) -> dict[str, str]:
    """For each stage, a short hash of everything that decides what it trains: equal keys, equal checkpoints.

    Of files (tokenizer, template, texts, chats, the checkpoint to start from) it is what they hold, not where they lie.

    Args:
      memory: a file that remembers digests of large files; see `Digests`.
    """
    digests, tokenizer = Digests(memory), load_tokenizer(config.tokenizer)
    data = {k: v for k, v in json.loads(config.data.to_json_best_effort()).items() if k != "validation_batches"}
    data["mixture"] = _contents(config.data.mixture, digests)
    if data.get("chat_date") is None:  # as of before there was one
        data.pop("chat_date", None)
    if "chat_template" in data:
        data["chat_template"] = _template(config, tokenizer).source
    shared = {
        "seed": config.seed,
        "tokenizer": of_tokenizer(tokenizer),
        "model": dataclasses.asdict(setup.model),
        "data": data,
    }
    keys: dict[str, str] = {}
    for name, stage in setup.stages.items():
        # neither when to look nor on which devices decides it
        own = json.loads(config[name].to_json_best_effort())
        own = {k: v for k, v in own.items() if k != "mesh" and not k.endswith("_every")}
        if own.get("mixture") is not None:
            own["mixture"] = _contents(config[name].mixture, digests)
        # the section may name a start that had no steps
        start = stage.start
        own["start"] = digests.of_folder(start) if isinstance(start, Path) else keys[start] if start else None
        decides = json.dumps([shared, own, stage.data_seed], sort_keys=True)
        keys[name] = hashlib.blake2b(decides.encode(), digest_size=6).hexdigest()
    return keys


def _contents(mixture: Any, digests: Digests) -> list[dict[str, Any]]:
    """A config's mixture with digests in its files' places."""
    found = []
    for item in mixture:
        plain = json.loads(item.to_json_best_effort()) if isinstance(item, ConfigDict) else dict(item)
        found.append(plain | {kind: digests.of_texts(plain[kind]) for kind in ("text", "chat") if kind in plain})
    return found


def _model(config: ConfigDict, tokenizer: Tokenizer) -> ZayaConfig:
    if moved := [name for name in EXECUTION if isinstance(config.model, ConfigDict) and name in config.model]:
        raise UserError(f"model.{moved[0]}: how a model is computed stands in execution.{moved[0]}")
    model = fields.build(ZayaConfig, config.model, "model")
    if ids_in_texts(tokenizer) > model.vocab_size:
        raise UserError(
            f"model.vocab_size: got {model.vocab_size}, may be at least the tokenizer's {ids_in_texts(tokenizer)}"
        )
    assert model.mask_token_id is not None  # ZayaConfig fills it in
    if not may_be_mask(tokenizer, model.mask_token_id):
        own = "" if tokenizer.mask_id is None else f"{tokenizer.mask_id}, or "
        raise UserError(
            f"model.mask_token_id: got {model.mask_token_id}, may be an id that is no text of the tokenizer's: "
            f"{own}{tokenizer.vocab_size} and above"
        )
    return model


def _template(config: ConfigDict, tokenizer: Tokenizer) -> ChatTemplate:
    """data.chat_template; "tokenizer": what lies in the folder that `tokenizer` names."""
    spec = check("data.chat_template", config.data.get("chat_template", "plain"), Text())
    date = _date(config.data.get("chat_date"))
    if spec != BESIDE_TOKENIZER:
        return load_template(spec, tokenizer).on(date)
    template = beside_tokenizer(config.tokenizer, tokenizer)
    if template is None:
        raise UserError(f"data.chat_template: got {spec!r}, but there is none beside {config.tokenizer}")
    return template.on(date)


def _date(value: Any) -> datetime.date | None:
    """data.chat_date: what templates that ask for today's date are told."""
    try:
        return None if value is None else datetime.date.fromisoformat(value)
    except (TypeError, ValueError):
        raise UserError(f"data.chat_date: got {shown(value)}, may be a date such as '2026-11-28', or None") from None


def _check_date(config: ConfigDict, template: ChatTemplate, mixtures: Mixtures) -> None:
    """Refuses chats that would be other texts when the run resumes on another day."""
    written = any(source.template is not None for source in mixtures.sources.values())
    if (written or config.evaluate.get("chat", False)) and template.asks_date and template.date is None:
        raise UserError(
            "data.chat_date: got None, may be a date such as '2026-11-28': the chat template writes the day's date, "
            "and a run that resumes on another day would train on other text"
        )


def _thinking(value: Any) -> tuple[str, str]:
    if not isinstance(value, (tuple, list)) or len(value) != 2 or not all(map(Text().allows, value)):
        raise UserError(
            f"data.thinking: got {shown(value)}, may be what opens and what closes a thinking block: {THINKING}"
        )
    return value[0], value[1]


def _sampled(name: str | None, stages: dict[str, Stage]) -> str:
    """The stage that `evaluate.phase` names: without it "convert", or the last one that drafts.

    Where none drafts, any may be named, and without a name it is the last one.
    """
    drafting = [stage for stage, its in stages.items() if its.phase.objective.drafts]
    if not drafting:
        return fields.choice("evaluate.phase", name or list(stages)[-1], stages)
    name = name or ("convert" if "convert" in drafting else drafting[-1])
    if name not in drafting:
        raise UserError(f"evaluate.phase: got {shown(name)}, may be a phase that drafts: {', '.join(drafting)}")
    return name


def _tasks(evaluate: ConfigDict, sources: dict[str, MixtureSource], template: ChatTemplate) -> tuple[Task, ...]:
    """What to evaluate on: tasks as they are trained on, asked in chats if so chosen."""
    trained = {source.task.name: source.task for source in reversed(sources.values()) if source.task is not None}
    texts = _texts(evaluate, sources)
    tasks = [_task(name, trained, texts) for name in evaluate.tasks if name not in texts]
    if not evaluate.get("chat", False):
        return tuple(tasks)
    return tuple(ChatTask(task, template) for task in tasks)


def _texts(evaluate: ConfigDict, sources: dict[str, MixtureSource]) -> tuple[str, ...]:
    """The texts that `evaluate.tasks` names beside tasks; where it names nothing, every text there is."""
    texts = [name for name, source in sources.items() if source.is_text]
    return tuple(name for name in texts if not evaluate.tasks or name in evaluate.tasks)


def _task(name: str, trained: dict[str, Task], texts: Sequence[str]) -> Task:
    if name not in trained and name not in BENCHMARKS:
        raise no_such("evaluate.tasks", name, {*trained, *texts, *BENCHMARKS})  # what data.mixture has, or a benchmark
    return trained.get(name) or make_task(name)


def known_arms() -> dict[str, dict[str, Any]]:
    """What `evaluate.arms` may name, as fields of SamplerConfig: how a forward is spent and what is sampled.

    Every registered target is one by its own name, besides the ways to sample the AR distribution.
    """
    lossy = [target for target in all_targets() if not target.lossless]
    return {
        "autoregressive": {"mode": "autoregressive"},
        "lossless": {"mode": "single_pass"},
        "lossless_two_pass": {"mode": "two_pass"},
        **{target.name: {"mode": target.modes[0], "target": target.name} for target in lossy},
    }


def make_arms(names: Sequence[str], temperatures: Sequence[float], **common: Any) -> tuple[Arm, ...]:
    """Every named arm (of `known_arms`) at every temperature, one temperature after the other.

    Args:
      common: fields of SamplerConfig that all arms share.

    Raises:
      UserError: what SamplerConfig refuses.
    """
    known = known_arms()
    return tuple(
        Arm(name, SamplerConfig(**common, **known[name], temperature=t)) for t in temperatures for name in names
    )


def check_arms(field: str, names: Sequence[str]) -> None:
    """UserError for a name that is none of `known_arms`."""
    for name in names:
        if name not in known_arms():
            raise no_such(field, name, known_arms())


def _arms(evaluate: ConfigDict, block_size: int, tokenizer: Tokenizer) -> tuple[Arm, ...]:
    check_arms("evaluate.arms", evaluate.arms)
    if "autoregressive" not in evaluate.arms:
        raise UserError(f"evaluate.arms: got {shown(tuple(evaluate.arms))}, may be 'autoregressive' and any others")
    chosen = {name: evaluate[name] for name in ("beta", "draft_temperature")}
    try:
        return make_arms(
            evaluate.arms, evaluate.temperatures, block_size=block_size, stop_tokens=tokenizer.eos_ids, **chosen
        )
    except UserError as error:
        text = fields.named(error, SamplerConfig, "evaluate")
        text = text.replace("evaluate.temperature:", "evaluate.temperatures:", 1)
        where = "objective.block_size of the sampled phase:"
        raise UserError(text.replace("evaluate.block_size:", where, 1)) from error


def _budget(value: Any, block_size: int) -> int:
    if not Integer(0, block_size).allows(value):
        got = shown(value)
        raise UserError(f"evaluate.anchor_budget: got {got}, may be 0 (all anchors) .. block_size ({block_size})")
    return value if value < block_size else 0
