"""Runs a config under many overrides and gathers the results in one table.

    python -m experiments.sweep --config=configs/sweeps/study.py --workdir=results/sweeps/study
    python -m experiments.sweep --config=configs/sweeps/recipe.py --executor=slurm --slurm=partition=gpu,timeout_min=600

A sweep file says which config and which jobs (configs/common.py: axis, product, zipped); a field that begins with a
colon is an argument of the config's file: axis(":method", "tidar", "eagle3"). The config is looked for from
the sweep's file, then in this clone, then from here. Every job is an ordinary `experiments.run` in WORKDIR/runs/NAME
with a log.txt; stages that several jobs share (a common pretraining) are trained once, in WORKDIR/stages or --stages.
results.csv holds the rows of every finished job, each with the job's name and what it changed.

All configs are checked before the first job starts. Interrupt it at any moment: the same command skips what is finished
and resumes the rest; a second one at the same time is refused. A job that fails does not stop the others; each failure
is a line at once, and the status is 1. A job whose folder holds a damaged run or another config's is refused;
--redo=JOB deletes that folder and runs the job anew.
"""

import ast
import contextlib
import dataclasses
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Container, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags
from tqdm import tqdm

from zaya_jax import compilation_cache
from zaya_jax.command_line import cli
from zaya_jax.command_line.closing import closing
from zaya_jax.errors import UserError
from zaya_jax.files import WriteError, make_folder, read_object, remedy, write_text
from zaya_jax.paths import absolute
from zaya_jax.registry import has_registered
from zaya_jax.reporting import sweep_summary
from zaya_jax.reporting.results import read_results, write_sweep
from zaya_jax.runs import provenance, run_folder
from zaya_jax.runs.configuration import config_files, listing
from zaya_jax.runs.jobs import FAILED, Job, check_jobs, find_base, read_jobs, to_redo

_CONFIG = config_files.define_config("Sweep file, such as configs/sweeps/study.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the sweep lives; default: runs/sweeps/<its name>.")
_STAGES = flags.DEFINE_string("stages", None, "Where shared training stages live; default: WORKDIR/stages.")
_WORKERS = flags.DEFINE_integer("workers", None, "Jobs at once; default: one a core.", lower_bound=1, upper_bound=1024)
_EXECUTOR = flags.DEFINE_enum("executor", "local", ["local", "slurm"], "slurm: through submitit (the `slurm` extra).")
_SLURM = flags.DEFINE_list("slurm", [], "Slurm's parameters as submitit names them: partition=gpu,timeout_min=600.")
_ONLY = flags.DEFINE_string("only", None, "Jobs whose name has this in it.")
_LIST = flags.DEFINE_boolean("list", False, "Print the jobs' commands and run nothing.")
_PRINT = flags.DEFINE_boolean(
    "print_config", False, "Print the base config's fields and, for each job, those that differ, and run nothing."
)
_REDO = flags.DEFINE_multi_string(
    "redo", [], "Delete this job's folder and run it anew; all: of all jobs (of --only), failed: of those that failed. "
    "May be given several times.",
)  # fmt: skip


def main() -> None:
    config = _CONFIG.value
    if config is None:
        raise UserError("--config: missing, may be a sweep file such as configs/sweeps/study.py")
    changes = read_jobs(config)
    workdir = absolute(_WORKDIR.value or f"runs/sweeps/{config.name}")
    base = find_base(config.config, sweep_file())
    jobs = check_jobs(base, changes, workdir)
    chosen = {name: job for name, job in jobs.items() if _ONLY.value is None or _ONLY.value in name}
    if not chosen:
        raise UserError(f"--only: got {_ONLY.value!r}, may be part of one of {', '.join(jobs)}")
    if _PRINT.value:
        print_configs(base, chosen)
    refuse([f"job {name}: {job.mistake}" for name, job in chosen.items() if job.mistake])
    if _PRINT.value:
        return
    if _LIST.value:
        for job in chosen.values():
            print(shlex.join(command(base, job, workdir)))
        return
    redone = to_redo(_REDO.value, chosen)
    with run_folder.locked(workdir / ".lock", field="--workdir"):
        refuse(list(unusable({name: job for name, job in jobs.items() if job not in redone}, chosen)))
        claim(workdir, config)
        for job in redone:
            job.remove()
        jobs |= {job.name: dataclasses.replace(job) for job in redone}  # forgets what was read from the folder
        missing = [jobs[name] for name in chosen if not jobs[name].finished]
        if before := len(chosen) - len(missing):
            print(f"finished before: {before} of {len(chosen)} jobs", flush=True)
        failed = run_jobs({job.name: command(base, job, workdir) for job in missing}, workdir, jobs)
        report(workdir, jobs, failed)
    if failed:
        raise SystemExit(1)


