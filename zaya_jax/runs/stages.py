"""The training stages of a run: data, then each phase that is not finished yet, from its checkpoint on."""

import contextlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from zaya_jax.architecture import Zaya
from zaya_jax.costs.drafters import objective_flops
from zaya_jax.costs.flops import describe
from zaya_jax.costs.roofline import peak_flops
from zaya_jax.data.chat import ChatSource, survey
from zaya_jax.data.contents import Digests
from zaya_jax.data.packed import PackedRows
from zaya_jax.data.pipeline import Source, make_train_iterator
from zaya_jax.errors import UserError
from zaya_jax.files import make_folder, read_object, remedy, write_text
from zaya_jax.interop.formats.native import CheckpointError, newest_step, write_model_file
from zaya_jax.parallel import Placement, is_first, wait_for_all
from zaya_jax.paths import absolute
from zaya_jax.runs import provenance, rollouts, run_folder, sizes
from zaya_jax.runs.carried import spec_in, write_tokenizer
from zaya_jax.runs.configuration import settings
from zaya_jax.runs.configuration.stage import Stage
from zaya_jax.runs.configuration.stage_keys import stage_keys
from zaya_jax.runs.held_out import held_out_batches, open_source, shared_eval_step, validate
from zaya_jax.runs.start import load_start
from zaya_jax.runs.tokens import run_template
from zaya_jax.tasks import ChatTask
from zaya_jax.text.published import TOKENIZER_FILE
from zaya_jax.text.templates import ChatTemplate
from zaya_jax.text.tokenizers import OWN_BPE, BPETokenizer
from zaya_jax.training.checkpoints import Checkpoints
from zaya_jax.training.logging.metrics import MetricWriter, read_metrics
from zaya_jax.training.logging.sinks import Sink
from zaya_jax.training.loop import train
from zaya_jax.training.state import init_variables


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
        readable = [documents for documents in opened if not isinstance(documents, PackedRows)]
        texts = (documents[i]["text"] for documents in readable for i in range(len(documents)))
        BPETokenizer.train(texts, setup.tokenizer.vocab_size).save(path)
    wait_for_all("tokenizer")
    return BPETokenizer.load(path)


def stage_folders(
    config: ConfigDict, setup: settings.Settings, workdir: Path, stages: str | None = None
) -> dict[str, Path]:
    """Where each stage's checkpoints are: in the workdir, or in `stages` under a name of what decides them."""
    if stages is None:
        return {name: workdir / "checkpoints" / name for name in setup.stages}
    shared = absolute(stages)
    keys = stage_keys(config, setup, memory=shared / "digests.json")
    return {name: shared / f"{name}-{keys[name]}" for name in setup.stages}


def trained(setup: settings.Settings, workdir: Path) -> frozenset[str]:
    """Stages in the workdir whose last step is saved: a single process needs no mesh and no memory to train them.

    So a run that many devices have trained is evaluated on one. Of many processes none is asked.
    """
    if jax.process_count() > 1:
        return frozenset()
    folders = {name: workdir / "checkpoints" / name for name in setup.stages}

    def finished(name: str) -> bool:
        try:
            return folders[name].is_dir() and newest_step(folders[name]) == setup.stages[name].phase.steps
        except CheckpointError:  # what is wrong with it is said where it is read
            return False

    return frozenset(filter(finished, folders))


def train_stages(
    config: ConfigDict,
    setup: settings.Settings,
    workdir: Path,
    folders: dict[str, Path],
    placements: dict[str, Placement | None],
    sinks: list[Sink],
    profile: Path | None = None,
) -> dict[str, Source | PackedRows]:
    """All training stages in order. Returns the sources' validation splits by name.

    Args:
      profile: folder for a profiler trace of a few steps of each.
    """
    tokenizer, template = spec_in(workdir, config.tokenizer), chat_template(config, setup)
    for name, stage in setup.stages.items():
        objective = stage.phase.objective
        tidar, block_size = objective.masks, objective.block_size
        optimizer = stage.phase.optimizer
        described = describe(
            stage.model, stage.batch_size, stage.row_length, tidar, block_size, optimizer.name,
            optimizer.ema_decay > 0, sizes.split_of(placements[name]),
            sizes.on_devices(stage, placements[name]).execution, optimizer.accumulate,
            sizes.trained(stage), None if objective.drafter is None else step_flops(stage),
        )  # fmt: skip
        print(f"{name}\n{described}", flush=True)
    with provenance.timed(workdir, "data"):
        train_data, held_out = (
            {name: open_source(setup, workdir, source, split) for name, source in setup.sources.items()}
            for split in ("train", "validation")
        )
    if is_first():
        same_rows(workdir, train_data, texts_of(setup, workdir, folders))
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
            run_phase(setup, workdir, name, folders, placements[name], writer, train_data, held_out, profile)
    return held_out


def texts_of(setup: settings.Settings, workdir: Path, folders: dict[str, Path]) -> dict[str, str]:
    """Digests of what the texts and chats of a run hold, by source, while stages are left to train in its own folder.

    A finished run is evaluated again without them; among shared stages each is named by what it is trained on.
    """
    done = trained(setup, workdir)
    if all(name in done or folder.parent != workdir / "checkpoints" for name, folder in folders.items()):
        return {}
    digests = Digests(workdir / "data" / "digests.json")
    found = {name: source.text if source.text is not None else source.chats for name, source in setup.sources.items()}
    return {name: digests.of_texts(texts) for name, texts in found.items() if texts is not None}


