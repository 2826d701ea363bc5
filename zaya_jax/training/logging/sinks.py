"""Where metrics go besides metrics.jsonl: TensorBoard and wandb, each imported only if it is asked for."""

import importlib.util
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from zaya_jax.errors import UserError
from zaya_jax.files import read_text, write_text

PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}  # sink (and extra of setup.py) -> package


class Sink(Protocol):
    """Something that shows curves."""

    def rewind(self, stage: str, step: int) -> None:
        """A stage starts, or resumes after `step`."""

    def write(self, stage: str, step: int, metrics: dict[str, Any]) -> None:
        """Numbers and nested lists of them by name; None where a step has none."""

    def close(self) -> None:
        """Everything written is on its way."""


def check_sinks(names: Sequence[str]) -> None:
    """Raises UserError, one line, for a sink that is unknown or whose package is not installed."""
    for name in names:
        if name not in PACKAGES:
            raise UserError(f"sinks: got {name!r}, may be any of {sorted(PACKAGES)}")
        if importlib.util.find_spec(PACKAGES[name]) is None:
            package = PACKAGES[name]
            raise UserError(f"sinks: {name!r} needs {package}, which is not installed: pip install 'zaya_jax[{name}]'")


def open_sinks(names: Sequence[str], workdir: Path, run: str, config: dict[str, Any]) -> list[Sink]:
    """The sinks of a run.

    Args:
      names: keys of PACKAGES.
      workdir: where TensorBoard's files go (WORKDIR/tensorboard) and wandb's.
      run: its name.
      config: plain values, for display.

    Raises:
      UserError: see `check_sinks`.
    """
    check_sinks(names)
    make = {"tensorboard": lambda: TensorBoard(workdir / "tensorboard"), "wandb": lambda: Wandb(workdir, run, config)}
    return [make[name]() for name in names]


def curves(metrics: dict[str, Any]) -> dict[str, float]:
    """The numbers of a line that are curves: scalars, and a list's entries one by one; larger tables are left out."""
    out = {}
    for name, value in metrics.items():
        if isinstance(value, list):
            out |= {f"{name}/{i}": x for i, x in enumerate(value) if isinstance(x, int | float)}
        elif isinstance(value, int | float):
            out[name] = value
    return out


class TensorBoard:
    """Event files, a folder a stage, so that training and validation of a phase lie over each other."""

    def __init__(self, directory: Path):
        self._directory = directory
        self._writers: dict[str, Any] = {}
        self._after: dict[str, int] = {}

    def rewind(self, stage: str, step: int) -> None:
        self._after[stage] = step

    def write(self, stage: str, step: int, metrics: dict[str, Any]) -> None:
        if stage not in self._writers:
            from tensorboardX import SummaryWriter  # pyrefly: ignore[missing-import]

            # TensorBoard hides what files before this one say of these steps. Their names have a time in seconds,
            purge = self._after.get(stage.split("/")[0], 0) + 1
            # so a suffix keeps those of a quick restart apart, in order.
            self._writers[stage] = SummaryWriter(
                str(self._directory / stage), purge_step=purge, filename_suffix=f".{purge:09}"
            )
        for name, value in curves(metrics).items():
            self._writers[stage].add_scalar(name, value, step)
        self._writers[stage].flush()

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()


class Wandb:
    """One wandb run, found again by the id in WORKDIR/wandb_id; every stage has its own step axis."""

    def __init__(self, workdir: Path, run: str, config: dict[str, Any]):
        import wandb  # pyrefly: ignore[missing-import]

        path = workdir / "wandb_id"
        if not path.exists():
            write_text(path, uuid.uuid4().hex)
        self._run = wandb.init(
            project="zaya_jax", name=run, id=read_text(path).strip(), resume="allow", dir=str(workdir), config=config
        )
        self._stages: set[str] = set()

    def rewind(self, stage: str, step: int) -> None:
        """wandb cannot."""

    def write(self, stage: str, step: int, metrics: dict[str, Any]) -> None:
        # wandb's own step must never fall, and every phase starts at 1 again
        if stage not in self._stages:
            self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
            self._stages.add(stage)
        self._run.log({f"{stage}/step": step, **{f"{stage}/{name}": x for name, x in curves(metrics).items()}})

    def close(self) -> None:
        self._run.finish()
