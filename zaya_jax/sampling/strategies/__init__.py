"""The ways of decoding a block: each is one jitted step after one interface (base).

Imports zaya_jax.architecture and sampling.core.
"""
