"""What a run was made with, and the guard that keeps two different runs out of one folder."""

import contextlib
import datetime
import fcntl
import importlib.metadata
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import jax
from ml_collections import ConfigDict

from zaya_jax.errors import UserError
from zaya_jax.parallel import is_first
from zaya_jax.writing import write_text

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "numpy")


@contextlib.contextmanager
def locked(path: Path, waiting: str | None = None) -> Iterator[None]:
    """Holds a lock file that no other process holds; it is let go when the process ends, however it ends.

    Args:
      path: of the file; folders above it are made.
      waiting: what to print before waiting for another process; None: do not wait.

    Raises:
      UserError: another process holds it, and `waiting` is None.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting is None:
                raise UserError(f"{path.parent}: another process is running there; choose another folder") from None
            print(waiting, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def claim_workdir(workdir: Path, config: ConfigDict) -> None:
    """Writes config.json and environment.json, or checks that the folder holds a run of this very config.

    Raises:
      UserError: the folder holds another config's run; names the first field that differs.
      PermissionError, FileExistsError: the folder cannot be made.
    """
    path = workdir / "config.json"
    mine = json.loads(config.to_json_best_effort())
    if path.exists():
        try:
            theirs = json.loads(path.read_text())
        except json.JSONDecodeError:
            raise UserError(f"{path}: not JSON; remove the folder or choose another --workdir") from None
        difference = first_difference(_without_devices(theirs), _without_devices(mine))
        if difference:
            raise UserError(f"--workdir {workdir}: holds a run whose config differs in {difference}; choose another")
        return
    workdir.mkdir(parents=True, exist_ok=True)
    write_text(workdir / "environment.json", json.dumps(describe(), indent=2) + "\n")
    write_text(path, json.dumps(mine, indent=2) + "\n")


def _without_devices(config: dict) -> dict:
    """A config but for the devices: a run may go on with others."""
    left = {name: value for name, value in config.items() if name not in ("cpu_devices", "mesh")}
    return {k: _without_devices(v) if isinstance(v, dict) and "objective" in v else v for k, v in left.items()}


def first_difference(a, b, where: str = "") -> str | None:
    """The path of the first field in which two JSON values differ, with both values; None if they do not."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted(set(a) | set(b)):
            if found := first_difference(a.get(key), b.get(key), f"{where}.{key}".lstrip(".")):
                return found
        return None
    return None if a == b else f"{where} ({a!r} there, {b!r} now)"


def describe() -> dict:
    """Versions, hardware and date."""
    return {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "device": jax.devices()[0].device_kind,
        "device_count": jax.device_count(),
        "cpu": cpu_name(),
        "cores": cores(),
        "threads": int(os.environ.get("NPROC", cores())),  # of XLA on a CPU: see cli's --threads
        "platform": platform.platform(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "git_commit": git_commit(),
        "seconds": {},
    }


def hardware() -> str:
    """One cell for results.csv."""
    device = jax.devices()[0]
    if device.platform == "cpu":
        return f"{cpu_name()}, {cores()} cores"
    return f"{jax.device_count()} x {device.device_kind}"


def cores() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def git_commit() -> str | None:
    """The checkout's commit, with "+changes" if it is not clean; None outside a checkout."""
    here = Path(__file__).parent
    try:
        run = lambda *args: subprocess.run(["git", *args], cwd=here, capture_output=True, text=True, check=True).stdout  # noqa: E731
        return run("rev-parse", "HEAD").strip() + ("+changes" if run("status", "--porcelain").strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return None


@contextlib.contextmanager
def timed(workdir: Path, stage: str) -> Iterator[None]:
    """Adds a stage's wall seconds to environment.json; a resumed stage adds up. Of many processes the first does it."""
    clock = time.perf_counter()
    try:
        yield
    finally:
        if is_first():
            path = workdir / "environment.json"
            known = json.loads(path.read_text())
            known["seconds"][stage] = round(known["seconds"].get(stage, 0) + time.perf_counter() - clock, 2)
            write_text(path, json.dumps(known, indent=2) + "\n")
