"""Runs a config under many overrides and gathers the results in one table.

    python -m experiments.sweep --config=configs/sweeps/study.py --workdir=results/sweeps/study
    python -m experiments.sweep --config=configs/sweeps/recipe.py --executor=slurm --slurm=partition=gpu,timeout_min=600

A sweep file says which config and which jobs (configs/common.py: axis, product, zipped). Every job is an ordinary
`experiments.run` in WORKDIR/runs/NAME with a log.txt; stages that several jobs share (a common pretraining) are trained
once, in WORKDIR/stages or --stages. results.csv holds the rows of every finished job, each with the job's name and what
it changed. Interrupt it at any moment: the same command skips what is finished and goes on with the rest. A job that
fails does not stop the others; at the end each failure is a line, and the status is 1.
"""

import ast
import contextlib
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags
from tqdm import tqdm

from experiments import cli, environment
from zaya_jax.analysis.results import read_results, write_sweep
from zaya_jax.errors import UserError
from zaya_jax.paths import absolute

_CONFIG = config_flags.DEFINE_config_file("config", None, "Sweep file, such as configs/sweeps/study.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the sweep lives; default: runs/sweeps/<its name>.")
_STAGES = flags.DEFINE_string("stages", None, "Where shared training stages live; default: WORKDIR/stages.")
_WORKERS = flags.DEFINE_integer("workers", None, "Jobs at once; default: one a core.", lower_bound=1)
_EXECUTOR = flags.DEFINE_enum("executor", "local", ["local", "slurm"], "slurm: through submitit (the `slurm` extra).")
_SLURM = flags.DEFINE_list("slurm", [], "Slurm's parameters as submitit names them: partition=gpu,timeout_min=600.")
_ONLY = flags.DEFINE_string("only", None, "Jobs whose name has this in it.")
_LIST = flags.DEFINE_boolean("list", False, "Print the jobs' commands and run nothing.")

Jobs = dict[str, dict[str, Any]]  # name -> overridden field -> value


def main() -> None:
    config = _CONFIG.value
    if config is None:
        raise UserError("--config: missing, may be a sweep file such as configs/sweeps/study.py")
    jobs = read_jobs(config)
    workdir = absolute(_WORKDIR.value or f"runs/sweeps/{config.name}")
    commands = {name: command(config.config, changes, workdir, name) for name, changes in jobs.items()}
    chosen = [name for name in jobs if _ONLY.value is None or _ONLY.value in name]
    if not chosen:
        raise UserError(f"--only: got {_ONLY.value!r}, may be part of one of {', '.join(jobs)}")
    if _LIST.value:
        for name in chosen:
            print(shlex.join(commands[name]))
        return
    claim(workdir, config)
    missing = [name for name in chosen if not finished(workdir, name)]
    failed = run_jobs({name: commands[name] for name in missing}, workdir, jobs)
    gather(workdir, jobs)
    done = sum(finished(workdir, name) for name in jobs)
    print(f"{done} of {len(jobs)} jobs finished: {workdir / 'results.csv'}")
    if failed:
        for name, reason in failed.items():
            print(f"error: job {name}: {reason} (log: {workdir / 'runs' / name / 'log.txt'})", file=sys.stderr)
        raise SystemExit(1)


def read_jobs(config: Any) -> Jobs:
    """The jobs by name. UserError for a sweep file that says none, or the same one twice."""
    if set(config) != {"name", "config", "jobs"}:
        raise UserError(f"sweep: got fields {sorted(config)}, may be name, config, jobs (configs.common.sweep)")
    jobs: Jobs = {}
    # what all jobs have in common need not stand in their names
    common = set.intersection(*({(field, repr(value)) for field, value in job} for job in config.jobs or [()]))
    for job in config.jobs:
        changes = dict(job)
        telling = [(field.rpartition(".")[2], value) for field, value in job if (field, repr(value)) not in common]
        name = "-".join(f"{field}={_word(value)}" for field, value in telling) or "base"
        if name in jobs:
            raise UserError(f"sweep {config.name}: job {name} stands in it twice")
        jobs[name] = changes
    if not jobs:
        raise UserError(f"sweep {config.name}: has no jobs")
    return jobs


def _word(value: Any) -> str:
    """A value as part of a folder's name."""
    return re.sub(r"[^A-Za-z0-9.+]+", "_", str(value)).strip("_")


def command(config: str, changes: dict[str, Any], workdir: Path, name: str) -> list[str]:
    """The job as a command that could be typed."""
    stages = absolute(_STAGES.value) if _STAGES.value else workdir / "stages"
    threads = ["--threads=1"] if workers() > 1 and _EXECUTOR.value == "local" else []
    overrides = [f"--config.{field}={value}" for field, value in changes.items()]
    folders = [f"--workdir={workdir / 'runs' / name}", f"--stages={stages}"]
    return [sys.executable, "-m", "experiments.run", f"--config={config}", *overrides, *folders, *threads]


