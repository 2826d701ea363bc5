"""Adapters (`ZayaConfig.lora_rank`) or a drafter onto a model that has none; adapters into its weights for good."""

from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import traverse_util

from zaya_jax.architecture import Layout, Zaya, ZayaConfig
from zaya_jax.architecture.config import NO_MASK
from zaya_jax.errors import UserError
from zaya_jax.interop.formats.names import Path

Array = jax.Array
PATTERN = "*lora*"  # of the paths of all adapters' parameters, and of no others


def is_adapter(path: Path) -> bool:
    """Whether a variable belongs to an adapter."""
    return any("lora" in part for part in path)


def fresh_adapters(config: ZayaConfig, seed: int) -> dict[Path, Array]:
    """Adapters as training begins with them, by path: they add nothing yet. {} without a rank."""
    return _fresh(config, seed, is_adapter) if config.lora_rank else {}


def is_drafter(path: Path) -> bool:
    """Whether a variable belongs to the drafter beside a model (`ZayaConfig.drafter`)."""
    return path[0] == "params" and path[1].startswith("drafter")


def fresh_drafter(config: ZayaConfig, seed: int) -> dict[Path, Array]:
    """A drafter's parameters as training begins with them, by path. {} without one."""
    return _fresh(config, seed, is_drafter) if config.drafter is not None else {}


def _fresh(config: ZayaConfig, seed: int, wanted: Callable[[Path], bool]) -> dict[Path, Array]:
    def some(key: Array) -> dict[Path, Array]:
        variables = Zaya(config).init(key, Layout.causal(jnp.zeros((1, 2), jnp.int32)))
        flat = cast(dict[Path, Array], traverse_util.flatten_dict(variables))
        return {path: leaf for path, leaf in flat.items() if wanted(path)}

    return jax.jit(some)(jax.random.key(seed))


def merge_adapters(config: ZayaConfig, variables: Mapping[str, Any]) -> tuple[ZayaConfig, dict[str, Any]]:
    """The same model without adapters: what they add is added to the weights, in float32 or wider.

    Equal up to rounding, the weights' own dtype included.

    Raises:
      UserError: adapters that act on mask tokens alone, which no plain weights can do.
    """
    if not config.lora_rank:
        return config, dict(variables)
    if config.lora_rows != "all":
        raise UserError(f"ZayaConfig.lora_rows: got {config.lora_rows!r}, may be 'all' where adapters are merged")
    flat = cast(dict[Path, Array], traverse_util.flatten_dict(variables))
    merged = {path: leaf for path, leaf in flat.items() if not is_adapter(path)}
    for path, a in flat.items():
        if not is_adapter(path) or path[-1] != "a":
            continue
        a, b = (_wide(x) for x in (a, flat[(*path[:-1], "b")]))
        # a Linear has its own; the feed-forward's stand beside its weights: gate_up_lora, down_lora
        target = (*path[:-2], "kernel" if path[-2] == "lora" else path[-2].replace("lora", "proj"))
        kernel = merged[target]
        merged[target] = (_wide(kernel) + config.lora_alpha / config.lora_rank * (a @ b)).astype(kernel.dtype)
    if config.mask_token_id != NO_MASK:
        path = ("params", "embed_tokens")
        row = _wide(merged[path][config.mask_token_id]) + _wide(flat["params", "mask_lora"])
        merged[path] = jnp.asarray(merged[path]).at[config.mask_token_id].set(row.astype(merged[path].dtype))
    return config.replace(lora_rank=0), traverse_util.unflatten_dict(merged)


def _wide(x: Array) -> Array:
    return jnp.asarray(x).astype(jnp.promote_types(x.dtype, jnp.float32))
