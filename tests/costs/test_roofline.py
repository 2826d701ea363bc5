"""The roofline against counts done by hand, and its limits."""

import numpy as np
import pytest

from zaya_jax.aot.targets import TARGETS
from zaya_jax.architecture import preset
from zaya_jax.costs.flops import forward_flops, parameter_count
from zaya_jax.costs.roofline import (
    ATTENTIONS,
    HARDWARE,
    Hardware,
    cache_bytes,
    drafting_seconds,
    experts_touched,
    forward_seconds,
    forward_traffic,
    free_query_tokens,
    free_rows,
    grouped_attention,
    peak_flops,
    resident_bytes,
    ridge_rows,
)

CONFIG = preset("zaya1_8b")


def test_experts_touched_are_counted():
    rng = np.random.default_rng(0)
    for tokens, published in ((1, 1.0), (16, 10.3), (64, 15.7), (272, 16.0)):  # docs/hardware.md#free-token-slots
        assert experts_touched(16, tokens) == pytest.approx(published, abs=0.06)
        drawn = [len(set(rng.integers(0, 16, tokens))) for _ in range(2000)]
        assert experts_touched(16, tokens) == pytest.approx(np.mean(drawn), rel=0.02)


def test_one_row_is_bound_by_memory_and_many_by_arithmetic():
    one = forward_seconds(CONFIG, HARDWARE["mi300x"], 1, context=0)
    count = parameter_count(CONFIG)
    active = count.active_with_head  # every layer's shared weights, one expert each, and the tied embedding as the head
    assert one == pytest.approx(2 * active / 5.3e12)
    many = forward_seconds(CONFIG, HARDWARE["mi300x"], 4096, context=0)
    assert many == pytest.approx(forward_flops(CONFIG, 4096, 4096).total / 1307.4e12)


def test_context_adds_its_keys_and_values():
    slow = Hardware(1e30, 1.0)  # memory only
    more = forward_seconds(CONFIG, slow, 1, batch=3, context=1000) - forward_seconds(
        CONFIG, slow, 1, batch=3, context=0
    )
    assert more == pytest.approx(2 * 1000 * 3 * 40 * 2 * 2 * 128)


def test_free_query_tokens_are_those_of_the_notes():
    ccgqa = ATTENTIONS["CCGQA 4:1"]
    assert ccgqa.intensity == 4
    # docs/hardware.md#free-token-slots
    for name, tokens, blocks in (("mi300x", 62, 3.85), ("mi355x", 79, 4.92), ("h100", 74, 4.61)):
        free = free_query_tokens(ccgqa, HARDWARE[name])
        assert round(free) == tokens
        assert free / 16 == pytest.approx(blocks, abs=0.006)


def test_attention_shapes_are_told_apart():
    assert ATTENTIONS["MHA"].intensity == 1
    assert ATTENTIONS["MHA"].bytes == 8 * ATTENTIONS["CCGQA 4:1"].bytes
    mla = ATTENTIONS["absorbed MLA"]
    assert mla.intensity == pytest.approx(242, abs=0.5)  # docs/hardware.md#free-token-slots
    assert 1 <= free_query_tokens(mla, HARDWARE["mi300x"]) < 2  # the token that decoding feeds anyway, no slot more


def test_the_model_has_the_shape_that_the_formula_assumes():
    c = CONFIG
    shape = grouped_attention(c.num_attention_heads, c.num_key_value_heads, c.head_dim)
    assert shape == ATTENTIONS["CCGQA 4:1"]
    per_token = cache_bytes(CONFIG, 1, 1)
    assert per_token == CONFIG.num_hidden_layers * ATTENTIONS["CCGQA 4:1"].bytes


def test_a_whole_model_approaches_the_formula_where_the_cache_is_all():
    rows = ridge_rows(CONFIG, HARDWARE["mi300x"], batch=4096, context=2**24, block=16)
    assert rows == pytest.approx(free_query_tokens(ATTENTIONS["CCGQA 4:1"], HARDWARE["mi300x"]), abs=1)


def test_experts_take_the_free_rows_of_small_batches():
    """What figure "roofline" says of 32,768 tokens of context."""
    free = {batch: free_rows(CONFIG, HARDWARE["mi300x"], batch, 32768, 16) for batch in (1, 8, 64)}
    assert free[1] == free[8] == 1
    assert free[64] / 16 == pytest.approx(3.6, abs=0.1)
    one, sixteen = (drafting_seconds(CONFIG, HARDWARE["mi300x"], n, 1, 32768, 16) for n in (1, 16))
    assert sixteen / one == pytest.approx(3.39, abs=0.01)


@pytest.mark.parametrize("hardware", ["mi300x", "h200"])
@pytest.mark.parametrize("batch", [1, 64])
def test_searches_equal_scans(hardware, batch):
    here = HARDWARE[hardware]
    rows = range(1, 1025)
    bound = [forward_traffic(CONFIG, n, batch, 32768, min(n, 32)).bound_by_memory(here) for n in rows]
    assert ridge_rows(CONFIG, here, batch, 32768, 16) == sum(bound)
    least = forward_seconds(CONFIG, here, 1, batch, 32768)
    cheap = [drafting_seconds(CONFIG, here, n, batch, 32768, 16) <= 1.1 * least for n in rows]
    assert free_rows(CONFIG, here, batch, 32768, 16) == sum(cheap)


def test_nothing_is_free_on_a_device_that_only_waits_for_arithmetic():
    assert ridge_rows(CONFIG, Hardware(1.0, 1e30), 1, 1, 16) == 0


def test_what_must_fit_is_counted():
    weights = 2 * 8_840_488_784  # docs/architecture.md: all parameters with the tied embedding, bf16
    assert resident_bytes(CONFIG, 0, 0) == weights
    assert resident_bytes(CONFIG, 64, 32768) - weights == 64 * 32768 * 40 * 1024  # 40 KiB a token
    assert HARDWARE["h100"].memory < resident_bytes(CONFIG, 64, 32768) < HARDWARE["mi300x"].memory


def test_peaks_by_the_names_that_jax_gives_devices():
    assert peak_flops("AMD Instinct MI300X") == peak_flops("MI300X") == 1307.4e12
    assert peak_flops("AMD Instinct MI355X OAM") == 2516.6e12
    assert peak_flops("NVIDIA H100 80GB HBM3") == peak_flops("NVIDIA H200") == 989.4e12
    for other in ("cpu", "NVIDIA H100 PCIe", "NVIDIA H100 NVL", "AMD Instinct MI300A", "NVIDIA A100-SXM4-80GB"):
        assert peak_flops(other) is None


def test_targets_hold_the_memory_of_their_data_sheets():
    for name, target in TARGETS.items():
        assert target.memory == HARDWARE[name].memory
        assert f"device_memory_size: {target.memory}" in target.config
        assert f"memory_bandwidth: {HARDWARE[name].bandwidth:.0f}" in target.config
