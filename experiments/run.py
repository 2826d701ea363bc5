"""Runs a config's stages: data, its training phases, evaluate, figures. Finished stages are skipped.

    python -m experiments.run --config=configs/quickstart.py --workdir=runs/quickstart
    python -m experiments.run --config=configs/quickstart.py:fast,block_size=4 --config.convert.objective.alpha=0.5
    python -m experiments.run --config=configs/quickstart.py --print_config

What follows the colon changes several fields at once (see the config file); --config.FIELD=VALUE changes one. The
workdir then holds config.json, environment.json, metrics.jsonl, checkpoints/, results.csv, samples.jsonl, figures/ and
report.html. Interrupt it at any moment: the same command resumes from the last checkpoint, to the same numbers. While a
stage trains, SIGTERM or one Ctrl-C finishes the step, saves, and exits with status 75.

Where fields of `evaluate` alone are changed, a trained run is evaluated again in the same workdir, without training;
what the earlier evaluation wrote moves to evaluations/N. A run none of whose phases drafts is sampled autoregressively.
--train_only ends after the last phase; the same command without it evaluates.

--sinks=tensorboard,wandb sends metrics there too; --profile=DIR writes a trace of a few steps of every training stage.

The config's `phases` names its training phases in order, such as ("pretrain", "convert", "control"); a section of that
name describes each (zaya_jax/runs/configuration/tree.py): what it starts from (an earlier phase, a checkpoint's folder,
"scratch"), its steps, objective and optimizer, and where it differs from the others its row length, rotary base and
data. A phase of 0 steps is left out. configs/zaya1_8b.py is ZAYA1's own list, from 4k tokens of context to 128k and
chats.

--stages=DIR keeps the training stages there, each under a name that says what decides it (model, what the data's files
hold, seed, steps, what it starts from), so that runs which differ only after a stage train it once. Sweeps use it.

Many devices: --config.mesh.fsdp=2 --config.mesh.expert=8 --config.mesh.context=4 (zaya_jax/parallel/placement.py says
what each splits; on a CPU --config.cpu_devices=8 makes eight). A run may resume with another mesh, on more or fewer
devices.
Many processes, the same command in each: --coordinator=auto under Slurm or Open MPI, or --coordinator=HOST:PORT
--processes=N --process=I. They train; evaluation and figures follow when one process runs the command without these.
"""

import contextlib
import json
from pathlib import Path

import jax
from absl import flags
from ml_collections import ConfigDict

from zaya_jax.command_line import cli
from zaya_jax.command_line.closing import PROMPT, closing, convert_with, generate_with, run_summary
from zaya_jax.data.packed import PackedRows
from zaya_jax.data.pipeline import Source
from zaya_jax.errors import UserError
from zaya_jax.parallel import ending_together, is_first, start_processes, use_cpu_devices, wait_for_all
from zaya_jax.paths import absolute
from zaya_jax.reporting.html.report import write_report
from zaya_jax.reporting.plots.plots import draw_figures
from zaya_jax.reporting.run_files import load_run
from zaya_jax.runs import provenance, run_folder, sizes
from zaya_jax.runs.configuration import config_files, listing, settings
from zaya_jax.runs.evaluation import evaluate
from zaya_jax.runs.stages import own_tokenizer, stage_folders, train_stages, trained
from zaya_jax.text.tokenizers import OWN_BPE
from zaya_jax.training.logging.sinks import Sink, check_sinks, open_sinks
from zaya_jax.training.signals import Interrupted

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
_TRAIN_ONLY = flags.DEFINE_boolean("train_only", False, "End after training: no evaluation, no figures.")
_STAGES = flags.DEFINE_string("stages", None, "Where training stages live; default: WORKDIR/checkpoints.")


def main() -> None:
    config = _CONFIG.value
    if config is None:
        raise UserError("--config: missing, may be a config file such as configs/quickstart.py")
    if _PRINT.value:
        print("\n".join(listing.lines_of(config)), flush=True)
    # After the listing, which helps to mend what this refuses; of many processes, where all hear of it.
    setup = settings.read(config) if _COORDINATOR.value is None or _PRINT.value else None
    if _PRINT.value:
        return
    use_cpu_devices(config.get("cpu_devices", 1))
    start_processes(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    with ending_together((Interrupted,)):
        run(config, setup or settings.read(config))


def run(config: ConfigDict, setup: settings.Settings) -> None:
    """All of a run, in each of its processes."""
    check_sinks(_SINKS.value)
    workdir = absolute(_WORKDIR.value or f"runs/{setup.name}")
    done = trained(setup, workdir) if _STAGES.value is None else frozenset()
    placements = {name: None if name in done else stage.placement() for name, stage in setup.stages.items()}
    sizes.check(setup, placements, done)
    with contextlib.ExitStack() as stack:
        sinks: list[Sink] = []
        if is_first():
            stack.enter_context(run_folder.locked(workdir / ".lock", field="--workdir"))
            run_folder.claim_workdir(workdir, config)
            run_folder.check_files(workdir)
            sinks = open_sinks(_SINKS.value, workdir, setup.name, json.loads(config.to_json_best_effort()))
            for sink in sinks:
                stack.callback(sink.close)
        wait_for_all("workdir")
        if config.tokenizer.startswith(OWN_BPE):
            setup = settings.read(config, own_tokenizer(setup, workdir))
        folders = stage_folders(config, setup, workdir, _STAGES.value)
        profile = absolute(_PROFILE.value) if _PROFILE.value else None
        held_out = train_stages(config, setup, workdir, folders, placements, sinks, profile)
        if jax.process_count() > 1:
            print("trained; to evaluate, run the same command as one process", flush=True)
            return
        if _TRAIN_ONLY.value:
            files = {name: folders[name] for name in setup.stages}
            print(closing(files, ["the same command without --train_only: evaluates"]), flush=True)
            return
        finish(setup, workdir, folders, held_out)


def finish(
    setup: settings.Settings, workdir: Path, folders: dict[str, Path], held_out: dict[str, Source | PackedRows]
) -> None:
    """What follows training: evaluate, figures, report."""
    if not (workdir / "results.csv").exists():
        with provenance.timed(workdir, "evaluate"):
            evaluate(setup, workdir, folders, held_out)
    with provenance.timed(workdir, "figures"):
        run = load_run(workdir)
        figures = draw_figures(run, workdir / "figures")
    run = load_run(workdir)
    write_report(run, figures, workdir / "report.html")
    checkpoint, objective = folders[setup.sampled], setup.stages[setup.sampled].phase.objective
    prompt = run.samples[0]["prompt"] if run.samples else PROMPT
    files = {
        "report": workdir / "report.html", "figures": workdir / "figures", "table": workdir / "results.csv",
        "checkpoint": checkpoint,
    }  # fmt: skip
    then = [
        generate_with(checkpoint, objective.masks, prompt, objective.drafter.kind if objective.drafter else None),
        f"{convert_with(checkpoint)}  # a Hugging Face folder",
        "the same command with other --config.evaluate.FIELD=VALUE: evaluates again, without training",
    ]
    print(f"\n{run_summary(run)}\n{closing(files, then)}")


if __name__ == "__main__":
    cli.run(main, keep_memory=True)
