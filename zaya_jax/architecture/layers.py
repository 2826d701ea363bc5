"""Small layers shared by the model's parts: projection, RMS norm, residual scaling, rotation."""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from zaya_jax.architecture.config import ZayaConfig
from zaya_jax.architecture.parameters import parameter
from zaya_jax.architecture.precision import matmul, product, wide_dtype

Array = jax.Array
ARRANGED = "arranged"  # the collection of weights that lie otherwise than in "params" (`architecture.separate`)


class LowRank(nn.Module):
    """x @ a @ b, scaled (LoRA, arXiv 2106.09685): a [in, rank] random, b [rank, out] zero, so nothing to begin with."""

    config: ZayaConfig
    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x [..., in] -> [..., features], in at least float32: it is added to something before anything is rounded."""
        cfg, width = self.config, x.shape[-1]
        a = parameter(
            self, "a", nn.initializers.normal(width**-0.5), (width, cfg.lora_rank), jnp.dtype(cfg.param_dtype)
        )
        b = parameter(self, "b", nn.initializers.zeros, (cfg.lora_rank, self.features), jnp.dtype(cfg.param_dtype))
        low = x.astype(cfg.dtype) @ a.astype(cfg.dtype)
        return product("@", low, b.astype(cfg.dtype)) * (cfg.lora_alpha / cfg.lora_rank)


def adapt(y: Array, x: Array, low_rank: LowRank, first: int) -> Array:
    """y [B, T, out] + low_rank(x [B, T, in]) from slot `first` on; slots before it are y's, untouched."""
    if not first:
        return y + low_rank(x)
    return jnp.concatenate([y[:, :first], y[:, first:] + low_rank(x[:, first:])], axis=1)


class Linear(nn.Module):
    """x @ kernel (+ bias): kernel [in, out], the transpose of torch's weight.

    In `dtype`, rounded once; with `wide` in at least float32, not rounded: for logits.
    """

    features: int
    use_bias: bool
    stddev: float
    dtype: jnp.dtype
    param_dtype: jnp.dtype
    adapted: ZayaConfig | None = None  # the model, if it has adapters
    wide: bool = False

    @nn.compact
    def parts(self, width: int, kernel: bool = True) -> tuple[Array | None, Array | None, LowRank | None]:
        """(kernel [width, features] in `dtype`, bias [features] if there is one, adapter if there is one).

        Without `kernel` it is not looked up: it stands elsewhere, or is not needed.
        """
        weight = bias = low_rank = None
        if kernel:
            shape = (width, self.features)
            weight = parameter(self, "kernel", nn.initializers.normal(self.stddev), shape, self.param_dtype)
            weight = weight.astype(self.dtype)
        if self.use_bias:
            bias = parameter(self, "bias", nn.initializers.zeros, (self.features,), self.param_dtype).astype(self.dtype)
        if self.adapted is not None:
            low_rank = LowRank(self.adapted, self.features, name="lora")
        return weight, bias, low_rank

    def __call__(self, x: Array, first: int = 0) -> Array:
        """x [..., in]; with an adapter [B, T, in], which acts from slot `first` on."""
        return project(x, [self], first)[0]

    def of_zero(self, x: Array) -> Array:
        """What zeros of the shape of x [..., in] give: the bias [..., features], or zeros."""
        _, bias, _ = self.parts(x.shape[-1], kernel=False)
        zeros = jnp.zeros((*x.shape[:-1], self.features), self.dtype)
        return zeros if bias is None else zeros + bias


def project(x: Array, linears: Sequence[Linear], first: int = 0, joined: Array | None = None) -> list[Array]:
    """Each of `linears` on x as `Linear.__call__` has it, all as one product of matrices.

    They share a dtype and `wide`, and have a bias all or none.

    Args:
      joined: their kernels side by side, [in, sum of features], where they are kept so (`architecture.separate`).
    """
    parts = (linear.parts(x.shape[-1], kernel=joined is None) for linear in linears)
    kernels, biases, low_ranks = zip(*parts, strict=True)
    # As a matrix: with more axes XLA's CPU copies both factors of the weights' gradient into another order first.
    dtype, kept_wide, use_bias = linears[0].dtype, linears[0].wide, linears[0].use_bias
    kernel = jnp.concatenate(kernels, axis=1) if joined is None else joined.astype(dtype)
    rows = x.astype(dtype).reshape(-1, x.shape[-1])
    *ends, features = itertools.accumulate(linear.features for linear in linears)
    # a bias or an adapter is added before the sum is rounded, as torch's addmm does; alone, a product rounds by itself
    alone = not (kept_wide or use_bias or any(low_rank is not None for low_rank in low_ranks))
    y = (matmul(rows, kernel) if alone else product("@", rows, kernel)).reshape(*x.shape[:-1], features)
    if use_bias:
        y += jnp.concatenate(biases)
    each = zip(jnp.split(y, ends, axis=-1), low_ranks, strict=True)
    parts = [part if low_rank is None else adapt(part, x, low_rank, first) for part, low_rank in each]
    return parts if kept_wide else [part.astype(dtype) for part in parts]


