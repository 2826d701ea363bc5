"""ZAYA1's router and mixture of experts, and one dense feed-forward in their place.

docs/architecture.md#forward-pass describes them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from zaya_jax.architecture.config import ZayaConfig
from zaya_jax.architecture.execution import Execution
from zaya_jax.architecture.layers import ARRANGED, Linear, LowRank, RMSNorm, adapt
from zaya_jax.architecture.layout import PADDING, Layout
from zaya_jax.architecture.moe.across import EXCHANGES
from zaya_jax.architecture.moe.experts import dispatch, dispatch_cached, gated, of_own_arrays, swiglu
from zaya_jax.architecture.parameters import parameter
from zaya_jax.architecture.precision import on_rows, product, rounded_once
from zaya_jax.architecture.sharding import Shards

Array = jax.Array
BALANCING = "balancing"  # the variable collection of the balancing biases: state, not parameters


class Router(nn.Module):
    """Top-1 choice over experts + skip, from a state that is carried along depth (never along the text)."""

    config: ZayaConfig

    @nn.compact
    def __call__(self, x: Array, state: Array, state_scale: Array | None) -> tuple[Array, Array, Array]:
        """x [token, M], the previous layer's state [token, state_size] -> (probability, choice, new state).

        The state keeps its gradient across layers. The balancing biases choose and never weigh: the weight is the
        chosen class's softmax probability over all classes, not renormalised.
        """
        cfg = self.config
        classes, width = cfg.router_classes, cfg.router_hidden_size

        def linear(name: str, features: int, use_bias: bool, wide: bool = False) -> Linear:
            dtypes = jnp.dtype(cfg.dtype), jnp.dtype(cfg.param_dtype)
            return Linear(features, use_bias, cfg.initializer_range, *dtypes, wide=wide, name=name)

        h = linear("down_proj", width, True)(x)
        if state_scale is not None:
            state = h = rounded_once(lambda h, state, scale: h + state * scale, h, state, state_scale.astype(h.dtype))
        h = RMSNorm(cfg.rms_norm_eps, jnp.dtype(cfg.dtype), jnp.dtype(cfg.param_dtype), name="norm")(h)
        h = rounded_once(_gelu, linear("fc1", width, True)(h))
        h = rounded_once(_gelu, linear("fc2", width, True)(h))
        logits = linear("out_proj", classes, False, wide=True)(h)  # [token, E + 1]
        probability = jax.nn.softmax(logits.astype(cfg.stream_dtype), axis=-1)
        biases = self.variable(BALANCING, "biases", init_balancing_biases, classes)
        choice = jnp.argmax(jax.lax.stop_gradient(probability) + biases.value, axis=-1).astype(jnp.int32)
        return jnp.take_along_axis(probability, choice[:, None], axis=1)[:, 0], choice, state


def _gelu(x: Array) -> Array:
    return jax.nn.gelu(x, approximate=False)


class ExpertStack(NamedTuple):
    """The same experts as `MixtureOfExperts` holds, but read in place out of all layers' weights (`sequential`)."""

    gate_up: Array  # [L, E, M, 2 * F]
    down: Array  # [L, E, F, M]
    layer: Array  # int32 []


