import itertools
from dataclasses import fields, replace
from itertools import pairwise

import pytest

from cappuccino.analytic.catalogue import GPUS, GpuSpec
from cappuccino.analytic.efficiency import EAGER, FUSED, PUBLISHED, BackwardOverForward
from cappuccino.analytic.roofline import LINK_LATENCY_S, PartTimes, part_times, step_time, transfer_time
from cappuccino.backbone import ALL_LINEAR, ATTENTION_MODULES, BackboneShape
from cappuccino.costs.adapters import AdapterSize
from cappuccino.costs.table import PARTS
from cappuccino.plan import Recompute

# 1024 x (2 x 1024 + 2 x 1024) + 3 x 1024 x 4096 = 2^22 + 3 x 2^22 = 2^24 parameters a layer
SPEC = BackboneShape(num_layers=4, hidden=1024, intermediate=4096, num_heads=8, num_kv_heads=8, vocab=1000)
ADAPTER = AdapterSize.of(SPEC.layer, 16, ATTENTION_MODULES)
"""Four modules, each 1024 wide on both sides."""
ONE_TFLOPS = GpuSpec(1 / 0.45, 0.5 / 0.45, 0.25 / 0.45, bandwidth_gb_s=1e9, memory_gib=40, link_gb_s=1)
"""10^12 flops a second at the published share of the peak in bf16, half of it in TF32, a quarter in fp32."""
ONE_GB_S = GpuSpec(1e9, 1e9, 1e9, bandwidth_gb_s=1, memory_gib=40, link_gb_s=1)
PRODUCTS, ATTENTION = 2 * 2**24 * 4096, 2 * 4096 * 1024 * 1024
"""Flops of 4096 tokens in sequences of 1024: 2^37, and 2^33."""


def parts(gpu_spec, tokens, seqlen, efficiency=PUBLISHED, spec=SPEC, adapter=ADAPTER, **options):
    return part_times(spec, gpu_spec, tokens, seqlen, adapter, efficiency, **options)


def test_layer_time_where_arithmetic_binds():
    time = parts(ONE_TFLOPS, 4096, 1024).layer_forward
    assert time == pytest.approx((PRODUCTS + ATTENTION) / 1e12)


@pytest.mark.parametrize(("dtype", "slower"), [("float16", 1), ("tf32", 2), ("float32", 4)])
def test_arithmetic_is_at_the_peak_of_its_type(dtype, slower):
    expected = slower * parts(ONE_TFLOPS, 4096, 1024).layer_forward
    assert parts(ONE_TFLOPS, 4096, 1024, dtype=dtype).layer_forward == pytest.approx(expected)


def test_attention_grows_with_the_sequence():
    # the same tokens in sequences of twice the length: the attention term doubles
    short, long = (parts(ONE_TFLOPS, 4096, s).layer_forward for s in (1024, 2048))
    assert long - short == pytest.approx(ATTENTION / 1e12)


def test_attention_has_the_width_of_its_heads():
    # heads of 256 instead of 128: 2 x 1024 x (2048 + 2048) more matrix entries, 2^23 - 2^22, and attention doubles
    wide = replace(SPEC, head_width=256)
    assert wide.layer_parameters == 2**24 + 2**22
    more = parts(ONE_TFLOPS, 4096, 1024, spec=wide).layer_forward - (PRODUCTS + ATTENTION) / 1e12
    assert more == pytest.approx((2 * 2**22 * 4096 + ATTENTION) / 1e12)


@pytest.mark.parametrize(("dtype", "width"), [("bfloat16", 2), ("float32", 4)])
def test_layer_time_where_bandwidth_binds(dtype, width):
    # weights 2 x 2^24 bytes, activations 60 x 1024 bytes for the one token, at 10^9 a second; twice that in fp32
    time = parts(ONE_GB_S, 1, 1, dtype=dtype).layer_forward
    assert time == pytest.approx(width / 2 * (2**25 + 61440) / 1e9)


