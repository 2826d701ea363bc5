"""Whether a model decodes faster with its drafts than without, few texts at a time: wall-clock, prompt by prompt.

    python -m experiments.bench.drafting --checkpoint=smollm2 --adapters=results/smollm2/drafts/adapters --chat \\
        --tasks=gsm_symbolic,addition --output=results/smollm2/drafts/wall_clock.json
    python -m experiments.bench.drafting --checkpoint=results/quickstart/model --tasks=addition --prompts=4
    python -m experiments.bench.drafting --checkpoint=smollm2 --chat --drafter=ngram --tasks=gsm_symbolic

For each set of prompts (a task's test problems, or the lines of --prompts_file) and each temperature, block size and
branch points are planned as mode "auto" plans them: acceptance is measured on --probes other prompts (a task's
validation problems; of a file, its first lines, which are then not timed), a forward's cost by query tokens on this
machine at --batch, and what is predicted to be fastest is raced against autoregression. With --drafter that drafter's
length is planned instead, and the model needs no mask token. Then each prompt (--batch of them) is continued both ways,
in turn, after one untimed turn each. `rows` has for each set and temperature: what was planned, what auto chose, tokens
per forward, query tokens a forward, tokens per second of both, their ratio with a 95% interval (bootstrap over
prompts), that of auto's choice (1 where it is autoregression, null where it is a drafter that was not timed), and how
many texts are the same. A set that an earlier command of the same flags has written to --output is not measured again.
"""

import dataclasses
import time
from pathlib import Path
from typing import Any

from absl import flags
from tqdm import tqdm

from zaya_jax.architecture import Zaya
from zaya_jax.checks import FLOAT32, no_such
from zaya_jax.command_line import cli, measured_device, sampling_flags
from zaya_jax.command_line.closing import aligned
from zaya_jax.command_line.completions import read_prompts
from zaya_jax.command_line.models import decoding_form, load
from zaya_jax.errors import UserError
from zaya_jax.evaluation.rates import compiles, ratio_interval
from zaya_jax.interop.formats.adapter_folder import checksum
from zaya_jax.reporting.result_files import begun
from zaya_jax.reporting.tables.wall_clock import wall_clock_table
from zaya_jax.runs import provenance
from zaya_jax.runs.tokens import checkpoint_of, choose_template, choose_tokenizer
from zaya_jax.sampling import Request, SamplerConfig, choose_sampler, generate
from zaya_jax.sampling.config import LONGEST_LOOKUP
from zaya_jax.sampling.drafters.base import find_drafter
from zaya_jax.sampling.options import plan_of
from zaya_jax.sampling.planning.auto import Choice, drafters_of
from zaya_jax.tasks import TASKS, ChatTask, make_task
from zaya_jax.text.templates import ChatTemplate, question
from zaya_jax.text.tokenizers import Tokenizer

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Folder of a model, as of experiments.generate.")
_ADAPTERS = flags.DEFINE_string("adapters", None, "As of experiments.generate.")
_CHAT = flags.DEFINE_boolean("chat", False, "Ask in chats.")
_TASKS = flags.DEFINE_list("tasks", [], f"Of {', '.join(TASKS)}.")
_FILE = flags.DEFINE_string("prompts_file", None, "A .txt or .jsonl of prompts: one more set.")
_PROMPTS = flags.DEFINE_integer("prompts", 32, "Of each set, timed.", lower_bound=2, upper_bound=1_000_000)
_BATCH = flags.DEFINE_integer("batch", 1, "Texts at a time.", lower_bound=1, upper_bound=1024)
_PROBES = flags.DEFINE_integer("probes", 8, "Of each set, for planning.", lower_bound=1, upper_bound=1024)
_TEMPERATURES = flags.DEFINE_list("temperatures", ["0", "1"], "Of the target.")
_DRAFT = flags.DEFINE_float(
    "draft_temperature", None, "Of the drafts; default: the target's.", lower_bound=0.0, upper_bound=FLOAT32
)
_DRAFTER = flags.DEFINE_string("drafter", None, "Drafts by it (SamplerConfig.drafter) instead of by mask tokens.")
_LOOKUP = flags.DEFINE_integer(
    "lookup", None, "SamplerConfig.lookup; None: as auto finds best.", lower_bound=0, upper_bound=LONGEST_LOOKUP
)
_BLOCK = flags.DEFINE_integer("block_size", 8, "At most; of adapters, theirs.", lower_bound=2, upper_bound=1024)
_NEW = flags.DEFINE_integer("max_new_tokens", 128, "Tokens of a text, at most.", lower_bound=4, upper_bound=2**24)
_SEED = flags.DEFINE_integer("seed", 1_000, "Of problems and rows.", lower_bound=0, upper_bound=2**31 - 1)
_OUTPUT = flags.DEFINE_string("output", None, "Where to write the numbers as JSON; nowhere by default.")


