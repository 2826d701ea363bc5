"""The ZAYA1 model and the Layout it reads. Imports no other package.

Shapes, here and everywhere (docs/glossary.md#shapes): B batch, T row, S keys, L layers, M hidden size, H heads, K key
heads, G heads a key head, D head size, E experts, F expert width, V vocabulary, N draft blocks.
"""

from zaya_jax.architecture.cache import Cache, init_cache
from zaya_jax.architecture.config import PRESETS, ZayaConfig, preset
from zaya_jax.architecture.execution import Execution
from zaya_jax.architecture.layout import CONTEXT, MASK, PADDING, START, Layout, visible
from zaya_jax.architecture.model import Zaya, ZayaOutput

__all__ = [
    "CONTEXT", "MASK", "PADDING", "PRESETS", "START", "Cache", "Execution", "Layout", "Zaya", "ZayaConfig",
    "ZayaOutput", "init_cache", "preset", "visible",
]  # fmt: skip
