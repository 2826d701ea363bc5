"""Which tokenizer and which chat template a checkpoint's folder brings along."""

import datetime
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zaya_jax.architecture import ZayaConfig
from zaya_jax.errors import UserError
from zaya_jax.interop.conversion.locate import find_checkpoint, run_config
from zaya_jax.paths import absolute
from zaya_jax.registry import kind_drafts
from zaya_jax.runs.carried import spec_in, write_tokenizer
from zaya_jax.runs.configuration.tree import SCRATCH
from zaya_jax.sampling.drafting import require_mask
from zaya_jax.text.published import TOKENIZER_FILE
from zaya_jax.text.templates import BESIDE_TOKENIZER, ChatTemplate, beside_tokenizer, folder_template, load_template
from zaya_jax.text.tokenizers import (
    ByteTokenizer,
    Tokenizer,
    for_model,
    ids_in_texts,
    load_tokenizer,
    may_be_mask,
    tokenizer_file,
)

INSTEAD = "--mode=autoregressive"  # of experiments.generate, for a model that cannot draft
OTHER_TOKENIZERS = ("tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")


def checkpoint_of(given: str | None, flag: str = "checkpoint") -> Path:
    """The folder that a --checkpoint means, as `find_checkpoint` finds it; says so where that is another than given.

    Raises:
      FileNotFoundError, UserError: one line.
    """
    if not given:
        raise UserError(f"--{flag}: missing, may be a folder")
    found = find_checkpoint(given)
    if found != absolute(given):
        print(f"{flag}: {found}", file=sys.stderr)
    return found


def choose_tokenizer(
    spec: str | None, checkpoint: Path, config: ZayaConfig, drafts: bool = True, instead: str = INSTEAD
) -> tuple[str, Tokenizer]:
    """(its name, the tokenizer) that a checkpoint needs, or that `spec` names.

    Args:
      config: the checkpoint's.
      drafts: whether the model is to draft, for which it needs a mask token that is no text.
      instead: what to type where it cannot: a flag of this command's own.

    Raises:
      UserError, FileNotFoundError: one line: no such tokenizer, or one that does not fit the model.
    """
    if spec == "":
        raise UserError("--tokenizer: got '', may be bytes or a tokenizer json")
    name = tokenizer_of(checkpoint, config.vocab_size) if spec is None else spec
    tokenizer = load_tokenizer(name)
    name = "bytes" if isinstance(tokenizer, ByteTokenizer) else str(tokenizer_file(name))
    if ids_in_texts(tokenizer) > config.vocab_size:
        got = f"{name} has {ids_in_texts(tokenizer)} ids"
        raise UserError(f"--tokenizer: {got}, may have at most the model's {config.vocab_size}")
    mask = config.mask_token_id
    assert mask is not None  # ZayaConfig fills it in
    if drafts:
        require_mask(config, instead)
    if drafts and not may_be_mask(tokenizer, mask):
        got = f"the model's mask token {mask} is {tokenizer.decode([mask])!r} in {name}"
        raise UserError(f"--tokenizer: {got}, may be no text; an unconverted model may have {instead}")
    return name, for_model(tokenizer, config.vocab_size)


def tokenizer_of(checkpoint: Path, vocab_size: int) -> str:
    """What lies beside the weights, or what the run that made them was configured with, or bytes."""
    if os.path.lexists(checkpoint / TOKENIZER_FILE):  # whatever it is
        return str(checkpoint / TOKENIZER_FILE)
    name = run_config(checkpoint).get("tokenizer")
    if isinstance(name, str):
        return spec_in(_workdir(checkpoint), name)
    if vocab_size == load_tokenizer("bytes").vocab_size:
        return "bytes"
    if other := next((checkpoint / name for name in OTHER_TOKENIZERS if (checkpoint / name).exists()), None):
        may_be = (
            "a tokenizer json (transformers writes one: "
            f'AutoTokenizer.from_pretrained("{checkpoint}").save_pretrained("{checkpoint}"))'
        )
        raise UserError(f"--tokenizer: missing, and {other.name} is not read here; may be {may_be}")
    raise UserError(f"--tokenizer: missing, may be a tokenizer json (the model has {vocab_size} ids)")


