"""How the tests have XLA compile: cheaply, since their programs are compiled once and run for milliseconds."""

import functools
from importlib import metadata


def _cheaply() -> str:
    flags = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    flags += " --xla_cpu_parallel_codegen_split_count=1"  # a worker has one processor to compile with
    if metadata.version("jaxlib").startswith("0.10."):  # Python 3.11's; later ones end at a flag that they do not know
        # Fused operations by the plain emitter of LLVM's code: a third of the compiling that MLIR's take at any level.
        flags += " --xla_cpu_use_fusion_emitters=false"
    return flags


CHEAPLY = _cheaply()


def lower_in_place() -> None:
    """Has JAX write each operation where it stands, not as a function of its own that is inlined next: the same text,
    for three quarters of the time. What is lowered for several platforms at once is lowered as it is for users, and so
    is everything by a version of JAX that has no such set.
    """
    from jax._src.interpreters import mlir

    by_itself, lower = getattr(mlir, "_uncacheable_primitives", None), getattr(mlir, "lower_jaxpr_to_module", None)
    if not isinstance(by_itself, set) or lower is None:
        return

    @functools.wraps(lower)
    def lowered(*args, **named):
        added = set()
        if len(named.get("platforms", ())) == 1:
            added = {each for each, rule in mlir._lowerings.items() if getattr(rule, "inline", False)} - by_itself
        by_itself.update(added)
        try:
            return lower(*args, **named)
        finally:
            by_itself.difference_update(added)

    mlir.lower_jaxpr_to_module = lowered
