"""Asks a checkpoint and writes down what it answers: drafts are best learnt from a model's own text.

    python -m experiments.ask --checkpoint=smollm2 --chat --tasks=gsm_symbolic,addition --prompts=1000 \\
        --temperatures=0,1 --output=answers.jsonl
    python -m experiments.ask --checkpoint=results/quickstart/model --text=my/folder --output=continued.jsonl

What is asked: the training problems of --tasks, the lines of --prompts_file, or the beginnings of --text's documents,
--prefix_tokens long. With --chat each is a user's message, written down by the checkpoint's chat template. Answers are
drawn from the model's autoregressive distribution, each prompt at each of --temperatures, longest prompts first, the
next in line taking the place of one that has ended; row (prompt index * temperatures + number of the temperature) has
seed + row.

A line of --output holds prompt, index, sample (the temperature's number), source, temperature, seed, finish, tokens,
settings (checkpoint, its checksum and all flags that decide an answer), and what a config's mixture reads: "messages"
(--chat: {"chat": [FILE]}) or "text" ({"text": [FILE]}). A chat's answer that did not end within --max_new_tokens would
teach an end that the model did not write: it stands in FILE.unfinished.jsonl instead. The same command resumes where a
killed one stopped.
"""

import dataclasses
import sys
import time
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from absl import flags
from tqdm import tqdm

from zaya_jax import load_pretrained
from zaya_jax.architecture import Zaya
from zaya_jax.command_line import cli, sampling_flags
from zaya_jax.command_line.closing import aligned, closing
from zaya_jax.command_line.completions import Completions, checked_prompt, read_prompts
from zaya_jax.command_line.models import decoding_form
from zaya_jax.data.builders import check_text, prepare_text, text_source
from zaya_jax.errors import UserError
from zaya_jax.evaluation.answers import fingerprint
from zaya_jax.paths import absolute
from zaya_jax.reporting.tables.cells import markdown
from zaya_jax.runs.tokens import checkpoint_of, choose_tokenizer, require_template
from zaya_jax.sampling import Request, SamplerConfig
from zaya_jax.sampling.continuous import Prompt, generate_queue
from zaya_jax.sampling.decoding import check
from zaya_jax.tasks import TASKS, make_task
from zaya_jax.text.detokenizer import Detokenizer
from zaya_jax.text.templates import ChatTemplate, question
from zaya_jax.text.tokenizers import Tokenizer

SOURCES = ("tasks", "prompts_file", "text")

_CHECKPOINT = flags.DEFINE_string("checkpoint", "", "Folder of a model, as of experiments.generate.")
_TOKENIZER = flags.DEFINE_string("tokenizer", None, "As of experiments.generate.")
_TASKS = flags.DEFINE_list("tasks", None, f"Whose training problems are asked; of {', '.join(TASKS)}.")
_FILE = flags.DEFINE_string("prompts_file", None, 'A .txt file (one prompt a line) or .jsonl ({"prompt": ...} a line).')
_TEXT = flags.DEFINE_string("text", "", "A file or a folder of text, or stdlib: its documents are continued.")
_PREFIX = flags.DEFINE_integer(
    "prefix_tokens", 64, "Tokens of a document that are given.", lower_bound=1, upper_bound=2**20
)
_CHAT = flags.DEFINE_boolean("chat", False, "Ask in chats.")
_TEMPLATE = flags.DEFINE_string("chat_template", None, "With --chat, as of experiments.generate.")
_PROMPTS = flags.DEFINE_integer(
    "prompts", 1000, "Of each task, or documents of the text.", lower_bound=1, upper_bound=100_000_000
)
_TEMPERATURES = flags.DEFINE_list("temperatures", ["0", "1"], "Each prompt is answered once at each.")
_NEW = flags.DEFINE_integer(
    "max_new_tokens", 256, "Tokens after which an answer is cut.", lower_bound=1, upper_bound=2**24
)
_BATCH = flags.DEFINE_integer("batch", 32, "Answers side by side.", lower_bound=1, upper_bound=1_000_000)
_SEED = flags.DEFINE_integer("seed", 0, "Of the first row.", lower_bound=0, upper_bound=2**31 - 1)
_OUTPUT = flags.DEFINE_string("output", "", "FILE.jsonl of the answers.")


