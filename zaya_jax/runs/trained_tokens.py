"""Which tokens a run learned to write: what a draft vocabulary is chosen from (`architecture.draft_vocabulary`)."""

from pathlib import Path

import numpy as np

from zaya_jax.data.pipeline import make_train_iterator
from zaya_jax.runs.configuration.settings import Settings
from zaya_jax.runs.held_out import open_source

ROWS = 4_000  # are counted at most


def count_trained(setup: Settings, workdir: Path, name: str) -> np.ndarray:
    """How often a stage has trained to write each token, int64 [V], in its first ROWS rows at most.

    Args:
      name: of the stage; its data is read from the run's folder, or made there again.

    Raises:
      UserError, FileNotFoundError: data that is not there any more.
    """
    stage = setup.stages[name]
    sources = [(open_source(setup, workdir, source, "train"), source.weight) for source in stage.mixture]
    batches = make_train_iterator(
        sources, setup.tokenizer, stage.row_length, stage.batch_size, stage.data_seed, packing=stage.packing
    )
    counts = np.zeros(stage.model.vocab_size, np.int64)
    answers = stage.phase.objective.loss_on == "answers"
    for _ in range(min(stage.phase.steps, -(-ROWS // stage.batch_size))):
        batch = next(batches)
        written = batch["answer"] != 0 if answers else batch["document"] >= 0
        counts += np.bincount(batch["tokens"][written], minlength=len(counts))
    batches.close()
    return counts


def most_frequent(counts: np.ndarray, size: int) -> list[int]:
    """Ids of the `size` tokens that are most frequent, fewer where fewer occur; of equals the lower id first."""
    order = np.argsort(-counts, kind="stable")[:size]
    return order[counts[order] > 0].tolist()
