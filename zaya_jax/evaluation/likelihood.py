"""How well a model predicts held-out text: next tokens, and whole draft blocks."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zaya_jax.data.tokenizers import Tokenizer
from zaya_jax.errors import UserError
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
      batches: tokens and document, int32 [batch, row]; the same every time, for comparable numbers.
      tokenizer: given for natural text, to count bytes.

    Returns:
      ar_loss (nats a token), ar_tokens; bits_per_byte with a tokenizer; draft_loss and draft_accuracy_by_slot if the
      objective drafts.
    """
    total: dict[str, jax.Array] | None = None
    tokens = text_bytes = 0
    for index, batch in enumerate(batches):
        sums = eval_step(variables, batch, jnp.int32(index))
        total = sums if total is None else jax.tree.map(jnp.add, total, sums)
        if tokenizer is not None:
            ids = batch["tokens"][batch["document"] >= 0]
            tokens += ids.size
            text_bytes += len(tokenizer.decode(ids.tolist()).encode())
    if total is None:
        raise UserError("batches: got none, may be one or more")
    means = summarise(jax.device_get(total))
    kept = ("ar_loss", "ar_tokens", "draft_loss", "draft_accuracy_by_slot")
    out = {name: np.asarray(means[name]) for name in kept if name in means}
    if tokenizer is not None:
        out["bits_per_byte"] = out["ar_loss"] / math.log(2) * tokens / max(1, text_bytes)
    return out
