"""What a sampling step costs on this accelerator, and the wall-clock speed-up that follows at published acceptance.

    python -m experiments.bench.gpu --output=results/bench/gpu.json               # four minutes on one GPU
    python -m experiments.bench.gpu --presets=tiny --batches=1 --contexts=64      # a dry run, on a CPU too

Random bfloat16 weights of --presets' shapes, made on the device; a step of each way to sample (autoregressive,
single_pass of block --block_size with 1, 3, 5 and all branch points, two_pass, whose step is two forwards) at each
batch and number of cached tokens, in a compiled loop, the sides in turn, medians. The most telling shapes come first,
and what --minutes leaves no time for is listed as such. `speedup` is tokens per step x AR's milliseconds over the
step's, at 4.6 and 7.7 tokens a step, as many as ZAYA1 was reported to yield (docs/method.md); beside it, `reported` is
what Zyphra's own serving logs say of two passes, greedy (github.com/Zyphra/vllm, commit 484f186d).
"""

import gc
import time
from typing import Any

import jax
from absl import flags

from zaya_jax.architecture import Zaya, preset
from zaya_jax.architecture.config import PRESETS
from zaya_jax.checks import no_such
from zaya_jax.command_line import cli, measured_device
from zaya_jax.costs.roofline import forward_traffic
from zaya_jax.reporting.columns import columns
from zaya_jax.runs import provenance
from zaya_jax.sampling.planning.cost import AUTOREGRESSIVE, rows_of, step_call
from zaya_jax.sampling.strategies.base import Plan
from zaya_jax.timing import medians
from zaya_jax.training.state import init_variables

TOKENS_PER_STEP = (4.6, 7.7)
REPORTED = {  # by Zyphra, two passes, greedy, batch: wall-clock over autoregression
    "H100": {1: 2.60, 8: 1.80, 16: 1.66, 64: 1.13},
    "MI300X": {1: 1.16, 8: 0.98, 16: 0.86, 64: 0.84},
}

_PRESETS = flags.DEFINE_list("presets", ["zaya1_8b", "smollm2_135m"], "Shapes of models.")
_BATCHES = flags.DEFINE_list("batches", ["1", "8", "16", "64"], "Sequences together.")
_CONTEXTS = flags.DEFINE_list("contexts", ["1024", "8192"], "Cached tokens of a sequence.")
_BLOCK = flags.DEFINE_integer("block_size", 16, "Slots of a drafted block.", lower_bound=2, upper_bound=1024)
_STEPS = flags.DEFINE_integer("steps", 16, "Steps in a timed call.", lower_bound=1, upper_bound=10_000)
_REPEATS = flags.DEFINE_integer("repeats", 3, "Timed calls of each side.", lower_bound=1, upper_bound=10_000)
_MINUTES = flags.DEFINE_float("minutes", 4.0, "No shape is begun after so long.", lower_bound=0.0, upper_bound=1e6)
_OUTPUT = flags.DEFINE_string("output", None, "Where to write the numbers as JSON; nowhere by default.")


def main() -> None:
    cli.check_output(_OUTPUT.value)
    measured_device.check()
    began = time.monotonic()
    batches, contexts = (cli.integers(flag.name, flag.value, 2**20) for flag in (_BATCHES, _CONTEXTS))
    for name in _PRESETS.value:
        if name not in PRESETS:
            raise no_such("--presets", name, PRESETS)
    numbers: dict[str, Any] = {
        "hardware": provenance.hardware(), "environment": provenance.describe(), "dtype": "bfloat16",
        "block_size": _BLOCK.value, "steps": _STEPS.value, "repeats": _REPEATS.value, "reported": REPORTED, "rows": [],
        "not_measured": [],
    }  # fmt: skip
    for name in _PRESETS.value:
        model, variables = random_model(name)
        for context in contexts:
            for batch in batches:
                shape = {"preset": name, "batch": batch, "context": context}
                if time.monotonic() - began > 60 * _MINUTES.value:
                    numbers["not_measured"].append(shape | {"why": f"--minutes={_MINUTES.value:g}"})
                    continue
                try:
                    numbers["rows"] += measure(model, variables, shape)
                except jax.errors.JaxRuntimeError as error:
                    if "RESOURCE_EXHAUSTED" not in str(error):
                        raise
                    numbers["not_measured"].append(shape | {"why": "does not fit the device's memory"})
                cli.write_numbers(_OUTPUT.value, numbers)
        del model, variables
        gc.collect()
    show(numbers)


def random_model(name: str) -> tuple[Zaya, Any]:
    """A preset in bfloat16 and random weights of it, which never leave the device."""
    config = preset(name, dtype="bfloat16", param_dtype="bfloat16")
    model = Zaya(config)
    return model, init_variables(model, 0)


def plans() -> dict[str, Plan]:
    """Every way to sample that is timed, by name; budgets of branch points are spread evenly, the first after one."""
    size = _BLOCK.value
    budgets = {k: tuple(sorted({1 + i * size // k for i in range(k)})) for k in (1, 3, 5) if k < size}
    singles = {
        f"single_pass, {k}": Plan("single_pass", size, anchors, "autoregressive") for k, anchors in budgets.items()
    }
    every = Plan("single_pass", size, tuple(range(1, size + 1)), "autoregressive")
    two = Plan("two_pass", size, (), "autoregressive")
    return {"autoregressive": AUTOREGRESSIVE, **singles, "two_pass": two, "single_pass, all": every}


def measure(model: Zaya, variables: Any, shape: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each way to sample at one shape."""
    batch, context = shape["batch"], shape["context"]
    ways = plans()
    calls = {name: step_call(model, variables, plan, batch, context, _STEPS.value) for name, plan in ways.items()}
    label = f"{shape['preset']}, batch {batch}, context {context}"
    times = {name: ms / _STEPS.value for name, ms in medians(calls, _REPEATS.value, label).items()}
    rows = []
    for name, plan in ways.items():
        traffic = forward_traffic(model.config, rows_of(plan), batch, context)
        gigabytes = 1e-9 * (traffic.weights + traffic.cache) / (1e-3 * times[name])
        speedups = {str(t): t * times["autoregressive"] / times[name] for t in TOKENS_PER_STEP}
        rows.append(
            shape | {"sampler": name, "query_tokens": rows_of(plan), "milliseconds": times[name]}
            | {"ideal_gigabytes_per_second": gigabytes} | ({} if name == "autoregressive" else {"speedup": speedups})
        )  # fmt: skip
    return rows


def show(numbers: dict[str, Any]) -> None:
    """The rows as a table, and what was left out."""
    head = [
        "model",
        "batch",
        "context",
        "sampler",
        "query tokens",
        "ms a step",
        *(f"x at T {t}" for t in TOKENS_PER_STEP),
    ]
    table = [
        [
            row["preset"], str(row["batch"]), str(row["context"]), row["sampler"], str(row["query_tokens"]),
            f"{row['milliseconds']:.3f}", *(f"{x:.2f}" for x in row.get("speedup", {}).values()),
            *([""] * len(TOKENS_PER_STEP) if "speedup" not in row else []),
        ]
        for row in numbers["rows"]
    ]  # fmt: skip
    print(columns(head, table))
    for shape in numbers["not_measured"]:
        print(f"not measured: {shape['preset']}, batch {shape['batch']}, context {shape['context']}: {shape['why']}")


if __name__ == "__main__":
    cli.run(main)
