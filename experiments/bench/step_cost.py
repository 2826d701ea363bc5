"""Training speed, as ratios of medians in one run on this machine.

    python -m experiments.bench.step_cost --preset=tiny --repeats=3
    python -m experiments.bench.step_cost --output=results/bench/cpu.json

What a TiDAR training step costs over an autoregressive one, and what block-padded experts save over dense ones.
Both sides of a ratio are timed in turn, so that a busy machine disturbs them alike. With --device, nothing is measured
unless JAX computes on that device. Sampling has its own:
`experiments.bench.sampling`, and `experiments.bench.transformers` for the baseline.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from zaya_jax import Zaya, preset
from zaya_jax.architecture.moe.experts import block_padded, dense
from zaya_jax.command_line import cli, measured_device
from zaya_jax.runs import provenance
from zaya_jax.timing import medians
from zaya_jax.training.objective import Objective
from zaya_jax.training.optimizer import OptimizerConfig
from zaya_jax.training.state import init_state, init_variables, make_train_step

_OUTPUT = flags.DEFINE_string("output", None, "Where to write the numbers as JSON; nowhere by default.")
_PRESET = flags.DEFINE_string("preset", "zaya1_300k", "Model whose training step is timed.")
_REPEATS = flags.DEFINE_integer(
    "repeats", 15, "Timed calls of each side of a ratio.", lower_bound=1, upper_bound=10_000
)


def main() -> None:
    """Runs every benchmark and prints it."""
    cli.check_output(_OUTPUT.value)
    measured_device.check()
    numbers: dict = {"hardware": provenance.hardware(), "environment": provenance.describe()}
    numbers["train_step"] = train_step_ratio(_PRESET.value, _REPEATS.value)
    show(
        "TiDAR train step / AR train step, per clean token", numbers["train_step"], "tidar", "autoregressive", "<= 2.3"
    )
    numbers["experts"] = expert_ratio(_REPEATS.value)
    show("dense experts / block-padded experts, 1024 tokens", numbers["experts"], "dense", "block_padded", ">= 4")
    cli.write_numbers(_OUTPUT.value, numbers)


def show(title: str, numbers: dict, over: str, under: str, goal: str) -> None:
    """One line for a ratio of two medians."""
    print(
        f"{title}: {numbers['ratio']:.2f} (goal {goal}; medians {numbers[over]:.1f} and {numbers[under]:.1f} ms)",
        flush=True,
    )


def train_step_ratio(name: str, repeats: int, batch: int = 16, row: int = 128) -> dict:
    """Both train on the same clean tokens a step, so the ratio of times is the ratio per clean token."""
    config = preset(name)
    model = Zaya(config)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (batch, row)).astype(np.int32)
    data = {"tokens": jnp.asarray(tokens), "document": jnp.zeros((batch, row), jnp.int32)}
    optimizer = OptimizerConfig()

    def runner(kind: str) -> Callable[[], object]:
        step = make_train_step(model, Objective(kind, block_size=8), optimizer)
        held = [jax.tree.map(jnp.copy, init_state(init_variables(model, 0), optimizer, 0))]

        def call() -> object:
            held[0], metrics = step(held[0], data, 1.0)  # the state is donated: keep the new one
            return metrics

        return call

    out = medians({kind: runner(kind) for kind in ("autoregressive", "tidar")}, repeats, "train step")
    return {
        **out,
        "ratio": out["tidar"] / out["autoregressive"],
        "preset": name,
        "batch": batch,
        "row": row,
        "block_size": 8,
    }


def expert_ratio(repeats: int, tokens: int = 1024, experts: int = 16, width: int = 256) -> dict:
    """Forward and backward of the two dispatches on the same weights and choices."""
    keys = jax.random.split(jax.random.key(0), 4)
    x = jax.random.normal(keys[0], (tokens, width))
    choice = jax.random.randint(keys[1], (tokens,), 0, experts)
    gate_up = jax.random.normal(keys[2], (experts, width, 2 * width)) / 16
    down = jax.random.normal(keys[3], (experts, width, width)) / 16

    def gradient(f) -> Callable[..., object]:
        return jax.jit(jax.grad(lambda x, a, b: (f(x, choice, a, b) ** 2).sum(), argnums=(0, 1, 2)))

    sides: dict[str, Callable[[], object]] = {
        f.__name__: functools.partial(gradient(f), x, gate_up, down) for f in (dense, block_padded)
    }
    out = medians(sides, repeats, "experts")
    return {**out, "ratio": out["dense"] / out["block_padded"], "tokens": tokens, "experts": experts, "width": width}


if __name__ == "__main__":
    cli.run(main)
