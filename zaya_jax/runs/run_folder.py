"""A run's folder: claimed by one config and one process at a time, evaluated again, and compared with another."""

import contextlib
import fcntl
import json
from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

from zaya_jax import moved
from zaya_jax.checks import shown
from zaya_jax.errors import UserError
from zaya_jax.files import at_once, make_folder, read_object, read_text, refused_in_one_line, remedy, write_text
from zaya_jax.reporting.results import ENVIRONMENT, METRICS
from zaya_jax.reporting.run_files import REMEDIES, load_run, read_environment
from zaya_jax.runs.provenance import describe
from zaya_jax.training.logging.metrics import BAD_STEPS, read_metrics

EVALUATION = ("results.csv", "samples.jsonl", "answers", "figures", "report.html")  # what `keep_evaluation` moves


@contextlib.contextmanager
def locked(path: Path, waiting: str | None = None, field: str = "") -> Iterator[None]:
    """Holds a lock file that no other process holds; it is let go when the process ends, however it ends.

    Args:
      path: of the file; folders above it are made.
      waiting: what to print before waiting for another process; None: do not wait.
      field: the flag that names its folder, for messages.

    Raises:
      UserError: another process holds it, and `waiting` is None; its folder cannot be made.
    """
    make_folder(path.parent, field)
    with open(path, "w", opener=at_once) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting is None:
                raise UserError(f"{path.parent}: another process is running there; choose another folder") from None
            print(waiting, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def claim_workdir(workdir: Path, config: ConfigDict) -> None:
    """Writes config.json and environment.json, or checks that the folder holds a run of this config.

    Where `evaluate` alone differs, the run is evaluated again: the earlier evaluation, finished or not, moves to
    evaluations/N with the config that made it, and config.json becomes this one. Where another process dies on the way,
    either config's command ends with its own evaluation at the top.

    Raises:
      UserError: the folder holds another config's run (names the first field that differs), or a damaged file.
      WriteError: the folder cannot be made or written to.
    """
    path = workdir / "config.json"
    mine = json.loads(config.to_json_best_effort())
    if path.exists():
        with remedy("remove the folder or choose another --workdir"):
            theirs = moved.renamed(read_object(path))
        trained, wanted = (_without_devices({**c, "evaluate": None}) for c in (theirs, mine))
        if found := first_difference(trained, wanted):
            raise UserError(
                f"--workdir {workdir}: holds a run whose config differs in {found}; choose another (evaluate.* may "
                "differ: the run is then evaluated again; experiments.evaluate measures any checkpoint)"
            )
        _have_environment(workdir / ENVIRONMENT)
        if theirs.get("evaluate") != mine.get("evaluate"):
            keep_evaluation(workdir)
            write_text(path, json.dumps(mine, indent=2) + "\n")
        return
    make_folder(workdir, "--workdir")
    _have_environment(workdir / ENVIRONMENT)
    write_text(path, json.dumps(mine, indent=2) + "\n")


def _have_environment(path: Path) -> None:
    """Reads environment.json, so that damage is told before anything is computed; writes it where there is none."""
    if path.exists():
        with remedy(REMEDIES[ENVIRONMENT]):
            read_environment(path)
    else:
        write_text(path, json.dumps(describe(), indent=2) + "\n")


def check_files(workdir: Path) -> None:
    """Raises UserError for what an earlier attempt left here and is damaged, before anything is computed."""
    load_run(workdir)
    if (bad_steps := workdir / BAD_STEPS).exists():
        with remedy(REMEDIES[METRICS]):
            read_metrics(bad_steps)


def keep_evaluation(workdir: Path) -> None:
    """Moves what evaluating and drawing wrote to evaluations/N, beside a copy of config.json and environment.json.

    results.csv, which says that a run is finished, goes first: killed on the way, the run is unfinished under either
    config, and what is left at the top is moved when this is called again.
    """
    found = [name for name in EVALUATION if (workdir / name).exists()]
    folder = workdir / "evaluations"
    with refused_in_one_line(folder):
        folder.mkdir(exist_ok=True)
        partial = folder / "partial"
        if not found and not partial.exists():
            return
        if any((partial / name).exists() for name in found):
            _number(partial, folder)  # after a kill the earlier config's command was run once more: both are kept
        partial.mkdir(exist_ok=True)
        for name in found:
            (workdir / name).replace(partial / name)
        for name in ("config.json", ENVIRONMENT):
            if (workdir / name).exists():
                write_text(partial / name, read_text(workdir / name))
        _number(partial, folder)
    _forget_seconds(workdir / ENVIRONMENT)


def _number(partial: Path, folder: Path) -> None:
    """Gives a folder of an earlier evaluation the next number."""
    taken = [int(path.name) for path in folder.iterdir() if path.name.isdecimal()]
    partial.replace(folder / str(max(taken, default=0) + 1))


def _forget_seconds(path: Path) -> None:
    """The next evaluation's wall time is its own."""
    if path.exists():
        known = read_environment(path)
        known["seconds"] = {k: v for k, v in known["seconds"].items() if k not in ("evaluate", "figures")}
        write_text(path, json.dumps(known, indent=2) + "\n")


def difference(workdir: Path, config: ConfigDict) -> str | None:
    """The first field in which the run that a folder holds has another config, with both values; None if none has.

    Raises:
      UserError: its config.json is no JSON object.
    """
    theirs = moved.renamed(read_object(workdir / "config.json"))
    mine = json.loads(config.to_json_best_effort())
    return first_difference(_without_devices(theirs), _without_devices(mine))


def _without_devices(config: dict) -> dict:
    """A config but for the devices and how they compute: a run may resume with others."""
    left = {name: value for name, value in config.items() if name not in ("cpu_devices", "execution", "mesh")}
    return {k: _without_devices(v) if isinstance(v, dict) and "objective" in v else v for k, v in left.items()}


def first_difference(a, b, where: str = "") -> str | None:
    """The path of the first field in which two JSON values differ, with both values; None if they do not."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted(set(a) | set(b)):
            if found := first_difference(a.get(key), b.get(key), f"{where}.{key}".lstrip(".")):
                return found
        return None
    return None if a == b else f"{where} ({shown(a)} there, {shown(b)} now)"
