"""Commands: `python -m experiments` lists them. They run from a clone; only zaya_jax is installed."""

from zaya_jax import moved

moved.install(__name__, moved.COMMANDS)
