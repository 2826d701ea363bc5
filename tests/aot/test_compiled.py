"""What compiled programs consist of: a made-up HLO text counted by hand, a real one, and made-up code objects."""

import struct

import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from zaya_jax.aot.compiled import Calls, Memory, amd_kernels, anatomy, shape_bytes
from zaya_jax.aot.traffic import kernels

# In the form of XLA's text for gfx942: a loop of 40 rounds in a loop of unknown length, a conditional, an
# asynchronous wrapper whose -done names the same computation again, tuples and comments in shapes.
HLO = """HloModule jit_step, is_scheduled=true, entry_computation_layout={(bf16[8,4]{1,0})->bf16[8,4]{1,0}}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%scattered (p: f32[64]) -> f32[8] {
  %p = f32[64]{0} parameter(0)
  ROOT %rs = f32[8]{0} reduce-scatter(%p), channel_id=3, dimensions={0}, to_apply=%add
}

%layer (arg: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %arg = (s32[], /*index=1*/bf16[8,4]{1,0}) parameter(0)
  %x = bf16[8,4]{1,0} get-tuple-element(%arg), index=1
  %gathering = (bf16[8,4]{1,0}, bf16[64,4]{1,0}) all-gather-start(%x), channel_id=1, dimensions={0}
  %gathered = bf16[64,4]{1,0} all-gather-done(%gathering)
  %mm = (bf16[8,4]{1,0}, s8[0]{0}) custom-call(%x, %gathered), custom_call_target="__cublas$lt$matmul", m={n="a (b"}
  %grouped = (bf16[8,4]{1,0}, s8[0]{0}) custom-call(%x), custom_call_target="__cublas$lt$groupedMatmul"
  ROOT %out = (s32[], bf16[8,4]{1,0}) tuple(%x, %x)
}

%more (arg.1: (s32[], bf16[8,4])) -> pred[] {
  ROOT %c = pred[] constant(true)
}

%step (arg.2: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %arg.2 = (s32[], bf16[8,4]{1,0}) parameter(0)
  ROOT %loop = (s32[], bf16[8,4]) while(%arg.2), condition=%more, body=%layer, c={"known_trip_count":{"n":"40"},"x":1}
}

%branch (q: f32[2]) -> f32[2] {
  %q = f32[2]{0} parameter(0)
  ROOT %sorted = f32[2]{0} custom-call(%q), custom_call_target="__cub$DeviceRadixSort"
}

ENTRY %main (p0: bf16[8,4], g: f32[64]) -> bf16[8,4] {
  %p0 = bf16[8,4]{1,0} parameter(0)
  %g = f32[64]{0} parameter(1)
  %async = ((f32[64]{0}), f32[8]{0}) async-start(%g), calls=%scattered
  %async.done = f32[8]{0} async-done(%async), calls=%scattered
  %all = f32[64]{0} all-reduce-start(%g), channel_id=2, to_apply=%add
  %all.done = f32[64]{0} all-reduce-done(%all)
  %counts = s32[8]{0} constant({...})
  %room = f32[512]{0} broadcast(%zero), dimensions={}
  %sent = ((f32[64]{0}, f32[512]{0}, s32[8]{0}), f32[512]{0}) ragged-all-to-all-start(%g, %room, %counts), channel_id=4
  %sent.done = f32[512]{0} ragged-all-to-all-done(%sent)
  %back = ((f32[512]{0}, f32[64]{0}, s32[8]{0}), f32[64]{0}) ragged-all-to-all-start(%room, %g, %counts), channel_id=5
  %either = f32[2]{0} conditional(%g, %g, %g), branch_computations={%branch, %branch}
  %fused = f32[64]{0} fusion(%all.done), kind=kLoop, calls=%add
  ROOT %open = (s32[], bf16[8,4]{1,0}) while(%p0), condition=%more, body=%step
}
"""


def test_hlo_is_counted_as_by_hand():
    found = anatomy(HLO)
    assert found.collectives == {
        "all-gather": Calls(1, 40, 40 * 64 * 4 * 2),  # what a device gets; it hands over an eighth
        "all-reduce": Calls(1, 1, 64 * 4),
        "ragged-all-to-all": Calls(2, 2, 2 * 64 * 4),  # its own 64 values at most; there is room for eight devices'
        "reduce-scatter": Calls(1, 1, 64 * 4),  # what a device hands over; once, though start and done name it
    }
    assert {name: calls.executions for name, calls in found.custom_calls.items()} == {
        "__cublas$lt$matmul": 40, "__cublas$lt$groupedMatmul": 40, "__cub$DeviceRadixSort": 2,
    }  # fmt: skip
    assert (found.grouped_matmuls, found.library_matmuls, list(found.other_calls)) == (1, 1, ["__cub$DeviceRadixSort"])
    assert (found.fusions, found.open_loops) == (1, 1)


