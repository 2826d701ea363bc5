"""Multi-token prediction with one sequential module (DeepSeek-V3, arXiv 2412.19437), used recursively.

The module is one decoder layer over M [norm(embedding) ; norm(h)]; h is the target's normed last hidden state, and from
the second draft on the module's own output. Its parameters serve every step, and training runs the recursion (FastMTP,
arXiv 2509.18362; GLM-5): DeepSeek's depth-k modules each keep keys of their own, here all steps share those of step 0
(`Chain`). Embedding and head are the target's.

The layer attends plainly and has one dense feed-forward, also where the target's have CCA and experts.
"""

import jax
import jax.numpy as jnp

from zaya_jax.architecture.drafters.chain import Chain
from zaya_jax.architecture.drafters.parts import DraftAttention, feed_forward, linear, norm
from zaya_jax.architecture.features import Features

Array = jax.Array


class MTP(Chain):
    """See the module's docstring, and `Chain`."""

    def setup(self) -> None:
        cfg = self.config
        self.enorm, self.hnorm, self.eh_proj = norm(cfg), norm(cfg), linear(cfg, cfg.hidden_size)
        self.input_layernorm, self.self_attn = norm(cfg), DraftAttention(cfg)
        self.post_attention_layernorm, self.mlp = norm(cfg), feed_forward(cfg)
        self.norm = norm(cfg)

    def start(self, features: Features) -> Array:
        return features.hidden.astype(self.config.stream_dtype)

    def enter(self, embedded: Array, hidden: Array) -> tuple[Array, Array]:
        x = self.eh_proj(jnp.concatenate([self.enorm(embedded), self.hnorm(hidden)], axis=-1))
        x = x.astype(self.config.stream_dtype)
        return x, self.input_layernorm(x)

    def leave(self, x: Array) -> Array:
        return x + self.mlp(self.post_attention_layernorm(x), x.shape[1]).astype(x.dtype)
