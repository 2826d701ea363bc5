"""What continuous batching saves: the same prompts in batches to their ends, and through a queue that refills them.

    python -m experiments.bench.queue --prompts=32 --batch=8 --repeats=1
    python -m experiments.bench.queue --output=results/bench/queue.json

Test problems of --task are answered by --checkpoint under each of --samplers and --temperatures, sequences with the
same keys on both sides, which must say the same texts. In turn, --repeats times, after a first untimed round of each:

* batches: `generate`, --batch prompts at a time, each batch until its last sequence has ended;
* queue: `generate_queue`, --batch sequences side by side, the next prompt in the place of one that has ended.

Idle is the share of the compiled loop's steps x sequences that were spent on sequences which had ended.
"""

import statistics
import time
from typing import Any

from absl import flags

from zaya_jax.command_line import cli, sampling_flags
from zaya_jax.command_line.models import decoding_form, load
from zaya_jax.errors import UserError
from zaya_jax.evaluation.samplers import check_samplers, make_samplers
from zaya_jax.runs import provenance
from zaya_jax.runs.tokens import checkpoint_of, choose_tokenizer
from zaya_jax.sampling import SamplerConfig, generate
from zaya_jax.sampling.continuous import Prompt, Work, generate_queue
from zaya_jax.sampling.loop import METHODS
from zaya_jax.tasks import make_task

_CHECKPOINT = flags.DEFINE_string("checkpoint", "results/quickstart/model", "As of experiments.generate.")
_TASK = flags.DEFINE_string("task", "addition", "Whose test problems are answered.")
_SAMPLERS = flags.DEFINE_list("samplers", ["autoregressive", "lossless"], "As of experiments.evaluate.")
_TEMPERATURES = flags.DEFINE_list("temperatures", ["1"], "As of experiments.evaluate.")
_PROMPTS = flags.DEFINE_integer("prompts", 512, "Problems.", lower_bound=1, upper_bound=1_000_000)
_BATCH = flags.DEFINE_integer("batch", 64, "Sequences side by side.", lower_bound=1, upper_bound=65_536)
_NEW = flags.DEFINE_integer("max_new_tokens", 64, "Of an answer.", lower_bound=1, upper_bound=2**20)
_BLOCK = flags.DEFINE_integer("block_size", 8, "Slots of a drafted block.", lower_bound=1, upper_bound=1024)
_SEED = flags.DEFINE_integer("seed", 1_000, "Of the first sequence.", lower_bound=0, upper_bound=2**31 - 1)
_REPEATS = flags.DEFINE_integer("repeats", 3, "How often each side is timed.", lower_bound=1, upper_bound=1_000)
_OUTPUT = flags.DEFINE_string("output", None, "Where to write the numbers as JSON; nowhere by default.")
SIDES = ("batches", "queue")


def main() -> None:
    cli.check_output(_OUTPUT.value)
    check_samplers("--samplers", _SAMPLERS.value)
    temperatures, task = sampling_flags.temperatures(_TEMPERATURES.value), make_task(_TASK.value)
    folder = checkpoint_of(_CHECKPOINT.value)
    config, variables = load(folder, None)[:2]
    _, tokenizer = choose_tokenizer(None, folder, config, drafts=True)
    samplers = make_samplers(_SAMPLERS.value, temperatures, block_size=_BLOCK.value, stop_tokens=tokenizer.eos_ids)
    model, variables = decoding_form(config, variables)
    questions = [task.encode(each, tokenizer) for each in task.problems("test", _PROMPTS.value, _SEED.value)]
    prompts = [Prompt(tokens, _SEED.value + i) for i, tokens in enumerate(questions)]
    numbers: dict[str, Any] = {
        "hardware": provenance.hardware(), "environment": provenance.describe(), "checkpoint": _CHECKPOINT.value,
        "task": _TASK.value, "prompts": len(prompts), "batch": _BATCH.value, "max_new_tokens": _NEW.value,
        "repeats": _REPEATS.value, "rows": [],
    }  # fmt: skip
    for sampler in samplers:
        row: dict[str, Any] = {"sampler": sampler.name, "temperature": sampler.config.temperature}
        row |= measure(model, variables, prompts, sampler.config)
        numbers["rows"].append(row)
        told = ", ".join(f"{side} {row[side]['median']:.2f} s, {row[side]['idle']:.1%} idle" for side in SIDES)
        print(f"{sampler.name} T={sampler.config.temperature:g}: {told}; {row['ratio']:.2f} times as fast", flush=True)
    cli.write_numbers(_OUTPUT.value, numbers)


def measure(model: Any, variables: Any, prompts: list[Prompt], sampler: SamplerConfig) -> dict[str, Any]:
    """Seconds and idle share of both sides, how many texts are the same, and how much faster the queue is."""
    run = {"batches": in_batches, "queue": in_queue}
    texts, idle = {}, {}
    for side in SIDES:
        texts[side], idle[side] = run[side](model, variables, prompts, sampler)
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(_REPEATS.value):
        for side in SIDES:
            began = time.perf_counter()
            run[side](model, variables, prompts, sampler)
            seconds[side].append(time.perf_counter() - began)
    same = sum(one == other for one, other in zip(*texts.values(), strict=True))
    if same < 0.99 * len(prompts):  # batches of other shapes round otherwise, which a near tie can show
        raise UserError(f"only {same} of {len(prompts)} texts are the same; nothing is written")
    sides = {
        side: {"median": statistics.median(times), "seconds": times, "idle": idle[side]}
        for side, times in seconds.items()
    }
    tokens = sum(map(len, texts["queue"]))
    ratio = sides["batches"]["median"] / sides["queue"]["median"]
    return sides | {"tokens": tokens, "same_texts": same, "ratio": ratio}


def in_batches(
    model: Any, variables: Any, prompts: list[Prompt], sampler: SamplerConfig
) -> tuple[list[list[int]], float]:  # fmt: skip
    """The texts and the idle share, each batch generated to its end."""
    texts: list[list[int]] = []
    work = Work()
    for start in range(0, len(prompts), _BATCH.value):
        part = prompts[start : start + _BATCH.value]
        seeds = [prompt.seed for prompt in part]
        out = generate(model, variables, [prompt.tokens for prompt in part], sampler, _NEW.value, seeds)
        texts += out.tokens
        steps = (out.forwards - 1) // METHODS[sampler.mode].forwards
        work = Work(work.row_steps + int(steps.max()) * len(part), work.busy + int(steps.sum()))
    return texts, work.idle


def in_queue(
    model: Any, variables: Any, prompts: list[Prompt], sampler: SamplerConfig
) -> tuple[list[list[int]], float]:  # fmt: skip
    """The texts and the idle share, through the queue."""
    texts: list[list[int]] = [[] for _ in prompts]
    work, longest = Work(), max(len(prompt.tokens) for prompt in prompts)
    for sequence, so_far in generate_queue(
        model, variables, prompts, sampler, _NEW.value, longest=longest, batch=_BATCH.value
    ):
        texts[sequence.index], work = sequence.tokens, so_far
    return texts, work.idle


if __name__ == "__main__":
    cli.run(main)