def workers() -> int:
    return _WORKERS.value or environment.cores()


def claim(workdir: Path, config: Any) -> None:
    """Writes sweep.json and environment.json; refuses a folder that holds another sweep's runs."""
    path = workdir / "sweep.json"
    mine = {"name": config.name, "config": config.config}
    if path.exists():
        theirs = json.loads(path.read_text())
        if difference := environment.first_difference({key: theirs.get(key) for key in mine}, mine):
            raise UserError(f"--workdir {workdir}: holds another sweep: {difference}; choose another")
    (workdir / "runs").mkdir(parents=True, exist_ok=True)
    jobs = [[[field, value] for field, value in job] for job in config.jobs]
    path.write_text(json.dumps(mine | {"jobs": jobs}, indent=1) + "\n")
    if not (workdir / "environment.json").exists():
        (workdir / "environment.json").write_text(json.dumps(environment.describe(), indent=2) + "\n")


def finished(workdir: Path, name: str) -> bool:
    return (workdir / "runs" / name / "results.csv").exists()


def run_jobs(commands: dict[str, list[str]], workdir: Path, jobs: Jobs) -> dict[str, str]:
    """Runs the commands, gathering the table as they end; returns why each failed one did."""
    failed: dict[str, str] = {}
    with executor(workdir) as submit:
        futures = {submit(run_job, line, workdir / "runs" / name): name for name, line in commands.items()}
        with tqdm(as_completed(futures), total=len(futures), desc="jobs", unit="job", dynamic_ncols=True) as bar:
            for future in bar:
                if reason := future.result():
                    failed[futures[future]] = reason
                gather(workdir, jobs)
    return failed


def run_job(line: list[str], folder: Path) -> str:
    """Runs one job, its output in log.txt. Returns "" or the last line of what it said."""
    folder.mkdir(parents=True, exist_ok=True)
    # Jobs of one shape compile the same programs.
    environ = {"JAX_COMPILATION_CACHE_DIR": str(folder.parents[1] / "xla"), **os.environ}
    with (folder / "log.txt").open("a") as log:
        status = subprocess.run(line, stdout=log, stderr=subprocess.STDOUT, check=False, env=environ).returncode
    if status == 0:
        return ""
    said = (folder / "log.txt").read_text(errors="replace").strip().splitlines()
    return f"status {status}: {said[-1] if said else 'no output'}"


@contextlib.contextmanager
def executor(workdir: Path) -> Iterator[Callable[..., Future]]:
    """`submit` of a local pool of workers or of Slurm."""
    if _EXECUTOR.value == "slurm":
        try:
            submitit = importlib.import_module("submitit")
        except ImportError:
            raise UserError('--executor=slurm: needs submitit: pip install -e ".[slurm]"') from None
        try:
            slurm = submitit.AutoExecutor(folder=workdir / "slurm", cluster="slurm")
        except RuntimeError as error:
            raise UserError(f"--executor=slurm: {error}") from None
        slurm.update_parameters(**slurm_parameters(_SLURM.value))
        with ThreadPoolExecutor(max_workers=10_000) as waiting:  # a thread a job does nothing but wait for Slurm
            yield lambda function, *args: waiting.submit(on_slurm, slurm, function, *args)
        return
    with ThreadPoolExecutor(max_workers=workers()) as pool:
        try:
            yield pool.submit
        except BaseException:
            pool.shutdown(cancel_futures=True, wait=False)
            raise


def on_slurm(slurm: Any, function: Callable[..., str], *args: Any) -> str:
    """What `function` returns there, or why Slurm refused, killed or lost the job (all RuntimeErrors of submitit)."""
    try:
        return slurm.submit(function, *args).result()
    except RuntimeError as error:
        return f"Slurm: {str(error).strip().splitlines()[-1]}"


def slurm_parameters(items: list[str]) -> dict[str, Any]:
    """["timeout_min=60", "partition=gpu"] -> numbers where they are numbers. UserError for another form."""
    parameters = {}
    for item in items:
        name, equals, text = item.partition("=")
        if not equals or not name:
            raise UserError(f"--slurm: got {item!r}, may be NAME=VALUE")
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        parameters[name if name in ("timeout_min", "name") else f"slurm_{name}"] = value
    return parameters


def gather(workdir: Path, jobs: Jobs) -> None:
    """Writes results.csv from every finished job."""
    tables = {name: workdir / "runs" / name / "results.csv" for name in jobs}
    write_sweep(
        workdir / "results.csv",
        {name: (jobs[name], read_results(path)) for name, path in tables.items() if path.exists()},
    )


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")  # of the jobs' logs
    cli.run(main)
