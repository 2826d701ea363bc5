"""Sampling: autoregressive and self-speculative (draft and verify), lossless or mixed; baselines; the cost model.

Imports architecture, for stop strings text, and for devices parallel.
"""

from zaya_jax.sampling.config import SamplerConfig
from zaya_jax.sampling.continuous import Prompt, generate_queue
from zaya_jax.sampling.core.targets import Target, all_targets, find_target, register_target
from zaya_jax.sampling.drafters import Drafter, all_drafters, register_drafter
from zaya_jax.sampling.drafters.ngram import with_history
from zaya_jax.sampling.generate import generate
from zaya_jax.sampling.planning.auto import choose_sampler
from zaya_jax.sampling.planning.branch_points import acceptance_curve, best_anchors, evidence, expected_tokens
from zaya_jax.sampling.types import Generation, Request, Session, Streamer

__all__ = [
    "Drafter", "Generation", "Prompt", "Request", "SamplerConfig", "Session", "Streamer", "Target", "acceptance_curve",
    "all_drafters", "all_targets", "best_anchors", "choose_sampler", "evidence", "expected_tokens", "find_target",
    "generate", "generate_queue", "register_drafter", "register_target", "with_history",
]  # fmt: skip
