"""Autoregressive decoding beside transformers' ZAYA `generate`, same random weights, both on this machine's CPU.

    python -m experiments.bench.transformers --presets=zaya1_1m --batches=1 --repeats=3 --threads=1
    python -m experiments.bench.transformers --threads=1 --output=results/bench/transformers_1_thread.json

Greedy, float32, 16 experts, prompts of 32 random tokens, 64 new ones, no end token on either side. transformers runs
with its cache, in torch's inference mode, and with whichever of its attention and expert implementations and thread
counts a trial on this machine finds fastest; --threads sets JAX's own, which are fixed when it starts. The sides take
turns, and they must produce the same tokens: a baseline that computes something else is none. Needs the `parity`
extra: pip install -e ".[parity]".
"""

import importlib
import importlib.metadata
from typing import Any

import jax
import numpy as np
from absl import flags

from experiments.bench._transformers_reference import (  # fmt: skip
    EXPERTS,
    PAUSE,
    Setting,
    benchmark_config,
    fastest_setting,
    require_parity_extra,
    their_model,
    use,
)
from zaya_jax import SamplerConfig, Zaya, generate
from zaya_jax.checks import natural
from zaya_jax.command_line import cli, measured_device
from zaya_jax.errors import UserError
from zaya_jax.runs import provenance
from zaya_jax.timing import medians
from zaya_jax.training.state import init_variables

PROMPT_TOKENS = 32
SAME_TOKENS = 0.99  # at least; not 1, for two float32 sums in different orders may part at a near tie
TRIAL_SHARE = 8  # of the tokens, to find transformers' fastest setting
# Ratios of transformers' time over ours to reach at batch 1; at batch 8, half of them.
GOALS = {"zaya1_1m": 20.0, "zaya1_25m": 8.0, "zaya1_200m": 4.0}

_OUTPUT = flags.DEFINE_string("output", None, "Where to write the numbers as JSON; nowhere by default.")
_PRESETS = flags.DEFINE_list("presets", list(GOALS), "Models, by preset.")
_BATCHES = flags.DEFINE_list("batches", ["1", "8"], "Prompts decoded together.")
_NEW_TOKENS = flags.DEFINE_integer(
    "new_tokens", 64, "Tokens each prompt is continued by.", lower_bound=1, upper_bound=2**24
)
_REPEATS = flags.DEFINE_integer("repeats", 9, "Timed calls of each side of a ratio.", lower_bound=1, upper_bound=10_000)


def main() -> None:
    """Runs every model and batch, and prints the ratios."""
    cli.check_output(_OUTPUT.value)
    if not all(map(natural, _BATCHES.value)):
        raise UserError(f"--batches: got {','.join(_BATCHES.value)}, may be integers of at least 1, e.g. 1,8")
    measured_device.check()
    if jax.default_backend() != "cpu":
        raise UserError(f"JAX runs on {jax.default_backend()}, torch's side on the CPU: set JAX_PLATFORMS=cpu")
    require_parity_extra("bench.transformers")
    configs = {name: benchmark_config(name) for name in _PRESETS.value}
    numbers: dict = {"hardware": provenance.hardware(), "environment": provenance.describe(), "transformers": []}
    for package in ("torch", "transformers"):
        numbers["environment"]["packages"][package] = importlib.metadata.version(package)
    ours = numbers["environment"]["threads"]
    print(
        f"{numbers['hardware']}; JAX's threads: {ours}, torch's: the faster of 1 and {provenance.cores()}", flush=True
    )
    for name, config in configs.items():
        model, variables = Zaya(config), init_variables(Zaya(config), 0)
        theirs = their_model(config, variables)
        for batch in map(int, _BATCHES.value):
            row = {"preset": name, **compare(model, variables, theirs, batch, _NEW_TOKENS.value, _REPEATS.value)}
            require_same_tokens(row)
            numbers["transformers"].append({**row, "goal": goal(name, batch)})
            show(numbers["transformers"][-1])
            cli.write_numbers(_OUTPUT.value, numbers)


