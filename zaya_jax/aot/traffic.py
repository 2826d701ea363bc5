"""Bytes that a compiled program's kernels move, read from XLA's optimised HLO, for CPU and GPU alike.

A kernel reads its operands and writes its result, each once: what stays in registers or a cache within a kernel is not
counted, and what a cache saves between two kernels is. A slice or a gather reads what it takes out, not what it takes
it from; a scatter or an update in place moves what it puts in. A library's workspace is not counted, its product is.

Loops count by their trips. Of a loop whose length XLA does not know, as that around a sampler's steps, one round is
counted, a step (`per_step`). Of a conditional's branches the one that moves the least counts: options are off.
"""

import dataclasses
import re
from collections.abc import Iterable

from zaya_jax.aot.compiled import Instruction, callees, computations_of, handed, shape_bytes, trips

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
    in_step: bool = False  # in a loop whose length XLA does not know

    @property
    def moved(self) -> int:
        """Bytes in one run of the program."""
        return (self.reads + self.writes) * self.times


def kernels(hlo: str, steps: bool = True) -> list[Kernel]:
    """Every kernel of `Compiled.as_text()`, the one that moves the most first.

    Args:
      steps: whether a loop of unknown length is one around steps. In a train step it is not: attention's, over as many
        tiles as a row's documents need, counts one round each time it is run.

    Raises:
      UserError: text without an entry computation.
    """
    computations, entry = computations_of(hlo)
    own = {name: _own_kernels(instructions, computations) for name, instructions in computations.items()}
    costs: dict[str, int] = {}  # of one run of each computation; callees stand before their callers
    for name, instructions in computations.items():
        called = (costs[callee] * repeats for i in instructions for callee, repeats, _ in _runs(i, costs))
        costs[name] = total(own[name]) + sum(called)
    times, stepping = dict.fromkeys(computations, 0) | {entry: 1}, set()
    for name in reversed(computations):
        for i in computations[name] if times[name] else ():
            for callee, repeats, is_step in _runs(i, costs):
                times[callee] += times[name] * repeats
                if is_step or name in stepping:
                    stepping.add(callee)
    found = [
        dataclasses.replace(kernel, times=times[name], in_step=steps and name in stepping)
        for name in computations
        if times[name]  # not those within a fusion, or a reduction's
        for kernel in own[name]
    ]
    return sorted(found, key=lambda kernel: -kernel.moved)


def _own_kernels(instructions: list[Instruction], computations: dict[str, list[Instruction]]) -> list[Kernel]:
    """Kernels of one computation, once each, without those of computations that it calls."""
    shapes, found = {i.name: i.shape for i in instructions}, []
    for i in instructions:
        if i.opcode in _FREE or i.opcode.endswith(("-done", "-update")):
            continue
        reads, writes = _moved(i, shapes, computations)
        source = re.search(r'op_name="([^"]*)"', i.attributes)
        found.append(Kernel(i.name, source[1] if source else "", i.shape, reads, writes, 1))
    return found


def _runs(i: Instruction, costs: dict[str, int]) -> list[tuple[str, int, bool]]:
    """(computation, how often, in a loop of unknown length) of each that a control instruction runs."""
    if i.opcode not in _CONTROL:
        return []
    called = [(name, repeats) for name, repeats in callees(i) if name in costs]
    if i.opcode == "conditional":
        called = sorted(called, key=lambda run: costs[run[0]])[:1]
    is_step = i.opcode == "while" and trips(i) is None
    return [(name, repeats, is_step) for name, repeats in called]


def total(found: Iterable[Kernel]) -> int:
    """Bytes of all kernels in one run."""
    return sum(kernel.moved for kernel in found)


def per_step(found: Iterable[Kernel]) -> int:
    """Bytes of one round of the loops whose length XLA does not know; 0 without such a loop."""
    return total(kernel for kernel in found if kernel.in_step)


def copies(found: Iterable[Kernel], least: int) -> list[Kernel]:
    """Kernels that write `least` bytes or more each time: in a decoding step, none should write as much as a weight."""
    return [kernel for kernel in found if kernel.writes >= least]


def wastes(found: Iterable[Kernel], most: int = 5) -> list[Kernel]:
    """Kernels that write the most in a step (in a run of a program without steps).

    What is written is read again, and neither had to move.
    """
    found = list(found)
    found = [kernel for kernel in found if kernel.in_step] or found
    return sorted(found, key=lambda kernel: -kernel.writes * kernel.times)[:most]


def _moved(i: Instruction, shapes: dict[str, str], computations: dict[str, list[Instruction]]) -> tuple[int, int]:
    """(bytes read, bytes written)."""
    if i.kind == "ragged-all-to-all":
        return (handed(i, shapes),) * 2
    out = shape_bytes(_product_of(i) or i.shape)
    if i.opcode in _TAKES:
        return out, out
    if i.opcode in _PUTS:
        put = shape_bytes(shapes[i.operands[_PUTS[i.opcode]]])
        return put, put
    called = re.search(r"\bcalls=%?([\w.\-]+)", i.attributes)
    if i.opcode == "fusion" and called and called[1] in computations:
        return _of_fusion(i, shapes, computations[called[1]])
    return sum(shape_bytes(shapes[operand]) for operand in i.operands if operand in shapes), out


def _product_of(i: Instruction) -> str | None:
    """The shape of a library's matrix product, whose result is a tuple of it and a workspace."""
    if i.opcode != "custom-call" or '"__cublas' not in i.attributes or not i.shape.startswith("("):
        return None
    return i.shape[1:].rpartition(", s8[")[0] or None


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
