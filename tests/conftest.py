"""Test-wide settings."""

import os

# Two CPU devices, so that data parallelism is tested; before anything starts JAX.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"

import jax
import pytest
from hypothesis import settings

settings.register_profile("zaya", deadline=None, max_examples=15, derandomize=True)
settings.load_profile("zaya")


@pytest.fixture
def x64():
    """float64 for theorems about exact arithmetic."""
    with jax.enable_x64(True):
        yield
