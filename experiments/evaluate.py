"""Evaluates a checkpoint on tasks: pass@1/4/16, tokens per forward, cost, speed-up; samplers meet the same problems.
With --texts also how well it predicts text, in bits per byte.

    python -m experiments.evaluate --checkpoint=results/quickstart/model --tasks=addition --output=runs/eval
    python -m experiments.evaluate --checkpoint=results/list_programs/model --tasks=list_programs --block_size=16 \\
        --samplers=autoregressive,lossless,mix_stale --temperatures=1 --samples=16 --output=runs/list_programs

--output then holds answers/ (JSON lines, a file a task and sampler, a line a problem as it ends) and results.csv, where
every sampler but the first has its paired difference from autoregression and a permutation test's p-value. Interrupt
it at any moment: the same command resumes after the last answered problem. Generated code (human_eval) runs in a
sandbox only. Of --texts (files, folders, or stdlib) the first rows of the test split are read, the same for every
checkpoint of a tokenizer.
"""

import itertools
import sys
from pathlib import Path
from typing import Any

from absl import flags

from zaya_jax.architecture import Zaya
from zaya_jax.checks import FLOAT32, no_such
from zaya_jax.command_line import cli, sampling_flags
from zaya_jax.command_line.closing import aligned, closing, generate_with
from zaya_jax.command_line.models import decoding_form, load
from zaya_jax.data.builders import check_text, prepare_text, text_source
from zaya_jax.data.pipeline import eval_batches
from zaya_jax.errors import UserError
from zaya_jax.evaluation.likelihood import likelihood
from zaya_jax.evaluation.samplers import check_samplers, known_samplers, make_samplers
from zaya_jax.evaluation.task_accuracy import EvaluationProtocol, NamedSampler, run_task, task_rows, with_anchors
from zaya_jax.files import make_folder
from zaya_jax.paths import absolute
from zaya_jax.reporting.results import write_results
from zaya_jax.reporting.tables.cells import markdown
from zaya_jax.reporting.tables.runs import sampling_table
from zaya_jax.runs import provenance
from zaya_jax.runs.tokens import checkpoint_of, choose_tokenizer, never_drafted, require_template
from zaya_jax.tasks import BENCHMARKS, TASKS, ChatTask, Task, make_task
from zaya_jax.text.tokenizers import Tokenizer
from zaya_jax.training.objective import Objective
from zaya_jax.training.state import make_eval_step

TEXT_LENGTH, TEXT_BATCH, TEXT_BATCHES = 256, 4, 32  # tokens of a row, rows at once, and how often
INSTEAD = "--samplers=autoregressive"  # for a model that cannot draft
MISSING = {  # what a flag that is needed may be
    "checkpoint": "a folder of a model",
    "tasks": f"any of {', '.join([*TASKS, *BENCHMARKS])}, with commas, and may be left out beside --texts",
    "output": "a folder for answers/ and results.csv",
}

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "Folder of a model: WORKDIR/checkpoints/STAGE or a Hugging Face one."
)
_ADAPTERS = flags.DEFINE_string("adapters", None, "As of experiments.generate.")
_TOKENIZER = flags.DEFINE_string("tokenizer", None, "As of experiments.generate.")
_CHAT = flags.DEFINE_boolean("chat", False, "Ask the problems in chats.")
_TEMPLATE = flags.DEFINE_string("chat_template", None, "With --chat, as of experiments.generate.")
_TASKS = flags.DEFINE_list("tasks", None, f"Of {', '.join([*TASKS, *BENCHMARKS])}; options are their defaults.")
_TEXTS = flags.DEFINE_list("texts", [], "Files or folders of text, or stdlib: bits per byte of each.")
_SAMPLERS = flags.DEFINE_list(
    "samplers", ["autoregressive", "lossless", "mix_stale"], f"Of {', '.join(known_samplers())}."
)
_TEMPERATURES = flags.DEFINE_list("temperatures", ["0", "1"], "Of the target; greedy samplers draw one sample.")
_PROMPTS = flags.DEFINE_integer("prompts", 512, "Test problems of each task.", lower_bound=1, upper_bound=1_000_000)
_SAMPLES = flags.DEFINE_integer("samples", 16, "Of each problem.", lower_bound=1, upper_bound=65_536)
_BATCH = flags.DEFINE_integer(
    "batch", 64, "Sequences at once: prompts x samples.", lower_bound=1, upper_bound=1_000_000
)
_NEW = flags.DEFINE_integer(
    "max_new_tokens", 256, "Tokens after which a sequence ends without a stop.", lower_bound=1, upper_bound=2**24
)
_BLOCK = flags.DEFINE_integer("block_size", 8, "Slots of a drafted block.", lower_bound=1, upper_bound=1024)
_BUDGET = flags.DEFINE_integer(
    "anchor_budget",
    None,
    "Blocks drafted a forward, after the accepted lengths that do best on other problems; 0: after "
    "every length. Default: after those of --adapters, else 0.",
    lower_bound=0,
    upper_bound=1024,
)
_BETA = flags.DEFINE_float("beta", 0.5, "Weight of the draft in mixing samplers.", lower_bound=0.0, upper_bound=1.0)
_DRAFT = flags.DEFINE_float(
    "draft_temperature", None, "Of the drafts; default: the target's.", lower_bound=0.0, upper_bound=FLOAT32
)
_SEED = flags.DEFINE_integer(
    "seed", 1_000, "Of the problems and of the first sequence.", lower_bound=0, upper_bound=2**31 - 1
)
_OUTPUT = flags.DEFINE_string("output", None, "Folder of answers/ and results.csv.")


