"""The training loop of one phase: resume, step, log, save."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from zaya_jax.architecture import Zaya
from zaya_jax.parallel import replicated, split_batch
from zaya_jax.training.checkpoints import Checkpoints
from zaya_jax.training.metrics import MetricWriter
from zaya_jax.training.objective import Objective
from zaya_jax.training.optimizer import OptimizerConfig, schedule
from zaya_jax.training.state import TrainState, init_state, make_train_step


class DataIterator(Iterator[dict[str, np.ndarray]], Protocol):
    """Endless batches of tokens and document, int32 [batch, row], whose position can be saved."""

    def get_state(self) -> dict[str, Any]: ...
    def set_state(self, state: dict[str, Any]) -> None: ...


@dataclasses.dataclass(frozen=True)
class Phase:
    """One stage of training: what, how long, and how often to look.

    Attributes:
      name: of its metrics and checkpoints.
      steps: optimizer steps.
      log_every, evaluate_every, save_every: in steps; the last step always logs, evaluates and saves.
      seed: of the phase's random draws (grid offsets, reveals).
    """

    name: str
    objective: Objective
    optimizer: OptimizerConfig
    steps: int
    log_every: int = 10
    evaluate_every: int = 100
    save_every: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        for field in ("steps", "log_every", "evaluate_every", "save_every"):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{self.name}.{field}: got {value!r}, may be an integer of at least 1")


def train(
    model: Zaya,
    variables: dict,
    phase: Phase,
    batches: DataIterator,
    checkpoints: Checkpoints,
    writer: MetricWriter,
    evaluate: Callable[[dict], dict[str, Any]] | None = None,
    mesh: Mesh | None = None,
    carry: Checkpoints | None = None,
) -> TrainState:
    """Runs a phase to its end, from its newest checkpoint if there is one.

    Args:
      variables: where the phase starts; not read when it resumes.
      batches: at its start; set to the saved position when the phase resumes.
      evaluate: (variables) -> metrics, called every `evaluate_every` steps.
      mesh: see `make_train_step`.
      carry: of the phase that `variables` are from: its optimizer's state is gone on with, not a fresh one. Its
        optimizer must keep state of the same structure.

    Returns:
      The final state, which is also the newest checkpoint.

    Raises:
      CheckpointError: a checkpoint that cannot be read or written.
      FloatingPointError: the loss is not finite.
    """
    state = init_state(variables, phase.optimizer, phase.seed)
    # All of it committed to its place: a state that is so in part (weights read from a checkpoint, a fresh optimizer)
    # would compile the step twice.
    place = jax.devices()[0] if mesh is None else replicated(mesh)
    state = jax.device_put(state, place)
    if checkpoints.latest is not None:
        state, extra = checkpoints.load(state)
        batches.set_state(extra["data"])
    elif carry is not None:
        carried, _ = carry.load(state)
        state = carried.replace(step=state.step, rng=state.rng)  # those are a phase's own
    # Donated buffers must be nobody else's: `variables` may still serve a later phase.
    state = jax.tree.map(jnp.copy, state)
    done = int(state.step)
    writer.rewind(phase.name, done)
    # flax modules are hashable; its dataclass_transform (eq without frozen) does not say so
    train_step = make_train_step(model, phase.objective, phase.optimizer, mesh)  # pyrefly: ignore[bad-argument-type]

    bar = tqdm(total=phase.steps, initial=done, desc=phase.name, unit="step", dynamic_ncols=True)
    clock, since = time.perf_counter(), done
    for step in range(done + 1, phase.steps + 1):
        batch = next(batches)
        batch = jax.device_put(batch, None if mesh is None else split_batch(mesh))
        state, metrics = train_step(state, batch, schedule(phase.optimizer, step - 1, phase.steps))
        bar.update()
        last = step == phase.steps
        if step % phase.log_every == 0 or last:
            metrics = jax.device_get(metrics)
            elapsed = time.perf_counter() - clock
            # The first lines' speed includes compilation; it is what was measured, so it stays.
            metrics["tokens_per_second"] = (step - since) * batch["tokens"].size / elapsed
            writer.write(phase.name, step, metrics)
            bar.set_postfix_str(_postfix(metrics))
            clock, since = time.perf_counter(), step
        if evaluate is not None and (step % phase.evaluate_every == 0 or last):
            writer.write(f"{phase.name}/validation", step, evaluate(state.variables))
            clock, since = time.perf_counter(), step
        if step % phase.save_every == 0 or last:
            checkpoints.save(step, state, {"data": batches.get_state()})
            clock, since = time.perf_counter(), step
    bar.close()
    return state


def _postfix(metrics: dict[str, Any]) -> str:
    shown = {"ar": "ar_loss", "draft": "draft_loss", "tok/s": "tokens_per_second"}
    return " ".join(f"{label} {float(metrics[name]):.4g}" for label, name in shown.items() if name in metrics)
