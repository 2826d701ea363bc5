"""How well a model predicts held-out text: next tokens, and whole draft blocks."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers

from zaya_jax.errors import UserError
from zaya_jax.text.detokenizer import UNKNOWN, Detokenizer
from zaya_jax.text.tokenizers import Tokenizer
from zaya_jax.training.state import summarise


def likelihood(
    eval_step: Callable[..., dict[str, jax.Array]],
    variables: dict,
    batches: Iterable[dict[str, np.ndarray]],
    tokenizer: Tokenizer | None = None,
) -> dict[str, Any]:
    """Means over all tokens of `batches`.

    Args:
      eval_step: from `training.state.make_eval_step`.
      batches: tokens and document, int32 [B, T]; the same every time, for comparable numbers.
      tokenizer: given for natural text, to count its UTF-8 bytes: of a character that a row cuts, those that are there.

    Returns:
      ar_loss (nats a token), ar_tokens; bits_per_byte with a tokenizer; draft_loss and draft_accuracy_by_slot if the
      objective drafts.
    """
    total: dict[str, jax.Array] | None = None
    count = None if tokenizer is None else byte_counter(tokenizer)
    tokens = text_bytes = 0
    for index, batch in enumerate(batches):
        sums = eval_step(variables, batch, jnp.int32(index))
        total = sums if total is None else jax.tree.map(jnp.add, total, sums)
        if count is not None:
            tokens += int((batch["document"] >= 0).sum())
            text_bytes += sum(count(ids) for ids in _documents(batch))
    if total is None:
        raise UserError("batches: got none, may be one or more")
    means = summarise(jax.device_get(total))
    kept = ("ar_loss", "ar_tokens", "draft_loss", "draft_accuracy_by_slot")
    out = {name: np.asarray(means[name]) for name in kept if name in means}
    if tokenizer is not None:
        out["bits_per_byte"] = out["ar_loss"] / math.log(2) * tokens / max(1, text_bytes)
    return out


def byte_counter(tokenizer: Tokenizer) -> Callable[[np.ndarray], int]:
    """A function from the ids of a text (int [n]), which may begin or end within a character, to its UTF-8 bytes.

    Decoding will not do: it writes a character of three bytes for any broken one.
    """
    if (lengths := _byte_lengths(tokenizer)) is not None:
        table = lengths
        return lambda ids: int(table[ids[ids < table.size]].sum())
    text = Detokenizer(tokenizer, start=False)

    def count(ids: np.ndarray) -> int:
        """Text is decoded, between byte tokens (SentencePiece's byte fallback), which are counted."""
        byte = np.array([tokenizer.joins(int(id_)) for id_ in ids], bool)
        runs = np.split(ids, np.flatnonzero(np.diff(byte)) + 1)
        total, at = int(byte.sum()), 0
        for run in runs:
            if not byte[at]:
                decoded = text.whole(run.tolist()) if at else tokenizer.decode(run.tolist())
                total += len(decoded.encode())
            at += len(run)
        return total

    return count


def _byte_lengths(tokenizer: Tokenizer) -> np.ndarray | None:
    """Bytes of each token, int [V], where every token is a run of bytes (raw, or byte-level BPE); else None."""
    model: tokenizers.Tokenizer | None = getattr(tokenizer, "model", None)
    if model is None:
        decoded = (tokenizer.decode([id_]) for id_ in range(tokenizer.vocab_size))
        return np.array([1 if text == UNKNOWN else len(text.encode()) for text in decoded])
    if not isinstance(model.decoder, tokenizers.decoders.ByteLevel):
        return None
    alphabet = set(tokenizers.pre_tokenizers.ByteLevel.alphabet())  # a character a byte
    lengths = np.zeros(tokenizer.vocab_size, int)
    for piece, id_ in model.get_vocab(with_added_tokens=True).items():
        if piece not in tokenizer.special_ids:
            lengths[id_] = len(piece) if set(piece) <= alphabet else len(piece.encode())
    return lengths


def _documents(batch: dict[str, np.ndarray]) -> Iterator[np.ndarray]:
    """The ids of every document (or piece of one) of a batch."""
    for tokens, document in zip(batch["tokens"], batch["document"], strict=True):
        for begin, end in itertools.pairwise([0, *np.flatnonzero(np.diff(document)) + 1, len(document)]):
            if document[begin] >= 0:
                yield tokens[begin:end]
