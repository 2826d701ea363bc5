"""A run's config, checked whole before anything is computed or written."""

import dataclasses
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from zaya_jax.architecture import ZayaConfig
from zaya_jax.data.builders import check_text, prepare_text
from zaya_jax.data.pipeline import Source
from zaya_jax.data.tasks import Task, TaskSource, make_task
from zaya_jax.data.tokenizers import Tokenizer, load_tokenizer
from zaya_jax.evaluation.task_accuracy import Arm
from zaya_jax.sampling import SamplerConfig
from zaya_jax.training.loop import Phase
from zaya_jax.training.objective import Objective
from zaya_jax.training.optimizer import OptimizerConfig

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
    phases: dict[str, Phase]  # pretrain, convert, and control if there is one
    batch_sizes: dict[str, int]
    task: Task
    arms: tuple[Arm, ...]
    prompts: int
    prompt_batch: int
    max_new_tokens: int
    evaluation_seed: int


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
    task = tasks.get(config.evaluate.task)
    if task is None:
        raise ValueError(f"evaluate.task: got {config.evaluate.task!r}, may be a task of data.mixture: {sorted(tasks)}")
    phases = {
        name: _phase(name, config[name], config.seed) for name in ("pretrain", "convert", "control") if name in config
    }
    for name in ("row_length", "task_documents", "validation_batches"):
        _positive(f"data.{name}", config.data[name])
    for name in ("prompts", "batch", "max_new_tokens"):
        _positive(f"evaluate.{name}", config.evaluate[name])
    if config.data.row_length > model.max_position_embeddings:
        raise ValueError(
            f"data.row_length: got {config.data.row_length}, may be at most model.max_position_embeddings "
            f"({model.max_position_embeddings})"
        )
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
        batch_sizes={name: _positive(f"{name}.batch_size", config[name].batch_size) for name in phases},
        task=task,
        arms=_arms(config.evaluate, phases["convert"].objective.block_size, tokenizer),
        prompts=config.evaluate.prompts,
        prompt_batch=config.evaluate.batch,
        max_new_tokens=config.evaluate.max_new_tokens,
        evaluation_seed=config.evaluate.seed,
    )


def _arms(evaluate: ConfigDict, block_size: int, tokenizer: Tokenizer) -> tuple[Arm, ...]:
    common: dict[str, Any] = {"block_size": block_size, "stop_tokens": (tokenizer.eos_id,)}
    kinds: dict[str, dict[str, Any]] = {
        "autoregressive": {"mode": "autoregressive"},
        "lossless": {"mode": "single_pass"},
        "mix_stale": {"mode": "single_pass", "target": "mix_stale", "beta": evaluate.beta},
    }
    return tuple(
        Arm(name, SamplerConfig(**common, **kind, temperature=temperature))
        for temperature in evaluate.temperatures
        for name, kind in kinds.items()
    )


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
    values = {key: value for key, value in section.items() if key != "batch_size"}
    values["objective"] = _build(Objective, section.objective, f"{name}.objective")
    values["optimizer"] = _build(OptimizerConfig, section.optimizer, f"{name}.optimizer")
    return _build(Phase, {"name": name, "seed": seed, **values}, name)


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
