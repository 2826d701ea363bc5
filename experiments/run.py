"""Runs a config's stages: data, pretrain, convert, control, evaluate, figures. Finished stages are skipped.

    python -m experiments.run --config=configs/quickstart.py --workdir=runs/quickstart
    python -m experiments.run --config=configs/quickstart.py:fast,block_size=4 --config.convert.objective.alpha=0.5

What follows the colon changes several fields at once (see the config file); --config.FIELD=VALUE changes one. The
workdir then holds config.json, environment.json, metrics.jsonl, checkpoints/, results.csv, samples.jsonl, figures/ and
report.html. Interrupt it at any moment: the same command goes on from the last checkpoint, to the same numbers.

--stages=DIR keeps the training stages there, each under a name that says what decides it (model, data, seed, steps,
what it starts from), so that runs which differ only behind a stage train it once. Sweeps use it.
"""

import functools
import itertools
import json
from pathlib import Path
from typing import cast

import numpy as np
from absl import flags
from flax import traverse_util
from ml_collections import ConfigDict, config_flags

from experiments import cli, environment, settings
from zaya_jax.analysis.flops import describe
from zaya_jax.analysis.plots import draw_figures
from zaya_jax.analysis.report import write_report
from zaya_jax.analysis.results import Row, load_run, write_results
from zaya_jax.architecture import Zaya
from zaya_jax.data.pipeline import eval_batches, make_train_iterator
from zaya_jax.data.tasks import Task
from zaya_jax.evaluation.likelihood import likelihood
from zaya_jax.evaluation.task_accuracy import Outcome, run_task, task_rows
from zaya_jax.interop.names import abstract_variables
from zaya_jax.interop.native import load_native, write_model_file
from zaya_jax.interop.pretrained import load_pretrained
from zaya_jax.parallel import data_mesh, use_cpu_devices
from zaya_jax.sampling.cost import AUTOREGRESSIVE, forward_cost, rows_of
from zaya_jax.sampling.method import Plan
from zaya_jax.training.checkpoints import Checkpoints
from zaya_jax.training.loop import train
from zaya_jax.training.metrics import MetricWriter
from zaya_jax.training.state import init_variables, make_eval_step

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, with an optional :argument.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the run lives; default: runs/<the config's name>.")
_STAGES = flags.DEFINE_string("stages", None, "Where training stages live; default: WORKDIR/checkpoints.")


def main() -> None:
    config = _CONFIG.value
    if config is None:
        raise ValueError("--config: missing, may be a config file such as configs/quickstart.py")
    setup = settings.read(config)
    workdir = Path(_WORKDIR.value or f"runs/{setup.name}").absolute()
    use_cpu_devices(setup.cpu_devices)
    with environment.locked(workdir / ".lock"):
        environment.claim_workdir(workdir, config)
        run_stages(setup, workdir, stage_folders(config, setup, workdir))


def stage_folders(config: ConfigDict, setup: settings.Settings, workdir: Path) -> dict[str, Path]:
    """Where each stage's checkpoints are: in the workdir, or under a name of what decides them in --stages."""
    if _STAGES.value is None:
        return {name: workdir / "checkpoints" / name for name in setup.phases}
    keys = settings.stage_keys(config, setup)
    return {name: Path(_STAGES.value).absolute() / f"{name}-{keys[name]}" for name in setup.phases}


def run_stages(setup: settings.Settings, workdir: Path, folders: dict[str, Path]) -> None:
    """All stages in order."""
    batch = setup.batch_sizes["convert"]
    phase = setup.phases["convert"]
    block_size, optimizer = phase.objective.block_size, phase.optimizer.name
    print(describe(setup.model, batch, setup.row_length, True, block_size, optimizer), flush=True)
    with environment.timed(workdir, "data"):
        sources = [open_source(setup, workdir, source, "train") for source in setup.mixture]
        held_out = {source.name: held_out_batches(setup, workdir, source) for source in setup.mixture}
    model = Zaya(setup.model)
    for name in setup.phases:
        folder = folders[name]
        # two runs that share a stage do not train it at once: the second waits, and finds it finished
        with environment.locked(folder.with_suffix(".lock"), f"waiting for the run that is training {folder}"):
            run_phase(setup, workdir, model, name, folders, sources, held_out)
    if not (workdir / "results.csv").exists():
        with environment.timed(workdir, "evaluate"):
            evaluate(setup, workdir, model, folders, held_out)
    with environment.timed(workdir, "figures"):
        run = load_run(workdir)
        figures = draw_figures(run, workdir / "figures")
    write_report(load_run(workdir), figures, workdir / "report.html")
    print(f"done: {workdir / 'report.html'}")


def run_phase(
    setup: settings.Settings, workdir: Path, model: Zaya, name: str, folders: dict[str, Path], sources, held_out
) -> None:
    """One training stage, unless it is finished.

    It starts from the checkpoint that it names, else from pretraining, if it is not that and there is one.
    """
    phase = setup.phases[name]
    parent = "pretrain" if name != "pretrain" and "pretrain" in folders else None
    write_model_file(folders[name], setup.model)
    with Checkpoints(folders[name]) as checkpoints:
        if checkpoints.latest == phase.steps:
            return
        start = setup.starts[name] or (folders[parent] if parent else None)
        variables = init_variables(model, setup.seed) if start is None else load_start(model, start, f"{name}.start")
        mixture = list(zip(sources, [source.weight for source in setup.mixture], strict=True))
        # A stage's own seed: conversion and its control read the same data, which pretraining has not seen in that
        # order.
        seed = setup.seed + (0 if parent is None else 1)
        batches = make_train_iterator(mixture, setup.tokenizer, setup.row_length, setup.batch_sizes[name], seed)
        eval_step = make_eval_step(model, phase.objective)
        with environment.timed(workdir, name):
            train(
                model, variables, phase, batches, checkpoints, MetricWriter(workdir / "metrics.jsonl"),
                evaluate=functools.partial(validate, setup, held_out, eval_step),
                mesh=data_mesh(setup.batch_sizes[name]),
            )  # fmt: skip


