"""The mathematics of speculative sampling: distributions, targets, keyed random streams.

Imports no model, only zaya_jax.errors and plain values.
"""