def test_kernels_that_bandwidth_binds_follow_the_products_unless_they_overlap():
    # per token 100 x 1024 bytes, the gate 10 x 4096, adapters 3 x 4 modules x 2048, at half of 5 x 10^9 a second
    gpu = replace(ONE_TFLOPS, bandwidth_gb_s=5)
    apart = replace(
        PUBLISHED, elementwise_bytes=100, gate_bytes=10, adapter_bytes=3, bandwidth_share=0.5, overlapped=False
    )
    products, kernels = (PRODUCTS + ATTENTION) / 1e12, 4096 * (102_400 + 40_960 + 24_576) / 2.5e9
    assert parts(gpu, 4096, 1024, apart).layer_forward == pytest.approx(products + kernels)
    # behind the products: the weights' 2^25 bytes and the kernels take longer than they
    overlapped = parts(gpu, 4096, 1024, replace(apart, overlapped=True)).layer_forward
    assert overlapped == pytest.approx(2**25 / 2.5e9 + kernels)
    assert overlapped > products
    # gate, up and down have adapters as well, each 1024 + 4096 wide
    every = AdapterSize.of(SPEC.layer, 16, ALL_LINEAR)
    more = parts(gpu, 4096, 1024, apart, adapter=every).layer_forward - (products + kernels)
    assert more == pytest.approx(4096 * 3 * 15_360 / 2.5e9)


def test_every_kernel_starts_and_ends():
    # 3 kernels and 2 for each of four modules, a millisecond each; half as many more in the backward
    slow = replace(
        PUBLISHED,
        kernel_s=1e-3,
        launch_s=0.0,
        layer_launches=3,
        module_launches=2,
        backward=BackwardOverForward(1, 1, 1.5),
    )
    found = parts(ONE_TFLOPS, 4096, 1024, slow)
    assert found.layer_forward == pytest.approx((PRODUCTS + ATTENTION) / 1e12 + 11e-3)
    assert found.layer_backward == pytest.approx((PRODUCTS + ATTENTION) / 1e12 + 16.5e-3)


def test_layer_time_where_the_host_binds():
    # one token on an H100: 20 launches and 3 for each of four modules, or 45 and 10; half as many more backward
    for engine, launches in ((FUSED, 32), (EAGER, 85)):
        found = parts(GPUS["h100-80gb"], 1, 1, engine)
        assert found.layer_forward == pytest.approx(launches * engine.launch_s)
        assert found.layer_backward == pytest.approx(1.5 * launches * engine.launch_s)
    assert parts(GPUS["h100-80gb"], 1, 1).layer_forward == PUBLISHED.launch_s


def test_the_hosts_launches_are_no_part_of_a_longer_time():
    slow, fast = (parts(ONE_TFLOPS, 4096, 1024, replace(FUSED, launch_s=s)).layer for s in (1e-3, 1e-9))
    assert slow == fast


def test_backward_of_a_layer():
    # products as in the forward, attention 2.5 times, 100 x 1024 bytes a token twice
    efficiency = replace(PUBLISHED, elementwise_bytes=100, overlapped=False, backward=BackwardOverForward(2.5, 2, 1))
    gpu = replace(ONE_TFLOPS, bandwidth_gb_s=50)
    forward = (PRODUCTS + ATTENTION) / 1e12 + 102_400 * 4096 / 50e9
    backward = (PRODUCTS + 2.5 * ATTENTION) / 1e12 + 2 * 102_400 * 4096 / 50e9
    kept, again = (parts(gpu, 4096, 1024, efficiency, recompute=mode) for mode in (Recompute.NONE, Recompute.FULL))
    assert (kept.layer_forward, again.layer_forward) == (pytest.approx(forward), pytest.approx(forward))
    assert kept.layer_backward == pytest.approx(backward)
    assert again.layer_backward == pytest.approx(forward + backward)


