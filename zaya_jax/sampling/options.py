"""From `SamplerConfig` to what the compiled loop takes: a static plan, and options that compile nothing."""

from typing import Any

import numpy as np

from zaya_jax.sampling.config import SamplerConfig
from zaya_jax.sampling.core.distributions import LogitsProcessing
from zaya_jax.sampling.strategies.base import Options, Plan


def plan_of(sampler: SamplerConfig) -> Plan:
    """The static part of a sampler whose mode is chosen."""
    assert sampler.target is not None  # SamplerConfig fills it in
    if sampler.drafter is not None:
        length, tree = sampler.draft_length, sampler.tree_size
        return Plan(sampler.mode, 1 + (tree or length), (), sampler.target, sampler.drafter, length, tree)
    block_size = 1 if sampler.mode == "autoregressive" else sampler.block_size
    return Plan(sampler.mode, block_size, sampler.anchor_list, sampler.target, lookup=sampler.lookup or 0)


def options_of(sampler: SamplerConfig, dtype: Any = np.float32) -> Options:
    """The run-time part of a sampler, on the host."""
    s = sampler
    draft_temperature = 1.0 if s.tree_size else s.temperature
    draft_temperature = draft_temperature if s.draft_temperature is None else s.draft_temperature
    integer: Any = np.int32
    stop: Any = np.full((max(8, -(-len(s.stop_tokens) // 8) * 8),), -1, np.int32)
    stop[: len(s.stop_tokens)] = s.stop_tokens

    def processing(temperature: float, k: int, p: float, min_p: float) -> LogitsProcessing:
        return LogitsProcessing(dtype(temperature), integer(min(k, 2**31 - 1)), dtype(p), dtype(min_p))

    return Options(
        processing=processing(s.temperature, s.top_k, s.top_p, s.min_p),
        draft_processing=processing(draft_temperature, s.draft_top_k, s.draft_top_p, 0.0),
        beta=dtype(s.beta),
        repetition_penalty=dtype(s.repetition_penalty),
        min_new_tokens=integer(s.min_new_tokens),
        threshold=dtype(s.threshold),
        reveal=integer(min(s.reveal, 2**31 - 1)),
        stop=stop,
        ngram_weight=dtype(s.ngram_weight),
    )
