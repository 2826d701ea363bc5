"""What config files share: the colon argument and the skeleton of a run."""

import dataclasses
import itertools
import types
import typing
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from zaya_jax.architecture import Execution, ZayaConfig, preset
from zaya_jax.checks import shown, unknown
from zaya_jax.errors import UserError
from zaya_jax.training.objective import Objective
from zaya_jax.training.optimizer import OptimizerConfig


def parse_arg(arg: str | None, **defaults: Any) -> ConfigDict:
    """`--config=file.py:fast,block_size=4` -> the defaults with those values; a bare name means True.

    Raises:
      UserError: a name that has no default, or a value of another type.
    """
    values = ConfigDict(defaults)
    for item in filter(None, (arg or "").split(",")):
        name, _, text = item.partition("=")
        if name not in defaults:
            raise unknown(f"config argument {name!r}", name, defaults)
        kind = type(defaults[name])
        try:
            values[name] = (text or "true").lower() in ("true", "1") if kind is bool else kind(text)
        except ValueError:
            may_be = {int: "an integer", float: "a number"}[kind]
            raise UserError(f"config argument {name}: got {shown(text)}, may be {may_be}") from None
    return values


def _settable(kind: type, values: dict[str, Any]) -> ConfigDict:
    """`values` of a dataclass's fields, so that those that are None can be given on the command line, too."""
    annotated = typing.get_type_hints(kind)

    def may_be(name: str) -> type:
        return next((each for each in (tuple, float, int) if each in _kinds(annotated[name])), str)

    return ConfigDict({name: placeholder(may_be(name)) if value is None else value for name, value in values.items()})


def _kinds(annotation: Any) -> set[Any]:
    """The types of a union, those with parameters bare: tuple[int, ...] | None -> {tuple, NoneType}."""
    union = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    return {typing.get_origin(each) or each for each in union}


def model(name: str, **changes: Any) -> ConfigDict:
    """Every field of a preset, so that each can be overridden by --config.model.FIELD.

    What follows from other fields stays None unless `changes` gives it, so that it follows their overrides too.
    """
    fields = dataclasses.asdict(preset(name, **changes))
    del fields["drafter"]  # a phase's objective says which one it trains
    return _settable(ZayaConfig, {**fields, "mask_token_id": None, "layer_types": None, **changes})


def data(row_length: int, *mixture: dict[str, Any], **changes: Any) -> ConfigDict:
    """What all phases are trained on, but for those that say otherwise: see `zaya_jax.runs.configuration.mixture`.

    Args:
      mixture: {"text": "stdlib" or [paths]}, {"task": name, "options": {...}} or {"chat": [paths]}, each with a
        "weight", its share of training rows.
    """
    c = ConfigDict()
    c.row_length = row_length  # tokens
    c.mixture = tuple(map(ConfigDict, mixture))
    c.packing = "first_fit"  # or "best_fit" (decreasing): fuller rows where documents are long beside a row
    c.chat_template = "plain"  # or "tokenizer" (beside it), a Jinja file, a Jinja text: zaya_jax/text/templates.py
    c.chat_date = placeholder(str)  # "2026-11-28": what a template is told that asks for the day's date
    c.thinking = ("<think>", "</think>")  # what a chat that is too long is trimmed between
    c.task_documents = 200_000  # an epoch of a task source
    c.validation_batches = 8
    c.update(changes)
    return c


def mesh(rules: dict[str, tuple[str, ...]] | None = None, **sizes: int) -> ConfigDict:
    """The devices' mesh: see `zaya_jax.parallel.MeshConfig`.

    Args:
      rules: logical axes that other mesh axes than the usual ones carry.
      sizes: of the axes data (0: as many devices as divide the batch), fsdp, expert and context.
    """
    return ConfigDict({"data": 0, "fsdp": 1, "expert": 1, "context": 1, "rules": ConfigDict(rules or {}), **sizes})


