"""What a command says at its end: tables, where the files are, what to try next."""

import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path

from zaya_jax.architecture import ZayaConfig
from zaya_jax.architecture.config import NO_MASK
from zaya_jax.reporting.columns import columns
from zaya_jax.reporting.html.verdict import verdict
from zaya_jax.reporting.run_files import Run
from zaya_jax.reporting.tables.runs import likelihood_table, sampling_table

PROMPT, LONGEST = "The", 60  # what is continued where a run has nothing better; letters of what it has


def aligned(markdown: str) -> str:
    """A Markdown table in columns for a terminal."""
    lines = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in markdown.strip().splitlines()]
    return columns(lines[0], lines[2:])  # the second line is Markdown's rule


def closing(files: Mapping[str, Path | str], then: Iterable[str] = ()) -> str:
    """Lines that say what was written, and commands to try next."""
    width = max(map(len, files), default=0)
    lines = [f"{what + ':':{width + 1}} {where}" for what, where in files.items()]
    commands = list(then)
    return "\n".join([*lines, *(["try next:"] if commands else []), *(f"  {command}" for command in commands)])


def generate_with(checkpoint: Path | str, drafts: bool, prompt: str = PROMPT, drafter: str | None = None) -> str:
    """The command that samples from a checkpoint, to be typed as it stands; a long prompt or one of lines is not.

    Args:
      drafts: whether its own mask tokens draft; else `drafter` does (None: nothing).
    """
    mode = "" if drafts else f" --mode=drafter --drafter={drafter}" if drafter else " --mode=autoregressive"
    asked = prompt if 0 < len(prompt) <= LONGEST and prompt.isprintable() else PROMPT
    where = shlex.quote(str(checkpoint))
    return f"python -m experiments.generate --checkpoint={where}{mode} --prompt={shlex.quote(asked)}"


def convert_with(checkpoint: Path | str) -> str:
    """The command that writes a checkpoint of ours as a Hugging Face folder."""
    return f"python -m experiments.convert --checkpoint={shlex.quote(str(checkpoint))} --output=my_model"


def drafts(config: ZayaConfig) -> bool:
    """Whether a model has a mask token, without which nothing is drafted."""
    return config.mask_token_id != NO_MASK


def run_summary(run: Run) -> str:
    """What a finished run measured: held-out loss, every sampler on every source, and what that says about speed."""
    parts = []
    if run.rows("likelihood"):
        parts += ["Held-out loss in nats a token:", aligned(likelihood_table(run.rows("likelihood")))]
    for source in dict.fromkeys(row["source"] for row in run.rows("sampling")):
        rows = run.rows("sampling", source=source)
        asked = f"{rows[0]['prompts']:g} prompts" if rows[0]["prompts"] else "prompts"
        parts += [f"Sampling, {source} ({asked}):", aligned(sampling_table(rows))]
    return "\n".join([*parts, *verdict(run)[:2]])