def test_head_and_loss():
    # 2 x 1000 x 1024 x 1000 flops at 10^12 a second forward, and as many backward; 6 passes of 4 x 1000 x 1000 bytes
    found = parts(ONE_TFLOPS, 1000, 1000)
    assert found.head_forward == found.head_backward == pytest.approx(2.048e9 / 1e12)
    assert found.loss_forward == pytest.approx(16e6 / 1e18)
    assert found.loss_backward == pytest.approx(8e6 / 1e18)
    assert found.head == pytest.approx(4.096e9 / 1e12 + 24e6 / 1e18)
    # weights read twice, 2 x 2 x 1000 x 1024 bytes, and 24,000 bytes of one token's logits, at 10^9 a second
    assert parts(ONE_GB_S, 1, 1).head == pytest.approx((4_096_000 + 24_000) / 1e9)


def test_embedding():
    # 4 x 1024 bytes of each of 1000 tokens at 10^9 a second, and a kernel
    efficiency = replace(PUBLISHED, embedding_bytes=4, kernel_s=1e-6)
    assert parts(ONE_GB_S, 1000, 1000, efficiency).input_forward == pytest.approx(4_096_000 / 1e9 + 1e-6)


BY_HAND = PartTimes(0.25, 1.0, 2.0, head_forward=1.0, head_backward=1.5, loss_forward=1.0, loss_backward=1.5)


def test_stage_is_the_slowest():
    # the last of (2, 2): 0.25 + 2 x 1 + 2 forward, 2 x 2 + 3 backward; the first of (3, 1): 9.25 against 8.25
    assert BY_HAND.stage((2, 2)) == (4.25, 7.0)
    assert BY_HAND.stage((3, 1)) == (3.25, 6.0)
    assert BY_HAND.stage((4,)) == (6.25, 11.0)


def test_layers_are_even_unless_the_head_is_heavy():
    # the head takes 5, a layer 3: (3, 1) takes 9 and (2, 2) 11
    assert BY_HAND.split(4, 2) == (3, 1)
    assert BY_HAND.split(4, 1) == (4,)
    # a head of a third of a layer cannot outweigh one
    light = replace(BY_HAND, head_forward=0.5, head_backward=0.5, loss_forward=0.0, loss_backward=0.0)
    assert light.split(4, 2) == (2, 2)
    assert light.split(7, 3) == (3, 2, 2)


def test_columns_are_those_of_a_cost_table():
    assert set(BY_HAND.columns()) == set(PARTS)
    assert len(fields(PartTimes)) == len(PARTS)


def test_transfer():
    # 2 x 1024 bytes of each of 1000 tokens at 10^9 a second; in fp32 twice
    assert transfer_time(SPEC, ONE_GB_S, 1, 1000) == 0.0
    assert transfer_time(SPEC, ONE_GB_S, 2, 1000) == pytest.approx(LINK_LATENCY_S + 2.048e-3)
    assert transfer_time(SPEC, ONE_GB_S, 4, 1000, "float32") == pytest.approx(LINK_LATENCY_S + 4.096e-3)


def test_step_has_a_flush_and_two_ways_through_the_links():
    # slots of 4.25 + 7: three micro-batches and one more for the second stage; forward and backward over one link
    assert step_time(BY_HAND, (2, 2), 3) == pytest.approx(4 * 11.25)
    assert step_time(BY_HAND, (2, 2), 3, 0.5) == pytest.approx(4 * 11.25 + 1.0)
    assert step_time(BY_HAND, (4,), 3, 0.5) == pytest.approx(3 * 17.25)


def test_catalogued_gpus_are_faster_in_narrower_types():
    for spec, (wide, narrow) in itertools.product(GPUS.values(), pairwise(("float32", "tf32", "bfloat16"))):
        assert spec.tflops(wide) < spec.tflops(narrow)
        assert spec.tflops("float16") == spec.tflops("bfloat16")
