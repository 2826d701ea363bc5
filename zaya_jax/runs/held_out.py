"""A run's held-out data, and likelihood on it."""

import functools
import itertools
from pathlib import Path

from zaya_jax.architecture import Zaya
from zaya_jax.data.packed import PackedRows
from zaya_jax.data.pipeline import Source, eval_batches
from zaya_jax.evaluation.likelihood import likelihood
from zaya_jax.parallel import Placement
from zaya_jax.runs.configuration import settings
from zaya_jax.runs.configuration.mixture import MixtureSource
from zaya_jax.runs.configuration.stage import Stage
from zaya_jax.training.objective import Objective
from zaya_jax.training.state import make_eval_step


def held_out_batches(setup: settings.Settings, stage: Stage, documents: Source | PackedRows) -> list[dict]:
    """A source's validation batches in a stage's shape: the same few at every evaluation, so they are made once."""
    batches = eval_batches(documents, setup.tokenizer, stage.row_length, stage.batch_size, packing=stage.packing)
    return list(itertools.islice(batches, setup.validation_batches))


def validate(setup: settings.Settings, held_out: dict[str, list[dict]], eval_step, variables: dict) -> dict:
    """Likelihood on validation batches of every source, names prefixed with the source's."""
    out = {}
    for name, batches in held_out.items():
        text_tokenizer = setup.tokenizer if setup.sources[name].counts_bytes else None
        for metric, value in likelihood(eval_step, variables, batches, text_tokenizer).items():
            out[f"{name}/{metric}"] = value
    return out


@functools.lru_cache(maxsize=8)
def shared_eval_step(model: Zaya, objective: Objective, placement: Placement | None = None):
    """`make_eval_step`, one for all that measure the same, so that it is compiled once."""
    return make_eval_step(model, objective, placement=placement)


def open_source(setup: settings.Settings, workdir: Path, source: MixtureSource, split: str) -> Source | PackedRows:
    """A source's split."""
    return source.open(split, workdir / "data", setup.task_documents, setup.seed)