@dataclasses.dataclass(frozen=True)
class Prompts:
    """A set of prompts, as the model reads them."""

    name: str
    probes: list[list[int]]
    timed: list[list[int]]


def main() -> None:
    cli.check_output(_OUTPUT.value)
    measured_device.check()
    try:
        samplers = [
            SamplerConfig("auto", draft_temperature=_DRAFT.value, temperature=t)
            for t in sampling_flags.temperatures(_TEMPERATURES.value)
        ]
    except UserError as error:
        raise UserError(str(error).replace("SamplerConfig.temperature:", "--temperatures:", 1)) from error
    if _LOOKUP.value and _DRAFTER.value is not None:
        raise UserError(f"--lookup: got {_LOOKUP.value}, may be 0 beside --drafter")
    if (most := min(_PROMPTS.value // 2, _PROBES.value)) < _BATCH.value:
        raise UserError(f"--batch: got {_BATCH.value}, may be at most {most}: --probes, and half of --prompts")
    for name in _TASKS.value:
        if name not in TASKS:
            raise no_such("--tasks", name, TASKS)
    if not _TASKS.value and not _FILE.value:
        raise UserError("--tasks, --prompts_file: got neither, may be one or both")
    folder = checkpoint_of(_CHECKPOINT.value)
    config, variables, trained = load(folder, _ADAPTERS.value)
    block_size = _BLOCK.value if flags.FLAGS["block_size"].present else trained.get("block_size", _BLOCK.value)
    masks = _DRAFTER.value is None or find_drafter(_DRAFTER.value).masks
    _, tokenizer = choose_tokenizer(None, folder, config, drafts=masks)
    sets = read_sets(tokenizer, choose_template(None, folder, tokenizer) if _CHAT.value else None)
    of_model = checksum(variables)
    model, variables = decoding_form(config, variables)
    if _DRAFTER.value is not None and _DRAFTER.value not in drafters_of(model, variables):
        raise no_such("--drafter", _DRAFTER.value, drafters_of(model, variables), "for this model")
    numbers: dict[str, Any] = {
        "hardware": provenance.hardware(), "environment": provenance.describe(), "checkpoint": _CHECKPOINT.value,
        "adapters": _ADAPTERS.value, "checksum": of_model, "chat": _CHAT.value, "batch": _BATCH.value,
        "seed": _SEED.value, "drafter": _DRAFTER.value,
        "lookup": _LOOKUP.value, "dtype": model.config.dtype, "max_new_tokens": _NEW.value,
        "rows": [],
    }  # fmt: skip
    numbers["rows"] = measured_before(numbers)
    there = set(map(measured_of, numbers["rows"]))
    for prompts in sets:
        for sampler in samplers:
            if (prompts.name, len(prompts.timed), sampler.temperature, sampler.draft_temperature) in there:
                continue
            sampler = dataclasses.replace(
                sampler, lookup=_LOOKUP.value, block_size=block_size, stop_tokens=tokenizer.eos_ids
            )
            numbers["rows"].append(measure(model, variables, prompts, sampler))
            cli.write_numbers(_OUTPUT.value, numbers)
    print(aligned(wall_clock_table(numbers)))


def measured_of(row: dict[str, Any]) -> tuple:
    """What a row is of."""
    return row["prompts"], row["count"], row["temperature"], row["draft_temperature"]


def measured_before(numbers: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of --output, where an earlier command of the same flags on such a machine has begun it."""
    before = begun(_OUTPUT.value, lambda found: (wall_clock_table(found), set(map(measured_of, found["rows"]))))
    if before is None:
        return []
    same = set(numbers) - {"rows", "environment"}
    if any(before.get(name) != numbers[name] for name in same):
        return []
    print(f"{len(before['rows'])} sets are there already, of {_OUTPUT.value}")
    return before["rows"]


def read_sets(tokenizer: Tokenizer, template: ChatTemplate | None) -> list[Prompts]:
    """All sets of prompts. UserError for a file with too few."""
    if _CHAT.value and template is None:
        raise UserError(f"--chat: {_CHECKPOINT.value} has no chat template")
    sets, probes, timed = [], _PROBES.value, _PROMPTS.value
    for task in map(make_task, _TASKS.value):
        task = task if template is None else ChatTask(task, template)
        problems = [task.problems(*split, _SEED.value) for split in ((task.tuning_split, probes), ("test", timed))]
        sets.append(Prompts(task.name, *([task.encode(each, tokenizer) for each in some] for some in problems)))
    if _FILE.value:
        lines = [question(text, tokenizer, template) for text in read_prompts(Path(_FILE.value))]
        if len(lines) < probes + 2:
            raise UserError(f"--prompts_file: got {len(lines)} prompts, may be at least {probes + 2}")
        sets.append(Prompts(Path(_FILE.value).stem, lines[:probes], lines[probes : probes + timed]))
    return sets


def plan(model: Zaya, variables: Any, prompts: Prompts, sampler: SamplerConfig) -> tuple[Choice, SamplerConfig]:
    """(auto's choice, the sampler that drafts and is predicted to be fastest)."""
    request = Request(prompts.probes, _NEW.value, list(range(_SEED.value, _SEED.value + len(prompts.probes))))
    choice = choose_sampler(model, variables, request, sampler, repeats=2, batch=_BATCH.value)
    if _DRAFTER.value is not None:
        lengths = [each.block_size - 1 for each in choice.candidates if each.drafter == _DRAFTER.value]
        length = lengths[0] if lengths else sampler.block_size - 1
        return choice, dataclasses.replace(sampler, mode="drafter", drafter=_DRAFTER.value, draft_length=length)
    best = next((each for each in choice.candidates if each.anchors), None)
    size, anchors = (sampler.block_size, (1,)) if best is None else (best.block_size, best.anchors)
    lookup = 0 if best is None else best.lookup
    return choice, dataclasses.replace(sampler, mode="single_pass", block_size=size, anchors=anchors, lookup=lookup)


def measure(model: Zaya, variables: Any, prompts: Prompts, sampler: SamplerConfig) -> dict[str, Any]:
    """A row of the result: see the module's docstring."""
    choice, drafting = plan(model, variables, prompts, sampler)
    sides = {"plain": drafting.plain, "drafting": drafting}
    tokens, seconds = {name: [] for name in sides}, {name: [] for name in sides}
    forwards = same = 0
    groups = [prompts.timed[i : i + _BATCH.value] for i in range(0, len(prompts.timed), _BATCH.value)]
    longest = [max(group, key=len) for group in groups]
    for number, group in enumerate(tqdm(groups, desc=f"{prompts.name} T={sampler.temperature:g}")):
        made = {}
        for name, side in sides.items():
            arguments = (model, variables, group, side, _NEW.value, _SEED.value + number)
            if compiles(longest, number) or len(group) != _BATCH.value:
                generate(*arguments)
            clock = time.perf_counter()
            made[name] = generate(*arguments)
            seconds[name].append(time.perf_counter() - clock)
            tokens[name].append(sum(map(len, made[name].tokens)))
        forwards += int(made["drafting"].forwards.sum())
        same += sum(a == b for a, b in zip(made["plain"].tokens, made["drafting"].tokens, strict=True))
    rates = {name: sum(tokens[name]) / sum(seconds[name]) for name in sides}
    interval = ratio_interval(*(x[name] for name in ("drafting", "plain") for x in (tokens, seconds)))
    chosen = choice.sampler
    ratio = rates["drafting"] / rates["plain"]
    by_auto = {"autoregressive": 1.0, drafting.mode: ratio if chosen.drafter == drafting.drafter else None}
    return {
        "prompts": prompts.name, "count": len(prompts.timed), "temperature": sampler.temperature,
        "draft_temperature": sampler.draft_temperature, "drafter": drafting.drafter,
        "block_size": plan_of(drafting).block_size, "anchors": list(drafting.anchor_list),
        "lookup": drafting.lookup,
        "query_tokens": drafting.rows_per_forward,
        "tokens_per_forward": sum(tokens["drafting"]) / forwards, "tokens": tokens, "seconds": seconds,
        "tokens_per_second": rates, "ratio": ratio, "interval": interval, "same": same,
        "acceptance": list(choice.acceptance), "cost": choice.cost, "auto": chosen.mode,
        "auto_drafter": chosen.drafter, "why": choice.reason, "auto_ratio": by_auto.get(chosen.mode),
    }  # fmt: skip


if __name__ == "__main__":
    cli.run(main)
