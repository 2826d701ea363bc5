"""How the tests have XLA compile: cheaply, since their programs are compiled once and run for milliseconds."""

from importlib import metadata


def _cheaply() -> str:
    flags = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    flags += " --xla_cpu_parallel_codegen_split_count=1"  # a worker has one processor to compile with
    if metadata.version("jaxlib").startswith("0.10."):  # Python 3.11's; later ones end at a flag that they do not know
        # Fused operations by the plain emitter of LLVM's code: a third of the compiling that MLIR's take at any level.
        flags += " --xla_cpu_use_fusion_emitters=false"
    return flags


CHEAPLY = _cheaply()