def _workdir(checkpoint: Path) -> Path:
    """Of the run that trained it."""
    return checkpoint.absolute().parent.parent


def choose_template(spec: str | None, checkpoint: Path, tokenizer: Tokenizer) -> ChatTemplate | None:
    """The chat template that `spec` names, or the one that lies beside the weights or that their run had, if any.

    Raises:
      UserError, FileNotFoundError: one line: no such template, or one that fails.
    """
    if spec is not None:
        return None if spec == "none" else load_template(spec, tokenizer)
    found = folder_template(checkpoint, tokenizer)
    return run_template(run_config(checkpoint), tokenizer) if found is None else found


def require_template(spec: str | None, checkpoint: Path, tokenizer: Tokenizer) -> ChatTemplate:
    """`choose_template` for --chat, on today's date if it asks for one: files that keep answers name the template, so
    those of another day are not continued.

    Raises:
      UserError, FileNotFoundError: one line: none, or as `choose_template`.
    """
    template = choose_template(spec, checkpoint, tokenizer)
    if template is None:
        raise UserError(f"--chat: {checkpoint} has no chat template, may be given with --chat_template")
    return template.on(datetime.date.today()) if template.asks_date else template


def run_template(run: dict[str, Any], tokenizer: Tokenizer, chats: bool = False) -> ChatTemplate | None:
    """The chat template of a run's config: data.chat_template.

    Args:
      chats: whether the run has chats; one that never saw a chat has "plain", and then no template.
    """
    data = run.get("data")
    spec = data.get("chat_template", "plain") if isinstance(data, dict) else "plain"
    if spec == BESIDE_TOKENIZER and isinstance(run.get("tokenizer"), str):
        return beside_tokenizer(run["tokenizer"], tokenizer)
    if not isinstance(spec, str) or spec == BESIDE_TOKENIZER or (spec == "plain" and not chats):
        return None
    return load_template(spec, tokenizer)


@contextmanager
def companions_of(checkpoint: Path) -> Iterator[tuple[Path | None, list[str]]]:
    """(a folder with the tokenizer and template that a checkpoint needs, notes), while the context lasts.

    None is the checkpoint's own folder. Checkpoints of before runs wrote them have theirs in the run's config.
    """
    run = {} if (checkpoint / TOKENIZER_FILE).exists() else run_config(checkpoint)
    if not isinstance(run.get("tokenizer"), str):
        yield None, []
        return
    with tempfile.TemporaryDirectory() as scratch:
        try:
            spec = spec_in(_workdir(checkpoint), run["tokenizer"])
            write_tokenizer(Path(scratch), spec, run_template(run, load_tokenizer(spec)))
        except (UserError, FileNotFoundError) as error:
            yield None, [f"warning: no tokenizer was written: {error}"]
            return
        yield Path(scratch), []


def never_drafted(checkpoint: Path) -> str:
    """In words, that a checkpoint of ours comes from stages that train next tokens alone; "" where it is not known."""
    config, name, passed = run_config(checkpoint), checkpoint.absolute().name, []
    sections = [key for key, value in config.items() if isinstance(value, dict) and "objective" in value]
    phases = [phase for phase in config.get("phases") or sections if isinstance(phase, str)]
    while name not in passed:
        section = config.get(name)
        objective = section.get("objective") if isinstance(section, dict) else None
        if not isinstance(objective, dict) or kind_drafts(objective.get("kind", "tidar")):
            return ""
        passed.append(name)
        start = section.get("start") if isinstance(section, dict) else None
        if start is None:  # the phase before it, where there is one
            at = phases.index(name) if name in phases else 0
            start = phases[at - 1] if at else SCRATCH
        if start == SCRATCH:
            return f"its stage {passed[0]} was trained on next tokens alone"
        name = start
    return ""
