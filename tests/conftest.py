"""Test-wide settings."""

import gc
import os
import shutil
import tempfile

# Before anything starts JAX: two CPU devices, so that data parallelism is tested; and cheap compilation, since these
# programs are compiled once and run for milliseconds. (Speed is measured by experiments.bench, never here.)
FLAGS = "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}".strip()

# Programs are compiled once for all workers and all doors that tests start. Workers inherit the controller's folder.
CACHE = "JAX_COMPILATION_CACHE_DIR"
OWN_CACHE = None if CACHE in os.environ else tempfile.mkdtemp(prefix="zaya_jax_tests_")
if OWN_CACHE is not None:
    os.environ[CACHE] = OWN_CACHE

import jax
import pytest
from hypothesis import settings

settings.register_profile("zaya", deadline=None, max_examples=15, derandomize=True)
settings.load_profile("zaya")


@pytest.fixture(scope="module", autouse=True)
def free_programs():
    """Drops a module's compiled programs: thousands of them in one process exhaust its memory maps, and XLA crashes."""
    yield
    jax.clear_caches()
    gc.collect()


def pytest_unconfigure():
    if OWN_CACHE is not None:
        shutil.rmtree(OWN_CACHE, ignore_errors=True)


@pytest.fixture
def x64():
    """float64 for theorems about exact arithmetic."""
    with jax.enable_x64(True):
        yield
