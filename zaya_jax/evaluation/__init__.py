"""Measuring: likelihood, task accuracy under each sampler, and what a forward costs."""
