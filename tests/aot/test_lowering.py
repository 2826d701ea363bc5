"""What lowering found, in words; and the programs that it lowers."""

import json
from pathlib import Path

import jax
import pytest

from tests.helpers import small_config
from zaya_jax.aot.lowering import failure, lowered_table, reason, table
from zaya_jax.aot.programs import decode_programs, train_program
from zaya_jax.costs.flops import forward_flops, parameter_count
from zaya_jax.parallel import MeshConfig, make_placement
from zaya_jax.training.objective import Objective
from zaya_jax.training.optimizer import OptimizerConfig

RESULTS = Path(__file__).parents[2] / "results" / "lower"
FOUND = {
    "target": "MI300X",
    "program": "train: phase convert",
    "compiles": True,
    "devices": 8,
    "seconds": {"trace": 6.1, "compile": 53.3},
    "memory": dict(arguments=53e9, outputs=54e9, reused=53e9, temporaries=50e9, total=104e9),
    "memory_limit": 192e9,
    "fits": True,
    "flops": 8e12,
    "traffic": None,
    "moved": 199.4 * 2**30,
    "wastes": [dict(name="f", source="layers/mlp", shape="bf16[2,4]", reads=1, writes=2**20, times=3)],
    "collectives": {"all-reduce": {"instructions": 2, "executions": 14, "bytes": 17_700_000_000}},
    "grouped_matmuls": 6,
    "library_matmuls": 92,
    "other_calls": [],
    "kernels": {"count": 399, "spilling": 1, "vgpr_spills": 7, "sgpr_spills": 0, "architectures": ["gfx942"]},
}


def test_a_program_that_fits():
    assert failure("train", FOUND) is None
    text = table(FOUND)
    for words in (
        "104.0 GB, 54% of 192.0 GB", "new outputs 1.0 GB", "8 TFLOP, 1 TFLOP a device", "14 x all-reduce (17.7 GB)",
        "6 grouped, 92 other", "spilled 7 VGPRs in 1 kernels", "53.3 to compile", "at least 99.7 GiB",
        "199 GiB, 2.00 times as many; written most:", "3 MiB in 3 x bf16[2,4] layers/mlp",
    ):  # fmt: skip
        assert words in text, words


def test_a_program_that_does_not_fit_or_compile_is_one_line():
    big = FOUND | {"fits": False, "memory": FOUND["memory"] | {"total": 200e9}}
    assert failure("train", big) == "train: does not fit MI300X: 200.0 GB a device, may be at most 192.0 GB"
    assert "DOES NOT FIT" in table(big)
    none = {"target": "MI300X", "program": "p", "compiles": False, "reason": "too much"}
    assert failure("prefill", none) == "prefill: does not compile for MI300X: too much"
    assert table(none) == "  does not compile: too much"
    run = {
        "target": "MI300X",
        "architecture": "gfx942",
        "name": "zaya1_8b",
        "devices": 8,
        "model": {"expert_backend": "dense"},
    }
    lines = lowered_table([{**run, "programs": {"a": FOUND, "b": big, "c": none}}]).splitlines()
    assert len(lines) == 5 and {line.count("|") for line in lines} == {12}
    assert (
        "| zaya1_8b, dense |" in lines[2]
        and "104.0 GB of 192.0 GB |" in lines[2]
        and "(17.7 GB) | 214.1 GB | 6, 92 |" in lines[2]
        and ": does not fit |" in lines[3]
        and "too much" in lines[4]
    )


def test_committed_results_say_what_they_are():
    runs = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    assert {run["architecture"] for run in runs} >= {"gfx942"}
    for run in runs:
        assert run["note"].startswith("compiled, not executed") and run["command"] and "jax" in run["versions"]
    assert lowered_table(runs).count("\n") == 1 + sum(len(run["programs"]) for run in runs)


def test_the_reason_is_found_in_what_a_process_left_after():
    log = "W0000 noise\nF0000 x.cc:12] Check failed: a == b (1 vs. 2)\n*** SIGABRT received\n  @ 0x1234 main\n"
    assert reason(-6, log) == "F0000 x.cc:12] Check failed: a == b (1 vs. 2) (aborted: SIGABRT)"
    assert (
        reason(2, "noise\nerror: RESOURCE_EXHAUSTED: Shared memory\nmore noise\n")
        == "RESOURCE_EXHAUSTED: Shared memory"
    )
    assert reason(-9, "") == "no word of why (aborted: SIGKILL)"


def test_programs_are_those_of_generate():
    """Lowered for this machine, without arrays; the arguments are the weights and the cache."""
    config = small_config(max_position_embeddings=256)
    programs = decode_programs(config, 4, 2, batch=3, context=128, device=jax.devices()[0])
    assert list(programs) == ["prefill", "autoregressive", "single_pass"]
    cache = 128 * 3 * config.num_hidden_layers * 2 * config.num_key_value_heads * config.head_dim * 4
    for name, program in programs.items():
        assert {a.sharding.device_set == {jax.devices()[0]} for a in jax.tree.leaves(program.arguments[1:])} == {True}
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(program.arguments[1:]))
        least = 4 * parameter_count(config).total + (name != "prefill") * cache
        assert least < size < least + 50_000
        assert "while" in program.lower("cpu").as_text() or name == "prefill"
    rows = {"autoregressive": 1, "single_pass": 4 * (1 + 2)}  # the block, and one after each of two anchors
    for name, n in rows.items():
        heads = 1 if name == "autoregressive" else 4 + 3  # the verified block, the drafts that are kept
        assert programs[name].flops == forward_flops(config, 3 * n, 128 + n, 3 * heads).total
    with pytest.raises(ValueError, match=r"^context: got 32, may be at least 41"):
        decode_programs(config, 4, 2, 1, 32, jax.devices()[0])


@pytest.mark.parametrize("count", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_the_train_step_is_laid_over_its_devices(count):
    devices = jax.devices()[:count]
    config = small_config()
    objective = Objective("tidar", 4, loss_on="answers")
    placement = make_placement(MeshConfig(), config, 4, 16, 4, devices)
    program = train_program(config, objective, OptimizerConfig(), 4, 16, devices[0], placement)
    lowered = program.lower("cpu")
    assert ("all_reduce" in lowered.as_text()) == (count == 2)
    assert f"num_partitions = {count}" in lowered.as_text()
    tokens = program.arguments[1]["tokens"]
    assert tokens.sharding.shard_shape(tokens.shape) == (4 // count, 16) and "answer" in program.arguments[1]
