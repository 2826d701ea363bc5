"""Runs a config's stages: data, pretrain, convert, control, evaluate, figures. Finished stages are skipped.

    python -m experiments.run --config=configs/quickstart.py --workdir=runs/quickstart
    python -m experiments.run --config=configs/quickstart.py:fast,block_size=4 --config.convert.objective.alpha=0.5

What follows the colon changes several fields at once (see the config file); --config.FIELD=VALUE changes one. The
workdir then holds config.json, environment.json, metrics.jsonl, checkpoints/, results.csv, samples.jsonl, figures/ and
report.html. Interrupt it at any moment: the same command goes on from the last checkpoint, to the same numbers.
"""

import functools
import itertools
import json
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from experiments import cli, environment, settings
from zaya_jax.analysis.flops import describe
from zaya_jax.analysis.plots import draw_figures
from zaya_jax.analysis.report import write_report
from zaya_jax.analysis.results import Row, load_run, write_results
from zaya_jax.architecture import Zaya
from zaya_jax.data.pipeline import eval_batches, make_train_iterator
from zaya_jax.evaluation.likelihood import likelihood
from zaya_jax.evaluation.task_accuracy import Outcome, run_arm
from zaya_jax.interop.native import load_native, write_model_file
from zaya_jax.parallel import data_mesh, use_cpu_devices
from zaya_jax.sampling.cost import AUTOREGRESSIVE, forward_cost, rows_of
from zaya_jax.sampling.method import Plan
from zaya_jax.training.checkpoints import Checkpoints
from zaya_jax.training.loop import train
from zaya_jax.training.metrics import MetricWriter
from zaya_jax.training.state import init_variables, make_eval_step

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, with an optional :argument.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the run lives; default: runs/<the config's name>.")


def main() -> None:
    config = _CONFIG.value
    if config is None:
        raise ValueError("--config: missing, may be a config file such as configs/quickstart.py")
    setup = settings.read(config)
    workdir = Path(_WORKDIR.value or f"runs/{setup.name}").absolute()
    use_cpu_devices(setup.cpu_devices)
    environment.claim_workdir(workdir, config)
    run_stages(setup, workdir)


def run_stages(setup: settings.Settings, workdir: Path) -> None:
    """All stages in order."""
    batch = setup.batch_sizes["convert"]
    block_size = setup.phases["convert"].objective.block_size
    print(describe(setup.model, batch, setup.row_length, tidar=True, block_size=block_size), flush=True)
    with environment.timed(workdir, "data"):
        sources = [open_source(setup, workdir, source, "train") for source in setup.mixture]
        held_out = {source.name: held_out_batches(setup, workdir, source) for source in setup.mixture}
    model = Zaya(setup.model)
    starts_from = {"pretrain": None, "convert": "pretrain", "control": "pretrain"}
    for name in setup.phases:
        run_phase(setup, workdir, model, name, starts_from[name], sources, held_out)
    if not (workdir / "results.csv").exists():
        with environment.timed(workdir, "evaluate"):
            evaluate(setup, workdir, model, held_out)
    with environment.timed(workdir, "figures"):
        run = load_run(workdir)
        figures = draw_figures(run, workdir / "figures")
    write_report(load_run(workdir), figures, workdir / "report.html")
    print(f"done: {workdir / 'report.html'}")


def run_phase(setup, workdir: Path, model: Zaya, name: str, parent: str | None, sources, held_out) -> None:
    """One training stage, unless it is finished."""
    phase = setup.phases[name]
    directory = workdir / "checkpoints" / name
    write_model_file(directory, setup.model)
    with Checkpoints(directory) as checkpoints:
        if checkpoints.latest == phase.steps:
            return
        if parent is None:
            variables = init_variables(model, setup.seed)
        else:
            variables = load_native(workdir / "checkpoints" / parent)[1]
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


