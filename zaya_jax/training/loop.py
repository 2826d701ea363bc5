"""The training loop of one phase: resume, step, log, save."""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from zaya_jax.architecture import Zaya
from zaya_jax.checks import COUNT, SEED, SWITCH, Choice, Number, check_fields, folder_name
from zaya_jax.errors import UserError
from zaya_jax.interop.formats.native import CheckpointError
from zaya_jax.parallel import Placement, is_first
from zaya_jax.paths import one_line
from zaya_jax.training.bad_steps import BadSteps
from zaya_jax.training.checkpoints import Checkpoints
from zaya_jax.training.logging.metrics import MetricWriter
from zaya_jax.training.logging.trace import StepTrace
from zaya_jax.training.objective import Objective
from zaya_jax.training.optimizer import OptimizerConfig, rates
from zaya_jax.training.signals import Interrupted, stop_request
from zaya_jax.training.state import TrainState, init_state, make_train_step

NO_MASTERS = (
    "trains bfloat16 parameters without float32 masters: an update below about 1/256 of a weight is lost "
    "(model.param_dtype=float32 with model.dtype=bfloat16 keeps masters)"
)


class DataIterator(Iterator[dict[str, np.ndarray]], Protocol):
    """Endless batches of tokens and document, int32 [B, T], whose position can be saved."""

    def get_state(self) -> dict[str, Any]: ...
    def set_state(self, state: dict[str, Any]) -> None: ...


@runtime_checkable
class FollowsPolicy(Protocol):
    """Batches that depend on the model as it is: of a `DataIterator` that makes them by sampling from it."""

    def follow(self, variables: dict) -> None:
        """What the next batch is made with; the step after it gives these buffers away."""

    def metrics(self) -> dict[str, float]:
        """What a step's metrics say of its batch."""
        ...


@dataclasses.dataclass(frozen=True)
class Phase:
    """One stage of training: what, how long, and how often to look.

    Attributes:
      name: of its metrics and checkpoints.
      steps: optimizer steps.
      log_every, evaluate_every, save_every: in steps; the last step always logs, evaluates and saves.
      seed: of the phase's random draws (grid offsets, reveals).
      on_bad_step: "stop" or "skip": what a step does whose loss or gradient is not finite, or whose loss is a spike.
        Either way its batch is written down: see `BadSteps`.
      spike_factor: a loss above this many times the recent average is a spike; 0: none is.
      evaluate_ema: evaluate the average that optimizer.ema_decay keeps instead of the parameters.
    """

    name: str
    objective: Objective
    optimizer: OptimizerConfig
    steps: Annotated[int, COUNT]
    log_every: Annotated[int, COUNT] = 10
    evaluate_every: Annotated[int, COUNT] = 100
    save_every: Annotated[int, COUNT] = 200
    seed: Annotated[int, SEED] = 0
    on_bad_step: Annotated[str, Choice(("stop", "skip"))] = "stop"
    spike_factor: Annotated[float, Number(0, 1e9)] = 0.0
    evaluate_ema: Annotated[bool, SWITCH] = False

    def __post_init__(self) -> None:
        folder_name("name", self.name)
        check_fields(self.name, self)
        if 0 < self.spike_factor <= 1:
            raise UserError(f"{self.name}.spike_factor: got {self.spike_factor!r}, may be 0 (none) or a number above 1")
        if self.evaluate_ema and not self.optimizer.ema_decay:
            raise UserError(f"{self.name}.evaluate_ema: got True, may be False with optimizer.ema_decay 0")


