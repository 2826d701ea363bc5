"""The device that a benchmark's numbers are for: measured on it, or not printed at all."""

import jax
from absl import flags

from zaya_jax.costs.roofline import HARDWARE, hardware_name
from zaya_jax.errors import UserError

PLATFORMS = ("cpu", "cuda", "rocm")
_DEVICE = flags.DEFINE_string(
    "device", None, f"The device that must be there, or nothing is measured: {', '.join((*PLATFORMS, *HARDWARE))}. "
    "Default: whatever JAX finds; results name it.",
)  # fmt: skip


def check() -> None:
    """Raises UserError unless JAX computes on what --device asks for; call it before anything is measured."""
    asked = _DEVICE.value
    if asked is None:
        return
    if asked not in (*PLATFORMS, *HARDWARE):
        raise UserError(f"--device: got {asked!r}, may be one of {(*PLATFORMS, *HARDWARE)}")
    try:
        device = jax.devices()[0]
    except RuntimeError as error:  # JAX_PLATFORMS names what is not installed
        raise UserError(f"--device: got {asked!r}, but JAX finds no device: {str(error).splitlines()[0]}") from None
    names = (platform(device), hardware_name(device.device_kind))
    if asked not in names:
        raise UserError(
            f"--device: got {asked!r}, but JAX computes on {names[0]} ({device.device_kind}); nothing is measured"
        )


def platform(device: jax.Device) -> str:
    """ "cpu", "cuda", "rocm" or another of JAX's platforms; a GPU's maker is in its client's version."""
    if device.platform != "gpu":
        return device.platform
    return "rocm" if "rocm" in device.client.platform_version.lower() else "cuda"