def compare(model: Zaya, variables, theirs: Any, batch: int, new_tokens: int, repeats: int) -> dict:
    """Both sides on the same prompts.

    Returns:
      Milliseconds per token of a row (a batch's rows advance together; the prefill is shared out), their ratio, the
      fraction of equal tokens, transformers' setting and the trial it won.
    """
    prompts = np.random.default_rng(1).integers(0, model.config.vocab_size, (batch, PROMPT_TOKENS))
    setting, trial = fastest_decoding(theirs, prompts, new_tokens)
    use(theirs, setting)
    produced: dict[str, np.ndarray] = {}

    def ours() -> None:
        sampler = SamplerConfig("autoregressive", temperature=0.0)
        produced["zaya_jax"] = np.array(generate(model, variables, prompts.tolist(), sampler, new_tokens).tokens)

    def transformers() -> None:
        produced["transformers"] = continue_greedily(theirs, prompts, new_tokens)

    times = medians({"zaya_jax": ours, "transformers": transformers}, repeats, "decoding", PAUSE)
    return {
        "parameters": sum(x.size for x in jax.tree.leaves(variables["params"])), "experts": EXPERTS, "batch": batch,
        "prompt_tokens": PROMPT_TOKENS, "new_tokens": new_tokens, "dtype": model.config.dtype, "temperature": 0.0,
        "initializer_range": model.config.initializer_range,
        "milliseconds_per_token": {name: time / new_tokens for name, time in times.items()},
        "ratio": times["transformers"] / times["zaya_jax"],
        "agreement": agreement(produced["zaya_jax"], produced["transformers"]),
        "distinct_tokens_per_row": float(np.mean([len(set(row)) for row in produced["zaya_jax"].tolist()])),
        "setting": {**setting._asdict(), "use_cache": True, "inference_mode": True}, "trial": trial,
    }  # fmt: skip


def fastest_decoding(theirs: Any, prompts: np.ndarray, new_tokens: int) -> tuple[Setting, list[dict]]:
    """Which setting decodes some of the tokens fastest, and every setting's median milliseconds per token."""
    short = -(-new_tokens // TRIAL_SHARE)
    setting, times = fastest_setting(theirs, lambda: continue_greedily(theirs, prompts, short))
    return setting, [{**s._asdict(), "milliseconds_per_token": time / short} for s, time in times.items()]


def continue_greedily(theirs: Any, prompts: np.ndarray, new_tokens: int) -> np.ndarray:
    """transformers' continuation, [batch, new_tokens]."""
    torch = importlib.import_module("torch")
    with torch.inference_mode():
        ids = torch.from_numpy(prompts)
        # without the mask, prompt tokens that equal the padding token would be taken for padding
        out = theirs.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, use_cache=True, max_new_tokens=new_tokens
        )
    return out[:, prompts.shape[1] :].numpy()


def agreement(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The fraction of equal tokens; 0 when one side stopped early."""
    return float((ours == theirs).mean()) if ours.shape == theirs.shape else 0.0


def require_same_tokens(row: dict) -> None:
    """Raises UserError when fewer than 99% of the tokens are equal."""
    if row["agreement"] < SAME_TOKENS:
        raise UserError(
            f"{row['preset']}, batch {row['batch']}: {row['agreement']:.1%} of the greedy tokens are equal, must be at "
            f"least {SAME_TOKENS:.0%}: the two sides compute different things, so their times cannot be compared"
        )


def goal(name: str, batch: int) -> float | None:
    """The ratio to reach; None where none was set."""
    return GOALS[name] / {1: 1, 8: 2}[batch] if name in GOALS and batch in (1, 8) else None


def show(row: dict) -> None:
    """One line for a model and batch."""
    milliseconds, setting = row["milliseconds_per_token"], row["setting"]
    print(
        f"transformers / zaya_jax, {row['preset']} ({row['parameters']:,} parameters), batch {row['batch']}: "
        f"{row['ratio']:.1f}" + (f" (goal >= {row['goal']:g})" if row["goal"] else "") + "; "
        f"{milliseconds['transformers']:.2f} and {milliseconds['zaya_jax']:.2f} ms per token of a row; "
        f"{row['agreement']:.1%} equal tokens; transformers with {setting['attention']} attention, "
        f"{setting['experts']} experts, torch threads: {setting['threads']}",
        flush=True,
    )


if __name__ == "__main__":
    cli.run(main)
