"""What a decoding forward costs on this machine, against the bytes it must read and against transformers.

    python -m experiments.bench.decode --preset=zaya1_25m --batches=1
    python -m experiments.bench.decode --checkpoint=smollm2 --transformers --output=results/bench/decode.json

In one run, the sides in turn, medians: the machine's copy bandwidth (bytes read and written) and the rate of a large
matrix product; an autoregressive step (greedy, the sampler's own, in its compiled loop); forwards over --rows query
tokens, logits of all of them, after --context cached tokens; with --transformers the same of transformers on the CPU,
in a process of its own, each shape with its fastest threads and attention (`experiments.bench._decode_reference`; needs
the `parity` extra). `--preset` has random weights, 16 experts where the preset has any.

`summary` has ratio_to_transformers {batch: autoregressive tokens/s over transformers'}, fraction_of_bandwidth {batch:
bytes that an autoregressive step must read (weights touched, once, and the cache) over what a copy would move in its
time} and rows_over_one {rows: time of a forward over one row's, batch 1}.
"""

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments.bench._transformers_reference import benchmark_config, require_parity_extra
from zaya_jax import SamplerConfig, Zaya, load_pretrained, save_huggingface
from zaya_jax.architecture import Layout, ZayaConfig, init_cache
from zaya_jax.command_line import cli, measured_device
from zaya_jax.command_line.models import decoding_form
from zaya_jax.costs.flops import forward_flops
from zaya_jax.costs.roofline import forward_traffic
from zaya_jax.errors import UserError
from zaya_jax.files import read_object
from zaya_jax.runs import provenance
from zaya_jax.runs.tokens import checkpoint_of
from zaya_jax.sampling.planning.cost import AUTOREGRESSIVE, step_call
from zaya_jax.timing import medians
from zaya_jax.training.state import init_variables

PAUSE = 0.1  # seconds before each timed call, in which the other side's threads fall asleep
COPY_BYTES, PRODUCT_WIDTH = 2**28, 2048
ROWS = (1, 2, 4, 8, 12, 16, 20, 24, 32, 72)

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A checkpoint's folder; or --preset.")
_PRESET = flags.DEFINE_string("preset", None, "A preset with random weights; or --checkpoint.")
_OUTPUT = flags.DEFINE_string("output", None, "Where to write the numbers as JSON; nowhere by default.")
_THEIRS = flags.DEFINE_bool("transformers", False, "Measure transformers too.")
_BATCHES = flags.DEFINE_list("batches", ["1", "8"], "Sequences decoded together.")
_ROWS = flags.DEFINE_list("rows", [str(n) for n in ROWS], "Query tokens a forward, at batch 1.")
_MORE_ROWS = flags.DEFINE_list("rows_at_larger_batches", ["1", "16"], "Query tokens a forward, at other batches.")
_CONTEXT = flags.DEFINE_integer("context", 256, "Cached tokens of a sequence.", lower_bound=1, upper_bound=2**20)
_STEPS = flags.DEFINE_integer("steps", 8, "Forwards in a timed call.", lower_bound=1, upper_bound=10_000)
_REPEATS = flags.DEFINE_integer("repeats", 7, "Timed calls of each side.", lower_bound=1, upper_bound=10_000)


def main() -> None:
    cli.check_output(_OUTPUT.value)
    measured_device.check()
    if (_CHECKPOINT.value is None) == (_PRESET.value is None):
        raise UserError("--checkpoint, --preset: got both or neither, may be one of the two")
    batches, rows, more = (sorted(cli.integers(flag.name, flag.value, 4096)) for flag in (_BATCHES, _ROWS, _MORE_ROWS))
    if _THEIRS.value:
        require_parity_extra("bench.decode")
    shapes = [(batch, n) for batch in batches for n in (rows if batch == 1 else more)]
    with tempfile.TemporaryDirectory() as scratch:
        config, model, variables, folder = read_model(Path(scratch) / "model")
        sides = machine_sides(model.config) | our_sides(model, variables, shapes)
        with their_sides(folder, shapes) as (theirs, answers):
            sides |= theirs
            times = medians(sides, _REPEATS.value, "decoding", PAUSE)
    numbers = {
        "hardware": provenance.hardware(), "environment": provenance.describe(), "checkpoint": _CHECKPOINT.value,
        "preset": _PRESET.value, "stored_dtype": config.dtype, "dtype": model.config.dtype, "context": _CONTEXT.value,
        "steps": _STEPS.value, "repeats": _REPEATS.value, "temperature": 0.0,
        **report(model.config, shapes, times, answers),
    }  # fmt: skip
    show(numbers)
    cli.write_numbers(_OUTPUT.value, numbers)