def same_rows(
    workdir: Path, sources: Mapping[str, Source | PackedRows], texts: Mapping[str, str] | None = None
) -> None:
    """Notes which packed rows and texts a run trains on; UserError where it has begun with others of the same name.

    Args:
      texts: digests by source, see `texts_of`.
    """
    path = workdir / "data" / "packed.json"
    mine = {name: each.manifest["digest"] for name, each in sources.items() if isinstance(each, PackedRows)}
    mine |= texts or {}
    with remedy("delete the file if the folders that data.mixture names are as they were"):
        theirs = read_object(path) if os.path.lexists(path) else {}
    for name in mine.keys() & theirs.keys():
        if mine[name] != theirs[name]:
            folder = getattr(sources[name], "folder", None)
            what = "its texts are others" if folder is None else f"{folder} holds other rows"
            raise UserError(f"{name}: {what} than this run began with; put them back, or choose another --workdir")
    if any(name not in theirs for name in mine):
        make_folder(path.parent)
        write_text(path, json.dumps(theirs | mine, indent=2) + "\n")


def chat_template(config: ConfigDict, setup: settings.Settings) -> ChatTemplate | None:
    """What a run's chats are written with; None for a run without chats."""
    chats = any(source.template is not None for source in setup.sources.values())
    chats = chats or any(isinstance(task, ChatTask) for task in setup.tasks)
    return run_template(json.loads(config.to_json_best_effort()), setup.tokenizer, chats)


def run_phase(
    setup: settings.Settings,
    workdir: Path,
    name: str,
    folders: dict[str, Path],
    placement: Placement | None,
    writer: MetricWriter,
    train_data: dict[str, Source | PackedRows],
    held_out: dict[str, Source | PackedRows],
    profile: Path | None,
) -> None:
    """One training stage, unless it is finished."""
    stage = sizes.on_devices(setup.stages[name], placement)
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
            variables = load_start(stage.model, start, f"{name}.start", placement, setup.seed, stage.adapters)
        carry = stack.enter_context(Checkpoints(folders[str(stage.start)])) if stage.continues else None
        own = None if stage.rollouts else own_rows(stage, placement)
        if stage.rollouts is None:
            mixture = [(train_data[source.name], source.weight) for source in stage.mixture]
            batches = make_train_iterator(
                mixture, setup.tokenizer, stage.row_length, stage.batch_size, stage.data_seed, packing=stage.packing,
                rows=None if own is None else own[1],
            )  # fmt: skip
            stack.callback(batches.close)
        else:
            batches = rollouts.batches(setup, stage, model, variables, placement)
        eval_step = shared_eval_step(model, stage.phase.objective, placement)  # pyrefly: ignore[bad-argument-type]
        validation = {source.name: held_out_batches(setup, stage, held_out[source.name]) for source in stage.mixture}

        def look(variables: dict) -> dict[str, Any]:
            found = validate(setup, validation, eval_step, variables)
            if stage.rollouts is None:
                return found
            return found | rollouts.held_out_of(setup, stage, model, variables, placement)

        if stage.rollouts is not None:
            look_before(writer, name, lambda: look(variables))
        with provenance.timed(workdir, name):
            train(
                model, variables, stage.phase, batches, checkpoints, writer, evaluate=look, carry=carry,
                placement=placement, flops_per_step=step_flops(stage), peak_flops=peak_of(placement),
                profile=profile and profile / name, own=own,
            )  # fmt: skip


def look_before(writer: MetricWriter, name: str, look: Callable[[], dict[str, Any]]) -> None:
    """Puts what a stage starts from in metrics.jsonl once, as its validation at step 0."""
    path, where = writer.path, f"{name}/validation"
    if not (path.exists() and any(line["stage"] == where for line in read_metrics(path))):
        writer.write(where, 0, look())


def own_rows(stage: Stage, placement: Placement | None) -> tuple[int, np.ndarray] | None:
    """(a batch's rows, those that this process reads); None where it reads all of them."""
    if placement is None or jax.process_count() == 1:
        return None
    return stage.batch_size, placement.own_rows(stage.batch_size)


def peak_of(placement: Placement | None) -> float | None:
    """bfloat16 FLOPs a second of all devices together; None where their kind's peak is not known."""
    peak = peak_flops(jax.devices()[0].device_kind)
    return None if peak is None else peak * (1 if placement is None else placement.mesh.size)


def step_flops(stage: Stage) -> int | None:
    """FLOPs of a step of a stage. What `remat` computes again is no use, so it is not counted.

    None where a step makes rollouts, too: its time is theirs as well.
    """
    if stage.rollouts is not None:
        return None
    objective, trained = stage.phase.objective, sizes.trained(stage)
    return objective_flops(stage.model, objective, stage.batch_size, stage.row_length, trained=trained)


def count_chats(
    setup: settings.Settings, writer: MetricWriter, stage: Stage, train_data: dict[str, Source | PackedRows]
) -> None:
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
