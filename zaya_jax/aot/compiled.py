"""What a compiled program is made of, read from XLA's optimised HLO and from a GPU's code objects.

XLA gives no cost analysis of a program compiled for a device that is not there. Its text does say which library calls
and which communication the program makes, and how often: a loop that XLA knows the length of (layers are a scan) says
so, and everything in its body counts that many times.
"""

import dataclasses
import re
import struct
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from zaya_jax.errors import UserError

COLLECTIVES = (
    "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute",
    "collective-broadcast",
)  # fmt: skip
_WIDTHS = {"pred": 8, "bf16": 16, "c64": 64, "c128": 128}  # bits; others end in their own number


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on each device."""

    arguments: int
    outputs: int
    reused: int  # outputs that take donated arguments' place
    temporaries: int

    @property
    def total(self) -> int:
        return self.arguments + self.outputs - self.reused + self.temporaries

    @staticmethod
    def of(executable: Any) -> "Memory":
        """Of a `jax.stages.Compiled`."""
        stats = executable.memory_analysis()
        return Memory(
            stats.argument_size_in_bytes, stats.output_size_in_bytes, stats.alias_size_in_bytes,
            stats.temp_size_in_bytes,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Calls:
    """Instructions of one kind."""

    instructions: int  # in the program
    executions: int  # in one run of it; a loop of unknown length counts as one round
    bytes: int  # a device hands over or gets, the larger, in all executions; 0 for what is not a collective


@dataclasses.dataclass(frozen=True)
class Anatomy:
    """What an HLO module consists of."""

    collectives: dict[str, Calls]
    custom_calls: dict[str, Calls]  # by target
    fusions: int  # instructions, most of them a kernel each
    open_loops: int  # loops whose length XLA does not know

    @property
    def grouped_matmuls(self) -> int:
        """Instructions that multiply each expert's rows with its weights in one library call (`ragged_dot`)."""
        return sum(calls.instructions for name, calls in self.custom_calls.items() if "groupedMatmul" in name)

    @property
    def library_matmuls(self) -> int:
        """Other matrix products that hipBLASLt or cuBLAS computes."""
        own = (calls.instructions for name, calls in self.custom_calls.items() if name.startswith("__cublas"))
        return sum(own) - self.grouped_matmuls

    @property
    def other_calls(self) -> dict[str, Calls]:
        """Custom calls that are no matrix product."""
        return {name: calls for name, calls in self.custom_calls.items() if not name.startswith("__cublas")}


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line of HLO text."""

    name: str
    shape: str
    opcode: str
    operands: list[str]
    attributes: str
    argument: str  # what stands in its parentheses

    @property
    def kind(self) -> str:
        return self.opcode.removesuffix("-start")


def anatomy(hlo: str) -> Anatomy:
    """Reads `Compiled.as_text()`.

    Raises:
      UserError: text without an entry computation.
    """
    computations, entry = computations_of(hlo)
    executions = executions_of(computations, entry)
    collectives, custom_calls = defaultdict(list), defaultdict(list)
    counts = Counter()
    for name, instructions in computations.items():
        times, shapes = executions[name], {i.name: i.shape for i in instructions}
        for i in instructions:
            if i.kind in COLLECTIVES:
                collectives[i.kind].append((times, handed(i, shapes)))
            elif i.opcode == "custom-call":
                match = re.search(r'custom_call_target="([^"]*)"', i.attributes)
                custom_calls[match[1] if match else "?"].append((times, 0))
            counts["fusion"] += i.opcode == "fusion"
            counts["open"] += i.opcode == "while" and trips(i) is None
    return Anatomy(
        {kind: _calls(found) for kind, found in sorted(collectives.items())},
        {target: _calls(found) for target, found in sorted(custom_calls.items())},
        fusions=counts["fusion"],
        open_loops=counts["open"],
    )


def handed(i: Instruction, shapes: Mapping[str, str]) -> int:
    """Bytes of a collective that a device hands over or gets, the larger.

    Of a ragged all-to-all, whose buffers have room for the worst case: what fills the smaller one.
    """
    operands = [shape_bytes(shapes[operand]) for operand in i.operands]
    if i.kind == "ragged-all-to-all":
        return min(operands[0], shape_bytes(_result(i)))
    return max(sum(operands), shape_bytes(_result(i)))


def shape_bytes(shape: str) -> int:
    """Bytes of an HLO shape, tuples included: "(bf16[8,4]{1,0}, s32[])" -> 68."""
    bits = 0
    for kind, dims in re.findall(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]", shape):
        match = re.match(r"[a-z]+(\d+)", kind)
        width = _WIDTHS.get(kind) or (int(match[1]) if match else 0)
        size = width
        for dim in filter(None, dims.split(",")):
            size *= int(dim)
        bits += size
    return -(-bits // 8)


def _calls(found: list[tuple[int, int]]) -> Calls:
    return Calls(len(found), sum(times for times, _ in found), sum(times * size for times, size in found))


def computations_of(hlo: str) -> tuple[dict[str, list[Instruction]], str]:
    """Instructions of every computation by its name, in the text's order, and the entry's name."""
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", []
    for line in hlo.splitlines():
        if line[:1] not in ("", " ", "}") and line.endswith("{") and "->" in line:
            is_entry, name = line.startswith("ENTRY "), line.removeprefix("ENTRY ").split()[0].lstrip("%")
            current = computations[name] = []
            entry = name if is_entry else entry
        elif " = " in line and line.startswith(" "):
            current.append(_instruction(line))
    if not entry:
        raise UserError("HLO text: no ENTRY computation")
    return computations, entry


def _instruction(line: str) -> Instruction:
    name, _, rest = line.strip().removeprefix("ROOT ").partition(" = ")
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opening = rest.index("(")
    closing = _closing(rest, opening)
    operands = re.findall(r"%([\w.\-]+)", rest[opening:closing])
    return Instruction(
        name.lstrip("%"), shape, rest[:opening], operands, rest[closing + 1 :], rest[opening + 1 : closing]
    )  # fmt: skip


def _closing(text: str, opening: int) -> int:
    """Index of the parenthesis that closes the one at `opening`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, opening):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    raise UserError(f"HLO text: unbalanced parentheses in {text[:80]!r}")