def execution(**fields: Any) -> ConfigDict:
    """How models are computed on this machine: see `zaya_jax.architecture.Execution`."""
    return ConfigDict(dataclasses.asdict(Execution(**fields)))


def phase(steps: int, objective: Objective, optimizer: OptimizerConfig, **rest: Any) -> ConfigDict:
    """A training phase: see `zaya_jax.runs.configuration.tree` and `zaya_jax.training.loop.Phase`."""
    return ConfigDict(
        {
            "steps": steps,
            "batch_size": 16,
            "start": placeholder(str),  # an earlier phase (None: the one before), a checkpoint's folder, or "scratch"
            "adapters": placeholder(str),  # a folder of `experiments.adapters` for that checkpoint; None: fresh ones
            "optimizer_state": "fresh",  # or "continue": the start's moments, balancing controller and averages
            "row_length": placeholder(int),  # None: data.row_length
            "rope_theta": placeholder(float),  # None: that of the phase it starts from, else model.rope_theta
            "mixture": placeholder(tuple),  # None: data.mixture
            "packing": placeholder(str),  # None: data.packing
            "mesh": placeholder(ConfigDict),  # None: the run's
            "log_every": 10,
            "evaluate_every": 100,
            "save_every": 200,
            "on_bad_step": "stop",
            "spike_factor": 0.0,
            "evaluate_ema": False,
            "objective": _settable(type(objective), dataclasses.asdict(objective)),
            "optimizer": _settable(OptimizerConfig, dataclasses.asdict(optimizer)),
            **rest,
        }
    )


def evaluation(tasks: tuple[str, ...], prompts: int, **changes: Any) -> ConfigDict:
    """How a run is evaluated; every sampler meets the same prompts with the same seeds."""
    c = ConfigDict()
    c.phase = placeholder(str)  # whose model is sampled; None: "convert", or the last that drafts
    c.tasks = tasks  # with their options in the mixtures, or the defaults
    c.chat = False  # ask them as chats are trained on
    c.prompts = prompts  # test problems of each task
    c.samples = 1  # of each, at temperatures above 0: 16 for pass@16
    c.batch = 64  # rows: prompts x samples
    c.max_new_tokens = 64
    c.samplers = ("autoregressive", "lossless", "mix_stale")  # and "lossless_lookup", "lossless_two_pass", "mix_fresh"
    c.temperatures = (0.0, 1.0)
    c.draft_temperature = placeholder(float)  # None: the target's
    c.draft_length = placeholder(int)  # of samplers of mode "drafter"; None: what the phase trains
    c.anchor_budget = 0  # blocks that single_pass drafts a forward; 0: one after every accepted length
    c.beta = 0.5
    c.cost = True  # measure what a forward costs by query tokens, too
    c.seed = 1_000
    c.update(changes)
    return c


Job = tuple[tuple[str, Any], ...]  # overrides of one run: (field of the config, value) pairs


def axis(field: str, *values: Any) -> list[Job]:
    """A run for each value of one field."""
    return [((field, value),) for value in values]


def together(**fields: Any) -> list[Job]:
    """One run that changes several fields; a double underscore stands for the dot."""
    return [tuple((name.replace("__", "."), value) for name, value in fields.items())]


def product(*axes: list[Job]) -> list[Job]:
    """Every combination of a run of each axis, the last axis fastest."""
    return [sum(combination, ()) for combination in itertools.product(*axes)]


def zipped(*axes: list[Job]) -> list[Job]:
    """The first runs of all axes together, then the second ones, ... UserError if the axes differ in length."""
    if len(sizes := {len(each) for each in axes}) > 1:
        raise UserError(f"zipped: got axes of {sorted(sizes)} values, may be of as many each")
    return [sum(combination, ()) for combination in zip(*axes, strict=True)]


def sweep(name: str, config: str, jobs: list[Job]) -> ConfigDict:
    """What `experiments.sweep` runs: `config` (a file, with its :argument if it has one) under each job's overrides."""
    return ConfigDict({"name": name, "config": config, "jobs": tuple(jobs)})
