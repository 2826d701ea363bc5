"""Runs a config's stages: data, its training phases, evaluate, figures. Finished stages are skipped.

    python -m experiments.run --config=configs/quickstart.py --workdir=runs/quickstart
    python -m experiments.run --config=configs/quickstart.py:fast,block_size=4 --config.convert.objective.alpha=0.5
    python -m experiments.run --config=configs/quickstart.py --print_config

What follows the colon changes several fields at once (see the config file); --config.FIELD=VALUE changes one. The
workdir then holds config.json, environment.json, metrics.jsonl, checkpoints/, results.csv, samples.jsonl, figures/ and
report.html. Interrupt it at any moment: the same command goes on from the last checkpoint, to the same numbers. While a
stage trains, SIGTERM or one Ctrl-C finishes the step, saves, and exits with status 75.

Where fields of `evaluate` alone are changed, a trained run is evaluated again in the same workdir, without training;
what the earlier evaluation wrote moves to evaluations/N. A run none of whose phases drafts is sampled autoregressively.

--sinks=tensorboard,wandb sends metrics there too; --profile=DIR writes a trace of a few steps of every training stage.

The config's `phases` names its training phases in order, such as ("pretrain", "convert", "control"); a section of that
name describes each (zaya_jax/runs/phases.py): what it starts from (an earlier phase, a checkpoint's folder, "scratch"),
its steps, objective and optimizer, and where it differs from the others its row length, rotary base and data. A phase
of 0 steps is left out. configs/zaya1_8b.py is ZAYA1's own list, from 4k tokens of context to 128k and chats.

--stages=DIR keeps the training stages there, each under a name that says what decides it (model, what the data's files
hold, seed, steps, what it starts from), so that runs which differ only behind a stage train it once. Sweeps use it.

Many devices: --config.mesh.fsdp=2 --config.mesh.expert=8 --config.mesh.context=4 (zaya_jax/parallel/placement.py says
what each splits; on a CPU --config.cpu_devices=8 makes eight). A run may go on with another mesh, on more or fewer
devices.
Many processes, the same command in each: --coordinator=auto under Slurm or Open MPI, or --coordinator=HOST:PORT
--processes=N --process=I. They train; evaluation and figures follow when one process runs the command without these.
"""

import contextlib
import functools
import itertools
import json
from pathlib import Path

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from zaya_jax.architecture import Zaya
from zaya_jax.command_line import cli
from zaya_jax.command_line.closing import closing, run_summary
from zaya_jax.costs.flops import describe, training_flops
from zaya_jax.costs.roofline import peak_flops
from zaya_jax.data.chat import ChatSource, survey
from zaya_jax.data.pipeline import Source, eval_batches, make_train_iterator
from zaya_jax.errors import UserError
from zaya_jax.evaluation.continuations import Continuations, log_probability
from zaya_jax.evaluation.likelihood import likelihood
from zaya_jax.evaluation.task_accuracy import Outcome, run_task, task_rows
from zaya_jax.files import write_lines
from zaya_jax.interop.formats.native import load_native, write_model_file
from zaya_jax.parallel import Placement, is_first, start_processes, use_cpu_devices, wait_for_all
from zaya_jax.paths import absolute
from zaya_jax.reporting.html.report import write_report
from zaya_jax.reporting.plots.plots import draw_figures
from zaya_jax.reporting.results import Row, load_run, write_results
from zaya_jax.runs import config_files, listing, provenance, run_folder, settings, sizes
from zaya_jax.runs.carried import write_tokenizer
from zaya_jax.runs.mixture import MixtureSource
from zaya_jax.runs.phases import Stage, load_start
from zaya_jax.runs.tokens import run_template
from zaya_jax.sampling.planning.cost import AUTOREGRESSIVE, forward_cost, rows_of
from zaya_jax.sampling.strategies.base import Plan
from zaya_jax.tasks import ChatTask, Task
from zaya_jax.text.detokenizer import Detokenizer
from zaya_jax.text.published import TOKENIZER_FILE
from zaya_jax.text.templates import ChatTemplate
from zaya_jax.text.tokenizers import OWN_BPE, BPETokenizer
from zaya_jax.training.checkpoints import Checkpoints
from zaya_jax.training.logging.metrics import MetricWriter, read_metrics
from zaya_jax.training.logging.sinks import Sink, check_sinks, open_sinks
from zaya_jax.training.loop import train
from zaya_jax.training.objective import Objective
from zaya_jax.training.state import init_variables, make_eval_step

