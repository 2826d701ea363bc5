"""Continues prompts with a checkpoint: on the terminal, into a file, or as a chat.

    python -m experiments.generate --checkpoint=results/quickstart/model --prompt='123+989=' --temperature=0
    python -m experiments.generate --checkpoint=results/quickstart/model --prompt='5+5=' --samples=4 --output=rows.jsonl
    python -m experiments.generate --checkpoint=smollm2 --chat --mode=autoregressive

A forward that drafts and verifies can yield several tokens: on a terminal the text of each forward has its colour, cyan
and yellow in turn, the prompt is dim, and while text streams in, drafts that are not verified yet stand dim after it.
What the model writes is escaped (a newline and a tab are not), so it cannot command the terminal.

The last line (stderr) says tokens, forward passes (NFE), tokens per forward (T, the prompt's forward included) with the
settings it depends on, query tokens that a forward computes for each text, and tokens per second.

--output writes one JSON line a row: prompt, index (of the prompt, from 0), sample, seed, text, tokens, accepted (tokens
of each forward), log_probabilities (nats, under the target), finish, settings (as asked), ran (what measuring chose).
Row r (prompt index * samples + sample) is drawn with seed + r. The same command resumes where a killed one stopped, to
the same file; lines made with other settings are refused.

--chat reads a turn a line and writes the chat down as --chat_template says; by default that is the template in the
checkpoint's folder (chat_template.jinja or tokenizer_config.json). Special tokens that you spell stay words. Where
there is no chat template, what the model has read is the plain concatenation of all turns and answers, nothing between
them. An answer ends at a stop token or --max_new_tokens. /reset forgets everything said, /quit or the end of input
ends, so does Ctrl-C.

Every field of SamplerConfig is a flag; hyphens and underscores in flag names are the same.
"""

import dataclasses
import functools
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from absl import flags
from tqdm import tqdm

from zaya_jax.command_line import cli, sampling_flags
from zaya_jax.command_line.completions import MEASURED, Completions, checked_prompt, read_prompts
from zaya_jax.command_line.conversation import Conversation
from zaya_jax.command_line.engine import Engine
from zaya_jax.command_line.meter import Meter
from zaya_jax.command_line.models import decoding_form, load
from zaya_jax.errors import UserError
from zaya_jax.evaluation.answers import fingerprint
from zaya_jax.paths import absolute
from zaya_jax.runs.tokens import checkpoint_of, choose_template, choose_tokenizer, never_drafted
from zaya_jax.sampling import SamplerConfig
from zaya_jax.sampling.continuous import Prompt
from zaya_jax.sampling.decoding import Finished
from zaya_jax.sampling.streaming import QUIET, RESET, TerminalStreamer, escape, render
from zaya_jax.text.detokenizer import Detokenizer
from zaya_jax.text.templates import question
from zaya_jax.text.tokenizers import Tokenizer

BATCH = 16  # prompts of a file side by side, with all their samples
PATIENCE = 30.0  # seconds: what took longer is not done again to have its time without compilation


