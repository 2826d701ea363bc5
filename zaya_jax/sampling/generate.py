"""`generate`: prompts in, tokens and their cost out."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from zaya_jax.architecture import Zaya
from zaya_jax.sampling.config import SamplerConfig
from zaya_jax.sampling.decoding import decode
from zaya_jax.sampling.planning.auto import choose_sampler
from zaya_jax.sampling.stopping import Decoder
from zaya_jax.sampling.types import Generation, Request, Session, Streamer


def generate(
    model: Zaya,
    variables: Any,
    prompts: Sequence[Sequence[int]],
    sampler: SamplerConfig,
    max_new_tokens: int,
    seed: int | Sequence[int] = 0,
    *,
    samples: int = 1,
    session: Session | None = None,
    tokenizer: Decoder | None = None,
    streamer: Streamer | None = None,
) -> Generation:
    """Samples continuations of every prompt, all in one batch and one compiled loop.

    Args:
      model, variables: a Zaya and its variables ("params" and "balancing").
      prompts: token lists, each with at least one token; lengths may differ.
      sampler: see SamplerConfig. Mode "auto" measures before it generates, at every call; to measure once, call
        `choose_sampler` and pass the sampler it returns.
      max_new_tokens: tokens after which a row ends without a stop.
      seed: one int, or one for each row; equal seeds give equal tokens whatever stands beside a row in the batch.
      samples: continuations of each prompt; they share its prefill. Row r continues prompt r // samples.
      session: what an earlier call returned, to continue after its texts; prompts are then what is new (a row's may be
        empty while its newest token is unread).
      tokenizer: decodes tokens for stop strings.
      streamer: sees tokens and drafts after every step, at the cost of a host round trip for each.

    Raises:
      UserError: an empty or too long prompt, a token out of range, or arguments that contradict each other; before
        anything is compiled.
      Diverged: the model gave NaN logits.
    """
    request = Request(prompts, max_new_tokens, seed, samples, session, tokenizer, streamer)
    if sampler.mode != "auto":
        return decode(model, variables, request, sampler)
    choice = choose_sampler(model, variables, request, sampler)
    return dataclasses.replace(decode(model, variables, request, choice.sampler), reason=choice.reason)
