"""Drafters: what proposes tokens for one causal forward to verify (mode "drafter"); one file each.

Imports zaya_jax.architecture, sampling.core and strategies.base.
"""

from zaya_jax.sampling.drafters import learned, mask_block, ngram  # they register
from zaya_jax.sampling.drafters.base import (
    Drafter,
    Needs,
    NoState,
    Proposal,
    Rows,
    all_drafters,
    find_drafter,
    register_drafter,
)

__all__ = [
    "Drafter", "Needs", "NoState", "Proposal", "Rows", "all_drafters", "find_drafter", "learned", "mask_block", "ngram",
    "register_drafter",
]  # fmt: skip