def train(
    model: Zaya,
    variables: dict,
    phase: Phase,
    batches: DataIterator,
    checkpoints: Checkpoints,
    writer: MetricWriter,
    evaluate: Callable[[dict], dict[str, Any]] | None = None,
    placement: Placement | None = None,
    carry: Checkpoints | None = None,
    flops_per_step: float | None = None,
    peak_flops: float | None = None,
    profile: Path | None = None,
    own: tuple[int, np.ndarray] | None = None,
) -> TrainState:
    """Runs a phase to its end, from its newest checkpoint if there is one.

    Args:
      variables: where the phase starts; not read when it resumes.
      batches: at its start; set to the saved position when the phase resumes. Those that follow the policy
        (`FollowsPolicy`) are told the variables before each.
      evaluate: (variables) -> metrics, called every `evaluate_every` steps.
      placement: see `make_train_step`.
      carry: of the phase that `variables` are from: training resumes with its optimizer's state, not a fresh one. Its
        optimizer must keep state of the same structure.
      flops_per_step: of a step's matrix products; gives the metric model_flops_per_second.
      peak_flops: of all devices together, a second; gives the metric mfu, what share of it is used.
      profile: a folder for a trace of a few steps: see `StepTrace`.
      own: (rows of the batch, which of them `batches` gives) where each process reads its own: see
        `Placement.own_rows`. None: `batches` gives whole ones.

    Returns:
      The final state, which is also the newest checkpoint.

    Raises:
      CheckpointError: a checkpoint that cannot be read or written.
      Diverged: a bad step (see `Phase.on_bad_step`).
      Interrupted: SIGTERM or SIGINT came; the newest checkpoint is the last step's.
      UserError: the optimizer's freeze or accumulate does not fit the model or the batch.
    """
    if model.config.param_dtype == "bfloat16" and is_first():
        print(f"{phase.name}: {NO_MASTERS}", flush=True)
    state = _start(variables, phase, batches, checkpoints, placement, carry)
    done = int(state.step)
    writer.rewind(phase.name, done)
    skip = phase.on_bad_step == "skip"
    train_step = make_train_step(model, phase.objective, phase.optimizer, placement, skip)
    bad_steps = BadSteps(phase.name, writer, skip, phase.spike_factor)
    share = rates(phase.optimizer, phase.steps)
    speed = _Speed(done, flops_per_step, peak_flops)
    bar = tqdm(total=phase.steps, initial=done, desc=phase.name, unit="step", dynamic_ncols=True)
    with bar, stop_request() as stop, StepTrace(profile, done) as trace:
        for step in range(done + 1, phase.steps + 1):
            trace.before(step)
            position = batches.get_state()
            if isinstance(batches, FollowsPolicy):
                batches.follow(state.variables)
            rows = next(batches)
            batch = jax.device_put(rows) if placement is None else placement.put_batch(rows, own)
            state, metrics = train_step(state, batch, float(share[step - 1]), phase.spike_factor or math.inf)
            bad_steps.add(step, position, rows, metrics)
            trace.after(step, state.step)
            bar.update()
            last = step == phase.steps
            if step % phase.log_every == 0 or last:
                bad_steps.look()
                made = batches.metrics() if isinstance(batches, FollowsPolicy) else {}
                metrics = jax.device_get(metrics) | made | speed.since_last(step, batch["tokens"].size)
                writer.write(phase.name, step, _finite(metrics) if skip else metrics)
                bar.set_postfix_str(_postfix(metrics))
            if evaluate is not None and (step % phase.evaluate_every == 0 or last):
                chosen = state.ema_variables if phase.evaluate_ema else state.variables
                writer.write(f"{phase.name}/validation", step, evaluate(chosen))
                speed.restart(step)
            stopping = stop.agreed(look=step % phase.log_every == 0) and not last
            if step % phase.save_every == 0 or last or stopping:
                bad_steps.look()  # so that no checkpoint is saved after a step that should have stopped the run
                checkpoints.save(step, state, {"data": batches.get_state()}, wait=last or stopping)
                speed.restart(step)
            if stopping:
                raise Interrupted(f"{phase.name}: asked to stop; saved at step {step} of {phase.steps}")
    return state


def _start(
    variables: dict,
    phase: Phase,
    batches: DataIterator,
    checkpoints: Checkpoints,
    placement: Placement | None,
    carry: Checkpoints | None,
) -> TrainState:
    """The newest checkpoint's state, with `batches` at its position, or a fresh one; its buffers are nobody else's."""
    # All of it committed to its place: a state that is so in part (weights read from a checkpoint, a fresh optimizer)
    # would compile the step twice.
    if placement is None:
        state = jax.device_put(init_state(variables, phase.optimizer, phase.seed), jax.devices()[0])
    else:
        fresh = functools.partial(init_state, optimizer=phase.optimizer, seed=phase.seed)
        places = placement.shardings(jax.eval_shape(fresh, variables))
        state = jax.jit(fresh, out_shardings=places)(placement.put(variables))
    if checkpoints.latest is not None:
        state, extra = checkpoints.load(state)
        _go_on(batches, checkpoints, int(state.step), extra)
    elif carry is not None:
        carried, _ = carry.load(state)
        own = ("step", "rng", "recent_loss", "skipped")
        state = carried.replace(**{name: getattr(state, name) for name in own})
    # Donated buffers must be nobody else's: `variables` may still serve a later phase.
    return jax.tree.map(jnp.copy, state)


def _go_on(batches: DataIterator, checkpoints: Checkpoints, step: int, extra: dict[str, Any]) -> None:
    """Sets `batches` where a step was saved. CheckpointError where that is lost, or the step has another's number."""
    path = f"checkpoint {checkpoints.directory}/{checkpoints.latest}"
    if step != checkpoints.latest:
        raise CheckpointError(f"{path}: holds step {step}, may be called by that number")
    try:
        batches.set_state(extra["data"])
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:  # of whoever made the iterator
        lost = f"its position in the data is lost ({type(error).__name__}: {one_line(error)})"
        raise CheckpointError(f"{path}: {lost}; delete this step to go on from the one before it") from error


class _Speed:
    """What was done since the last look, a second. The first look includes compilation: it was measured so."""

    def __init__(self, step: int, flops_per_step: float | None, peak_flops: float | None):
        self._flops, self._peak = flops_per_step, peak_flops
        self.restart(step)

    def restart(self, step: int) -> None:
        self._clock, self._step = time.perf_counter(), step

    def since_last(self, step: int, tokens: int) -> dict[str, float]:
        """Rates of the steps up to `step`, of `tokens` each; starts anew."""
        steps_per_second = (step - self._step) / (time.perf_counter() - self._clock)
        self.restart(step)
        rates = {"tokens_per_second": tokens * steps_per_second}
        if self._flops is not None:
            rates["model_flops_per_second"] = self._flops * steps_per_second
            if self._peak is not None:
                rates["mfu"] = self._flops * steps_per_second / self._peak
        return rates


def _finite(metrics: dict[str, Any]) -> dict[str, Any]:
    """A skipped step's numbers, without those that are not."""
    return {name: value for name, value in metrics.items() if np.isfinite(value).all()}


def _postfix(metrics: dict[str, Any]) -> str:
    shown = {"ar": "ar_loss", "draft": "draft_loss", "tok/s": "tokens_per_second"}
    return " ".join(f"{label} {float(metrics[name]):.4g}" for label, name in shown.items() if name in metrics)
