"""Devices and processes, and how a model and its batches are laid over them.

Models know nothing of this. Imports architecture, for the logical axes and sizes that it lays out.
"""

from zaya_jax.parallel.devices import is_first, start_processes, use_cpu_devices, wait_for_all
from zaya_jax.parallel.placement import MeshConfig, Placement, make_placement
from zaya_jax.parallel.together import ending_together, is_ending

__all__ = [
    "MeshConfig", "Placement", "ending_together", "is_ending", "is_first", "make_placement", "start_processes",
    "use_cpu_devices", "wait_for_all",
]  # fmt: skip
