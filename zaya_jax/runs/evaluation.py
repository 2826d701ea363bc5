"""The evaluation of a run: likelihood of every stage, every sampler on every task and text, what a forward costs."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np

from zaya_jax.architecture import Zaya, for_decoding
from zaya_jax.costs.flops import adapter_count, drafter_count
from zaya_jax.data.packed import PackedRows
from zaya_jax.data.pipeline import Source
from zaya_jax.evaluation.continuations import Continuations, log_probability
from zaya_jax.evaluation.task_accuracy import TaskResult, run_task, task_rows
from zaya_jax.files import write_lines
from zaya_jax.interop.formats.native import load_native
from zaya_jax.reporting.results import Row, write_results
from zaya_jax.runs import provenance
from zaya_jax.runs.configuration import settings
from zaya_jax.runs.configuration.stage import Stage
from zaya_jax.runs.held_out import held_out_batches, open_source, shared_eval_step, validate
from zaya_jax.runs.stages import step_flops
from zaya_jax.sampling.planning.cost import AUTOREGRESSIVE, forward_cost, rows_of
from zaya_jax.sampling.strategies.base import Plan
from zaya_jax.tasks import Task
from zaya_jax.text.detokenizer import Detokenizer
from zaya_jax.training.objective import Objective

WORTH_COMPILING = 256  # new tokens of a sampler


def evaluate(
    setup: settings.Settings, workdir: Path, folders: dict[str, Path], held_out: dict[str, Source | PackedRows]
) -> None:
    """Writes answers/, samples.jsonl, then results.csv (whose presence says that the stage is finished)."""
    hardware = provenance.hardware()
    rows: list[Row] = likelihood_rows(setup, folders, held_out, hardware)
    stage = setup.stages[setup.sampled]
    variables = load_native(folders[setup.sampled], stage.phase.evaluate_ema)[1]
    model = Zaya(stage.model, stage.execution)
    if _decodes_long(setup):
        model, variables = for_decoding(model, variables, release=True)
    samples = []
    for task in [*setup.tasks, *continuations(setup, workdir)]:
        results = run_task(
            model,
            variables,
            setup.tokenizer,
            task,
            setup.samplers,
            setup.protocol,
            workdir / "answers",
            setup.anchor_budget,
        )
        common = {"kind": "sampling", "model": setup.sampled, "source": task.name, "hardware": hardware}
        common |= {"training_flops": invested(stage), "added_parameters": added(stage)}
        mine = [common | row for row in task_rows(results, setup.protocol)]
        if isinstance(task, Continuations):
            for row, result in zip(mine, results, strict=True):
                row["ar_log_probability"] = log_probability(
                    model, variables, setup.tokenizer, task, result, setup.protocol
                )
        rows += mine
        samples += some_samples(setup, task, results)
    if setup.measures_cost:
        rows += cost_rows(model, variables, setup.sampled, hardware)
    write_lines(workdir / "samples.jsonl", samples)
    write_results(workdir / "results.csv", rows)


def invested(stage: Stage) -> int | None:
    """FLOPs that a stage's steps took of a model that could write before; 0 for one that starts from scratch.

    None where a step makes rollouts.
    """
    flops = step_flops(stage)
    return 0 if stage.start is None else flops and stage.phase.steps * flops


def added(stage: Stage) -> int:
    """Parameters of a stage's model that are there to draft: adapters and a drafter."""
    return adapter_count(stage.model) + drafter_count(stage.model)


def _decodes_long(setup: settings.Settings) -> bool:
    """Whether enough is decoded to pay for compiling every layer by itself (`for_decoding`)."""
    protocol = setup.protocol
    return protocol.prompts * protocol.samples * protocol.max_new_tokens >= WORTH_COMPILING


def continuations(setup: settings.Settings, workdir: Path) -> list[Continuations]:
    """What is sampled without a task: each chosen text's held-out documents."""

    def documents(name: str) -> Callable[[str], Source]:
        return cast(Callable[[str], Source], functools.partial(open_source, setup, workdir, setup.sources[name]))

    return [Continuations(name, documents(name)) for name in setup.texts]


def likelihood_rows(
    setup: settings.Settings, folders: dict[str, Path], held_out: dict[str, Source | PackedRows], hardware: str
) -> list[Row]:
    """The kind=likelihood rows of results.csv: every stage's model on every source, all on the same rows.

    They are the sampled stage's rows and objective, so that one compiled program measures all of one rotary base.
    """
    sampled = setup.stages[setup.sampled]
    objective = sampled.phase.objective
    batches = {name: held_out_batches(setup, sampled, documents) for name, documents in held_out.items()}
    rows: list[Row] = []
    for name, stage in setup.stages.items():
        if objective.drafter is None or objective.drafter == stage.model.drafter:
            measured_by = objective
        else:  # a stage before there was the drafter
            measured_by = Objective("autoregressive", loss_on=objective.loss_on)
        eval_step = shared_eval_step(Zaya(stage.model, stage.execution), measured_by)  # pyrefly: ignore[bad-argument-type]
        measured = validate(setup, batches, eval_step, load_native(folders[name], stage.phase.evaluate_ema)[1])
        kept = ["ar_loss", "bits_per_byte"]
        kept += ["draft_loss", "draft_accuracy_by_slot"] * stage.phase.objective.drafts
        for source in batches:
            found = {key: measured.get(f"{source}/{key}") for key in kept}
            cells = {key: np.asarray(value).tolist() for key, value in found.items() if value is not None}
            rows.append({"kind": "likelihood", "model": name, "source": source, "hardware": hardware} | cells)
    return rows


def cost_rows(model: Zaya, variables: dict, name: str, hardware: str) -> list[dict]:
    """The kind=cost rows of results.csv: one AR row, 8 verified alone, and those with 1, 2 or all 8 blocks drafted."""
    anchors = ((), (8,), (1, 8), tuple(range(1, 9)))
    plans = [AUTOREGRESSIVE, *(Plan("single_pass", 8, some, "autoregressive") for some in anchors)]
    cost = {rows_of(plan): ms for plan, ms in forward_cost(model, variables, plans).items()}
    return [
        {
            "kind": "cost", "model": name, "batch": 1, "block_size": 8, "rows": count, "milliseconds": ms,
            "cost_ratio": ms / cost[1], "hardware": hardware,
        }
        for count, ms in cost.items()
    ]  # fmt: skip


def some_samples(setup: settings.Settings, task: Task, results: list[TaskResult], count: int = 6) -> list[dict]:
    """The first sample of the first problems by every sampler, token by token."""
    problems = task.problems("test", min(count, setup.protocol.prompts), setup.protocol.seed)
    return [
        {
            "sampler": result.sampler.name,
            "temperature": result.sampler.config.temperature,
            "prompt": problem.prompt,
            "pieces": Detokenizer(setup.tokenizer, start=False).pieces(result.tokens[i * result.samples]),
            "accepted": result.accepted[i * result.samples],
            "correct": result.correct[i * result.samples],
        }
        for result in results
        for i, problem in enumerate(problems)
    ]
