"""What minutes of training on this machine bring a model that drafts for itself: adapters, and their wall-clock.

    python -m experiments.bench.adapt --config=configs/smollm2.py:drafts --tasks=gsm_symbolic --chat --output=drafts
    python -m experiments.bench.adapt --config=configs/smollm2.py:lora --minutes=2 --tasks=gsm_symbolic --chat \\
        --output=joint

One command for a machine that is lent for minutes. A few steps of the config are timed first, and as many are then run
as fit --minutes; their adapters are written (`experiments.adapters`); decoding is timed with and without drafts at each
of --batches (`experiments.bench.drafting`). --output then holds adapters/, config.json, environment.json and
metrics.jsonl of the run, wall_clock_N.json for each batch N, and adapt.json: machine, seconds a step, steps, clean
tokens. What is there already is not done again, so a killed command resumes. Each part is a command of its own, in a
process of its own, and shares the cache of compiled programs.
"""

import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from absl import flags

from zaya_jax.checks import COUNT, check_object
from zaya_jax.command_line import cli
from zaya_jax.command_line.closing import closing
from zaya_jax.errors import UserError
from zaya_jax.files import make_folder, read_object, write_text
from zaya_jax.paths import absolute
from zaya_jax.reporting.result_files import read_record
from zaya_jax.training.logging.metrics import read_metrics

PROBE = 8  # steps that are timed; the first half is warm-up

_CONFIG = flags.DEFINE_string(
    "config", None, "Config file of a phase that trains adapters, with an optional :argument."
)
_PHASE = flags.DEFINE_string("phase", "convert", "That phase.")
_SET = flags.DEFINE_multi_string("set", [], "FIELD=VALUE of the config, as --config.FIELD=VALUE of run.")
_MINUTES = flags.DEFINE_float("minutes", 3.0, "Of training.", lower_bound=0.01, upper_bound=10_000)
_VOCABULARY = flags.DEFINE_integer("draft_vocabulary", 0, "As of adapters.", lower_bound=0, upper_bound=2**24)
_BATCHES = flags.DEFINE_list("batches", ["1", "8", "64"], "Texts at a time.")
_TASKS = flags.DEFINE_list("tasks", [], "As of bench.drafting.")
_FILE = flags.DEFINE_string("prompts_file", None, "As of bench.drafting.")
_CHAT = flags.DEFINE_boolean("chat", False, "As of bench.drafting.")
_PROMPTS = flags.DEFINE_integer(
    "prompts", 16, "As of bench.drafting; at least twice the batch.", lower_bound=2, upper_bound=10**6
)
_NEW = flags.DEFINE_integer("max_new_tokens", 128, "As of bench.drafting.", lower_bound=4, upper_bound=2**24)
_OUTPUT = flags.DEFINE_string("output", None, "Folder of what is found.")


def main() -> None:
    if not _CONFIG.value:
        raise UserError("--config: missing, may be a config file")
    if not _OUTPUT.value:
        raise UserError("--output: missing, may be a folder")
    batches = cli.integers("batches", _BATCHES.value, 1024)
    if not _TASKS.value and not _FILE.value:
        raise UserError("--tasks, --prompts_file: got neither, may be one or both")
    output = make_folder(absolute(_OUTPUT.value), "--output")
    found = steps_that_fit(output)
    workdir = output / "run"
    train(workdir, found["steps"])
    for name in ("config.json", "environment.json", "metrics.jsonl"):
        shutil.copyfile(workdir / name, output / name)
    checkpoint = workdir / "checkpoints" / _PHASE.value
    if not (output / "adapters").exists():
        size = f"--draft_vocabulary={_VOCABULARY.value}"
        command("experiments.adapters", f"--checkpoint={checkpoint}", f"--output={output / 'adapters'}", size)
    start = read_record(workdir / "config.json")[_PHASE.value]["start"]
    for batch in batches:
        clock(start, output, batch)
    print(closing({"adapters": output / "adapters", "numbers": output / "adapt.json"}, [
        f"python -m experiments.generate --checkpoint={start} --adapters={output / 'adapters'}{' --chat' * _CHAT.value}"
    ]))  # fmt: skip


def steps_that_fit(output: Path) -> dict[str, Any]:
    """adapt.json: what a step takes, and how many fit --minutes; measured if it is not there."""
    path = output / "adapt.json"
    if path.exists():
        return check_object(f"{path}: ", read_object(path), {"steps": COUNT})
    probe = output / "probe"
    train(probe, PROBE, "log_every=1")
    lines = [line for line in read_metrics(probe / "metrics.jsonl") if line["stage"] == _PHASE.value]
    config = read_object(probe / "config.json")
    section = config[_PHASE.value]
    tokens = section["batch_size"] * (section.get("row_length") or config["data"]["row_length"])
    seconds = statistics.median(tokens / line["tokens_per_second"] for line in lines[PROBE // 2 :])
    steps = max(1, int(60 * _MINUTES.value / seconds))
    # The probe has noted the machine: asking JAX here would take an accelerator's memory from the other commands.
    found = {
        "environment": read_object(probe / "environment.json"), "config": _CONFIG.value, "set": _SET.value,
        "minutes": _MINUTES.value, "seconds_per_step": seconds, "tokens_per_second": tokens / seconds, "steps": steps,
        "clean_tokens": steps * tokens,
    }  # fmt: skip
    write_text(path, json.dumps(found, indent=1) + "\n")
    shutil.rmtree(probe)
    return found


def train(workdir: Path, steps: int, *fields: str) -> None:
    """The phase alone, for so many steps, a twentieth of them to warm up unless --set says otherwise."""
    chosen = (f"steps={steps}", f"optimizer.warmup_steps={max(1, steps // 20)}", *fields)
    overrides = [f"--config.{field}" for field in (*(f"{_PHASE.value}.{field}" for field in chosen), *_SET.value)]
    command("experiments.run", f"--config={_CONFIG.value}", f"--workdir={workdir}", "--train_only", *overrides)


def clock(start: str, output: Path, batch: int) -> None:
    """wall_clock_BATCH.json."""
    path = output / f"wall_clock_{batch}.json"
    if path.exists():
        return
    sets = ([f"--tasks={','.join(_TASKS.value)}"] if _TASKS.value else []) + (
        [f"--prompts_file={_FILE.value}"] if _FILE.value else []
    )
    command(
        "experiments.bench.drafting", f"--checkpoint={start}", f"--adapters={output / 'adapters'}", *sets,
        *(["--chat"] if _CHAT.value else []), f"--batch={batch}", f"--prompts={max(_PROMPTS.value, 2 * batch)}",
        f"--probes={max(8, batch)}", f"--max_new_tokens={_NEW.value}", f"--output={path}",
    )  # fmt: skip


def command(module: str, *arguments: str) -> None:
    """Runs a command of this repository; UserError where it fails, after its own words."""
    status = subprocess.run([sys.executable, "-m", module, *arguments], check=False).returncode
    if status:
        raise UserError(f"{module}: ended with status {status} (its own words stand above)")


if __name__ == "__main__":
    cli.run(main)
