"""A training step beside its baselines, in turn and on this machine: TiDAR's, a dense model's, transformers' in torch.

    python -m experiments.bench.training --presets=zaya1_1m --repeats=3
    python -m experiments.bench.training --output=results/bench/training.json

Every side makes whole steps (forward, backward, clipping, AdamW) on the same batch of clean tokens in float32, timed
`STEPS` at a time, since training makes one after the other:

* autoregressive: ours, 16 experts, with the fastest of `HOW` on one device or on a device a core (data parallel).
  Everything else is measured against it;
* tidar: the same model, [clean ‖ masks] rows of block 16;
* dense: one SwiGLU of an expert's size in the experts' place: as many active FLOPs but for the router. These two are
  computed like the first;
* transformers: its ZayaForCausalLM with our weights in torch, with the fastest of its attention and expert
  implementations and thread counts. Its loss must be ours. Needs the `parity` extra: pip install -e ".[parity]".

torch has a process of its own, so neither's threads and memory are in the other's. Both keep freed memory (`cli.run`).
"""

import contextlib
import functools
import importlib
import importlib.metadata
import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments.bench._transformers_reference import (
    EXPERT_KERNELS,
    PAUSE,
    TRIAL_REPEATS,
    Setting,
    benchmark_config,
    fastest_setting,
    require_parity_extra,
    their_model,
    use,
)
from zaya_jax import Zaya, ZayaConfig
from zaya_jax.architecture import Execution
from zaya_jax.command_line import cli
from zaya_jax.errors import UserError
from zaya_jax.parallel import MeshConfig, make_placement
from zaya_jax.parallel.devices import use_cpu_devices
from zaya_jax.runs import provenance
from zaya_jax.timing import medians
from zaya_jax.training.objective import Objective
from zaya_jax.training.optimizer import OptimizerConfig
from zaya_jax.training.state import init_state, init_variables, make_train_step

GOALS = {"tidar": "<= 2.1", "dense": ">= 1 / 1.6", "transformers": ">= 1.5"}
BLOCK_SIZE = 16
STEPS = 5  # timed at a time
# transformers' batched_mm keeps a float32 copy of its expert (3 hidden x intermediate matrices) for every token and
# layer; not tried where they take more than this
BATCHED_BYTES = 4 << 30
SAME_LOSS = 1e-3  # at most, relative: float32 sums in different orders
# How a step is computed, none of which changes what: as the preset says, or as small matrices on CPU threads like it.
HOW: dict[str, dict[str, Any]] = {
    "default": {},
    "tiles": dict(
        attention_backend="tiled",
        query_chunk=512,
        expert_backend="sequential_vjp",
        unroll_layers=True,
        qkv_backend="fused",
    ),
}

_OUTPUT = flags.DEFINE_string("output", None, "Where to write the numbers as JSON; nowhere by default.")
_PRESETS = flags.DEFINE_list("presets", ["zaya1_1m", "zaya1_25m"], "Models, by preset; with 16 experts.")
_BATCH = flags.DEFINE_integer("batch", 8, "Rows of a batch.", lower_bound=1, upper_bound=1_000_000)
_ROW = flags.DEFINE_integer("row", 256, "Clean tokens of a row.", lower_bound=BLOCK_SIZE, upper_bound=1_000_000)
_REPEATS = flags.DEFINE_integer("repeats", 9, "How often each side is timed.", lower_bound=1, upper_bound=10_000)


class Ours(NamedTuple):
    """A setting of our side."""

    how: str  # a key of HOW
    devices: int  # CPU devices, each with its share of the batch