def test_a_ragged_exchange_moves_what_it_sends():
    sent, back = (kernel for kernel in kernels(HLO) if kernel.name in ("sent", "back"))
    assert (sent.reads, sent.writes) == (back.reads, back.writes) == (64 * 4, 64 * 4)


def test_no_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        anatomy("HloModule empty\n")


def test_shape_bytes():
    assert shape_bytes("bf16[8,4]{1,0}") == 64
    assert shape_bytes("(bf16[8,4]{1,0:T(8)}, /*index=1*/s32[], pred[3])") == 64 + 4 + 3
    assert shape_bytes("f8e4m3fnuz[5]") == 5 and shape_bytes("s4[5]") == 3 and shape_bytes("c64[2]") == 16
    assert shape_bytes("f32[0]") == shape_bytes("()") == shape_bytes("token[]") == 0


def test_a_real_program_on_two_devices():
    """A scan with a sum over devices in each of its three rounds."""
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))  # tests/conftest.py makes two devices

    def body(x, w):
        def round_(x, w):
            return jax.lax.psum(jnp.tanh(x @ w), "data"), None

        return jax.lax.scan(round_, x, w)[0]

    split = PartitionSpec("data")
    f = jax.jit(jax.shard_map(body, mesh=mesh, in_specs=(split, PartitionSpec()), out_specs=split, check_vma=False))
    x, w = jax.ShapeDtypeStruct((4, 8), jnp.float32), jax.ShapeDtypeStruct((3, 8, 8), jnp.float32)
    executable = f.lower(x, w).compile()
    found = anatomy(executable.as_text())
    assert found.collectives["all-reduce"].executions == 3
    assert found.collectives["all-reduce"].bytes == 3 * 2 * 8 * 4
    memory = Memory.of(executable)
    assert memory.arguments == 2 * 8 * 4 + 3 * 8 * 8 * 4 and memory.outputs == 2 * 8 * 4
    assert memory.total == memory.arguments + memory.outputs + memory.temporaries


def code_object(kernels: list[dict], target: str) -> bytes:
    """An ELF file with a program header for two notes, the second of which is AMD's."""
    metadata = msgpack.packb({"amdhsa.target": target, "amdhsa.kernels": kernels})
    pad = lambda data: data + b"\0" * (-len(data) % 4)  # noqa: E731
    notes = b"".join(
        struct.pack("<III", len(name), len(text), kind) + pad(name) + pad(text)
        for name, text, kind in ((b"GNU\0", b"12345", 3), (b"AMDGPU\0", metadata, 32))
    )
    headers = struct.pack("<IIQQQQQQ", 1, 0, 0, 0, 0, 0, 0, 0) + struct.pack(
        "<IIQQQQQQ", 4, 0, 64 + 112, 0, 0, len(notes), len(notes), 4
    )
    start = (
        b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 3, 224, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    )
    return start + headers + notes


def test_spills_are_read_from_code_objects(tmp_path):
    (tmp_path / "deep").mkdir()
    kernel = {".name": "k", ".vgpr_spill_count": 0, ".sgpr_spill_count": 1}
    (tmp_path / "a.hsaco").write_bytes(code_object([kernel, kernel | {".vgpr_spill_count": 5}], "gfx942"))
    (tmp_path / "deep" / "b.hsaco").write_bytes(code_object([kernel], "gfx942"))
    (tmp_path / "other.ll").write_text("not looked at")
    found = amd_kernels(tmp_path)
    assert (found.count, found.spilling, found.vgpr_spills, found.sgpr_spills) == (3, 1, 5, 3)
    assert found.architectures == ("gfx942",)
    (tmp_path / "c.hsaco").write_bytes(np.zeros(80, np.uint8).tobytes())
    with pytest.raises(ValueError, match=r"c\.hsaco: no 64-bit ELF"):
        amd_kernels(tmp_path)
