"""GPUs that are not here: what XLA must know to compile for one, and devices to lower to.

A target's config is an XLA `GpuTargetConfig` in text form, written from the vendors' published numbers and, for what
they do not publish (limits of blocks and registers), from openxla/xla's own specs
(xla/backends/gpu/target_config/specs/{mi300,mi350,h100_sxm}.txtpb). Compiling for a target executes nothing: it shows
that a program compiles and what memory it takes, never how fast it is. Nothing is tuned either, for tuning measures.
"""

import dataclasses
import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path

import jax
from jax.experimental import topologies

from zaya_jax.aot import link_stubs

# No Triton where the compiler cannot tune its tiles: general matrix products become calls of hipBLASLt or cuBLAS (XLA's
# own would take tiles that nobody would choose, on gfx950 without matrix cores:
# docs/hardware.md#compiling-ahead-of-time), and a softmax over a long row becomes several kernels (as one it asks for
# more local memory than gfx942 has: at 32,768 keys jax 0.10.2 refuses it with "Shared memory size limit exceeded:
# requested 131072, available: 65536").
XLA_FLAGS = "--xla_gpu_enable_triton_gemm=false --xla_disable_hlo_passes=triton-softmax-rewriter"

AMD_GPUS = ("/sys/class/kfd/kfd/topology/nodes", "/dev/dxg")


@dataclasses.dataclass(frozen=True)
class Target:
    """A GPU model."""

    name: str
    architecture: str  # as the compiler names it
    memory: int  # bytes as published, in powers of ten: what a program may take
    platform: str  # JAX's: "rocm" or "cuda"
    plugin: str  # module of the PJRT plugin, and its library in it
    library: str
    packages: tuple[str, ...]  # on PyPI, of JAX's own version
    config: str  # GpuTargetConfig, text form


def _config(device: str, capability: str, **info: float | int) -> str:
    lines = "\n".join(f"  {key}: {value}" for key, value in info.items())
    platform = "ROCM" if "rocm" in capability else "CUDA"
    return (
        f'gpu_device_info {{\n{lines}\n  {capability}\n}}\nplatform_name: "{platform}"\ndnn_version_info {{ }}\n'
        f'device_description_str: "{device}"\n'
    )


_BLOCKS = dict(
    threads_per_block_limit=1024, threads_per_core_limit=2048, fpus_per_core=128, block_dim_limit_x=2**31 - 1
)
_AMD = dict(
    _BLOCKS, threads_per_warp=64, block_dim_limit_y=65536, block_dim_limit_z=65536, l2_cache_size=4 * 2**20,
    registers_per_core_limit=131_072, registers_per_block_limit=131_072,
)  # fmt: skip
_ROCM = dict(
    platform="rocm", plugin="jax_plugins.xla_rocm7", library="xla_rocm_plugin.so",
    packages=("jax-rocm7-plugin", "jax-rocm7-pjrt"),
)  # fmt: skip

TARGETS = {
    # 304 compute units, 64 KiB of LDS, 2.1 GHz; 192 GB HBM3 at 5.3 TB/s (AMD Instinct MI300X data sheet)
    "mi300x": Target(
        "MI300X", "gfx942", memory=192 * 10**9, **_ROCM,
        config=_config(
            "MI300X", 'rocm_compute_capability { gcn_arch_name: "gfx942:sramecc+:xnack-" }', **_AMD,
            shared_memory_per_block=65536, shared_memory_per_block_optin=65536, shared_memory_per_core=65536,
            core_count=304, clock_rate_ghz=2.1, memory_bandwidth=5_300 * 10**9, device_memory_size=192 * 10**9,
        ),
    ),
    # 256 compute units, 160 KiB of LDS, 2.4 GHz; 288 GB HBM3E at 8 TB/s (AMD Instinct MI355X data sheet)
    "mi355x": Target(
        "MI355X", "gfx950", memory=288 * 10**9, **_ROCM,
        config=_config(
            "MI355X", 'rocm_compute_capability { gcn_arch_name: "gfx950:sramecc+:xnack-" }', **_AMD,
            shared_memory_per_block=163840, shared_memory_per_block_optin=163840, shared_memory_per_core=163840,
            core_count=256, clock_rate_ghz=2.4, memory_bandwidth=8_000 * 10**9, device_memory_size=288 * 10**9,
        ),
    ),
    # 132 SMs, 228 KiB of shared memory, 1.98 GHz at most; 80 GB HBM3 at 3.35 TB/s (NVIDIA H100 SXM data sheet)
    "h100": Target(
        "H100 SXM", "sm_90", memory=80 * 10**9, platform="cuda", plugin="jax_plugins.xla_cuda12",
        library="xla_cuda_plugin.so", packages=("jax-cuda12-plugin", "jax-cuda12-pjrt"),
        config=_config(
            "H100", "cuda_compute_capability { major: 9 minor: 0 }", **_BLOCKS, threads_per_warp=32,
            block_dim_limit_y=65535, block_dim_limit_z=65535, l2_cache_size=50 * 2**20, registers_per_core_limit=65536,
            registers_per_block_limit=65536, shared_memory_per_block=49152, shared_memory_per_block_optin=232448,
            shared_memory_per_core=233472, core_count=132, clock_rate_ghz=1.98, memory_bandwidth=3_350 * 10**9,
            device_memory_size=80 * 10**9,
        ),
    ),
}  # fmt: skip


def plugin_library(target: Target) -> Path:
    """The target's PJRT plugin.

    Raises:
      FileNotFoundError: it is not installed; says how to get it.
    """
    try:
        spec = importlib.util.find_spec(target.plugin)
    except ModuleNotFoundError:
        spec = None
    for folder in (None if spec is None else spec.submodule_search_locations) or []:
        if (path := Path(folder) / target.library).is_file():
            return path
    packages = " ".join(f"{package}=={jax.__version__}" for package in target.packages)
    raise FileNotFoundError(f"{target.name}: its compiler is not installed, may be had by: pip install {packages}")


def environment(target: Target, cache: Path, inherited: Mapping[str, str]) -> dict[str, str]:
    """Environment variables of a process that may ask for `devices(target)`; the loader reads them at its start.

    Args:
      cache: where stand-ins for missing libraries are kept (`link_stubs`).
      inherited: the variables it gets otherwise.

    Raises:
      FileNotFoundError: no plugin, or no gcc to stand in for what it is linked to.
    """
    library = plugin_library(target)
    stubs = link_stubs.make(library, cache)
    paths = [str(stubs)] if stubs else []
    # NVIDIA's plugin makes itself known to JAX on any machine, AMD's only where the kernel knows of an AMD GPU.
    known = target.platform == "cuda" or any(Path(path).exists() for path in AMD_GPUS)
    return {
        **inherited,
        "LD_LIBRARY_PATH": os.pathsep.join([*paths, *filter(None, [inherited.get("LD_LIBRARY_PATH")])]),
        "PJRT_NAMES_AND_LIBRARY_PATHS": "" if known else f"{target.platform}:{library}",
        "JAX_PLATFORMS": "cpu",  # what a trace computes by the way, it computes here
        "XLA_FLAGS": f"{XLA_FLAGS} {inherited.get('XLA_FLAGS', '')}".strip(),  # the user's come last and win
    }


def devices(target: Target, count: int) -> list[jax.Device]:
    """`count` devices to lower to, in a process that has the target's `environment`."""
    shape = f"1x1x{count}"
    described = topologies.get_topology_desc(
        platform=target.platform, topology_name=shape, topology=shape, target_config=target.config
    )
    return list(described.devices)
