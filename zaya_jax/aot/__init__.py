"""Compiling ahead of time for GPUs that are not here, and what a compiled program is made of.

Imports costs, sampling, training and what is below them.
"""
