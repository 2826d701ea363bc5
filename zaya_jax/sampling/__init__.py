"""Sampling: autoregressive and self-speculative (draft and verify in one forward), lossless or mixed."""

from zaya_jax.sampling.config import SamplerConfig
from zaya_jax.sampling.generate import Generation, generate

__all__ = ["Generation", "SamplerConfig", "generate"]
