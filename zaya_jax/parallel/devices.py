"""Devices and processes: how many there are, and starting them. Call these before anything else touches JAX."""

import os
import socket
import time

import jax
from jax.experimental import multihost_utils

from zaya_jax.checks import Integer, check
from zaya_jax.errors import UserError
from zaya_jax.paths import one_line

CPU_DEVICES = Integer(1, 4096)
PORT = Integer(1, 65_535)
PATIENCE = 300.0  # seconds that process 0 has to start, as JAX itself waits for processes
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
    if not host or not (port.isdecimal() and PORT.allows(int(port))):
        raise UserError(f"--coordinator: got {coordinator!r}, may be HOST:PORT of process 0, or auto")
    if processes is None or process is None or not 0 <= process < processes:
        raise UserError(f"--process: got {process!r} of {processes!r} (--processes), may be 0 .. processes - 1")
    if process:
        _wait_for(coordinator, host.strip("[]"), int(port))
    jax.distributed.initialize(coordinator, processes, process)


def _wait_for(coordinator: str, host: str, port: int) -> None:
    """Returns when process 0 answers. JAX, if nobody does, aborts the process with a listing of its own functions."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            socket.create_connection((host, port), timeout=5).close()
            return
        except OSError as error:  # a host may get its name while it starts, too
            if time.monotonic() > end:
                got = f"got {coordinator!r}, where nobody answers ({one_line(error)})"
                raise UserError(f"--coordinator: {got}, may be HOST:PORT of process 0, running") from None
        time.sleep(0.2)


def is_first() -> bool:
    """Whether this process writes files: metrics, results, configurations."""
    return jax.process_index() == 0


def wait_for_all(what: str) -> None:
    """Returns when every process of the run has come here; at once in a run of one."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)
