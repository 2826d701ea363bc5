"""Sampling: autoregressive and self-speculative (draft and verify), lossless or mixed; baselines; the cost model."""

from zaya_jax.sampling.config import SamplerConfig
from zaya_jax.sampling.core.targets import Target, all_targets, find_target, register_target
from zaya_jax.sampling.decoding import Generation, Session, Streamer
from zaya_jax.sampling.generate import generate
from zaya_jax.sampling.planning.auto import choose_sampler
from zaya_jax.sampling.planning.branch_points import acceptance_curve, best_anchors, evidence, expected_tokens

__all__ = [
    "Generation", "SamplerConfig", "Session", "Streamer", "Target", "acceptance_curve", "all_targets", "best_anchors",
    "choose_sampler", "evidence", "expected_tokens", "find_target", "generate", "register_target",
]  # fmt: skip
