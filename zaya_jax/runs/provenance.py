"""What a run was made with: machine, versions, commit, command, seconds."""

import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax

from zaya_jax import compilation_cache
from zaya_jax.files import write_text
from zaya_jax.parallel import is_first
from zaya_jax.reporting.results import ENVIRONMENT
from zaya_jax.reporting.run_files import read_environment

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "numpy")


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


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Its own name; where that has no number ("AMD EPYC", as virtual machines say), with its family and model."""
    with contextlib.suppress(OSError):
        pairs = (line.partition(":")[::2] for line in cpuinfo.read_text().splitlines())
        said = {key.strip(): value.strip() for key, value in pairs}
        if name := said.get("model name"):
            numbers = [f"{key.removeprefix('cpu ')} {said[key]}" for key in ("cpu family", "model") if key in said]
            return name if any(map(str.isdigit, name)) or not numbers else f"{name} ({', '.join(numbers)})"
    return platform.processor() or platform.machine()


def git_commit() -> str | None:
    """The checkout's commit, with "+changes" if it is not clean; None outside a checkout."""
    here = Path(__file__).parent
    try:
        run = lambda *args: subprocess.run(["git", *args], cwd=here, capture_output=True, text=True, check=True).stdout  # noqa: E731
        return run("rev-parse", "HEAD").strip() + ("+changes" if run("status", "--porcelain").strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def made_by(command: str) -> dict[str, str | None]:
    """What a model card says of the program that writes it."""
    try:
        version = importlib.metadata.version("zaya_jax")
    except importlib.metadata.PackageNotFoundError:  # run from a checkout
        version = "(not installed)"
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    command = " ".join([f"python -m experiments.{command}", *sys.argv[1:]])
    return {"version": version, "commit": git_commit(), "command": command, "date": date}


@contextlib.contextmanager
def timed(workdir: Path, stage: str) -> Iterator[None]:
    """Adds a stage's wall seconds to environment.json; a resumed stage adds up. Of many processes the first does it.

    Beside them, how many programs came out of the compilation cache: seconds with and without are not to be compared.
    """
    began, loaded = time.perf_counter(), compilation_cache.loaded()
    try:
        yield
    finally:
        if is_first():
            path = workdir / ENVIRONMENT
            known = read_environment(path)
            known["seconds"][stage] = round(known["seconds"].get(stage, 0) + time.perf_counter() - began, 2)
            cached = known["programs_from_cache"]
            cached[stage] = cached.get(stage, 0) + compilation_cache.loaded() - loaded
            write_text(path, json.dumps(known, indent=2) + "\n")
