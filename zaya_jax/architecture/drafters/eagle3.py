"""EAGLE-3 (arXiv 2503.01840): one layer over the target's fused features and the next token, then its own output.

g = fc(taps) stands for what the target knows of a token; from the second draft on it is the layer's own output.
Queries, keys and values are projected from [norm(embedding) ; norm(g)]; the residual stream is g.
"""

import jax
import jax.numpy as jnp

from zaya_jax.architecture.drafters.chain import Chain
from zaya_jax.architecture.drafters.parts import DraftAttention, feed_forward, linear, norm
from zaya_jax.architecture.features import Features

Array = jax.Array


class Eagle3(Chain):
    """See the module's docstring, and `Chain`."""

    def setup(self) -> None:
        cfg = self.config
        self.fc = linear(cfg, cfg.hidden_size)
        self.input_layernorm, self.hidden_norm = norm(cfg), norm(cfg)
        self.self_attn, self.mlp = DraftAttention(cfg), feed_forward(cfg)
        self.post_attention_layernorm, self.norm = norm(cfg), norm(cfg)

    def start(self, features: Features) -> Array:
        taps = features.taps.astype(self.config.dtype)
        return self.fc(taps.reshape(*taps.shape[:2], -1)).astype(self.config.stream_dtype)

    def enter(self, embedded: Array, hidden: Array) -> tuple[Array, Array]:
        return hidden, jnp.concatenate([self.input_layernorm(embedded), self.hidden_norm(hidden)], axis=-1)

    def leave(self, x: Array) -> Array:
        return x + self.mlp(self.post_attention_layernorm(x), x.shape[1]).astype(x.dtype)
