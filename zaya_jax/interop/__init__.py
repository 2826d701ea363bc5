"""Hugging Face checkpoints in and out. Needs safetensors, not torch and not transformers."""

from zaya_jax.interop.families.table import abstract_tensors, config_from_huggingface, config_to_huggingface
from zaya_jax.interop.formats.huggingface import load_huggingface, save_huggingface

__all__ = [
    "abstract_tensors", "config_from_huggingface", "config_to_huggingface", "load_huggingface", "save_huggingface",
]  # fmt: skip
