"""Reads a folder onto a mesh of 8 CPU devices: `python -m tests.parallel.loading FOLDER`; prints what differs.

A process of its own, because the number of devices is fixed when JAX starts.
"""

import sys
from pathlib import Path

import jax
import numpy as np
from flax import traverse_util

from zaya_jax import load_pretrained
from zaya_jax.interop.formats import huggingface
from zaya_jax.parallel import MeshConfig, make_placement, use_cpu_devices


def main(folder: Path) -> None:
    use_cpu_devices(8)
    config, variables = load_pretrained(folder)
    whole = {path: np.asarray(x) for path, x in traverse_util.flatten_dict(variables).items()}
    huggingface.BIG_STACK = 20_000  # the experts' stacks go layer by layer, the others whole
    for mesh in ({"fsdp": 2, "expert": 2, "data": 2}, {"expert": 4, "context": 2}):
        placement = make_placement(MeshConfig(**mesh), config, 16, 64)
        assert placement is not None and placement.mesh.size == 8
        laid = traverse_util.flatten_dict(load_pretrained(folder, placement)[1])
        places = traverse_util.flatten_dict(placement.shardings(traverse_util.unflatten_dict(laid)))
        assert laid.keys() == whole.keys()
        split = 0
        for path, x in laid.items():
            assert x.sharding.is_equivalent_to(places[path], x.ndim), path
            assert x.dtype == whole[path].dtype and np.asarray(x).tobytes() == whole[path].tobytes(), path
            split += x.addressable_shards[0].data.size < x.size
        print(f"{mesh}: {len(laid)} arrays equal, {split} split over {jax.device_count()} devices")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
