"""The jobs of a sweep file: their names, their whole configs checked before any of them starts, and what is there."""

import dataclasses
import functools
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from zaya_jax import moved
from zaya_jax.checks import Text, check, folder_name, shown
from zaya_jax.errors import UserError
from zaya_jax.reporting.results import Row, read_results
from zaya_jax.reporting.run_files import read_environment
from zaya_jax.runs import run_folder
from zaya_jax.runs.configuration import settings
from zaya_jax.runs.configuration.config_files import read_config

CLONE = Path(__file__).parents[2]
ARGUMENT = ":"  # begins a field that is an argument of the config's file: (":method", "eagle3")
LONGEST_NAME = 200  # letters of a job's; a file system takes 255 bytes
FAILED = "failed.txt"  # in a job's folder: why it failed, until it is started again


@dataclasses.dataclass(frozen=True)
class Job:
    """One run of a sweep."""

    name: str
    changes: dict[str, Any]  # overridden field, or the config's argument (ARGUMENT), -> value
    folder: Path  # its --workdir
    config: ConfigDict | None  # checked; None: `mistake` says why not
    mistake: str = ""

    @functools.cached_property
    def difference(self) -> str | None:
        """Where the config of the run in the folder differs from this job's; None if it does not or there is none."""
        if self.config is None or not (self.folder / "config.json").exists():
            return None
        return run_folder.difference(self.folder, self.config)

    @property
    def finished(self) -> bool:
        """Whether its folder holds the results of this very config."""
        return (self.folder / "results.csv").exists() and self.config is not None and self.difference is None

    @property
    def failed(self) -> bool:
        return (self.folder / FAILED).exists()

    def result(self) -> tuple[list[Row], float]:
        """A finished job's rows, and the seconds that its stages took here.

        Raises:
          FileNotFoundError, UserError: a file is missing or damaged.
        """
        seconds = read_environment(self.folder / "environment.json")["seconds"]
        return read_results(self.folder / "results.csv"), sum(seconds.values())

    def damage(self) -> str:
        """Why the run in its folder cannot be read, in one line; "" if it can, or if there is none."""
        try:
            if self.difference is None and self.finished:
                self.result()
        except (UserError, OSError) as error:
            return str(error)
        return ""

    def overrides(self) -> list[str]:
        """As flags of `experiments.run`."""
        fields = {field: value for field, value in self.changes.items() if not field.startswith(ARGUMENT)}
        return [f"--config.{field}={value}" for field, value in fields.items()]

    def with_arguments(self, base: str) -> str:
        """The sweep's config, as `find_base` gives it, with this job's arguments after its own."""
        own = [f"{field[1:]}={value}" for field, value in self.changes.items() if field.startswith(ARGUMENT)]
        path, _, given = base.partition(ARGUMENT)
        return ARGUMENT.join([path, ",".join([given, *own] if given else own)]) if own else base

    def values(self, fields: Iterable[str]) -> dict[str, Any]:
        """What the config says in these fields, or an argument in this job, by the names of columns."""
        config = {} if self.config is None else json.loads(self.config.to_json_best_effort())

        def value(field: str) -> Any:
            if field.startswith(ARGUMENT):
                return self.changes.get(field)
            return functools.reduce(_inside, field.split("."), config)

        return {field.removeprefix(ARGUMENT): value(field) for field in fields}

    def remove(self) -> None:
        """Deletes its folder. UserError while a process runs there."""
        if self.folder.exists():
            with run_folder.locked(self.folder / ".lock"):
                shutil.rmtree(self.folder)


def read_jobs(config: Any) -> dict[str, dict[str, Any]]:
    """What each job changes, by the job's name. UserError for a sweep file that says none, or the same one twice."""
    if set(config) != {"name", "config", "jobs"}:
        raise UserError(f"sweep: got fields {sorted(config)}, may be name, config, jobs (configs.common.sweep)")
    folder_name("sweep: name", config.name)
    check("sweep: config", config.config, Text())
    if not isinstance(config.jobs, tuple | list) or not all(map(_is_job, config.jobs)):
        raise UserError(f"sweep: jobs: got {shown(config.jobs)}, may be tuples of (field, value) (configs.common.axis)")
    jobs: dict[str, dict[str, Any]] = {}
    # what all jobs have in common need not stand in their names: `Job.difference` tells when it was another
    common = set.intersection(*({(field, repr(value)) for field, value in job} for job in config.jobs or [()]))
    telling = [[(field, value) for field, value in job if (field, repr(value)) not in common] for job in config.jobs]
    called = _called({field for job in telling for field, _ in job})
    for job, said in zip(config.jobs, telling, strict=True):
        changes = dict(job)
        name = "-".join(f"{called[field]}={_word(value)}" for field, value in said) or "base"
        if name in jobs:
            raise UserError(f"sweep {config.name}: job {name} stands in it twice")
        if len(name) > LONGEST_NAME:
            raise UserError(f"sweep {config.name}: job {name[:60]}...: {len(name)} letters name its folder, may be at "
                            f"most {LONGEST_NAME}: change fewer fields in it, or to shorter values")  # fmt: skip
        jobs[name] = changes
    if not jobs:
        raise UserError(f"sweep {config.name}: has no jobs")
    return jobs