_CONFIG = config_files.define_config("Config file, with an optional :argument.")
_PRINT = flags.DEFINE_boolean(
    "print_config", False, "Print all fields of the config with their values and run nothing."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the run lives; default: runs/<the config's name>.")
_SINKS = flags.DEFINE_list("sinks", [], "Where metrics go besides metrics.jsonl: tensorboard, wandb.")
_PROFILE = flags.DEFINE_string("profile", None, "Folder for a profiler trace of a few steps of every training stage.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "Many processes: HOST:PORT of process 0, or auto.")
_PROCESSES = flags.DEFINE_integer(
    "processes", None, "How many processes there are, with HOST:PORT.", lower_bound=1, upper_bound=65_536
)
_PROCESS = flags.DEFINE_integer(
    "process", None, "Which of them this is, from 0, with HOST:PORT.", lower_bound=0, upper_bound=65_536
)
_STAGES = flags.DEFINE_string("stages", None, "Where training stages live; default: WORKDIR/checkpoints.")


def main() -> None:
    config = _CONFIG.value
    if config is None:
        raise UserError("--config: missing, may be a config file such as configs/quickstart.py")
    if _PRINT.value:
        print("\n".join(listing.lines_of(config)), flush=True)
    setup = settings.read(config)  # after the listing, which helps to mend what this refuses
    if _PRINT.value:
        return
    check_sinks(_SINKS.value)
    workdir = absolute(_WORKDIR.value or f"runs/{setup.name}")
    use_cpu_devices(setup.cpu_devices)
    start_processes(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    placements = {name: stage.placement() for name, stage in setup.stages.items()}
    sizes.check(setup, placements)
    with contextlib.ExitStack() as stack:
        sinks: list[Sink] = []
        if is_first():
            stack.enter_context(run_folder.locked(workdir / ".lock"))
            run_folder.claim_workdir(workdir, config)
            run_folder.check_files(workdir)
            sinks = open_sinks(_SINKS.value, workdir, setup.name, json.loads(config.to_json_best_effort()))
            for sink in sinks:
                stack.callback(sink.close)
        wait_for_all("workdir")
        if config.tokenizer.startswith(OWN_BPE):
            setup = settings.read(config, own_tokenizer(setup, workdir))
        folders = stage_folders(config, setup, workdir)
        held_out = train_stages(config, setup, workdir, folders, placements, sinks)
        if jax.process_count() > 1:
            print("trained; to evaluate, run the same command as one process", flush=True)
            return
        finish(setup, workdir, folders, held_out)


def own_tokenizer(setup: settings.Settings, workdir: Path) -> BPETokenizer:
    """The BPE that the run has trained on its texts' training split, or trains now, kept in WORKDIR/tokenizer.json.

    Raises:
      UserError: no text, or too little for so many ids.
    """
    path = workdir / TOKENIZER_FILE
    if is_first() and not path.exists():
        sources = [source for source in setup.sources.values() if source.is_text]
        if not sources:
            raise UserError(f"tokenizer: got '{OWN_BPE}{setup.tokenizer.vocab_size}', but no text is in data.mixture")
        opened = [open_source(setup, workdir, source, "train") for source in sources]
        texts = (documents[i]["text"] for documents in opened for i in range(len(documents)))
        BPETokenizer.train(texts, setup.tokenizer.vocab_size).save(path)
    wait_for_all("tokenizer")
    return BPETokenizer.load(path)


def stage_folders(config: ConfigDict, setup: settings.Settings, workdir: Path) -> dict[str, Path]:
    """Where each stage's checkpoints are: in the workdir, or under a name of what decides them in --stages."""
    if _STAGES.value is None:
        return {name: workdir / "checkpoints" / name for name in setup.stages}
    shared = absolute(_STAGES.value)
    keys = settings.stage_keys(config, setup, memory=shared / "digests.json")
    return {name: shared / f"{name}-{keys[name]}" for name in setup.stages}


def train_stages(
    config: ConfigDict,
    setup: settings.Settings,
    workdir: Path,
    folders: dict[str, Path],
    placements: dict[str, Placement | None],
    sinks: list[Sink],
) -> dict[str, Source]:
    """All training stages in order. Returns the sources' validation splits by name."""
    tokenizer, template = config.tokenizer, chat_template(config, setup)
    for name, stage in setup.stages.items():
        objective = stage.phase.objective
        tidar, block_size = objective.drafts, objective.block_size
        optimizer = stage.phase.optimizer
        described = describe(
            stage.model, stage.batch_size, stage.row_length, tidar, block_size, optimizer.name,
            optimizer.ema_decay > 0, sizes.split_of(placements[name]), stage.execution,
        )  # fmt: skip
        print(f"{name}\n{described}", flush=True)
    with provenance.timed(workdir, "data"):
        train_data, held_out = (
            {name: open_source(setup, workdir, source, split) for name, source in setup.sources.items()}
            for split in ("train", "validation")
        )
    writer = MetricWriter(workdir / "metrics.jsonl", sinks)
    for name in setup.stages:
        folder = folders[name]
        with contextlib.ExitStack() as stack:
            if is_first():
                # two runs that share a stage do not train it at once: the second waits, and finds it finished
                lock = folder.with_suffix(".lock")
                stack.enter_context(run_folder.locked(lock, f"waiting for the run that is training {folder}"))
                write_model_file(folder, setup.stages[name].model)
                write_tokenizer(folder, tokenizer, template)
            wait_for_all(name)
            run_phase(setup, workdir, name, folders, placements[name], writer, train_data, held_out)
    return held_out


def chat_template(config: ConfigDict, setup: settings.Settings) -> ChatTemplate | None:
    """What a run's chats are written with; None for a run without chats."""
    chats = any(source.template is not None for source in setup.sources.values())
    chats = chats or any(isinstance(task, ChatTask) for task in setup.tasks)
    return run_template(json.loads(config.to_json_best_effort()), setup.tokenizer, chats)


def finish(setup: settings.Settings, workdir: Path, folders: dict[str, Path], held_out: dict[str, Source]) -> None:
    """What follows training: evaluate, figures, report."""
    if not (workdir / "results.csv").exists():
        with provenance.timed(workdir, "evaluate"):
            evaluate(setup, workdir, folders, held_out)
    with provenance.timed(workdir, "figures"):
        run = load_run(workdir)
        figures = draw_figures(run, workdir / "figures")
    run = load_run(workdir)
    write_report(run, figures, workdir / "report.html")
    checkpoint = folders[setup.sampled]
    drafts = "" if setup.stages[setup.sampled].phase.objective.kind == "tidar" else " --mode=autoregressive"
    files = {
        "report": workdir / "report.html", "figures": workdir / "figures", "table": workdir / "results.csv",
        "checkpoint": checkpoint,
    }  # fmt: skip
    then = [
        f"python -m experiments.generate --checkpoint={checkpoint}{drafts} --prompt=...",
        f"python -m experiments.convert --checkpoint={checkpoint} --output=...  (a Hugging Face folder)",
        "the same command with other --config.evaluate.FIELD=VALUE: evaluates again, without training",
    ]
    print(f"\n{run_summary(run)}\n{closing(files, then)}")


def run_phase(
    setup: settings.Settings,
    workdir: Path,
    name: str,
    folders: dict[str, Path],
    placement: Placement | None,
    writer: MetricWriter,
    train_data: dict[str, Source],
    held_out: dict[str, Source],
) -> None:
    """One training stage, unless it is finished."""
    stage = setup.stages[name]
    model = Zaya(stage.model, stage.execution)
    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(Checkpoints(folders[name]))
        if checkpoints.latest == stage.phase.steps:
            return
        count_chats(setup, writer, stage, train_data)
        start = folders[stage.start] if isinstance(stage.start, str) else stage.start
        if start is None:
            variables = init_variables(model, setup.seed, placement)
        else:
            variables = load_start(stage.model, start, f"{name}.start", placement, setup.seed)
        carry = stack.enter_context(Checkpoints(folders[str(stage.start)])) if stage.continues else None
        mixture = [(train_data[source.name], source.weight) for source in stage.mixture]
        batches = make_train_iterator(
            mixture, setup.tokenizer, stage.row_length, stage.batch_size, stage.data_seed, packing=stage.packing
        )
        eval_step = shared_eval_step(model, stage.phase.objective, placement)  # pyrefly: ignore[bad-argument-type]
        own = {source.name: held_out_batches(setup, stage, held_out[source.name]) for source in stage.mixture}
        with provenance.timed(workdir, name):
            train(
                model, variables, stage.phase, batches, checkpoints, writer,
                evaluate=functools.partial(validate, setup, own, eval_step), carry=carry,
                placement=placement, flops_per_step=step_flops(stage), peak_flops=peak_of(placement),
                profile=absolute(_PROFILE.value) / name if _PROFILE.value else None,
            )  # fmt: skip


def peak_of(placement: Placement | None) -> float | None:
    """bfloat16 FLOPs a second of all devices together; None where their kind's peak is not known."""
    peak = peak_flops(jax.devices()[0].device_kind)
    return None if peak is None else peak * (1 if placement is None else placement.mesh.size)


def step_flops(stage: Stage) -> float:
    """FLOPs of a step of a stage. What a policy computes again is no use, so it is not counted."""
    objective = stage.phase.objective
    return training_flops(stage.model, stage.batch_size, stage.row_length, objective.drafts, objective.block_size)


def count_chats(setup: settings.Settings, writer: MetricWriter, stage: Stage, train_data: dict[str, Source]) -> None:
    """Says, and puts in metrics.jsonl once, how many of each source's chats are trimmed or dropped in this stage.

    Raises:
      UserError: a source all of whose chats are.
    """
    counts = {}
    for source in stage.mixture:
        chats = train_data[source.name]
        if isinstance(chats, ChatSource):
            try:
                found = survey(chats, setup.tokenizer, stage.row_length)
            except UserError as error:
                raise UserError(f"{stage.phase.name}, source {source.name}: {error}") from error
            counts |= {f"{source.name}/{what}": count for what, count in found._asdict().items()}
            print(
                f"{stage.phase.name}: of {found.chats} {source.name}s {found.trimmed} are trimmed and {found.dropped} "
                f"dropped, to fit {stage.row_length} tokens",
                flush=True,
            )
    path, where = writer.path, f"{stage.phase.name}/data"
    if counts and not (path.exists() and any(line["stage"] == where for line in read_metrics(path))):
        writer.write(where, 0, counts)


def held_out_batches(setup: settings.Settings, stage: Stage, documents: Source) -> list[dict]:
    """A source's validation batches in a stage's shape: the same few at every evaluation, so they are made once."""
    batches = eval_batches(documents, setup.tokenizer, stage.row_length, stage.batch_size, packing=stage.packing)
    return list(itertools.islice(batches, setup.validation_batches))


def validate(setup: settings.Settings, held_out: dict[str, list[dict]], eval_step, variables: dict) -> dict:
    """Likelihood on validation batches of every source, names prefixed with the source's."""
    out = {}
    for name, batches in held_out.items():
        text_tokenizer = setup.tokenizer if setup.sources[name].is_text else None
        for metric, value in likelihood(eval_step, variables, batches, text_tokenizer).items():
            out[f"{name}/{metric}"] = value
    return out


def evaluate(setup: settings.Settings, workdir: Path, folders: dict[str, Path], held_out: dict[str, Source]) -> None:
    """Writes answers/, samples.jsonl, then results.csv (whose presence says that the stage is finished)."""
    hardware = provenance.hardware()
    rows: list[Row] = likelihood_rows(setup, folders, held_out, hardware)
    stage = setup.stages[setup.sampled]
    model = Zaya(stage.model, stage.execution)
    variables = load_native(folders[setup.sampled], stage.phase.evaluate_ema)[1]
    samples = []
    for task in [*setup.tasks, *continuations(setup, workdir)]:
        outcomes = run_task(
            model, variables, setup.tokenizer, task, setup.arms, setup.trial, workdir / "answers", setup.anchor_budget
        )
        common = {"kind": "sampling", "model": setup.sampled, "source": task.name, "hardware": hardware}
        mine = [common | row for row in task_rows(outcomes, setup.trial)]
        if isinstance(task, Continuations):
            for row, outcome in zip(mine, outcomes, strict=True):
                row["ar_log_probability"] = log_probability(
                    model, variables, setup.tokenizer, task, outcome, setup.trial
                )
        rows += mine
        samples += some_samples(setup, task, outcomes)
    if setup.measures_cost:
        rows += cost_rows(model, variables, setup.sampled, hardware)
    write_lines(workdir / "samples.jsonl", samples)
    write_results(workdir / "results.csv", rows)


def continuations(setup: settings.Settings, workdir: Path) -> list[Continuations]:
    """What is sampled without a task: each chosen text's held-out documents."""
    return [
        Continuations(name, functools.partial(open_source, setup, workdir, setup.sources[name])) for name in setup.texts
    ]


def likelihood_rows(
    setup: settings.Settings, folders: dict[str, Path], held_out: dict[str, Source], hardware: str
) -> list[Row]:
    """The kind=likelihood rows of results.csv: every stage's model on every source, all on the same rows.

    They are the sampled stage's rows and objective, so that one compiled program measures all of one rotary base.
    """
    sampled = setup.stages[setup.sampled]
    batches = {name: held_out_batches(setup, sampled, documents) for name, documents in held_out.items()}
    rows: list[Row] = []
    for name, stage in setup.stages.items():
        eval_step = shared_eval_step(Zaya(stage.model, stage.execution), sampled.phase.objective)  # pyrefly: ignore[bad-argument-type]
        measured = validate(setup, batches, eval_step, load_native(folders[name], stage.phase.evaluate_ema)[1])
        kept = ["ar_loss", "bits_per_byte"]
        kept += ["draft_loss", "draft_accuracy_by_slot"] * stage.phase.objective.drafts
        for source in batches:
            found = {key: measured.get(f"{source}/{key}") for key in kept}
            cells = {key: np.asarray(value).tolist() for key, value in found.items() if value is not None}
            rows.append({"kind": "likelihood", "model": name, "source": source, "hardware": hardware} | cells)
    return rows


@functools.lru_cache(maxsize=8)
def shared_eval_step(model: Zaya, objective: Objective, placement: Placement | None = None):
    """`make_eval_step`, one for all that measure the same, so that it is compiled once."""
    return make_eval_step(model, objective, placement=placement)


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


def some_samples(setup: settings.Settings, task: Task, outcomes: list[Outcome], count: int = 6) -> list[dict]:
    """The first sample of the first problems by every arm, token by token."""
    problems = task.problems("test", min(count, setup.trial.prompts), setup.trial.seed)
    return [
        {
            "arm": outcome.arm.name,
            "temperature": outcome.arm.sampler.temperature,
            "prompt": problem.prompt,
            "pieces": Detokenizer(setup.tokenizer, start=False).pieces(outcome.tokens[i * outcome.samples]),
            "accepted": outcome.accepted[i * outcome.samples],
            "correct": outcome.correct[i * outcome.samples],
        }
        for outcome in outcomes
        for i, problem in enumerate(problems)
    ]


def open_source(setup: settings.Settings, workdir: Path, source: MixtureSource, split: str) -> Source:
    """A source's split."""
    return source.open(split, workdir / "data", setup.task_documents, setup.seed)


if __name__ == "__main__":
    cli.run(main, keep_memory=True)
