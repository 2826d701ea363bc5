"""Test-wide settings."""

import gc
import os
from pathlib import Path

from tests import cpu_budget, xla
from tests.forks import keep_imports

# Before anything starts JAX: two CPU devices, so that data parallelism is tested; and cheap compilation. (Speed is
# measured by experiments.bench, never here.)
FLAGS = f"--xla_force_host_platform_device_count=2 {xla.CHEAPLY}"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}".strip()

import jax
import pytest
from hypothesis import settings
from xdist.scheduler import LoadFileScheduling

from zaya_jax import compilation_cache

# Programs are compiled once for all workers, for all commands that tests start, and for the next time. Workers inherit
# the controller's folder.
CACHE = compilation_cache.CHOSEN_BY_USER
if CACHE not in os.environ:
    compilation_cache.start(None, default=compilation_cache.user_folder().with_name("tests"))
    if jax.config.jax_compilation_cache_dir:
        os.environ[CACHE] = jax.config.jax_compilation_cache_dir
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

SHARE_A_SAMPLER = {
    f"test_{name}" for name in ("generate", "turns", "temperatures", "stopping", "drafting", "anchors", "continuous")
}

xla.lower_in_place()

settings.register_profile("zaya", deadline=None, max_examples=15, derandomize=True)
settings.load_profile("zaya")


def pytest_addoption(parser):
    parser.addoption("--cpu-budget", type=float, metavar="SECONDS", help="fail above so many CPU seconds of all tests")


def pytest_configure(config):
    cpu_budget.register(config)


def pytest_collection_modifyitems(items):
    """Files that take long first: workers take whole files (setup.cfg), and what starts last ends last."""
    early = {item.path for item in items if item.get_closest_marker("early")}
    items.sort(key=lambda item: item.path not in early)


def pytest_collection_finish():
    """Tracing makes many objects and little garbage; looking for it at the usual pace takes a seventh of all time."""
    keep_imports()


def pytest_sessionfinish():
    """Nothing that is left is garbage that anybody asks about; pytest would look through all of it several times."""
    gc.freeze()


class Scopes(LoadFileScheduling):
    """A worker takes whole files (setup.cfg), and all of those that sample one small model: they share its programs."""

    def _split_scope(self, nodeid: str) -> str:
        path = super()._split_scope(nodeid)
        return "tests/sampling" if Path(path).stem in SHARE_A_SAMPLER else path


def pytest_xdist_make_scheduler(config, log):
    return Scopes(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.fixture(scope="module", autouse=True)
def free_programs():
    """Drops compiled programs where there are many: thousands of them in one process take its memory, then its memory
    maps, and XLA crashes. Fewer stay, for modules that need the same.
    """
    yield
    if is_full():
        jax.clear_caches()
        gc.collect()


def is_full() -> bool:
    """Whether this process has taken much of its memory or of its memory maps; True where nothing tells."""
    process = Path("/proc/self")
    if not (process / "maps").exists():
        return True
    resident = int((process / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return resident > 2 << 30 or (process / "maps").read_bytes().count(b"\n") > 20_000  # of 65,530 on Linux


@pytest.fixture
def x64():
    """float64 for theorems about exact arithmetic."""
    with jax.enable_x64(True):
        yield
