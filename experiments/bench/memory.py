"""Long rows: what a TiDAR training step holds, how many scores it computes in vain, and whether it runs here.

    python -m experiments.bench.memory --lengths=1024,2048 --steps=0 --packed_length=0
    python -m experiments.bench.memory --output=results/bench/long_rows.json

Temporary memory is the compiler's own count for the compiled step; scores are counted from the very list of tiles that
attention works off. The longest row, one document, is then trained on for a step and timed; so is a row of
--packed-length clean tokens in documents of 1 to 4096.
"""

import resource
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from zaya_jax import Zaya, ZayaConfig, preset
from zaya_jax.architecture import Execution, Layout
from zaya_jax.architecture.attention.direct import count_pairs
from zaya_jax.checks import natural
from zaya_jax.command_line import cli
from zaya_jax.errors import Diverged, UserError
from zaya_jax.runs import provenance
from zaya_jax.training.objective import Objective
from zaya_jax.training.optimizer import OptimizerConfig
from zaya_jax.training.state import init_state, init_variables, make_train_step

_OUTPUT = flags.DEFINE_string("output", None, "Where to write the numbers as JSON; nowhere by default.")
_PRESET = flags.DEFINE_string("preset", "zaya1_300k", "Model whose training step is compiled (batch 1, remat).")
_BLOCK = flags.DEFINE_integer("block", 16, "Slots a draft block.", lower_bound=1, upper_bound=65_536)
_LENGTHS = flags.DEFINE_list("lengths", ["4096", "8192", "16384", "32768"], "Clean tokens of the rows, ascending.")
_STEPS = flags.DEFINE_integer(
    "steps", 1, "Steps to time at the longest row and the packed one.", lower_bound=0, upper_bound=10_000
)
_PACKED = flags.DEFINE_integer(
    "packed_length", 131_072, "Clean tokens of the packed row; 0: none.", lower_bound=0, upper_bound=2**24
)
EXECUTION = Execution(remat="full")
PACKED_UP_TO = 4096  # tokens of a document in that row


def main() -> None:
    """Runs all of it and prints it."""
    cli.check_output(_OUTPUT.value)
    lengths = _lengths(_LENGTHS.value)
    config = preset(_PRESET.value)
    numbers: dict = {"hardware": provenance.hardware(), "environment": provenance.describe()}
    numbers["pairs"] = pairs(16_384, _BLOCK.value, EXECUTION.query_chunk)
    for name, row in numbers["pairs"]["rows"].items():
        print(
            f"attention, 16,384 clean tokens, {name}: {row['ratio']:.3f} x the visible pairs (goal <= 1.15)", flush=True
        )
    numbers["train_step"] = {
        "preset": _PRESET.value, "batch": 1, "block_size": _BLOCK.value, "remat": True, "rows": [],
    }  # fmt: skip
    rows = numbers["train_step"]["rows"]
    longest = None
    for length in lengths:
        step, state, batch = longest = compiled_step(config, np.zeros((1, length), np.int32), _BLOCK.value)
        temporary = step.memory_analysis().temp_size_in_bytes
        rows.append({"clean_tokens": length, "temporary_bytes": temporary})
        grown = f", {temporary / rows[-2]['temporary_bytes']:.2f} x" if len(rows) > 1 else ""
        print(f"train step, {length} clean tokens: {temporary / 2**20:.0f} MiB of temporaries{grown}", flush=True)
    if _STEPS.value and longest:
        numbers["longest"] = trained(f"{lengths[-1]} clean tokens", *longest)
    if _STEPS.value and _PACKED.value:
        rng = np.random.default_rng(0)
        document = packed(_PACKED.value, lambda: int(rng.integers(1, PACKED_UP_TO + 1)))
        step, state, batch = compiled_step(config, document, _BLOCK.value)
        what = f"{_PACKED.value} clean tokens, {document.max() + 1} documents"
        numbers["packed"] = {
            **trained(what, step, state, batch), "documents": int(document.max()) + 1, "longest_document": PACKED_UP_TO,
            "temporary_bytes": step.memory_analysis().temp_size_in_bytes,
        }  # fmt: skip
    cli.write_numbers(_OUTPUT.value, numbers)


def _lengths(texts: list[str]) -> list[int]:
    if not texts or not all(map(natural, texts)):
        raise UserError(f"--lengths: got {','.join(texts)!r}, may be integers of at least 1, separated by commas")
    return sorted(int(x) for x in texts)


def pairs(length: int, block_size: int, query_chunk: int) -> dict:
    """`count_pairs` of TiDAR rows over one document, and over packed documents of three kinds of random lengths."""
    rng = np.random.default_rng(0)
    draws = {
        "one document": lambda: length,
        "documents of 1 to 4096 tokens": lambda: int(rng.integers(1, 4097)),
        "documents of 4096 tokens on average (exponential)": lambda: 1 + int(rng.exponential(4096)),
        "documents of 2048 tokens on average (exponential)": lambda: 1 + int(rng.exponential(2048)),
    }
    rows = {}
    for name, draw in draws.items():
        layout = Layout.tidar(
            jnp.zeros((1, length), jnp.int32), block_size, 0, document=jnp.asarray(packed(length, draw))
        )
        counted = count_pairs(layout, None, query_chunk)
        rows[name] = {**counted, "ratio": counted["executed"] / counted["visible"]}
    return {"clean_tokens": length, "block_size": block_size, "query_chunk": query_chunk, "seed": 0, "rows": rows}


def packed(length: int, draw) -> np.ndarray:
    """Document ids int32 [1, length]: `draw()` tokens each, the last cut off."""
    sizes: list[int] = []
    while sum(sizes) < length:
        sizes.append(draw())
    return np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)[None, :length]


def compiled_step(config: ZayaConfig, document: np.ndarray, block_size: int):
    """(compiled TiDAR train step, its state, its batch of one row with these document ids [1, length])."""
    model, optimizer = Zaya(config, EXECUTION), OptimizerConfig()
    step = make_train_step(model, Objective("tidar", block_size), optimizer)  # pyrefly: ignore[bad-argument-type]
    state = init_state(init_variables(model, 0), optimizer, 0)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, document.shape).astype(np.int32)
    batch = {"tokens": jnp.asarray(tokens), "document": jnp.asarray(document)}
    lowered = step.lower(state, batch, jnp.float32(1.0))  # pyrefly: ignore[missing-attribute]
    return lowered.compile(), state, batch


def trained(what: str, step, state, batch: dict) -> dict:
    """`timed_steps`, and a line that says what they showed."""
    found = timed_steps(step, state, batch, _STEPS.value)
    peak = found["peak_resident_bytes"] / 2**30
    print(f"{what}: {found['tokens_per_second']:.0f} clean tokens/s, process at most {peak:.2f} GiB", flush=True)
    return found


def timed_steps(step, state, batch: dict, steps: int) -> dict:
    """Runs the step; the process's largest resident memory so far includes compiling."""
    seconds, loss = [], []
    for _ in range(steps):
        began = time.perf_counter()
        state, metrics = step(state, batch, jnp.float32(1.0))
        loss.append(float(jax.block_until_ready(metrics["loss"])))
        seconds.append(time.perf_counter() - began)
    if not np.isfinite(loss).all():
        raise Diverged(f"loss: got {loss}, may be finite")
    length = batch["tokens"].shape[1]
    return {
        "clean_tokens": length,
        "seconds": seconds,
        "loss": loss,
        "tokens_per_second": length / min(seconds),
        "peak_resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


if __name__ == "__main__":
    cli.run(main, keep_programs=False)