@dataclasses.dataclass(frozen=True)
class Question:
    """Something to ask: `text` as its source has it, `tokens` as the model reads it."""

    text: str
    tokens: list[int]
    source: str


def main() -> None:
    """Everything after the parsed flags."""
    check_flags()
    samplers = read_samplers()
    folder = checkpoint_of(_CHECKPOINT.value)
    config, variables = load_pretrained(folder)
    name, tokenizer = choose_tokenizer(_TOKENIZER.value, folder, config, drafts=False)
    template = require_template(_TEMPLATE.value, folder, tokenizer) if _CHAT.value else None
    questions = [Question(text, question(text, tokenizer, template), source) for text, source in read_texts(tokenizer)]
    samplers = [dataclasses.replace(sampler, stop_tokens=tokenizer.eos_ids) for sampler in samplers]
    for sampler in samplers:
        check(config, Request([each.tokens for each in questions], _NEW.value, 0), sampler)
    settings = settings_of(name, template) | {"checksum": fingerprint(variables)}
    path = absolute(_OUTPUT.value)
    files = {
        ended: Completions(where, [each.text for each in questions], len(samplers), settings)
        for ended, where in ((True, path), (False, path.with_suffix(".unfinished.jsonl")))
    }
    model, variables = decoding_form(config, variables)
    try:
        answer(model, variables, tokenizer, questions, samplers, files)
    except KeyboardInterrupt:
        cli.fail("interrupted; the same command resumes after the last whole answer", 130)
    report(questions, samplers, files)


def check_flags() -> None:
    """Raises UserError for what is missing or contradicts itself."""
    for flag, may_be in ((_CHECKPOINT, "a folder of a model"), (_OUTPUT, "a FILE.jsonl")):
        if not flag.value:
            raise UserError(f"--{flag.name}: missing, may be {may_be}")
    if Path(_OUTPUT.value).suffix != ".jsonl":
        raise UserError(f"--output: got {_OUTPUT.value}, may be a FILE.jsonl")
    given = [name for name in SOURCES if flags.FLAGS[name].value]
    if len(given) != 1:
        got = " and ".join(f"--{name}" for name in given) or "none"
        raise UserError(f"got {got}, may be exactly one of {', '.join(f'--{name}' for name in SOURCES)}")
    if _TEMPLATE.value is not None and not _CHAT.value:
        raise UserError("--chat_template: only with --chat")
    for name in _TASKS.value or ():
        make_task(name).problems("train", 1, _SEED.value)  # an unknown task or a missing package is said first
    if _TEXT.value:
        check_text(text_source(_TEXT.value))


def read_samplers() -> list[SamplerConfig]:
    """One a temperature. UserError naming the flag."""
    temperatures = sampling_flags.temperatures(_TEMPERATURES.value)
    if not temperatures or len(set(temperatures)) < len(temperatures):
        raise UserError(f"--temperatures: got {','.join(_TEMPERATURES.value)}, may be one or more, each once")
    try:
        return [SamplerConfig("autoregressive", temperature=temperature) for temperature in temperatures]
    except UserError as error:
        raise UserError(str(error).replace("SamplerConfig.temperature:", "--temperatures:", 1)) from error


def read_texts(tokenizer: Tokenizer) -> Iterator[tuple[str, str]]:
    """(text, source) of everything that is asked."""
    if _FILE.value:
        for text in read_prompts(Path(_FILE.value)):
            yield text, Path(_FILE.value).name
    elif _TASKS.value:
        tasks = [make_task(name) for name in _TASKS.value]
        for index in range(_PROMPTS.value):  # in turn, so that more --prompts leave those before where they stand
            for task in tasks:
                yield task.problem("train", index, _SEED.value).prompt, task.name
    else:
        documents = prepare_text(text_source(_TEXT.value), absolute(_OUTPUT.value).parent / "data", "train")
        for index in range(min(_PROMPTS.value, len(documents))):
            tokens = tokenizer.encode(documents[index]["text"])[: _PREFIX.value]
            text = Detokenizer(tokenizer).whole(tokens)
            if text:
                yield checked_prompt(text, f"--text: document {index}"), documents[index]["name"]