def load_start(model: Zaya, folder: Path, field: str) -> dict:
    """A checkpoint's variables. ValueError unless they are the model's own, by name and shape."""
    variables = load_pretrained(folder)[1]
    mine = {path: leaf.shape for path, leaf in abstract_variables(model.config).items()}
    flat = cast(dict, traverse_util.flatten_dict(variables))
    theirs = {path: leaf.shape for path, leaf in flat.items()}
    for path in sorted(mine | theirs):
        if mine.get(path) != theirs.get(path):
            got, may_be = theirs.get(path, "nothing"), mine.get(path, "nothing")
            raise ValueError(f"{field}: {folder} has {got} for {'/'.join(path)}, may be the model's {may_be}")
    return variables


def held_out_batches(setup: settings.Settings, workdir: Path, source: settings.MixtureSource) -> list[dict]:
    """The validation batches of a source: the same few at every evaluation, so they are read once."""
    documents = open_source(setup, workdir, source, "validation")
    batches = eval_batches(documents, setup.tokenizer, setup.row_length, setup.batch_sizes["convert"])
    return list(itertools.islice(batches, setup.validation_batches))


def validate(setup: settings.Settings, held_out: dict[str, list[dict]], eval_step, variables: dict) -> dict:
    """Likelihood on the validation split of every source, names prefixed with the source's."""
    out = {}
    for source in setup.mixture:
        text_tokenizer = setup.tokenizer if source.task is None else None
        for name, value in likelihood(eval_step, variables, held_out[source.name], text_tokenizer).items():
            out[f"{source.name}/{name}"] = value
    return out


def evaluate(
    setup: settings.Settings, workdir: Path, model: Zaya, folders: dict[str, Path], held_out: dict[str, list[dict]]
) -> None:
    """Writes answers/, samples.jsonl, then results.csv (whose presence says that the stage is finished)."""
    hardware = environment.hardware()
    rows: list[Row] = []
    weights = {name: load_native(folder)[1] for name, folder in folders.items()}
    # One objective for all, so that one compiled program measures all.
    eval_step = make_eval_step(model, setup.phases["convert"].objective)
    for name, phase in setup.phases.items():
        measured = validate(setup, held_out, eval_step, weights[name])
        for source in setup.mixture:
            row: Row = {"kind": "likelihood", "model": name, "source": source.name, "hardware": hardware}
            kept = ["ar_loss", "bits_per_byte"]
            kept += ["draft_loss", "draft_accuracy_by_slot"] * (phase.objective.kind == "tidar")
            found = {key: measured.get(f"{source.name}/{key}") for key in kept}
            row |= {key: np.asarray(value).tolist() for key, value in found.items() if value is not None}
            rows.append(row)

    variables, samples = weights["convert"], []
    for task in setup.tasks:
        outcomes = run_task(
            model, variables, setup.tokenizer, task, setup.arms, setup.trial, workdir / "answers", setup.anchor_budget
        )
        common = {"kind": "sampling", "model": "convert", "source": task.name, "hardware": hardware}
        rows += [common | row for row in task_rows(outcomes, setup.trial)]
        samples += some_samples(setup, task, outcomes)
    if setup.measures_cost:
        rows += cost_rows(model, variables, hardware)
    (workdir / "samples.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    write_results(workdir / "results.csv", rows)


def cost_rows(model: Zaya, variables: dict, hardware: str) -> list[dict]:
    """The kind=cost rows of results.csv: one AR row, 8 verified alone, and those with 1, 2 or all 8 blocks drafted."""
    anchors = ((), (8,), (1, 8), tuple(range(1, 9)))
    plans = [AUTOREGRESSIVE, *(Plan("single_pass", 8, some, "autoregressive") for some in anchors)]
    cost = {rows_of(plan): ms for plan, ms in forward_cost(model, variables, plans).items()}
    return [
        {
            "kind": "cost", "model": "convert", "batch": 1, "block_size": 8, "rows": count, "milliseconds": ms,
            "cost_ratio": ms / cost[1], "hardware": hardware,
        }
        for count, ms in cost.items()
    ]  # fmt: skip


def some_samples(setup: settings.Settings, task: Task, outcomes: list[Outcome], count: int = 6) -> list[dict]:
    """The first sample of the first problems by every arm, token by token."""
    problems = task.problems("test", min(count, setup.trial.prompts), setup.trial.seed)
    return [
        {
            "arm": outcome.arm.name,
            "temperature": outcome.arm.sampler.temperature,
            "prompt": problem.prompt,
            "pieces": [setup.tokenizer.decode([token]) for token in outcome.tokens[i * outcome.samples]],
            "accepted": outcome.accepted[i * outcome.samples],
            "correct": outcome.correct[i * outcome.samples],
        }
        for outcome in outcomes
        for i, problem in enumerate(problems)
    ]


def open_source(setup: settings.Settings, workdir: Path, source: settings.MixtureSource, split: str):
    """A source's split; tasks draw validation from their own hold-out."""
    return source.open(split, workdir / "data", setup.task_documents, setup.seed)


if __name__ == "__main__":
    cli.run(main)
