"""Measuring: likelihood, task accuracy under each sampler, and what a forward costs.

Imports reporting, sampling, training, tasks and what is below them.
"""