def unusable(jobs: Mapping[str, Job], chosen: Container[str]) -> Iterator[str]:
    """A line for each job whose folder holds a damaged run, or, of those chosen, another config's."""
    for name, job in jobs.items():
        if damage := job.damage():
            yield f"job {name}: {damage}; --redo={name} deletes its folder and runs the job anew"
        elif name in chosen and job.difference:
            yield (
                f"job {name}: {job.folder} holds a run whose config differs in {job.difference}; --redo={name} deletes "
                "it and runs the job anew (--redo=all: every job), or choose another --workdir"
            )


def print_configs(base: str, jobs: dict[str, Job]) -> None:
    """The base config whole, and of each job the fields that differ from it."""
    common = listing.lines_of(config_files.read_config(base, []))
    print("\n".join([f"# {base}", *common]))
    for name, job in jobs.items():
        if job.config is not None:
            print(
                "\n".join([f"\n# job {name}", *listing.differences(common, listing.lines_of(job.config))]), flush=True
            )


def sweep_file() -> Path:
    """The file of --config, without its :argument."""
    return Path(config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")[0])


def refuse(mistakes: list[str]) -> None:
    """Ends the command with a line for each mistake, if there is one."""
    if mistakes:
        cli.complain(mistakes)
        raise SystemExit(2)


def command(base: str, job: Job, workdir: Path) -> list[str]:
    """The job as a command that could be typed."""
    stages = absolute(_STAGES.value) if _STAGES.value else workdir / "stages"
    threads = ["--threads=1"] if workers() > 1 and _EXECUTOR.value == "local" else []
    folders = [f"--workdir={job.folder}", f"--stages={stages}", *cache(workdir)]
    extensions = dict.fromkeys([*cli.extensions(), *own_extension()])
    rest = [*folders, *threads, *extensions]
    return [sys.executable, "-m", "experiments.run", f"--config={job.with_arguments(base)}", *job.overrides(), *rest]


def own_extension() -> list[str]:
    """The sweep's file as --extension of its jobs, if it registers something (docs/extending.md)."""
    file = absolute(sweep_file())
    return [f"--extension={file}"] if has_registered(file) else []


def cache(workdir: Path) -> list[str]:
    """Where the jobs keep compiled programs, as a flag: in the sweep's folder, since all its machines have that one."""
    chosen = cli.chosen_cache()
    if chosen is None and compilation_cache.CHOSEN_BY_USER in os.environ:
        return []  # the jobs see it, too
    return [f"--compilation_cache={workdir / 'xla' if chosen is None else chosen}"]


def workers() -> int:
    return _WORKERS.value or provenance.cores()


def claim(workdir: Path, config: Any) -> None:
    """Writes sweep.json and environment.json; refuses a folder that holds another sweep's runs."""
    path = workdir / "sweep.json"
    mine = {"name": config.name, "config": config.config}
    if path.exists():
        with remedy("delete the file if the folder is this sweep's: the same command writes it anew"):
            theirs = read_object(path)
        if difference := run_folder.first_difference({key: theirs.get(key) for key in mine}, mine):
            raise UserError(f"--workdir {workdir}: holds another sweep: {difference}; choose another")
    make_folder(workdir / "runs", "--workdir")
    jobs = [[[field, value] for field, value in job] for job in config.jobs]
    write_text(path, json.dumps(mine | {"jobs": jobs}, indent=1) + "\n")
    if not (workdir / "environment.json").exists():
        write_text(workdir / "environment.json", json.dumps(provenance.describe(), indent=2) + "\n")


def run_jobs(commands: dict[str, list[str]], workdir: Path, jobs: dict[str, Job]) -> dict[str, str]:
    """Runs the commands, telling of each and gathering the table as it ends; returns why each failed one did."""
    failed: dict[str, str] = {}
    with executor(workdir) as submit:
        futures = {submit(run_job, line, jobs[name].folder): name for name, line in commands.items()}
        with tqdm(as_completed(futures), total=len(futures), desc="jobs", unit="job", dynamic_ncols=True) as bar:
            for future in bar:
                name = futures[future]
                if reason := future.result():
                    failed[name] = reason
                    bar.set_postfix(failed=len(failed))
                    told = f"{name}: failed: {reason} (log: {jobs[name].folder / 'log.txt'})"
                else:
                    told = sweep_summary.line(name, *jobs[name].result())
                bar.write(told)
                sys.stdout.flush()
                gather(workdir, jobs)
    return failed


def run_job(line: list[str], folder: Path) -> str:
    """Runs one job, its output in log.txt. Returns "" or why it failed, which then stands in failed.txt, too."""
    make_folder(folder)
    (folder / FAILED).unlink(missing_ok=True)
    with (folder / "log.txt").open("ab") as log:
        start = log.tell()
        status = subprocess.run(line, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
    if status == 0:
        return ""
    with (folder / "log.txt").open("rb") as log:
        log.seek(start)
        reason = f"status {status}: {last_error(log.read().decode(errors='replace'))}"
    if status not in (cli.INTERRUPTED, cli.BY_KEYBOARD):
        try:
            write_text(folder / FAILED, reason + "\n")
        except WriteError as error:  # the disk that stopped the job is full for this file, too
            return f"{reason}; {error}"
    return reason


def last_error(output: str) -> str:
    """The last line of a program's output that tells an error; of progress bars, what they showed last."""
    lines = [line for line in map(str.strip, output.splitlines()) if line]  # splitlines() cuts at \r, too
    told = [line for line in lines if re.match(r"error: |(\w+\.)*\w*(Error|Exception|Interrupt)\b", line)]
    return (told or lines or ["no output"])[-1]


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


def gather(workdir: Path, jobs: dict[str, Job]) -> None:
    """Writes results.csv from every finished job. Each field that one of the jobs changes gets a column."""
    fields = list(dict.fromkeys(field for job in jobs.values() for field in job.changes))
    done = [job for job in jobs.values() if job.finished]
    write_sweep(
        workdir / "results.csv",
        {job.name: (job.changes, read_results(job.folder / "results.csv")) for job in done},
        {job.name: job.values(fields) for job in done},
    )


def report(workdir: Path, jobs: dict[str, Job], failed: dict[str, str]) -> None:
    """Writes results.csv and prints the table, what is left out of it, and what failed."""
    gather(workdir, jobs)
    done = [job for job in jobs.values() if job.finished]
    if done:
        print(sweep_summary.table({job.name: job.result() for job in done}))
    for name, job in jobs.items():
        if job.difference:
            print(f"left out: {name}: its run has another config: {job.difference}")
    print(f"{len(done)} of {len(jobs)} jobs finished: {workdir / 'results.csv'}")
    figures = f"python -m experiments.figures all --results={workdir} --output={workdir / 'figures'}"
    files = {"reports": workdir / "runs" / "*" / "report.html"}
    print(closing(files, [f"{figures}  # those that its jobs have rows for"]) if done else "", flush=True)
    cli.complain([f"job {name}: {reason} (log: {jobs[name].folder / 'log.txt'})" for name, reason in failed.items()])


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")  # of the jobs' logs
    cli.run(main)
