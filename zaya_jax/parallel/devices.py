"""Devices and processes: how many there are, and starting them. Call these before anything else touches JAX."""

import os

import jax
from jax.experimental import multihost_utils

from zaya_jax.checks import Integer, check
from zaya_jax.errors import UserError

CPU_DEVICES = Integer(1, 4096)
LAUNCHERS = ("SLURM_JOB_ID", "OMPI_MCA_orte_hnp_uri", "PMIX_RANK")  # what Slurm and Open MPI (4, 5) set


def use_cpu_devices(count: int) -> None:
    """Splits the CPU into `count` devices, which share its cores: for sharding on one machine, and for testing it.

    Raises:
      UserError: count outside of `CPU_DEVICES`.
      RuntimeError: JAX has already started (from JAX itself).
    """
    check("cpu_devices", count, CPU_DEVICES)
    jax.config.update("jax_num_cpu_devices", count)


def start_processes(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Joins the processes of one run: explicit addresses, or what Slurm or Open MPI says.

    Args:
      coordinator: "host:port" of process 0, or "auto" to ask the launcher (Slurm, Open MPI; `jax.distributed` knows
        them); None for a run of one process, which does nothing here.
      processes, process: how many, and which this is; with explicit addresses only.

    Raises:
      UserError: arguments that do not go together, or a launcher that is not there.
    """
    if coordinator is None:
        if processes is not None or process is not None:
            raise UserError("--coordinator: missing, may be HOST:PORT of process 0 beside --processes and --process")
        return
    # CPU processes need a library for their collectives; accelerators bring their own.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if coordinator == "auto":
        if not any(name in os.environ for name in LAUNCHERS):
            raise UserError("--coordinator: got 'auto' outside Slurm and Open MPI, may be HOST:PORT of process 0")
        jax.distributed.initialize()
        return
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"--coordinator: got {coordinator!r}, may be HOST:PORT of process 0, or auto")
    if processes is None or process is None or not 0 <= process < processes:
        raise UserError(f"--process: got {process!r} of {processes!r} (--processes), may be 0 .. processes - 1")
    jax.distributed.initialize(coordinator, processes, process)


def is_first() -> bool:
    """Whether this process writes files: metrics, results, configurations."""
    return jax.process_index() == 0


def wait_for_all(what: str) -> None:
    """Returns when every process of the run has come here; at once in a run of one."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)