class MixtureOfExperts(nn.Module):
    """Router, experts and the skip expert."""

    config: ZayaConfig
    execution: Execution = Execution()
    shards: Shards = Shards()

    @nn.compact
    def __call__(
        self, x: Array, layout: Layout, state: Array, state_scale: Array | None, stack: "ExpertStack | None" = None
    ) -> tuple[Array, Array, Array]:
        """x [B, T, M], state [B, T, state_size] -> (output, new state, load int32 [2, E + 1]).

        With a `stack` (a forward with a cache) nothing can be differentiated with respect to it in reverse.
        """
        cfg = self.config
        shape = x.shape
        x = x.reshape(-1, shape[-1])  # [token, M]
        probability, choice, state = Router(cfg, name="gate")(x, state.reshape(x.shape[0], cfg.state_size), state_scale)

        def weights(name: str, *shape: int) -> Array:
            init = nn.initializers.normal(cfg.initializer_range)
            return parameter(self, name, init, shape, jnp.dtype(cfg.param_dtype)).astype(cfg.dtype)

        hidden, inner, axis = shape[-1], cfg.moe_intermediate_size, self.shards.names("expert")
        held = cfg.num_experts // (jax.lax.axis_size(axis) if axis else 1)
        if self.has_variable(ARRANGED, "experts"):
            out = of_own_arrays(x, choice, *self._own_arrays())
        else:
            gate_up = weights("gate_up_proj", held, hidden, 2 * inner)
            down = weights("down_proj", held, inner, hidden)
            if axis:
                out = EXCHANGES[self.shards.exchange](axis, x, choice, gate_up, down)
            elif stack is not None and self.execution.expert_backend == "auto":
                out = dispatch_cached(x, choice, *stack)
            else:
                out = dispatch(self.execution.expert_backend, x, choice, gate_up, down)
        if cfg.skip_expert == "identity":
            out = jnp.where((choice == cfg.num_experts)[:, None], x, out)
        out = rounded_once(jnp.multiply, out, probability[:, None])
        state = state.reshape(*shape[:2], cfg.state_size)
        return out.reshape(shape), state, expert_load(choice.reshape(shape[:2]), layout, cfg)

    def _own_arrays(self) -> tuple[list[Array], list[Array]]:
        """Each expert's gate_up [M, 2 * F] and down [F, M] (`architecture.separate`)."""
        experts = self.get_variable(ARRANGED, "experts")
        each = [experts[str(e)] for e in range(self.config.num_experts)]
        return [expert["gate_up"] for expert in each], [expert["down"] for expert in each]


class FeedForward(nn.Module):
    """One SwiGLU that every token goes through: an expert's size, so a token costs what it costs with experts.

    gate_up_proj is [gate | up], [M, 2 * F].
    """

    config: ZayaConfig

    @nn.compact
    def __call__(self, x: Array, clean_size: int) -> Array:
        """x [B, T, M] -> the same shape; the row's first `clean_size` slots are clean."""
        cfg = self.config
        hidden, inner = x.shape[-1], cfg.moe_intermediate_size
        normal = nn.initializers.normal(cfg.initializer_range)

        def weights(name: str, init, *shape: int) -> Array:
            return parameter(self, name, init, shape, jnp.dtype(cfg.param_dtype)).astype(cfg.dtype)

        gate_up = weights("gate_up_proj", normal, hidden, 2 * inner)
        by_row = self.has_variable(ARRANGED, "down")  # [M, F]: `architecture.separate`
        if by_row:
            down = self.get_variable(ARRANGED, "down").astype(cfg.dtype)
        else:
            down = weights("down_proj", normal, inner, hidden)
        if not (cfg.mlp_bias or cfg.lora_rank or by_row):
            return swiglu(x, gate_up, down)

        def finished(name: str, x: Array, y: Array) -> Array:
            """y, the product of x, with what else the projection adds to it; rounded."""
            if cfg.mlp_bias:
                y += weights(f"{name}_bias", nn.initializers.zeros, y.shape[-1])
            if cfg.lora_rank:
                low_rank = LowRank(cfg, y.shape[-1], name=f"{name}_lora")
                y = adapt(y, x, low_rank, cfg.adapted_from(clean_size))
            return y.astype(x.dtype)

        mixed = gated(finished("gate_up", x, product("@", x, gate_up)))
        return finished("down", mixed, on_rows(mixed, down) if by_row else product("@", mixed, down))


def init_balancing_biases(classes: int) -> Array:
    """0 for experts, -1 for skip: p_skip - 1 <= 0, so skip loses as soon as any expert's bias is positive."""
    return jnp.zeros((classes,), jnp.float32).at[-1].set(-1.0)


def expert_load(choice: Array, layout: Layout, config: ZayaConfig) -> Array:
    """How many tokens chose each class, int32 [2, E + 1]: context tokens, then mask tokens; padding counts nowhere.

    Separately, because all mask tokens share one embedding and would hide or be hidden by the clean tokens' balance.
    """
    classes = jnp.arange(config.router_classes, dtype=choice.dtype)
    real = layout.document != PADDING
    kinds = jnp.stack([real & (layout.block == 0), real & (layout.block != 0)])
    return jnp.einsum("kbn,bnc->kc", kinds.astype(jnp.int32), (choice[..., None] == classes).astype(jnp.int32))