class RMSNorm(nn.Module):
    """The plain weight (not 1 + w: docs/architecture.md#forward-pass) times x over its root mean square.

    In at least float32 and rounded to `dtype` once. transformers rounds x before the statistics and again before the
    weight; the stream that most norms read is float32, and needs neither.
    """

    eps: float
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        weight = parameter(self, "weight", nn.initializers.ones, (x.shape[-1],), self.param_dtype)
        wide = x.astype(wide_dtype(self.dtype))
        wide *= jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        return (wide * weight.astype(wide.dtype)).astype(self.dtype)


class ResidualScaling(nn.Module):
    """(branch + b1) * s1 + (stream + b2) * s2, bias first, in its dtype (docs/architecture.md#forward-pass)."""

    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, branch: Array, stream: Array) -> Array:
        def vector(name: str, init) -> Array:
            return parameter(self, name, init, (stream.shape[-1],), self.param_dtype).astype(stream.dtype)

        branch_scale = vector("hidden_states_scale", nn.initializers.ones)
        branch_bias = vector("hidden_states_bias", nn.initializers.zeros)
        stream_scale = vector("residual_scale", nn.initializers.ones)
        stream_bias = vector("residual_bias", nn.initializers.zeros)
        return (branch.astype(stream.dtype) + branch_bias) * branch_scale + (stream + stream_bias) * stream_scale


def inverse_frequencies(theta: float, rotary_dim: int) -> Array:
    """theta^(-2i / rotary_dim), float32 [rotary_dim // 2]."""
    return 1.0 / theta ** (jnp.arange(0, rotary_dim, 2, dtype=jnp.float32) / rotary_dim)


def scale_frequencies(frequencies: Array, config: ZayaConfig) -> Array:
    """Rotary frequencies (float32, radians a position) as `config.rope_scaling` has them.

    "llama3" goes from a frequency divided by rope_factor, where it turns rope_low_freq_factor times or less in
    rope_original_max_positions positions, linearly in turns to the frequency as it is, at rope_high_freq_factor.
    """
    if config.rope_scaling == "none":
        return frequencies
    if config.rope_scaling == "linear":
        return frequencies / config.rope_factor
    turns = config.rope_original_max_positions / (2 * jnp.pi / frequencies)
    low, high = config.rope_low_freq_factor, config.rope_high_freq_factor
    kept = jnp.clip((turns - low) / (high - low), 0, 1)
    return (1 - kept) * frequencies / config.rope_factor + kept * frequencies


def rotation(position: Array, frequencies: Array) -> tuple[Array, Array]:
    """Cosine and sine of position [...] times frequencies [rotary_dim // 2], float32 [..., rotary_dim // 2]."""
    angle = position.astype(jnp.float32)[..., None] * frequencies
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x: Array, angle: tuple[Array, Array]) -> Array:
    """Partial rotary embedding, half-split pairs (i, i + rotary_dim / 2), on the first channels of each head.

    Args:
      x: [B, T, H, D].
      angle: `rotation` of the positions [B, T].
    """
    half = angle[0].shape[-1]
    wide = x.astype(wide_dtype(x.dtype))
    cos, sin = (z[:, :, None].astype(wide.dtype) for z in angle)
    first, second, rest = wide[..., :half], wide[..., half : 2 * half], wide[..., 2 * half :]
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)
    return turned.astype(x.dtype)


def rotate_by_product(x: Array, angle: tuple[Array, Array]) -> Array:
    """`rotate`, with each pair's channels exchanged by a product with a signed permutation.

    On CPU that is faster than cutting and joining channels, which XLA does one by one, forward and backward.
    """
    half, dim = angle[0].shape[-1], x.shape[-1]
    exchange = np.zeros((dim, dim))
    pairs = np.arange(half)
    exchange[pairs + half, pairs], exchange[pairs, pairs + half] = -1, 1
    cos, sin = (jnp.concatenate([z, z], axis=-1) for z in angle)
    rest = jnp.zeros((*cos.shape[:-1], dim - 2 * half), cos.dtype)
    cos, sin = (jnp.concatenate(z, axis=-1)[:, :, None] for z in ((cos, rest + 1), (sin, rest)))
    wide = x.astype(wide_dtype(x.dtype))
    # every sum has one term, which no precision but the highest leaves as it is
    exchanged = jnp.matmul(wide.reshape(-1, dim), exchange.astype(wide.dtype), precision=jax.lax.Precision.HIGHEST)
    return (wide * cos.astype(wide.dtype) + exchanged.reshape(x.shape) * sin.astype(wide.dtype)).astype(x.dtype)