def main() -> None:
    cli.check_output(_OUTPUT.value)
    use_cpu_devices(provenance.cores())
    if jax.default_backend() != "cpu":
        raise UserError(f"JAX runs on {jax.default_backend()}, torch's side on the CPU: set JAX_PLATFORMS=cpu")
    require_parity_extra("bench.training")
    configs = {name: benchmark_config(name) for name in _PRESETS.value}
    numbers: dict = {"hardware": provenance.hardware(), "environment": provenance.describe(), "training": []}
    for package in ("torch", "transformers"):
        numbers["environment"]["packages"][package] = importlib.metadata.version(package)
    for name, config in configs.items():
        row: dict = {"preset": name, **compare(config, _BATCH.value, _ROW.value, _REPEATS.value)}
        numbers["training"].append(row)
        for side, goal in GOALS.items():
            ratio = f"{side} / autoregressive {row['ratio'][side]:.2f} (goal {goal})"
            print(f"{name} ({row['parameters']:,} parameters): {ratio}", flush=True)
        cli.write_numbers(_OUTPUT.value, numbers)


def compare(config: ZayaConfig, batch: int, row: int, repeats: int) -> dict:
    """Median milliseconds of a step of each side, and their ratios over the autoregressive one's."""
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (batch, row)).astype(np.int32)
    variables = init_variables(Zaya(config), 0)
    theirs = TheirProcess(config, variables, tokens)
    losses: dict[str, float] = {}
    ours, step, tried = fastest_of_ours(config, variables, tokens, losses)
    dense = config.replace(feed_forward="dense")
    sides: dict[str, Callable[[], object]] = {
        "autoregressive": step,
        "tidar": our_step(config, variables, Objective("tidar", BLOCK_SIZE), tokens, ours, losses),
        "dense": our_step(dense, init_variables(Zaya(dense), 0), Objective("autoregressive"), tokens, ours, {}),
        "transformers": theirs.train,
    }
    require_same_loss(losses["autoregressive"], theirs.first_loss)
    times = step_times(sides, repeats, "training steps")
    return {
        "parameters": sum(x.size for x in jax.tree.leaves(variables["params"])), "experts": config.num_experts,
        "dense_parameters": sum(
            x.size for x in jax.tree.leaves(jax.eval_shape(functools.partial(init_variables, Zaya(dense), 0))["params"])
        ),
        "batch": batch, "row": row, "block_size": BLOCK_SIZE, "dtype": config.dtype, "milliseconds": times,
        "ratio": {side: times[side] / times["autoregressive"] for side in GOALS},
        "tokens_per_second": {side: 1e3 * tokens.size / time for side, time in times.items()},
        "loss": {"autoregressive": losses["autoregressive"], "transformers": theirs.first_loss},
        "setting": ours._asdict() | HOW[ours.how],
        "trials": [{**setting._asdict(), "milliseconds": time} for setting, time in tried.items()],
        "transformers_setting": theirs.setting._asdict(),
    }  # fmt: skip


def step_times(sides: dict[str, Callable[[], object]], repeats: int, label: str) -> dict[str, float]:
    """Median milliseconds of one step of each side; a side's call makes `STEPS`."""
    return {side: time / STEPS for side, time in medians(sides, repeats, label, PAUSE).items()}


def fastest_of_ours(
    config: ZayaConfig, variables: dict, tokens: np.ndarray, losses: dict[str, float]
) -> tuple[Ours, Callable[[], object], dict[Ours, float]]:
    """(The setting that makes our autoregressive step fastest, that step, every setting's median milliseconds)."""
    counts = sorted({1, provenance.cores()})
    by_name = {f"{how} {count}": Ours(how, count) for how in HOW for count in counts if len(tokens) % count == 0}
    steps = {
        name: our_step(config, variables, Objective("autoregressive"), tokens, setting, losses)
        for name, setting in by_name.items()
    }
    times = step_times(steps, TRIAL_REPEATS, "our settings")
    best = min(times, key=lambda name: times[name])
    return by_name[best], steps[best], {by_name[name]: time for name, time in times.items()}


