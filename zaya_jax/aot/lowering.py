"""What `experiments.lower` found out, in words: lines for a terminal, a row of Markdown, one line for what failed."""

import signal
from collections.abc import Iterable
from typing import Any

from zaya_jax.costs.flops import binary, si


def failure(name: str, found: dict[str, Any]) -> str | None:
    """One line for a program that does not compile or fit."""
    if not found["compiles"]:
        return f"{name}: does not compile for {found['target']}: {found['reason']}"
    if not found["fits"]:
        total, limit = found["memory"]["total"], found["memory_limit"]
        return f"{name}: does not fit {found['target']}: {gigabytes(total)} a device, may be at most {gigabytes(limit)}"
    return None


def reason(status: int, stderr: str) -> str:
    """The line of a dead process's stderr that says why, and the signal that ended it, if one did."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    telling = [line for line in lines if "Check failed" in line or line.startswith("error: ")] or lines[-1:]
    why = telling[-1].removeprefix("error: ")[:400] if telling else "no word of why"
    return f"{why} (aborted: {signal.Signals(-status).name})" if status < 0 else why


def table(found: dict[str, Any]) -> str:
    """What was found out about a program, a line for each kind of thing."""
    if not found["compiles"]:
        return f"  does not compile: {found['reason']}"
    memory, devices = found["memory"], found["devices"]
    share = f"{memory['total'] / found['memory_limit']:.0%} of {gigabytes(found['memory_limit'])}"
    lines = [
        f"  memory a device   {gigabytes(memory['total'])}, {share}: arguments {gigabytes(memory['arguments'])}, "
        f"temporaries {gigabytes(memory['temporaries'])}, new outputs "
        f"{gigabytes(memory['outputs'] - memory['reused'])}" + ("" if found["fits"] else "; DOES NOT FIT"),
        f"  FLOPs a step      {si(found['flops'])}FLOP" + f", {si(found['flops'] / devices)}FLOP a device (counted)",
    ]
    if found["traffic"] is None:
        least, what = memory["arguments"] + memory["outputs"], "a device: the state is read and written"
    else:
        least, what = found["traffic"], "weights, experts touched and cache read, logits written and read"
    lines.append(f"  bytes a step      at least {binary(least)} ({what})")
    if (moved := found.get("moved")) is not None:  # not in files written before it was counted
        lines.append(f"  bytes moved       {binary(moved)}, {moved / least:.2f} times as many; written most:")
        for kernel in found["wastes"]:
            written = binary(kernel["writes"] * kernel["times"])
            lines.append(f"                    {written} in {kernel['times']} x {kernel['shape']} {kernel['source']}")
    if found.get("expert_backend", "auto") != "auto":
        lines.append(f"  experts           {found['expert_backend']}")
    lines.append(f"  collectives       {_collectives(found['collectives'])}")
    calls = f"{found['grouped_matmuls']} grouped, {found['library_matmuls']} other"
    lines.append(f"  library products  {calls}; other custom calls: {', '.join(found['other_calls']) or 'none'}")
    if (kernels := found["kernels"]) is not None:
        spills = f"{kernels['vgpr_spills']} VGPRs in {kernels['spilling']} kernels, {kernels['sgpr_spills']} SGPRs"
        lines.append(
            f"  kernels           {kernels['count']} for {', '.join(kernels['architectures'])}; spilled {spills}"
        )
    seconds = found["seconds"]
    lines.append(f"  seconds           {seconds['trace']:.1f} to trace, {seconds['compile']:.1f} to compile")
    return "\n".join(lines)


def lowered_table(runs: Iterable[dict[str, Any]]) -> str:
    """Markdown: a row for each program of these result files of `experiments.lower`."""
    head = "| GPU | model | program | devices | memory a device | FLOPs a step and device | collectives in a step | "
    head += "bytes its kernels move | "
    rows = [head + "grouped, other library products | spilled VGPRs | seconds to compile |", "|" + "---|" * 11]
    for run in runs:
        for found in run["programs"].values():
            how = run.get("execution", run["model"])  # in the model before 0.2
            experts = found.get("expert_backend", how["expert_backend"])  # older files: what the config said
            chosen = (experts, how.get("expert_exchange", "auto"))
            model = ", ".join([run["name"], *(each for each in chosen if each != "auto")])
            start = f"| {run['target']} ({run['architecture']}) | {model} | {found['program']} | "
            if not found["compiles"]:
                rows.append(start + f"{run['devices']} | does not compile: {found['reason']} |" + " |" * 6)
                continue
            total, limit = found["memory"]["total"], found["memory_limit"]
            fits = f"{gigabytes(total)} of {gigabytes(limit)}" + ("" if found["fits"] else ": does not fit")
            products = f"{found['grouped_matmuls']}, {found['library_matmuls']}"
            moved = gigabytes(found["moved"]) if found.get("moved") else "not counted"
            spills = "not read" if found["kernels"] is None else str(found["kernels"]["vgpr_spills"])
            rows.append(
                start + f"{found['devices']} | {fits} | {si(found['flops'] / found['devices'])}FLOP | "
                f"{_collectives(found['collectives'])} | {moved} | "
                f"{products} | {spills} | {found['seconds']['compile']:.0f} |"
            )
    return "\n".join(rows)


def traffic_table(runs: Iterable[dict[str, Any]]) -> str:
    """Markdown: bytes that each decoding program's step moves against those it must, of files that counted a step."""
    head = ["| program | GPU | must move | moves | ratio |", "|" + "---|" * 5]
    found = [(each, run["target"]) for run in runs for each in run["programs"].values() if "moved_once" in each]

    def order(row: tuple[dict[str, Any], str]) -> tuple[str, int, str]:
        name, batch = row[0]["program"].split()[:2]
        return name, int(batch), row[1]

    return "\n".join(
        head
        + [
            f"| {each['program']} | {target} | {gigabytes(each['traffic'])} | {gigabytes(each['moved'])} | "
            f"{each['moved'] / each['traffic']:.2f} |"
            for each, target in sorted(found, key=order)
        ]
    )


def gigabytes(size: float) -> str:
    """Powers of ten, as memory is sold."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def _collectives(found: dict[str, dict]) -> str:
    parts = (f"{c['executions']} x {kind} ({gigabytes(c['bytes'])})" for kind, c in found.items())
    return ", ".join(parts) or "none"
