"""Bytes that a compiled program's kernels move, read from XLA's optimised HLO, for CPU and GPU alike.

A kernel reads its operands and writes its result, each once: what stays in registers or a cache within a kernel is not
counted, and what a cache saves between two kernels is. A slice or a gather reads what it takes out, not what it takes
it from; a scatter or an update in place moves what it puts in. Loops count by their trips; of a loop whose length XLA
does not know, as that around a sampler's steps, one round is counted.
"""

import dataclasses
import re
from collections.abc import Iterable

from zaya_jax.aot.compiled import Instruction, computations_of, executions_of, shape_bytes

# What moves nothing by itself: names, or computations whose own instructions are counted.
_CONTROL = {"while", "conditional", "call"}
_FREE = _CONTROL | {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id",
    "opt-barrier", "async-start", "async-done", "async-update",
}  # fmt: skip
_TAKES = {"slice", "dynamic-slice", "gather"}  # out of operand 0
_PUTS = {"dynamic-update-slice": 1, "scatter": 2}  # which operand goes into operand 0
_SAME = {"bitcast", "reshape", "copy", "transpose", "convert"}  # of one operand, within a fusion


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One instruction that becomes a kernel or a library call."""

    name: str
    source: str  # the operation of the model it came from, as JAX names it; "" where XLA has none
    shape: str  # of the result
    reads: int  # bytes, each time
    writes: int
    times: int

    @property
    def moved(self) -> int:
        """Bytes in one run of the program."""
        return (self.reads + self.writes) * self.times


def kernels(hlo: str) -> list[Kernel]:
    """Every kernel of `Compiled.as_text()`, the one that moves the most first.

    Raises:
      UserError: text without an entry computation.
    """
    computations, entry = computations_of(hlo)
    found = []
    for name, times in executions_of(computations, entry, _CONTROL).items():
        if not times:  # within a fusion, or a reduction's
            continue
        shapes = {i.name: i.shape for i in computations[name]}
        for i in computations[name]:
            if i.opcode in _FREE or i.opcode.endswith(("-done", "-update")):
                continue
            reads, writes = _moved(i, shapes, computations)
            source = re.search(r'op_name="([^"]*)"', i.attributes)
            found.append(Kernel(i.name, source[1] if source else "", i.shape, reads, writes, times))
    return sorted(found, key=lambda kernel: -kernel.moved)


def total(found: Iterable[Kernel]) -> int:
    """Bytes of all kernels in one run."""
    return sum(kernel.moved for kernel in found)


def copies(found: Iterable[Kernel], least: int) -> list[Kernel]:
    """Kernels that write `least` bytes or more each time: in a decoding step, none should write as much as a weight."""
    return [kernel for kernel in found if kernel.writes >= least]


def wastes(found: Iterable[Kernel], most: int = 5) -> list[Kernel]:
    """Kernels that write the most in one run: what is written is read again, and neither had to move."""
    return sorted(found, key=lambda kernel: -kernel.writes * kernel.times)[:most]


def _moved(i: Instruction, shapes: dict[str, str], computations: dict[str, list[Instruction]]) -> tuple[int, int]:
    """(bytes read, bytes written)."""
    out = shape_bytes(i.shape)
    if i.opcode in _TAKES:
        return out, out
    if i.opcode in _PUTS:
        put = shape_bytes(shapes[i.operands[_PUTS[i.opcode]]])
        return put, put
    called = re.search(r"\bcalls=%?([\w.\-]+)", i.attributes)
    if i.opcode == "fusion" and called and called[1] in computations:
        return _of_fusion(i, shapes, computations[called[1]])
    return sum(shape_bytes(shapes[operand]) for operand in i.operands if operand in shapes), out


def _of_fusion(i: Instruction, shapes: dict[str, str], body: list[Instruction]) -> tuple[int, int]:
    by_name = {part.name: part for part in body}
    users: dict[str, list[Instruction]] = {}
    for part in body:
        for operand in part.operands:
            users.setdefault(operand, []).append(part)
    parameters = {int(part.argument): part for part in body if part.opcode == "parameter"}

    def taken(name: str) -> int | None:
        """Bytes that are read of a value that is only sliced, gathered from or updated in place; None: all of it."""
        read = 0
        for user in users.get(name, []):
            if user.opcode in _TAKES and user.operands[0] == name:
                read += 0 if name in user.operands[1:] else shape_bytes(user.shape)
            elif user.opcode in _PUTS and user.operands[0] == name:
                continue
            elif user.opcode in _SAME:
                inner = taken(user.name)
                if inner is None:
                    return None
                read += inner
            else:
                return None
        return read if name in users else None

    reads = 0
    for index, operand in enumerate(i.operands):
        whole = shape_bytes(shapes[operand])
        part = taken(parameters[index].name) if index in parameters else None
        reads += whole if part is None else min(whole, part)

    def written(name: str) -> int:
        part = by_name[name]
        if part.opcode == "tuple":
            return sum(written(operand) for operand in part.operands)
        put = part
        while put.opcode in _SAME:
            put = by_name[put.operands[0]]
        if put.opcode in _PUTS:
            return shape_bytes(by_name[put.operands[_PUTS[put.opcode]]].shape)
        return shape_bytes(part.shape)

    return reads, written(body[-1].name)
