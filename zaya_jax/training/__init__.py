"""Training: objectives, gradients, optimizers, router balancing, the loop, checkpoints, bad steps.

Imports architecture, parallel and, for reading checkpoints, interop.
"""
