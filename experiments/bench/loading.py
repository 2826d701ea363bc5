"""How much memory it takes to load a Hugging Face folder, on one device and straight onto a mesh.

    python -m experiments.bench.loading --folder=/tmp/load --layers=2
    python -m experiments.bench.loading --folder=/tmp/load --numbers=results/bench/loading.json

Makes a folder of random bfloat16 values of ZAYA1-8B's shapes (with fewer layers by choice), and loads it in processes
of their own: with one CPU device, and onto 8 that share out experts and the width (experts 4, fsdp 2). On a CPU the
devices' memory is the host's, so the peak of all resident pages (VmHWM), less what the process had before, is compared
with the bytes that the devices then hold: the goal is at most 2 GiB more.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from absl import flags

from experiments.bench.convert import GIB, make_folder
from zaya_jax.architecture import preset
from zaya_jax.command_line import cli
from zaya_jax.command_line.models import scratch_folder
from zaya_jax.errors import UserError
from zaya_jax.runs.provenance import describe, hardware

_FOLDER = flags.DEFINE_string("folder", None, "Scratch folder; must not exist. It is deleted in the end.")
_LAYERS = flags.DEFINE_integer(
    "layers", 40, "How many of the 8B's layers; all of them need 24 GiB.", lower_bound=1, upper_bound=10_000
)
_NUMBERS = flags.DEFINE_string("numbers", None, "JSON file for the numbers.")
DEVICES = (1, 8)

LOAD = """
import json, re, sys, time
import jax
from zaya_jax import load_pretrained
from zaya_jax.interop.formats.folder import Folder
from zaya_jax.parallel import MeshConfig, make_placement, use_cpu_devices
def memory(name):
    return int(re.search(name + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1]) << 10
use_cpu_devices(int(sys.argv[2]))
from pathlib import Path
config = Folder(Path(sys.argv[1])).config
placement = make_placement(MeshConfig(expert=4, fsdp=2), config, 16, 64) if int(sys.argv[2]) > 1 else None
jax.block_until_ready(jax.numpy.zeros(1) + 1)
before, began = memory("VmRSS"), time.perf_counter()
_, variables = load_pretrained(sys.argv[1], placement)
jax.block_until_ready(variables)
size = sum(x.nbytes for x in jax.tree.leaves(variables))
held = sum(shard.data.nbytes for x in jax.tree.leaves(variables) for shard in x.addressable_shards)
print(json.dumps({"before": before, "peak": memory("VmHWM"), "bytes": size, "held": held,
                  "seconds": time.perf_counter() - began}))
"""


def main() -> None:
    folder = scratch_folder(_FOLDER.value)
    cli.check_output(_NUMBERS.value)
    config = preset("zaya1_8b", num_hidden_layers=_LAYERS.value)
    try:
        began = time.perf_counter()
        size = make_folder(folder, config)
        print(f"made {size / 1e9:.2f} GB in {time.perf_counter() - began:.0f} s", flush=True)
        numbers = {"hardware": hardware(), "environment": describe(), "layers": _LAYERS.value, "loads": []}
        for devices in DEVICES:
            numbers["loads"].append(measure(folder, devices))
            cli.write_numbers(_NUMBERS.value, numbers)  # the next may not fit
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def measure(folder: Path, devices: int) -> dict[str, Any]:
    """Loads in a process of its own; GiB."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", LOAD, str(folder), str(devices)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if result.returncode:
        raise UserError(f"loading on {devices} devices failed: {result.stderr.strip().splitlines()[-1]}")
    found = json.loads(re.findall(r"^\{.*\}$", result.stdout, re.MULTILINE)[-1])
    row = {
        "devices": devices,
        "weights_gib": round(found["bytes"] / GIB, 3),
        "held_by_devices_gib": round(found["held"] / GIB, 3),  # more than the weights where some are on every device
        "peak_over_start_gib": round((found["peak"] - found["before"]) / GIB, 3),
        "beyond_held_gib": round((found["peak"] - found["before"] - found["held"]) / GIB, 3),
        "seconds": round(found["seconds"], 1),
    }
    print(row, flush=True)
    return row


if __name__ == "__main__":
    cli.run(main)
