"""Reinforcement learning on a model's own rollouts: advantages, the policy's objective, batches made of rollouts.

Imports evaluation, sampling, training, tasks and what is below them.
"""
