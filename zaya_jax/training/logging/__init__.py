"""Where a run's numbers go: metrics.jsonl, TensorBoard, wandb, profiler traces.

Imports zaya_jax.files and zaya_jax.errors.
"""
