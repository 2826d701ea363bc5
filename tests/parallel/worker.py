"""One process of a small training run: `python -m tests.parallel.worker '{"workdir": ..., "mesh": {...}, ...}'`.

A process of its own, because the number of devices is fixed when JAX starts. Writes metrics.jsonl and checkpoints.
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np

from tests.helpers import small_config
from zaya_jax.architecture import Execution, Zaya
from zaya_jax.data.packed import PackedRows
from zaya_jax.data.pipeline import make_train_iterator
from zaya_jax.interop.formats.native import write_model_file
from zaya_jax.parallel import MeshConfig, is_first, make_placement, start_processes, use_cpu_devices
from zaya_jax.tasks import TaskSource, make_task
from zaya_jax.text.tokenizers import ByteTokenizer
from zaya_jax.training.checkpoints import Checkpoints
from zaya_jax.training.logging.metrics import MetricWriter
from zaya_jax.training.loop import Phase, train
from zaya_jax.training.objective import Objective
from zaya_jax.training.optimizer import OptimizerConfig
from zaya_jax.training.state import init_variables

BATCH, ROW, BLOCK = 8, 32, 4


class Batches:
    """The addition task's batches, or a folder's packed rows of them, of which each process reads its own.

    The process ends as if killed when it asks for one more than `limit`.
    """

    def __init__(self, limit: int | None, packed: str | None, own: np.ndarray | None):
        source = (
            TaskSource(make_task("addition"), "train", 0, 500) if packed is None else PackedRows(Path(packed), "train")
        )
        self.inner = make_train_iterator([(source, 1.0)], ByteTokenizer(), ROW, BATCH, seed=3, rows=own)
        self.limit = limit

    def __next__(self):
        if self.limit is not None:
            self.limit -= 1
            if self.limit < 0:
                sys.stdout.flush()
                raise SystemExit(9)
        return next(self.inner)

    def get_state(self):
        return self.inner.get_state()

    def set_state(self, state):
        self.inner.set_state(state)


def main(
    workdir: str, mesh: dict | None = None, devices: int = 1, steps: int = 10, save_every: int = 10,
    limit: int | None = None, coordinator: str | None = None, processes: int | None = None, process: int | None = None,
    packed: str | None = None,
) -> None:  # fmt: skip
    use_cpu_devices(devices)
    start_processes(coordinator, processes, process)
    config, execution = small_config(vocab_size=260), Execution(remat="full")
    placement = make_placement(MeshConfig(**(mesh or {})), config, BATCH, ROW, BLOCK, execution=execution)
    assert (1 if placement is None else placement.mesh.size) == jax.device_count()
    optimizer = OptimizerConfig(name="muon", learning_rate=1e-3)
    phase = Phase("convert", Objective("tidar", BLOCK), optimizer, steps=steps, log_every=1, save_every=save_every)
    folder = Path(workdir)
    if is_first():
        write_model_file(folder / "steps", config)
    model = Zaya(config, execution)
    with Checkpoints(folder / "steps") as checkpoints:
        writer = MetricWriter(folder / "metrics.jsonl")
        own = None if packed is None or placement is None else placement.own_rows(BATCH)
        train(
            model, init_variables(model, 0), phase, Batches(limit, packed, own), checkpoints, writer,
            placement=placement, own=None if own is None else (BATCH, own),
        )  # fmt: skip


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