def held_out_batches(setup: settings.Settings, workdir: Path, source: settings.MixtureSource) -> list[dict]:
    """The validation batches of a source: the same few at every evaluation, so they are read once."""
    documents = open_source(setup, workdir, source, "validation")
    batches = eval_batches(documents, setup.tokenizer, setup.row_length, setup.batch_sizes["pretrain"])
    return list(itertools.islice(batches, setup.validation_batches))


def validate(setup: settings.Settings, held_out: dict[str, list[dict]], eval_step, variables: dict) -> dict:
    """Likelihood on the validation split of every source, names prefixed with the source's."""
    out = {}
    for source in setup.mixture:
        text_tokenizer = setup.tokenizer if source.task is None else None
        for name, value in likelihood(eval_step, variables, held_out[source.name], text_tokenizer).items():
            out[f"{source.name}/{name}"] = value
    return out


def evaluate(setup: settings.Settings, workdir: Path, model: Zaya, held_out: dict[str, list[dict]]) -> None:
    """Writes samples.jsonl, then results.csv (whose presence says that the stage is finished)."""
    hardware = environment.hardware()
    rows: list[Row] = []
    weights = {name: load_native(workdir / "checkpoints" / name)[1] for name in setup.phases}
    # One objective for all, so that one compiled program measures all.
    eval_step = make_eval_step(model, setup.phases["convert"].objective)
    for name, phase in setup.phases.items():
        measured = validate(setup, held_out, eval_step, weights[name])
        for source in setup.mixture:
            row: Row = {"kind": "likelihood", "model": name, "source": source.name, "hardware": hardware}
            kept = ["ar_loss", "bits_per_byte"] + ["draft_loss"] * (phase.objective.kind == "tidar")
            row |= {key: float(measured[f"{source.name}/{key}"]) for key in kept if f"{source.name}/{key}" in measured}
            rows.append(row)

    variables = weights["convert"]
    problems = [setup.task.problem("test", i, setup.evaluation_seed) for i in range(setup.prompts)]
    outcomes = [
        run_arm(
            model, variables, setup.tokenizer, setup.task, problems, arm, setup.prompt_batch, setup.max_new_tokens,
            setup.evaluation_seed,
        )
        for arm in setup.arms
    ]  # fmt: skip
    baseline = {o.arm.sampler.temperature: o for o in outcomes if o.arm.name == "autoregressive"}
    for outcome in outcomes:
        row = {"kind": "sampling", "model": "convert", "source": setup.task.name, "hardware": hardware}
        row |= outcome.row(setup.prompt_batch, setup.evaluation_seed)
        reference = baseline[outcome.arm.sampler.temperature]
        row["speedup"] = outcome.tokens_per_second / reference.tokens_per_second
        if outcome.arm.sampler.temperature == 0:
            same = [a == b for a, b in zip(outcome.tokens, reference.tokens, strict=True)]
            row["identical_to_autoregressive"] = sum(same) / len(same)
        rows.append(row)
    rows += cost_rows(model, variables, hardware)
    write_samples(workdir / "samples.jsonl", setup, problems, outcomes)
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


def write_samples(path: Path, setup, problems, outcomes: list[Outcome], count: int = 6) -> None:
    """The first completions of every arm, token by token."""
    with path.open("w") as file:
        for outcome in outcomes:
            for i in range(min(count, len(problems))):
                sample = {
                    "arm": outcome.arm.name,
                    "temperature": outcome.arm.sampler.temperature,
                    "prompt": problems[i].prompt,
                    "pieces": [setup.tokenizer.decode([token]) for token in outcome.tokens[i]],
                    "accepted": outcome.accepted[i],
                    "correct": outcome.correct[i],
                }
                file.write(json.dumps(sample) + "\n")


def open_source(setup: settings.Settings, workdir: Path, source: settings.MixtureSource, split: str):
    """A source's split; tasks draw validation from their own hold-out."""
    return source.open(split, workdir / "data", setup.task_documents, setup.seed)


if __name__ == "__main__":
    cli.run(main)