def _called(fields: Iterable[str]) -> dict[str, str]:
    """How names of jobs call fields: by the last word where no other field ends in it, else whole."""
    whole = {field: field.removeprefix(ARGUMENT) for field in fields}
    last = {field: name.rpartition(".")[2] for field, name in whole.items()}
    often = Counter(last.values())
    return {field: last[field] if often[last[field]] == 1 else name for field, name in whole.items()}


def find_base(spec: str, sweep_file: Path) -> str:
    """The base config as a path that can be opened from here, its :argument after it.

    It is looked for from the sweep's file, then in the clone that this command belongs to, then from here.

    Raises:
      FileNotFoundError: it is in none of them.
    """
    path, colon, argument = spec.partition(":")
    places = (sweep_file.absolute().parent, CLONE, Path.cwd())
    found = next((place / path for place in places if (place / Path(path).expanduser()).is_file()), None)
    if found is None:
        looked = ", ".join(map(str, dict.fromkeys(places)))
        raise FileNotFoundError(f"sweep: config: got {spec!r}, may be a config file; there is none from {looked}")
    here = Path(path).is_file() and Path(path).resolve() == found.resolve()
    return (path if here else str(found)) + colon + argument


def check_jobs(base: str, changes: Mapping[str, dict[str, Any]], workdir: Path) -> dict[str, Job]:
    """Every job with its config, checked as `experiments.run` checks it but for the devices, which may be elsewhere."""
    jobs = {}
    for name, changed in changes.items():
        name = _known_name(workdir / "runs", name)
        job = Job(name, changed, workdir / "runs" / name, None)
        try:
            config = read_config(job.with_arguments(base), job.overrides())
            settings.read(config)
            jobs[name] = dataclasses.replace(job, config=config)
        except (UserError, OSError) as error:
            jobs[name] = dataclasses.replace(job, mistake=str(error))
    return jobs


def _known_name(runs: Path, name: str) -> str:
    """A job's name, or the one that its folder got while a field was called otherwise, or by its last word alone."""

    def before(name: str) -> str:
        for old, now in moved.FIELDS.items():
            old, now = (field.rpartition(".")[2] for field in (old, now))
            name = re.sub(rf"(^|-){now}=", rf"\g<1>{old}=", name)
        return name

    short = re.sub(r"(^|-)[^-=]*\.([^-=.]+)=", r"\g<1>\g<2>=", name)
    return next((each for each in (before(name), name, before(short), short) if (runs / each).exists()), name)


def to_redo(asked: Iterable[str], jobs: Mapping[str, Job]) -> list[Job]:
    """The jobs that --redo names: their names, "failed", or "all". UserError for another word."""
    chosen: dict[str, Job] = {}
    for word in asked:
        if word not in ("all", "failed", *jobs):
            raise UserError(f"--redo: got {word!r}, may be all, failed, or one of {', '.join(jobs)}")
        for name, job in jobs.items():
            if word in (name, "all") or (word == "failed" and job.failed):
                chosen[name] = job
    return list(chosen.values())


def _is_job(job: Any) -> bool:
    """Whether it is what `configs.common.axis` makes: (field, value) pairs."""
    return isinstance(job, tuple | list) and all(
        isinstance(pair, tuple | list) and len(pair) == 2 and isinstance(pair[0], str) for pair in job
    )


def _inside(config: Any, field: str) -> Any:
    """A field of a config's section; None where there is none."""
    return config.get(field) if isinstance(config, dict) else None


def _word(value: Any) -> str:
    """A value as part of a folder's name."""
    return re.sub(r"[^A-Za-z0-9.+]+", "_", str(value)).strip("_")
