"""What a drafter reads of a forward pass of its target."""

import jax
from flax import struct

Array = jax.Array


class Features(struct.PyTreeNode):
    """What `Zaya.features` exports."""

    hidden: Array  # [B, T, M]: the normed hidden states, which the head reads
    taps: Array  # [B, T, taps, M]: the residual stream as it enters each of the layers that were asked for