def read_model(scratch: Path) -> tuple[ZayaConfig, Zaya, Any, Path]:
    """(config as it is stored, model and variables as they are decoded from, folder that transformers reads)."""
    if _PRESET.value is not None:
        config = benchmark_config(_PRESET.value)
        variables = init_variables(Zaya(config), 0)
        folder = scratch
    else:
        folder = checkpoint_of(_CHECKPOINT.value)
        config, variables = load_pretrained(folder)
        if not (folder / "config.json").exists() or "model_type" not in read_object(folder / "config.json"):
            folder = scratch
    if _THEIRS.value and folder == scratch:
        save_huggingface(folder, config, variables)
    model, variables = decoding_form(config, variables)
    return config, model, variables, folder


def machine_sides(config: ZayaConfig) -> dict[str, Callable[[], object]]:
    """Copying and multiplying as fast as JAX does it here."""
    factor = jnp.full((PRODUCT_WIDTH, PRODUCT_WIDTH), 1e-3, config.dtype)
    product = jax.jit(lambda x: jax.lax.fori_loop(0, _STEPS.value, lambda _, y: x @ y, x))
    return {"copy": copy_call(), "product": lambda: product(factor)}


def copy_call() -> Callable[[], object]:
    """Copies of COPY_BYTES: by all cores on a CPU, where XLA copies with one."""
    if jax.default_backend() != "cpu":
        held = jnp.ones((COPY_BYTES // 4,), jnp.float32)
        copied = jax.jit(lambda x: jax.lax.fori_loop(0, _STEPS.value, lambda _, x: x + 1, x))
        return lambda: copied(held)
    cores = provenance.cores()
    pool = ThreadPoolExecutor(cores)
    source, target = np.ones(COPY_BYTES // 4, np.float32), np.zeros(COPY_BYTES // 4, np.float32)
    parts = list(zip(np.array_split(source, cores), np.array_split(target, cores), strict=True))

    def call() -> None:
        for _ in range(_STEPS.value):
            list(pool.map(lambda part: np.copyto(part[1], part[0]), parts))

    return call


def our_sides(model: Zaya, variables: Any, shapes: list[tuple[int, int]]) -> dict[str, Callable[[], object]]:
    greedy = SamplerConfig(temperature=0.0)
    sides: dict[str, Callable[[], object]] = {}
    for batch in dict.fromkeys(batch for batch, _ in shapes):
        sides[f"autoregressive {batch}"] = step_call(
            model, variables, AUTOREGRESSIVE, batch, _CONTEXT.value, _STEPS.value, greedy
        )
    for batch, rows in shapes:
        sides[f"forward {batch} {rows}"] = forward_call(model, variables, batch, rows)
    return sides


def forward_call(model: Zaya, variables: Any, batch: int, rows: int) -> Callable[[], object]:
    """Forwards over `rows` tokens a sequence, each reading the tokens that the one before found likeliest."""
    context = _CONTEXT.value
    cache = init_cache(model.config, batch, context + 2 * rows, model.separate)
    cache = cache.replace(length=jnp.full((batch,), context, jnp.int32))
    tokens = np.random.default_rng(0).integers(0, model.config.vocab_size, (batch, rows)).astype(np.int32)

    @jax.jit
    def run(variables: Any, cache: Any, tokens: jax.Array) -> Any:
        def body(_: Any, carry: Any) -> Any:
            cache, tokens = carry
            out = cast(Any, model.apply(variables, Layout.verify_and_draft(tokens, cache.length), cache))
            return out.cache.commit(jnp.zeros((batch,), jnp.int32)), jnp.argmax(out.logits, -1).astype(jnp.int32)

        return jax.lax.fori_loop(0, _STEPS.value, body, (cache, tokens))

    return lambda: run(variables, cache, tokens)


@contextlib.contextmanager
def their_sides(folder: Path, shapes: list[tuple[int, int]]) -> Iterator[tuple[dict, dict]]:
    """(sides that ask transformers' process, its newest answer and all its times by shape); none without the flag."""
    if not _THEIRS.value:
        yield {}, {}
        return
    command = [sys.executable, "-m", "experiments.bench._decode_reference", str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        stdin, stdout = process.stdin, process.stdout
        assert stdin is not None and stdout is not None

        def answer() -> dict:
            line = stdout.readline()
            if not line:
                raise UserError(f"transformers' process ended (exit status {process.wait()}); it said why above")
            return json.loads(line)

        answers: dict[str, list[dict]] = {"ready": [answer()]}

        def ask(batch: int, rows: int) -> None:
            asked = {"batch": batch, "rows": rows, "context": _CONTEXT.value, "steps": _STEPS.value}
            stdin.write(json.dumps(asked) + "\n")
            stdin.flush()
            answers.setdefault(f"{batch} {rows}", []).append(answer())

        yield {f"transformers {b} {n}": (lambda b=b, n=n: ask(b, n)) for b, n in shapes}, answers
        stdin.close()


def report(config: ZayaConfig, shapes: list[tuple[int, int]], times: dict[str, float], answers: dict) -> dict:
    """What the result file says of the measured times (milliseconds of a whole call) and of transformers' answers."""
    steps, context = _STEPS.value, _CONTEXT.value
    copy = 2 * COPY_BYTES * steps / times["copy"] / 1e6  # GB/s
    peak = 2 * PRODUCT_WIDTH**3 * steps / times["product"] / 1e6  # GFLOP/s
    theirs = {
        shape: float(np.median([a["milliseconds"] for a in found[1:]]))  # the first one is not timed, as ours is not
        for shape, found in answers.items()
        if shape != "ready"
    }
    autoregressive, forwards = [], []
    for batch in dict.fromkeys(batch for batch, _ in shapes):
        ms, traffic = times[f"autoregressive {batch}"] / steps, forward_traffic(config, 1, batch, context)
        must = traffic.weights + traffic.cache
        row = {"batch": batch, "milliseconds": ms, "bytes": must, "fraction_of_bandwidth": must / ms / 1e6 / copy}
        if (their := theirs.get(f"{batch} 1")) is not None:
            row |= {"transformers": their, "ratio": their / ms, "setting": answers[f"{batch} 1"][-1]["setting"]}
        autoregressive.append(row)
    for batch, n in shapes:
        ms = times[f"forward {batch} {n}"] / steps
        flops = forward_flops(config, n * batch, context + n, n * batch).total
        row = {"batch": batch, "rows": n, "milliseconds": ms, "fraction_of_product_rate": flops / ms / 1e6 / peak}
        if (their := theirs.get(f"{batch} {n}")) is not None:
            row |= {"transformers": their, "ratio": their / ms, "setting": answers[f"{batch} {n}"][-1]["setting"]}
        forwards.append(row)
    one = next((row["milliseconds"] for row in forwards if (row["batch"], row["rows"]) == (1, 1)), None)
    over = {r["rows"]: r["milliseconds"] / one for r in forwards if one and r["batch"] == 1}
    return {
        "copy_gigabytes_per_second": copy, "product_gigaflops_per_second": peak, "versions": answers.get("ready"),
        "autoregressive": autoregressive, "forwards": forwards,
        "summary": {
            "ratio_to_transformers": {row["batch"]: row["ratio"] for row in autoregressive if "ratio" in row},
            "fraction_of_bandwidth": {row["batch"]: row["fraction_of_bandwidth"] for row in autoregressive},
            "rows_over_one": over,
        },
    }  # fmt: skip


def show(numbers: dict) -> None:
    """The tables at the end."""
    print(
        f"{numbers['hardware']}; {numbers['dtype']}; copy {numbers['copy_gigabytes_per_second']:.1f} GB/s, product "
        f"{numbers['product_gigaflops_per_second']:.0f} GFLOP/s; {numbers['context']} cached tokens"
    )
    for row in numbers["autoregressive"]:
        beside = f"; transformers {row['transformers']:.1f} ms, {row['ratio']:.2f}x" if "ratio" in row else ""
        print(
            f"autoregressive, batch {row['batch']}: {row['milliseconds']:.2f} ms a step, "
            f"{row['bytes'] / 1e6:.0f} MB to read, {row['fraction_of_bandwidth']:.2f} of copy bandwidth{beside}"
        )
    for row in numbers["forwards"]:
        over = numbers["summary"]["rows_over_one"].get(row["rows"])
        times_one = f", {over:.2f} times one row" if over and row["batch"] == 1 else ""
        beside = f"; transformers {row['transformers']:.1f} ms, {row['ratio']:.2f}x" if "ratio" in row else ""
        print(
            f"batch {row['batch']}, {row['rows']} query tokens: {row['milliseconds']:.2f} ms{times_one}, "
            f"{row['fraction_of_product_rate']:.2f} of the product's rate{beside}",
            flush=True,
        )


if __name__ == "__main__":
    cli.run(main)
