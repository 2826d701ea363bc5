"""The ways of decoding a block: each is one jitted step behind one interface (base).

Imports zaya_jax.architecture and sampling.core.
"""