def settings_of(tokenizer: str, template: ChatTemplate | None) -> dict[str, Any]:
    """What makes an answer what it is; --batch and --prompts do not."""
    named = {name: flags.FLAGS[name].value for name in ("max_new_tokens", "seed", "chat", "temperatures")}
    asked = {name: flags.FLAGS[name].value for name in SOURCES if flags.FLAGS[name].value}
    asked |= {"prefix_tokens": _PREFIX.value} if _TEXT.value else {}
    asked |= {} if template is None else {"chat_template": blake2b(template.source.encode(), digest_size=8).hexdigest()}
    return {"checkpoint": str(Path(_CHECKPOINT.value)), "tokenizer": tokenizer, **named, **asked}


def answer(
    model: Zaya,
    variables: Any,
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    samplers: Sequence[SamplerConfig],
    files: dict[bool, Completions],
) -> None:
    """Answers what is missing, longest questions first, and writes each answer down when it has ended."""
    order = sorted(range(len(questions)), key=lambda index: -len(questions[index].tokens))
    missing = [
        [index for index in order if all((index, number) not in file.done for file in files.values())]
        for number in range(len(samplers))
    ]
    bar = tqdm(total=sum(map(len, missing)), desc="ask", unit="answer", dynamic_ncols=True)
    new_tokens, began = 0, time.monotonic()
    for number, sampler in enumerate(samplers):
        rows = missing[number]
        if not rows:
            continue
        seeds = [_SEED.value + index * len(samplers) + number for index in rows]
        prompts = [Prompt(questions[index].tokens, seed) for index, seed in zip(rows, seeds, strict=True)]
        longest, batch = len(prompts[0].tokens), min(_BATCH.value, len(prompts))
        for made, _ in generate_queue(
            model, variables, prompts, sampler, _NEW.value, longest=longest, batch=batch, tokenizer=tokenizer
        ):
            index, seed = rows[made.index], seeds[made.index]
            line = line_of(questions[index], tokenizer, made.tokens)
            ended = made.finish != "length" or not _CHAT.value
            rest = {"temperature": sampler.temperature, "seed": seed, "finish": made.finish, "tokens": made.tokens}
            line = {"prompt": line.pop("prompt"), "index": index, "sample": number, **line, **rest}
            files[ended].add([line], {"mode": sampler.mode})
            new_tokens += len(made.tokens)
            bar.set_postfix_str(f"{new_tokens / (time.monotonic() - began):.0f} tok/s", refresh=False)
            bar.update()
    bar.close()


def line_of(question: Question, tokenizer: Tokenizer, tokens: list[int]) -> dict[str, Any]:
    """A question and its answer as training data reads them."""
    text = Detokenizer(tokenizer, start=False).whole(tokens)
    if not _CHAT.value:
        return {"prompt": question.text, "source": question.source, "text": question.text + text}
    messages = [{"role": "user", "content": question.text}, {"role": "assistant", "content": text}]
    return {"prompt": question.text, "source": question.source, "messages": messages}


def report(questions: Sequence[Question], samplers: Sequence[SamplerConfig], files: dict[bool, Completions]) -> None:
    """The closing table: how many answers of each source and temperature there are."""
    rows = []
    for number, sampler in enumerate(samplers):
        sources = [question.source for question in questions] if not _TEXT.value else [_TEXT.value] * len(questions)
        for source in dict.fromkeys(sources):
            counts = [
                sum(sample == number and sources[index] == source for index, sample in file.done)
                for file in files.values()
            ]
            rows.append([source, f"{sampler.temperature:g}", str(counts[0]), str(counts[1])])
    print(aligned(markdown(["source", "temperature", "answers", "cut, left out"], rows)))
    field = "chat" if _CHAT.value else "text"
    paths = {"answers": files[True].path} | ({"cut": files[False].path} if files[False].done else {})
    print(
        closing(paths, [f'a config with {{"{field}": ["{_OUTPUT.value}"], "weight": 1.0}} in its mixture trains on it'])
    )
    if not files[True].done:
        print("warning: no answer ended: more --max_new_tokens?", file=sys.stderr)


if __name__ == "__main__":
    cli.run(main)
