"""Speed, as ratios of medians measured in one run on this machine.

    python -m experiments.bench [--checkpoint=DIR] [--output=FILE.json]

Four questions: what a TiDAR training step costs over an autoregressive one; what block-padded experts save over the
dense twin; what a forward costs against its rows; and what lossless drafting does to the clock, against the best
autoregressive decoding (experts gathered per token). Both sides of a ratio are timed in turn, so that a busy machine
disturbs them alike. The last question needs a trained model: by default the quickstart's, which is committed under
results/quickstart/model.
"""

import functools
import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import cli, environment
from zaya_jax import SamplerConfig, Zaya, generate, load_pretrained, preset
from zaya_jax.architecture.experts import block_padded, dense
from zaya_jax.data.tasks import make_task
from zaya_jax.data.tokenizers import ByteTokenizer
from zaya_jax.evaluation.cost import forward_cost
from zaya_jax.evaluation.timing import medians
from zaya_jax.training.objective import Objective
from zaya_jax.training.optimizer import OptimizerConfig
from zaya_jax.training.state import init_state, init_variables, make_train_step

TRAINED = Path(__file__).parent.parent / "results" / "quickstart" / "model"
_CHECKPOINT = flags.DEFINE_string("checkpoint", str(TRAINED), "A converted model, trained on bytes and `addition`.")
_OUTPUT = flags.DEFINE_string("output", None, "Where to write the numbers as JSON; nowhere by default.")
_PRESET = flags.DEFINE_string("preset", "zaya1_300k", "Model whose training step is timed.")
_REPEATS = flags.DEFINE_integer("repeats", 15, "Timed calls of each side of a ratio.", lower_bound=1)


def main() -> None:
    """Runs every benchmark and prints it."""
    if _OUTPUT.value and not Path(_OUTPUT.value).absolute().parent.is_dir():
        raise FileNotFoundError(f"--output {_OUTPUT.value}: its folder does not exist")
    config, variables = load_pretrained(_CHECKPOINT.value)
    model = Zaya(config)
    numbers: dict = {"hardware": environment.hardware(), "environment": environment.describe()}
    numbers["train_step"] = train_step_ratio(_PRESET.value, _REPEATS.value)
    show(
        "TiDAR train step / AR train step, per clean token", numbers["train_step"], "tidar", "autoregressive", "<= 2.3"
    )
    numbers["experts"] = expert_ratio(_REPEATS.value)
    show("dense experts / block-padded experts, 1024 tokens", numbers["experts"], "dense", "block_padded", ">= 4")
    numbers["rows"] = {}
    for batch in (1, 8):
        cost = forward_cost(model, variables, batch=batch, repeats=_REPEATS.value)
        numbers["rows"][batch] = {rows: {"milliseconds": ms, "ratio": ms / cost[1]} for rows, ms in cost.items()}
        curve = ", ".join(f"{rows}: {ms / cost[1]:.2f}x" for rows, ms in cost.items())
        print(
            f"one forward by rows, over the one-row AR forward, batch {batch} ({cost[1]:.3f} ms): {curve}", flush=True
        )
    numbers["lossless"] = [
        lossless_ratio(model, variables, batch, temperature, anchors, min(5, _REPEATS.value))
        for batch in (1, 8)
        for temperature in (0.0, 1.0)
        for anchors in ("all", (1, 4))
    ]
    for row in numbers["lossless"]:
        print(
            "lossless over AR wall-clock: batch {batch}, temperature {temperature:g}, block 8, anchors {anchors}: "
            "speedup {speedup:.2f} at {tokens_per_forward:.2f} tokens and {rows_per_forward} rows a forward".format(
                **row
            )
        )
    if _OUTPUT.value:
        Path(_OUTPUT.value).write_text(json.dumps(numbers, indent=2) + "\n")


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
        # flax modules are hashable; its dataclass_transform (eq without frozen) does not say so
        step = make_train_step(model, Objective(kind, block_size=8), optimizer)  # pyrefly: ignore[bad-argument-type]
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


def lossless_ratio(model: Zaya, variables, batch: int, temperature: float, anchors, repeats: int) -> dict:
    """Tokens per second of lossless drafting over AR on the same prompts, prefill included."""
    tokenizer, task = ByteTokenizer(), make_task("addition")
    prompts = [tokenizer.encode(task.problem("test", i, 5).prompt) for i in range(16)]
    common = dict(block_size=8, temperature=temperature, stop_tokens=(tokenizer.eos_id,))
    samplers = {"autoregressive": SamplerConfig("autoregressive", **common)}
    samplers["lossless"] = SamplerConfig("single_pass", anchors=anchors, **common)
    produced = {}

    def runner(name: str) -> Callable[[], object]:
        def call() -> None:
            produced[name] = [
                generate(model, variables, prompts[at : at + batch], samplers[name], 48, seed=at)
                for at in range(0, len(prompts), batch)
            ]

        return call

    times = medians({name: runner(name) for name in samplers}, repeats, "lossless")
    tokens = {name: sum(len(t) for g in out for t in g.tokens) for name, out in produced.items()}
    speed = {name: tokens[name] / times[name] for name in times}
    forwards = sum(int(g.forwards.sum()) for g in produced["lossless"])
    return {
        "batch": batch, "temperature": temperature, "block_size": 8, "anchors": anchors, "prompts": len(prompts),
        "speedup": speed["lossless"] / speed["autoregressive"], "milliseconds": times,
        "tokens_per_forward": tokens["lossless"] / forwards, "rows_per_forward": samplers["lossless"].rows_per_forward,
    }  # fmt: skip


if __name__ == "__main__":
    cli.run(main)
