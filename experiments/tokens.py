"""Which tokenizer and which chat template a checkpoint's folder brings along."""

import json
from pathlib import Path
from typing import Any

from zaya_jax.architecture import ZayaConfig
from zaya_jax.architecture.config import NO_MASK
from zaya_jax.data.published import TOKENIZER_FILE
from zaya_jax.data.templates import ChatTemplate, folder_template, load_template
from zaya_jax.data.tokenizers import OWN_BPE, Tokenizer, for_model, load_tokenizer, may_be_mask
from zaya_jax.errors import UserError
from zaya_jax.interop.native import MODEL_FILE

BESIDE_TOKENIZER = "tokenizer"  # data.chat_template: the one in the folder of the run's tokenizer


def choose_tokenizer(
    spec: str | None, checkpoint: Path, config: ZayaConfig, drafts: bool = True
) -> tuple[str, Tokenizer]:
    """(its name, the tokenizer) that a checkpoint needs, or that `spec` names.

    Args:
      config: the checkpoint's.
      drafts: whether the model is to draft, for which it needs a mask token that is no text.

    Raises:
      UserError, FileNotFoundError: one line: no such tokenizer, or one that does not fit the model.
    """
    name = spec or tokenizer_of(checkpoint, config.vocab_size)
    tokenizer = load_tokenizer(name)
    if tokenizer.vocab_size > config.vocab_size:
        got = f"{name} has {tokenizer.vocab_size} ids"
        raise UserError(f"--tokenizer: {got}, may have at most the model's {config.vocab_size}")
    mask = config.mask_token_id
    assert mask is not None  # ZayaConfig fills it in
    if drafts and mask == NO_MASK:
        raise UserError("--mode: the model has no mask token, so it may be autoregressive")
    if drafts and not may_be_mask(tokenizer, mask):
        got = f"the model's mask token {mask} is {tokenizer.decode([mask])!r} in {name}"
        raise UserError(f"--tokenizer: {got}, may be no text; an unconverted model may have --mode=autoregressive")
    return name, for_model(tokenizer, config.vocab_size)


def tokenizer_of(checkpoint: Path, vocab_size: int) -> str:
    """What lies beside the weights, or what the run that made them was configured with, or bytes."""
    if (checkpoint / TOKENIZER_FILE).is_file():
        return str(checkpoint / TOKENIZER_FILE)
    name = run_config(checkpoint).get("tokenizer")
    if isinstance(name, str):
        own = checkpoint.absolute().parent.parent / TOKENIZER_FILE  # which the run trained
        return str(own) if name.startswith(OWN_BPE) else name
    if vocab_size == load_tokenizer("bytes").vocab_size:
        return "bytes"
    raise UserError(f"--tokenizer: missing, may be a tokenizer json (the model has {vocab_size} ids)")


def choose_template(spec: str | None, checkpoint: Path, tokenizer: Tokenizer) -> ChatTemplate | None:
    """The chat template that `spec` names, or the one that lies beside the weights or that their run had, if any.

    Raises:
      UserError, FileNotFoundError: one line: no such template, or one that fails.
    """
    if spec is not None:
        return None if spec == "none" else load_template(spec, tokenizer)
    found = folder_template(checkpoint, tokenizer)
    run = run_config(checkpoint)
    theirs = run.get("data", {}).get("chat_template", "plain") if found is None else "plain"
    if theirs == "plain":  # a run has that if it never saw a chat, too
        return found
    if theirs != BESIDE_TOKENIZER:
        return load_template(theirs, tokenizer)
    return beside_tokenizer(run["tokenizer"], tokenizer)


def beside_tokenizer(spec: str, tokenizer: Tokenizer) -> ChatTemplate | None:
    """The chat template in the folder of the tokenizer that `spec` names, if any."""
    path = Path(spec)
    return folder_template(path if path.is_dir() else path.parent, tokenizer)


def run_config(checkpoint: Path) -> dict[str, Any]:
    """The config of the run that made a checkpoint of ours (WORKDIR/checkpoints/STAGE); {} where there is none."""
    config = checkpoint.absolute().parent.parent / "config.json"
    if (checkpoint / MODEL_FILE).exists() and config.is_file():
        return json.loads(config.read_text())
    return {}