def executions_of(computations: dict[str, list[Instruction]], entry: str) -> dict[str, int]:
    """How often each computation runs in one run of the entry; callees stand before their callers in the text."""
    times = dict.fromkeys(computations, 0)
    times[entry] = 1
    for name in reversed(computations):
        for i in computations[name]:
            if i.opcode.endswith(("-done", "-update")):
                continue  # names its start's computation again
            for callee, repeats in callees(i):
                if callee in times:
                    times[callee] += times[name] * repeats
    return times


def callees(i: Instruction) -> Iterator[tuple[str, int]]:
    """(computation, how often an execution of the instruction runs it)."""
    for attribute, name in re.findall(r"\b(body|condition|calls|\w+_computation)=%?([\w.\-]+)", i.attributes):
        yield name, (trips(i) or 1) if attribute == "body" else 1
    for names in re.findall(r"\bbranch_computations=\{([^}]*)\}", i.attributes):
        yield from ((name.strip().lstrip("%"), 1) for name in names.split(","))
    if i.opcode == "call":
        yield from ((name, 1) for name in re.findall(r"\bto_apply=%?([\w.\-]+)", i.attributes))


def trips(i: Instruction) -> int | None:
    """Rounds of a while loop, where XLA knows them."""
    match = re.search(r'"known_trip_count":\{"n":"(\d+)"', i.attributes)
    return int(match[1]) if match else None


def _result(i: Instruction) -> str:
    """A collective's result; `-start` may give (operands, results, ...)."""
    if i.opcode in ("all-gather-start", "collective-permute-start", "ragged-all-to-all-start"):
        parts = _parts(i.shape)
        return parts[1] if len(parts) > 1 else i.shape
    return i.shape


def _parts(shape: str) -> list[str]:
    """Elements of a tuple's shape, not their elements."""
    out, depth = [""], 0
    for char in shape.removeprefix("(").removesuffix(")"):
        depth += (char in "([{") - (char in ")]}")
        if char == "," and depth == 0:
            out.append("")
        else:
            out[-1] += char
    return out


@dataclasses.dataclass(frozen=True)
class Kernels:
    """AMD kernels as their code objects describe them."""

    count: int
    spilling: int  # kernels that spill vector registers
    vgpr_spills: int  # registers, all kernels together
    sgpr_spills: int
    architectures: tuple[str, ...]  # as the objects name them


def amd_kernels(folder: Path) -> Kernels:
    """Reads every AMD code object (an ELF file, `*.hsaco`) under `folder`; needs msgpack.

    Raises:
      UserError: a file that is no AMD code object.
    """
    kernels: list[dict] = []
    architectures = set()
    for path in sorted(folder.rglob("*.hsaco")):
        metadata = _amd_metadata(path)
        architectures.add(metadata["amdhsa.target"])
        kernels += metadata.get("amdhsa.kernels", [])
    vector = [kernel.get(".vgpr_spill_count", 0) for kernel in kernels]
    return Kernels(
        count=len(kernels),
        spilling=sum(n > 0 for n in vector),
        vgpr_spills=sum(vector),
        sgpr_spills=sum(kernel.get(".sgpr_spill_count", 0) for kernel in kernels),
        architectures=tuple(sorted(architectures)),
    )


def _amd_metadata(path: Path) -> dict:
    """The metadata note (type 32, "AMDGPU") of a code object: LLVM's AMDGPU usage, "Code Object Metadata"."""
    import msgpack  # of the extra `lower-amd`; flax brings it, too

    data = path.read_bytes()
    if data[:5] != b"\x7fELF\x02":
        raise UserError(f"{path}: no 64-bit ELF file")
    table, size, count = *struct.unpack_from("<Q", data, 32), *struct.unpack_from("<HH", data, 54)
    for header in range(table, table + size * count, size):
        if struct.unpack_from("<I", data, header)[0] != 4:  # PT_NOTE
            continue
        at, length = *struct.unpack_from("<Q", data, header + 8), *struct.unpack_from("<Q", data, header + 32)
        end = at + length
        while at < end:
            name_size, size_, kind = struct.unpack_from("<III", data, at)
            name_end = at + 12 + name_size
            start = at + 12 + -(-name_size // 4) * 4
            if kind == 32 and data[at + 12 : name_end].rstrip(b"\0") == b"AMDGPU":
                return msgpack.unpackb(data[start : start + size_], strict_map_key=False)
            at = start + -(-size_ // 4) * 4
    raise UserError(f"{path}: an ELF file without AMD metadata")