def our_step(
    config: ZayaConfig, variables: dict, objective: Objective, tokens: np.ndarray, ours: Ours, losses: dict[str, float]
) -> Callable[[], object]:
    """A call that trains `STEPS` on; the first step's AR loss goes to `losses` under the objective's kind."""
    optimizer, how = OptimizerConfig(), Execution(**HOW[ours.how])
    batch_size, row = tokens.shape
    placement = make_placement(MeshConfig(data=ours.devices), config, batch_size, row, BLOCK_SIZE, execution=how)
    # flax modules are hashable; its dataclass_transform (eq without frozen) does not say so
    step = make_train_step(Zaya(config, how), objective, optimizer, placement)  # pyrefly: ignore[bad-argument-type]
    state = jax.tree.map(jnp.copy, init_state(variables, optimizer, 0))
    batch = {"tokens": tokens, "document": np.zeros_like(tokens)}
    state, batch = (placement.put(state), placement.put_batch(batch)) if placement else jax.device_put((state, batch))
    state, metrics = step(state, batch, 1.0)
    losses[objective.kind] = float(metrics["ar_loss"])
    held = [state]

    def call() -> object:
        for _ in range(STEPS):
            held[0], _ = step(held[0], batch, 1.0)  # the state is donated: keep the new one
        return held[0]

    return call


class TheirProcess:
    """transformers' side, in a process of its own that makes a step when asked to."""

    def __init__(self, config: ZayaConfig, variables: dict, tokens: np.ndarray) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pipe, end = spawn.Pipe()
        arguments = (end, config, jax.tree.map(np.asarray, variables), tokens)
        spawn.Process(target=serve_their_steps, args=arguments, daemon=True).start()
        end.close()  # the child's copy alone is left, so that its death ends a wait
        self.setting: Setting
        self.first_loss: float
        self.setting, self.first_loss = self._pipe.recv()

    def train(self) -> float:
        """Trains `STEPS` on; the last one's loss.

        Raises:
          EOFError: the process has died; what it died of is on stderr.
        """
        self._pipe.send(None)
        return self._pipe.recv()


def serve_their_steps(pipe: Connection, config: ZayaConfig, variables: dict, tokens: np.ndarray) -> None:
    """What the process runs: sends (the fastest setting, the first loss), then trains on whenever it is asked."""
    theirs = Theirs(config, variables, tokens)
    pipe.send((theirs.setting, theirs.first_loss))
    with contextlib.suppress(EOFError):  # the asking process has ended
        while True:
            pipe.recv()
            pipe.send(theirs.train())


class Theirs:
    """transformers' side: the model, its optimizer and its fastest setting."""

    def __init__(self, config: ZayaConfig, variables: dict, tokens: np.ndarray) -> None:
        self.torch = importlib.import_module("torch")
        self.model = their_model(config, variables).train()
        rule = OptimizerConfig()
        self.clip = rule.clip_norm
        self.optimizer = self.torch.optim.AdamW(
            self.model.parameters(), lr=rule.learning_rate, betas=(rule.b1, rule.b2), weight_decay=rule.weight_decay
        )
        self.ids = self.torch.from_numpy(tokens.astype(np.int64))
        with self.torch.no_grad():
            self.first_loss = float(self._loss())
        copies = 4 * 3 * config.hidden_size * config.moe_intermediate_size * config.num_hidden_layers * tokens.size
        experts = [how for how in EXPERT_KERNELS if how != "batched_mm" or copies <= BATCHED_BYTES]
        self.setting, _ = fastest_setting(self.model, functools.partial(self.train, 1), experts)
        use(self.model, self.setting)

    def _loss(self) -> Any:
        # without the mask, tokens that equal the padding token would be taken for padding
        mask = self.torch.ones_like(self.ids)
        return self.model(self.ids, attention_mask=mask, labels=self.ids, use_cache=False).loss

    def train(self, steps: int = STEPS) -> float:
        loss: Any = None
        for _ in range(steps):
            self.optimizer.zero_grad(set_to_none=True)
            loss = self._loss()
            loss.backward()
            self.torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
            self.optimizer.step()
        return float(loss.detach())


def require_same_loss(ours: float, theirs: float) -> None:
    """Raises UserError when the two sides compute different things, whose times cannot be compared."""
    if abs(ours - theirs) > SAME_LOSS * abs(ours):
        raise UserError(
            f"the first loss is {ours:.6f} here and {theirs:.6f} in transformers, may differ by {SAME_LOSS:g}"
        )


if __name__ == "__main__":
    cli.run(main, keep_memory=True)
