"""What a model costs: parameters, FLOPs, bytes, memory, and a roofline from published peaks.

Nothing is run. Imports architecture and training's objective.
"""

from zaya_jax.costs.flops import describe, forward_flops, parameter_count, training_flops, training_memory
from zaya_jax.costs.roofline import drafting_seconds, forward_seconds

__all__ = [
    "describe", "drafting_seconds", "forward_flops", "forward_seconds", "parameter_count", "training_flops",
    "training_memory",
]  # fmt: skip