def define_flags(values: flags.FlagValues) -> None:
    """All flags of this command."""

    def text(name: str, words: str) -> None:
        flags.DEFINE_string(name, None, words, flag_values=values)

    def count(name: str, default: int | None, words: str, low: int = 1, high: int = 2**24) -> None:
        flags.DEFINE_integer(name, default, words, lower_bound=low, upper_bound=high, flag_values=values)

    text(
        "checkpoint", "Folder of a model: a Hugging Face one, WORKDIR/checkpoints/STAGE, or WORKDIR: its sampled stage."
    )
    text(
        "adapters", "Folder of adapters, as experiments.adapters writes it; it sets block_size and anchors by default."
    )
    text("prompt", "One text to continue.")
    text("prompts_file", 'A .txt file (one prompt a line) or .jsonl ({"prompt": ...} a line).')
    flags.DEFINE_boolean("chat", False, "Talk: a turn a line from stdin.", flag_values=values)
    text("chat_template", "plain, a Jinja file, a Jinja text, or none. Default: the folder's, else none.")
    count("max_new_tokens", 128, "Tokens after which a row (an answer) ends without a stop.")
    count("seed", 0, "Of the first row; row r has seed + r.", low=0, high=2**31 - 1)
    count("samples", 1, "Continuations of each prompt; they share its first forward.", high=65_536)
    count("batch", None, f"Prompts side by side, with --prompts-file; default: {BATCH}.", high=1_000_000)
    text("output", "FILE.jsonl for the completions, which are then not shown.")
    text("tokenizer", "bytes, or a tokenizer json. Default: the folder's tokenizer.json, its run's, or \"bytes\".")
    flags.DEFINE_boolean(
        "stream", None, "Show text while it is sampled. Default: for one row on a terminal, and in a chat.",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_enum(
        "color", "auto", ["auto", "always", "never"], "auto: on a terminal, unless NO_COLOR is set.",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_boolean(
        "compare", False, "Then sample the same autoregressively, and say how much faster drafting was.",
        flag_values=values,
    )  # fmt: skip
    sampling_flags.define(values)


def main(values: flags.FlagValues) -> None:
    """Everything after the parsed flags."""
    try:
        check_flags(values)
        asked = sampling_flags.read(values)
        texts = read_texts(values)
        provisional = sampling_flags.provisional(asked | {"stop_tokens": asked["stop_tokens"] or []})
        folder, drafts = checkpoint_of(values.checkpoint), provisional.drafts
        config, variables, trained = load(folder, values.adapters)
        if not values["block_size"].present:
            branches = asked["mode"] == "single_pass" and asked["target"] is None and not values["anchors"].present
            asked |= {name: value for name, value in trained.items() if name != "anchors" or branches}
        name, tokenizer = choose_tokenizer(values.tokenizer, folder, config, drafts)
        template = choose_template(values.chat_template, folder, tokenizer) if values.chat else None
        if asked["stop_tokens"] is None:
            asked["stop_tokens"] = list(tokenizer.eos_ids)
        weights = {} if values.output is None else {"weights": fingerprint(variables)}
        with Meter() as meter:
            model, variables = decoding_form(config, variables)
            engine = Engine(model, variables, tokenizer, asked, values.max_new_tokens, values.samples, meter)
            engine.why = never_drafted(folder)
            if values.chat:
                chat(
                    engine,
                    Conversation(tokenizer, template),
                    screen_of(values),
                    values.seed,
                    values.stream is not False,
                )
            else:
                complete(values, engine, texts, settings_of(values, name, asked) | weights)
    except UserError as error:
        raise UserError(sampling_flags.in_flags(str(error))) from error
    except KeyboardInterrupt:
        print(flush=True)
        cli.fail("interrupted" + ("; the same command resumes after the last whole row" if values.output else ""), 130)


def check_flags(values: flags.FlagValues) -> None:
    """Raises UserError for what is missing or contradicts itself."""
    if values.checkpoint is None:
        raise UserError("--checkpoint: missing, may be a folder")
    given = [name for name in ("prompt", "prompts_file", "chat") if values[name].value not in (None, False)]
    if len(given) != 1:
        got = " and ".join(f"--{name.replace('_', '-')}" for name in given) or "none"
        raise UserError(f"got {got}, may be exactly one of --prompt, --prompts-file and --chat")
    if values.chat and (values.samples != 1 or values.output is not None):
        name = "--output" if values.output is not None else "--samples"
        raise UserError(f"{name}: contradicts --chat, may be given with --prompt or --prompts-file")
    if values.compare and (values.chat or values.mode == "autoregressive"):
        name = "--chat" if values.chat else "--mode=autoregressive"
        raise UserError(f"--compare: contradicts {name}, may be given with --prompt or --prompts-file and drafts")
    if values.chat_template is not None and not values.chat:
        raise UserError("--chat_template: only with --chat")
    if values.batch is not None and values.prompts_file is None:
        raise UserError("--batch: only with --prompts-file, whose prompts it puts side by side")
    if values.output is not None and Path(values.output).suffix != ".jsonl":
        raise UserError(f"--output: got {values.output}, may be a FILE.jsonl")
    if values.stream and (values.output is not None or values.samples != 1):
        name = "--output" if values.output is not None else f"--samples={values.samples}"
        raise UserError(f"--stream: contradicts {name}, may be given for one row on the terminal")


def read_texts(values: flags.FlagValues) -> list[str]:
    """The prompts; none for a chat."""
    if values.chat:
        return []
    if values.prompt is not None:
        return [checked_prompt(values.prompt, "--prompt")]
    texts = read_prompts(Path(values.prompts_file))
    if values.stream and len(texts) > 1:
        raise UserError(f"--stream: got {len(texts)} prompts, may be given for one row on the terminal")
    return texts


def settings_of(values: flags.FlagValues, tokenizer: str, asked: dict[str, Any]) -> dict[str, Any]:
    """What makes a row what it is, for the output file."""
    run = {name: values[name].value for name in ("max_new_tokens", "seed", "samples")}
    adapters = {} if values.adapters is None else {"adapters": str(Path(values.adapters))}
    return {"checkpoint": str(Path(values.checkpoint)), **adapters, "tokenizer": tokenizer, **run, **asked}


@dataclasses.dataclass(frozen=True)
class Screen:
    """Standard output."""

    colour: bool
    columns: int | None  # of a terminal

    def write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    def streamer(self, tokenizer: Tokenizer) -> TerminalStreamer:
        return TerminalStreamer(tokenizer, self.write, self.colour, self.columns)

    def row(self, title: str, prompt: str, text: str) -> None:
        """A finished row; text is rendered already."""
        quiet: Callable[[str], str] = (lambda text: f"{QUIET}{text}{RESET}" if text else "") if self.colour else str
        self.write(quiet(title) + quiet(escape(prompt)) + text + "\n")


def screen_of(values: flags.FlagValues) -> Screen:
    terminal = sys.stdout.isatty()
    colour = values.color == "always" or (values.color == "auto" and terminal and not os.environ.get("NO_COLOR"))
    return Screen(colour, shutil.get_terminal_size().columns if terminal else None)


def complete(values: flags.FlagValues, engine: Engine, texts: list[str], settings: dict[str, Any]) -> None:
    """Continues every prompt: side by side, the next in the place of one that has ended."""
    tokenizer, samples = engine.tokenizer, values.samples
    prompts = [question(text, tokenizer) for text in texts]
    engine.check(prompts)
    output = None if values.output is None else Completions(absolute(values.output), texts, samples, settings)
    every = range(len(prompts))
    rows = every_row(every, samples) if output is None else output.missing(every)
    if not rows:
        assert output is not None  # there is a prompt
        print(f"nothing to do: {values.output} holds all {len(output.done)} rows", file=sys.stderr)
        return
    size = values.batch or BATCH
    first = list(dict.fromkeys(index for index, _ in rows))[:size]

    def seed_of(row: tuple[int, int]) -> int:
        return values.seed + row[0] * samples + row[1]

    if output is not None and output.ran is not None:
        engine.sampler = SamplerConfig(**engine.asked | output.ran)
    else:
        engine.choose(prompts, [prompts[i] for i in first], [seed_of(row) for row in every_row(first, samples)])
    screen = screen_of(values)
    queue = [Prompt(prompts[row[0]], seed_of(row)) for row in rows]
    # whatever is left: the same programs, hence the same numbers
    width, longest = min(size, len(prompts)) * samples, max(map(len, prompts))
    if output is None and len(rows) == 1 and (values.stream or (values.stream is None and screen.columns is not None)):
        streamer = screen.streamer(tokenizer)
        streamer.prompt(texts[0])
        made = [engine.run([prompts[0]], [values.seed], streamer=streamer).tokens[0]]
        screen.write("\n")
    else:
        bar = tqdm(total=len(rows), desc="generate", unit="row", dynamic_ncols=True, disable=output is None)
        made = []  # for --compare alone: there may be any number
        for row, sequence in zip(rows, engine.queue(queue, longest, width), strict=True):
            if values.compare:
                made.append(sequence.tokens)
            bar.set_postfix_str(f"T {engine.meter.tokens_per_forward:.2f}, {engine.meter.speed}", refresh=False)
            bar.update()
            if output is None:
                show(engine, texts, row, sequence, screen)
            else:
                keep(engine, texts, row, sequence, output, seed_of(row))
        bar.close()
        if not engine.meter.timed_tokens and engine.meter.seconds < PATIENCE:
            list(engine.queue(queue[-width:], longest, width, again=True))
    words = f"batch {min(size, len(texts))}" + (f" x {samples} samples" if samples > 1 else "")
    engine.close(words)
    if values.compare:
        compare(engine, queue, longest, width, made)


def every_row(prompts: Iterable[int], samples: int) -> list[tuple[int, int]]:
    """(prompt, sample) pairs, a prompt's side by side."""
    return [(index, sample) for index in prompts for sample in range(samples)]


def compare(engine: Engine, queue: list[Prompt], longest: int, width: int, drafted: list[list[int]]) -> None:
    """Samples the same rows one token a forward, and says on stderr how much faster drafting was."""
    assert engine.sampler is not None  # `Engine.choose`
    with Meter() as meter:
        alone = dataclasses.replace(engine, sampler=engine.sampler.plain, meter=meter)
        made = [sequence.tokens for sequence in alone.queue(queue, longest, width)]
        if not meter.timed_tokens:
            list(alone.queue(queue[-width:], longest, width, again=True))
    same = sum(one == other for one, other in zip(made, drafted, strict=True))
    print(
        f"autoregressive: {meter.speed}; drafting gives {engine.meter.rate / meter.rate:.2f} times as many tokens a "
        f"second; {same} of {len(made)} texts are the same",
        file=sys.stderr,
    )


def show(engine: Engine, texts: list[str], row: tuple[int, int], sequence: Finished, screen: Screen) -> None:
    """A row on the terminal."""
    index, sample = row
    title = f"# prompt {index + 1}" + (f", sample {sample + 1}" if engine.samples > 1 else "") + "\n"
    text = render(engine.tokenizer, sequence.tokens, sequence.accepted, screen.colour)
    screen.row(title if len(texts) * engine.samples > 1 else "", texts[index], text)


def keep(
    engine: Engine, texts: list[str], row: tuple[int, int], sequence: Finished, output: Completions, seed: int
) -> None:  # fmt: skip
    """A row in the file."""
    (index, sample), text = row, Detokenizer(engine.tokenizer, start=False)
    line = {
        "prompt": texts[index], "index": index, "sample": sample, "seed": seed, "text": text.whole(sequence.tokens),
        "tokens": sequence.tokens, "accepted": sequence.accepted,
        "log_probabilities": sequence.log_probabilities, "finish": sequence.finish,
    }  # fmt: skip
    output.add([line], {name: getattr(engine.sampler, name) for name in MEASURED})


def chat(engine: Engine, talk: Conversation, screen: Screen, seed: int, stream: bool) -> None:
    """Answers every line; one seed for all turns, so that turns are the same as one concatenated prompt."""
    engine.check([[engine.tokenizer.eos_id]])
    for line in turns():
        if line == "/quit":
            break
        if line == "/reset":
            talk.forget()
            continue
        try:
            prompt, session = talk.prompt(checked_prompt(line, "this turn"))
            if engine.sampler is None:
                engine.check([prompt])
                engine.choose([prompt], [prompt], [seed])
            streamer = screen.streamer(engine.tokenizer) if stream else None
            generation = engine.run([prompt], [seed], session, streamer)
        except UserError as error:  # a turn too long, say: what was said before still stands
            print(f"error: {sampling_flags.in_flags(str(error))}", file=sys.stderr)
            continue
        talk.add(line, generation.tokens[0], generation.session)
        shown = "" if stream else render(engine.tokenizer, generation.tokens[0], generation.accepted[0], screen.colour)
        screen.write(shown + "\n")
    if engine.sampler is not None:
        engine.close("batch 1")


def turns() -> Iterator[str]:
    """Lines of stdin that are not empty, asked for with a prompt on a terminal."""
    asks = sys.stdin.isatty()
    ask = functools.partial(input, "> ") if asks else sys.stdin.readline
    while True:
        try:
            line = ask()
        except EOFError:
            print()  # the terminal's cursor stands after "> "
            return
        if not asks and not line:
            return
        if line := line.removesuffix("\n"):
            yield line


if __name__ == "__main__":
    define_flags(flags.FLAGS)
    cli.run(lambda: main(flags.FLAGS))
