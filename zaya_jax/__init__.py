"""zaya_jax: ZAYA1 in JAX, turned into a block-diffusion model that drafts and verifies in one forward pass.

The rooms, from the top: evaluation, analysis, sampling, training, data, interop, parallel, architecture. A room imports
only from rooms below it.
"""

from zaya_jax.architecture import Layout, Zaya, ZayaConfig, preset
from zaya_jax.interop.pretrained import load_pretrained
from zaya_jax.sampling import Generation, SamplerConfig, generate

__version__ = "0.1.0"
__all__ = ["Generation", "Layout", "SamplerConfig", "Zaya", "ZayaConfig", "generate", "load_pretrained", "preset"]
