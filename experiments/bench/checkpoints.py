"""How long a step waits for a checkpoint: written while it waits, and in the background.

    python -m experiments.bench.checkpoints --folder=/tmp/saves
    python -m experiments.bench.checkpoints --folder=/tmp/saves --gigabytes=2 --numbers=results/input/checkpoints.json

Saves a state of float32 arrays a few times each way, with matrix products between two saves as training has. The pause
in the background is the checksums and the copy into the host's memory; that it is a copy is
tests/training/test_background_saves.py's.
"""

import shutil
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from zaya_jax.command_line import cli
from zaya_jax.command_line.models import scratch_folder
from zaya_jax.runs.provenance import describe, hardware
from zaya_jax.training.checkpoints import Checkpoints

_FOLDER = flags.DEFINE_string("folder", None, "Scratch folder; must not exist. It is deleted in the end.")
_GIGABYTES = flags.DEFINE_float("gigabytes", 2.0, "Of the state.", lower_bound=0.01, upper_bound=1000)
_REPEATS = flags.DEFINE_integer("repeats", 5, "Saves each way.", lower_bound=1, upper_bound=1000)
_NUMBERS = flags.DEFINE_string("numbers", None, "JSON file for the numbers.")
PIECE = 1 << 24  # values of an array


@jax.jit
def worked(x: jax.Array) -> jax.Array:
    """A step's work: a second or so of matrix products."""
    return jax.lax.fori_loop(0, 20, lambda _, y: jnp.tanh(y @ x), x)


def main() -> None:
    folder = scratch_folder(_FOLDER.value)
    cli.check_output(_NUMBERS.value)
    count = max(1, round(_GIGABYTES.value * 1e9 / 4 / PIECE))
    state = {str(i): jax.random.normal(jax.random.key(i), (PIECE,)) for i in range(count)}
    size = sum(x.nbytes for x in state.values())
    numbers: dict[str, Any] = {"hardware": hardware(), "environment": describe(), "bytes": size}
    x = jax.random.normal(jax.random.key(0), (1500, 1500)) / 100
    jax.block_until_ready((state, worked(x)))
    try:
        with Checkpoints(folder) as checkpoints:
            for first, way in ((0, "waits"), (_REPEATS.value, "background")):
                numbers[way] = {"pause_seconds": [], "whole_seconds": []}
                for repeat in range(_REPEATS.value):
                    began = time.perf_counter()
                    checkpoints.save(first + repeat, state, {}, wait=way == "waits")
                    numbers[way]["pause_seconds"].append(time.perf_counter() - began)
                    jax.block_until_ready(worked(x))
                    checkpoints.wait()
                    numbers[way]["whole_seconds"].append(time.perf_counter() - began)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for way in ("waits", "background"):
        print(f"{way:11} pause {np.median(numbers[way]['pause_seconds']):.2f} s of {size / 1e9:.1f} GB", flush=True)
    cli.write_numbers(_NUMBERS.value, numbers)


if __name__ == "__main__":
    cli.run(main)
