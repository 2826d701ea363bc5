"""Text to tokens and back: tokenizers, chat templates, text as its tokens come in.

Imports zaya_jax.files and zaya_jax.errors; no JAX.
"""