def main() -> None:
    given, names, output = _CHECKPOINT.value, _TASKS.value, _OUTPUT.value
    for name, value in (("checkpoint", given), ("tasks", names or _TEXTS.value), ("output", output)):
        if not value:
            raise UserError(f"--{name}: missing, may be {MISSING[name]}")
    assert given and output
    checkpoint = checkpoint_of(given)
    # whose results.csv would be lost
    if owner := next((name for name in ("config.json", "sweep.json") if (absolute(output) / name).exists()), None):
        raise UserError(f"--output: got {output}, which is another's ({owner}), may be a folder of its own")
    for text in _TEXTS.value:
        try:
            check_text(text_source(text))
        except (UserError, FileNotFoundError) as error:
            raise UserError(f"--texts: {str(error).removeprefix('paths: ')}") from None
    names = names or []
    for name in names:
        if name not in TASKS | BENCHMARKS:
            raise no_such("--tasks", name, TASKS | BENCHMARKS)
    tasks: list[Task] = [make_task(name) for name in names]
    if _TEMPLATE.value is not None and not _CHAT.value:
        raise UserError("--chat_template: only with --chat")
    read_samplers((), _BLOCK.value)  # a mistake in a flag is said before the weights are read
    config, variables, trained = load(checkpoint, _ADAPTERS.value)
    block_size = _BLOCK.value if flags.FLAGS["block_size"].present else trained.get("block_size", _BLOCK.value)
    _, tokenizer = choose_tokenizer(
        _TOKENIZER.value, checkpoint, config, drafts=_SAMPLERS.value != ["autoregressive"], instead=INSTEAD
    )
    if _CHAT.value:
        template = require_template(_TEMPLATE.value, checkpoint, tokenizer)
        tasks = [ChatTask(task, template) for task in tasks]
    samplers = read_samplers(tokenizer.eos_ids, block_size)
    if _BUDGET.value is None and "anchors" in trained and block_size == trained["block_size"]:
        samplers = with_anchors(samplers, trained["anchors"])
    protocol = EvaluationProtocol(_PROMPTS.value, _SAMPLES.value, _BATCH.value, _NEW.value, _SEED.value)
    for task in tasks:
        task.problems("test", 1, _SEED.value)  # a missing package is said before anything is compiled
    folder = make_folder(absolute(output), "--output")
    common = {"model": _ADAPTERS.value or given, "hardware": provenance.hardware()}
    rows: list[dict[str, Any]] = [
        {"kind": "likelihood", **common, **bits_per_byte(Zaya(config), variables, tokenizer, text, folder / "data")}
        for text in _TEXTS.value
    ]
    if rows:
        write_results(folder / "results.csv", rows)
        cells = [[row["source"], f"{row['ar_loss']:.4f}", f"{row['bits_per_byte']:.4f}"] for row in rows]
        print(aligned(markdown(("text", "nats a token", "bits per byte"), cells)), flush=True)
    if not tasks:
        return print(closing({"table": folder / "results.csv"}, []))
    model, variables = decoding_form(config, variables)
    for task in tasks:
        results = run_task(
            model, variables, tokenizer, task, samplers, protocol, folder / "answers", _BUDGET.value or 0
        )
        mine = [{"kind": "sampling", **common, "source": task.name, **row} for row in task_rows(results, protocol)]
        rows += mine
        write_results(folder / "results.csv", rows)
        print(f"{task.name}\n{aligned(sampling_table(mine))}", flush=True)
        for result in results:
            if warning := result.drafted.warning(INSTEAD, never_drafted(checkpoint)):
                print(f"warning: {result.sampler.name}: {warning}", file=sys.stderr)
    prompt = tasks[0].problems("test", 1, protocol.seed)[0].prompt
    files = {"table": folder / "results.csv", "answers": folder / "answers"}
    print(closing(files, [generate_with(checkpoint, samplers[-1].name != "autoregressive", prompt)]))


def bits_per_byte(model: Zaya, variables: Any, tokenizer: Tokenizer, text: str, folder: Path) -> dict[str, Any]:
    """source, ar_loss (nats a token) and bits_per_byte of a text's first held-out rows; `folder` keeps it prepared."""
    documents = prepare_text(text_source(text), folder, "test")
    batches = itertools.islice(eval_batches(documents, tokenizer, TEXT_LENGTH, TEXT_BATCH), TEXT_BATCHES)
    measured = likelihood(make_eval_step(model, Objective("autoregressive")), variables, batches, tokenizer)
    return {"source": Path(text).name, **{name: float(measured[name]) for name in ("ar_loss", "bits_per_byte")}}


def read_samplers(stop_tokens: tuple[int, ...], block_size: int) -> tuple[NamedSampler, ...]:
    """The samplers of the flags, autoregression first. UserError for an unknown sampler or a bad number."""
    names = ["autoregressive", *(name for name in _SAMPLERS.value if name != "autoregressive")]
    if (_BUDGET.value or 0) > block_size:
        raise UserError(f"--anchor_budget: got {_BUDGET.value}, may be 0 (all) .. --block_size ({block_size})")
    check_samplers("--samplers", names)
    temperatures = sampling_flags.temperatures(_TEMPERATURES.value)
    try:
        return make_samplers(
            names, temperatures, block_size=block_size, stop_tokens=stop_tokens, beta=_BETA.value,
            draft_temperature=_DRAFT.value,
        )  # fmt: skip
    except UserError as error:
        text = str(error).replace("SamplerConfig.temperature:", "--temperatures:", 1)
        raise UserError(text.replace("SamplerConfig.", "--", 1)) from error


if __name__ == "__main__":
    cli.run(main)
