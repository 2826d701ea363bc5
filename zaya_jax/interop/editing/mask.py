"""A mask token for a model that was published without one."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from zaya_jax.architecture import ZayaConfig
from zaya_jax.architecture.config import NO_MASK
from zaya_jax.errors import UserError

Array = jax.Array


def add_mask_token(
    config: ZayaConfig, variables: Mapping[str, Any], token: int | None = None
) -> tuple[ZayaConfig, dict[str, Any]]:
    """The model with a mask token: a row after its vocabulary, or an id that it has.

    The new row's embedding is the mean of all others', and so are the column and the bias of an untied head: its logit
    is the mean of the other logits, which are as they were. Drafting is learned from there.

    Args:
      config, variables: a model with mask_token_id NO_MASK.
      token: an id that no text holds (published vocabularies are often padded). None: a new row.

    Returns:
      (config, variables), with vocab_size one more for a new row. Training moves a token's row that serves as the mask.

    Raises:
      UserError: a model that has a mask token; an id outside the vocabulary.
    """
    if config.mask_token_id != NO_MASK:
        raise UserError(f"ZayaConfig.mask_token_id: got {config.mask_token_id}, may be none where one is to be added")
    if token is not None:
        return config.replace(mask_token_id=token), dict(variables)
    params = dict(variables["params"])
    params["embed_tokens"] = _with_mean(params["embed_tokens"], 0)
    if not config.tie_word_embeddings:
        params["lm_head"] = {"kernel": _with_mean(params["lm_head"]["kernel"], 1)}
    if config.lm_head_bias:
        params["lm_head_bias"] = _with_mean(params["lm_head_bias"], 0)
    config = config.replace(vocab_size=config.vocab_size + 1, mask_token_id=config.vocab_size)
    return config, {**variables, "params": params}


def _with_mean(x: Array, axis: int) -> Array:
    x = jnp.asarray(x)
    mean = x.astype(jnp.promote_types(x.dtype, jnp.float32)).mean(axis, keepdims=True)
    return jnp.concatenate([x, mean.astype(x.dtype)], axis)
