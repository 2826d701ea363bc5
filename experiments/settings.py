"""A run's config, checked whole before anything is computed or written."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flax import traverse_util
from ml_collections import ConfigDict

from zaya_jax.architecture import ZayaConfig
from zaya_jax.data.builders import check_text, prepare_text
from zaya_jax.data.pipeline import Source
from zaya_jax.data.tasks import BENCHMARKS, Task, TaskSource, make_task
from zaya_jax.data.tokenizers import Tokenizer, load_tokenizer
from zaya_jax.evaluation.task_accuracy import Arm, Trial
from zaya_jax.interop.names import abstract_variables
from zaya_jax.sampling import SamplerConfig
from zaya_jax.training.loop import Phase
from zaya_jax.training.objective import Objective
from zaya_jax.training.optimizer import OptimizerConfig, frozen_parameters

# What `evaluate.arms` may name: how a forward is spent and whose distribution comes out.
ARMS: dict[str, dict[str, Any]] = {
    "autoregressive": {"mode": "autoregressive"},
    "lossless": {"mode": "single_pass"},
    "lossless_two_pass": {"mode": "two_pass"},
    "mix_stale": {"mode": "single_pass", "target": "mix_stale"},
    "mix_fresh": {"mode": "single_pass", "target": "mix_fresh"},
}
SECTIONS = {"name", "seed", "cpu_devices", "tokenizer", "model", "data", "pretrain", "convert", "control", "evaluate"}


@dataclasses.dataclass(frozen=True)
class MixtureSource:
    """One ingredient of the training data."""

    name: str
    weight: float
    task: Task | None  # None: text
    text: Any  # see `prepare_text`

    def open(self, split: str, data_dir: Path, task_documents: int, seed: int) -> Source:
        if self.task is not None:
            return TaskSource(self.task, split, seed, task_documents)
        return prepare_text(self.text, data_dir, split)


@dataclasses.dataclass(frozen=True)
class Settings:
    """The typed form of a config file."""

    name: str
    seed: int
    cpu_devices: int
    tokenizer: Tokenizer
    model: ZayaConfig
    row_length: int
    task_documents: int
    validation_batches: int
    mixture: tuple[MixtureSource, ...]
    phases: dict[str, Phase]  # pretrain unless it has no steps, convert, and control if there is one
    batch_sizes: dict[str, int]
    starts: dict[str, Path | None]  # a checkpoint that a phase starts from in place of pretraining's
    tasks: tuple[Task, ...]  # to evaluate on
    arms: tuple[Arm, ...]
    trial: Trial
    anchor_budget: int  # 0: all anchors
    measures_cost: bool


def read(config: ConfigDict) -> Settings:
    """Checks a config.

    Raises:
      ValueError, FileNotFoundError: one line that names the field, what it got and what it may be.
    """
    unknown, missing = set(config) - SECTIONS, SECTIONS - {"control"} - set(config)
    if unknown or missing:
        what = f"{sorted(unknown)[0]!r}: unknown" if unknown else f"{sorted(missing)[0]!r}: missing"
        raise ValueError(f"config field {what}, may be one of {sorted(SECTIONS)}")
    tokenizer = load_tokenizer(config.tokenizer)
    model = _build(ZayaConfig, config.model, "model")
    if tokenizer.vocab_size > model.vocab_size:
        raise ValueError(
            f"model.vocab_size: got {model.vocab_size}, may be at least the tokenizer's {tokenizer.vocab_size}"
        )
    if model.mask_token_id != tokenizer.mask_id and model.mask_token_id < tokenizer.vocab_size:
        raise ValueError(
            f"model.mask_token_id: got {model.mask_token_id}, may be an id the tokenizer never gives: "
            f"{tokenizer.mask_id}, or {tokenizer.vocab_size} and above"
        )
    mixture = tuple(_source(item, i) for i, item in enumerate(config.data.mixture))
    tasks = {source.name: source.task for source in mixture if source.task is not None}
    phases = {
        name: _phase(name, config[name], config.seed)
        for name in ("pretrain", "convert", "control")
        if name in config and (name != "pretrain" or config.pretrain.steps != 0)  # no steps: from scratch
    }
    for name in ("row_length", "task_documents", "validation_batches"):
        _positive(f"data.{name}", config.data[name])
    for name in ("prompts", "batch", "max_new_tokens", "samples"):
        _positive(f"evaluate.{name}", config.evaluate[name])
    if config.data.row_length > model.max_position_embeddings:
        raise ValueError(
            f"data.row_length: got {config.data.row_length}, may be at most model.max_position_embeddings "
            f"({model.max_position_embeddings})"
        )
    batch_sizes = {name: _positive(f"{name}.batch_size", config[name].batch_size) for name in phases}
    for name, phase in phases.items():
        _check_optimizer(name, phase.optimizer, model, batch_sizes[name])
    return Settings(
        name=config.name,
        seed=config.seed,
        cpu_devices=config.cpu_devices,
        tokenizer=tokenizer,
        model=model,
        row_length=config.data.row_length,
        task_documents=config.data.task_documents,
        validation_batches=config.data.validation_batches,
        mixture=mixture,
        phases=phases,
        batch_sizes=batch_sizes,
        starts={name: _start(name, config[name]) for name in phases},
        tasks=tuple(_task(name, tasks) for name in config.evaluate.tasks),
        arms=_arms(config.evaluate, phases["convert"].objective.block_size, tokenizer),
        trial=Trial(*(config.evaluate[name] for name in ("prompts", "samples", "batch", "max_new_tokens", "seed"))),
        measures_cost=config.evaluate.cost,
        anchor_budget=_budget(config.evaluate.anchor_budget, phases["convert"].objective.block_size),
    )


def stage_keys(config: ConfigDict, setup: Settings) -> dict[str, str]:
    """For each stage, a short hash of everything that decides what it trains: equal keys, equal checkpoints."""
    shared = {
        "seed": config.seed,
        "tokenizer": config.tokenizer,
        "model": dataclasses.asdict(setup.model),
        "data": {k: v for k, v in json.loads(config.data.to_json_best_effort()).items() if k != "validation_batches"},
    }
    keys: dict[str, str] = {}
    for name in setup.phases:
        own = {k: v for k, v in json.loads(config[name].to_json_best_effort()).items() if not k.endswith("_every")}
        decides = json.dumps([shared, own, keys.get("pretrain", "")], sort_keys=True)
        keys[name] = hashlib.blake2b(decides.encode(), digest_size=6).hexdigest()
    return keys


def _task(name: str, trained: dict[str, Task]) -> Task:
    if name not in trained and name not in BENCHMARKS:
        may_be = f"of the tasks of data.mixture or a benchmark: {sorted(set(trained) | set(BENCHMARKS))}"
        raise ValueError(f"evaluate.tasks: got {name!r}, may be {may_be}")
    return trained.get(name) or make_task(name)


def make_arms(names: Sequence[str], temperatures: Sequence[float], **common: Any) -> tuple[Arm, ...]:
    """Every named arm (of ARMS) at every temperature, one temperature behind the other.

    Args:
      common: fields of SamplerConfig that all arms share.

    Raises:
      ValueError: what SamplerConfig refuses.
    """
    return tuple(
        Arm(name, SamplerConfig(**common, **ARMS[name], temperature=t)) for t in temperatures for name in names
    )


def unknown_arm(names: Sequence[str]) -> str | None:
    """The first name that is none of ARMS."""
    return next((name for name in names if name not in ARMS), None)


def _arms(evaluate: ConfigDict, block_size: int, tokenizer: Tokenizer) -> tuple[Arm, ...]:
    unknown = unknown_arm(evaluate.arms)
    if unknown or "autoregressive" not in evaluate.arms:
        got = unknown or tuple(evaluate.arms)
        raise ValueError(f"evaluate.arms: got {got!r}, may be 'autoregressive' and any of {sorted(ARMS)}")
    chosen = {name: evaluate[name] for name in ("beta", "draft_temperature")}
    try:
        return make_arms(
            evaluate.arms, evaluate.temperatures, block_size=block_size, stop_tokens=(tokenizer.eos_id,), **chosen
        )
    except ValueError as error:
        raise ValueError(f"evaluate: {error}") from error


def _budget(value: Any, block_size: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= block_size:
        raise ValueError(f"evaluate.anchor_budget: got {value!r}, may be 0 (all anchors) .. block_size ({block_size})")
    return value if value < block_size else 0


def _source(item: ConfigDict, index: int) -> MixtureSource:
    where = f"data.mixture[{index}]"
    weight = item.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or weight <= 0:
        raise ValueError(f"{where}.weight: got {weight!r}, may be a number above 0")
    unknown = set(item) - {"task", "options", "text", "weight"}
    if unknown or ("task" in item) == ("text" in item):
        got = sorted(unknown)[0] if unknown else sorted(item)
        raise ValueError(f"{where}: got {got!r}, may be {{task, options, weight}} or {{text, weight}}")
    if "task" in item:
        options = item.options if "options" in item else {}
        return MixtureSource(item.task, weight, make_task(item.task, **options), None)
    text = item.text.to_dict() if isinstance(item.text, ConfigDict) else item.text
    check_text(text)
    return MixtureSource(text if isinstance(text, str) else "text", weight, None, text)


def _phase(name: str, section: ConfigDict, seed: int) -> Phase:
    values = {key: value for key, value in section.items() if key not in ("batch_size", "start")}
    values["objective"] = _build(Objective, section.objective, f"{name}.objective")
    values["optimizer"] = _build(OptimizerConfig, section.optimizer, f"{name}.optimizer")
    return _build(Phase, {"name": name, "seed": seed, **values}, name)


def _check_optimizer(name: str, optimizer: OptimizerConfig, model: ZayaConfig, batch_size: int) -> None:
    """Whether the optimizer fits the model and the batch."""
    if batch_size % optimizer.accumulate:
        got = optimizer.accumulate
        raise ValueError(f"{name}.optimizer.accumulate: got {got}, may be a divisor of batch_size ({batch_size})")
    if optimizer.freeze:
        params = traverse_util.unflatten_dict(abstract_variables(model))["params"]
        try:
            frozen_parameters(optimizer, params)
        except ValueError as error:
            raise ValueError(f"{name}.optimizer: {error}") from error


def _start(name: str, section: ConfigDict) -> Path | None:
    """The checkpoint folder that a phase names as its start, if it names one; `load_pretrained` reads it."""
    if not section.get("start"):
        return None
    path = Path(section.start)
    if not path.is_dir():
        raise FileNotFoundError(f"{name}.start: got {section.start!r}, may be a checkpoint's folder")
    return path


def _build(kind: type, values: Any, where: str) -> Any:
    """kind(**values), with unknown fields and bad values said in the config's own words."""
    values = dict(values)
    known = {field.name for field in dataclasses.fields(kind)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ValueError(f"{where}.{unknown[0]}: unknown, may be one of {sorted(known)}")
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error


def _positive(field: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{field}: got {value!r}, may be an integer of at least 1")
    return value
