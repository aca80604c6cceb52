from dataclasses import replace
from itertools import pairwise

import pytest

from cappuccino.analytic.efficiency import EAGER, FUSED, PUBLISHED
from cappuccino.analytic.memory import held_micro_batches, kept_values, peak_memory_gib
from cappuccino.backbone import ATTENTION_MODULES, BACKBONES, BackboneShape
from cappuccino.costs.adapters import AdapterSize
from cappuccino.plan import Recompute, even_layers

# 1024 x (2 x 1024 + 2 x 1024) + 3 x 1024 x 4096 = 2^24 parameters a layer
SPEC = BackboneShape(num_layers=4, hidden=1024, intermediate=4096, num_heads=8, num_kv_heads=8, vocab=1000)
MANY_WORDS = replace(SPEC, vocab=100_000)
ADAPTER = AdapterSize.of(SPEC.layer, 1, ATTENTION_MODULES)
"""Rank 1 on four square projections: 4 x 2 x 1024 parameters a layer, of 16 bytes each."""
TENSORS_ALONE = replace(PUBLISHED, context_gib=0)


def peak(layers, tokens, held, efficiency=TENSORS_ALONE, spec=SPEC, recompute=Recompute.FULL, **options):
    return peak_memory_gib(spec, layers, tokens, held, ADAPTER, efficiency, recompute=recompute, **options) * 2**30


def test_memory_of_one_gpu():
    # bf16 weights 2 x (4 x 2^24 + 2 x 1000 x 1024); the adapter; 100 tokens, each 34 x 1024 bytes of the recomputed
    # layer (more than 12 x 1000 of logits) and 2 x 1024 bytes of each of 4 layers' inputs
    expected = 2 * (4 * 2**24 + 2_048_000) + 16 * 4 * 8192 + 100 * (34_816 + 8192)
    assert peak((4,), 100, 1) == pytest.approx(expected)
    assert peak((4,), 100, 1, PUBLISHED) == pytest.approx(expected + 0.75 * 2**30)
    # one table if tied
    assert peak((4,), 100, 1, spec=replace(SPEC, tied_embeddings=True)) == pytest.approx(expected - 2_048_000)


def test_memory_of_one_gpu_without_recomputation():
    # a layer keeps 4 x 1024 + 2 x 1024 + 2 x 1024 + 3 x 4096 = 20,480 values; gradients of 2 x 1024 + 3 x 4096 = 14,336
    assert kept_values(SPEC, Recompute.NONE) == 20_480
    expected = 2 * (4 * 2**24 + 2_048_000) + 16 * 4 * 8192 + 100 * 2 * (14_336 + 4 * 20_480)
    assert peak((4,), 100, 1, recompute=Recompute.NONE) == pytest.approx(expected)


def test_kept_values_follow_key_heads_and_the_width_of_heads():
    # of four heads two keys: 2 x 512 values fewer; heads twice as wide: 2 x 1024 + 2 x 1024 more
    assert kept_values(replace(SPEC, num_kv_heads=4), Recompute.NONE) == 20_480 - 1024
    assert kept_values(replace(SPEC, head_width=256), Recompute.NONE) == 20_480 + 4096
    assert kept_values(replace(SPEC, num_kv_heads=4), Recompute.FULL) == 1024


def test_memory_of_the_last_stage_has_the_logits():
    # per stage: 2 layers, one table, two layer inputs of 3 held micro-batches; logits 12 bytes an entry
    expected = 2 * (2 * 2**24 + 102_400_000) + 16 * 2 * 8192 + 100 * (1_200_000 + 2 * 2048 * 3)
    assert peak((2, 2), 100, 3, spec=MANY_WORDS) == pytest.approx(expected)


def test_memory_under_one_f_one_b():
    efficiency = replace(TENSORS_ALONE, one_f_one_b=True, boundary_tensors=4)
    # last stage: one micro-batch in flight, two layer inputs of 2 x 1024 bytes; 4 tensors of each of 3 micro-batches
    expected = 2 * (2 * 2**24 + 102_400_000) + 16 * 2 * 8192 + 100 * (1_200_000 + 2 * 2048 + 4 * 3 * 2048)
    assert peak((2, 2), 100, 3, efficiency, MANY_WORDS) == pytest.approx(expected)
    # without logits the first stage is the fuller: two micro-batches in flight, whatever the step has
    expected = 2 * (2 * 2**24 + 1024) + 16 * 2 * 8192 + 100 * (34_816 + 2 * 2 * 2048 + 4 * 3 * 2048)
    assert peak((2, 2), 100, 3, efficiency, replace(SPEC, vocab=1)) == pytest.approx(expected)


def test_fullest_stage_of_an_uneven_split_is_found():
    # the second of three has 2 layers, of which two micro-batches are in flight, and no table
    efficiency = replace(TENSORS_ALONE, one_f_one_b=True)
    expected = 2 * 2 * 2**24 + 16 * 2 * 8192 + 100 * (34_816 + 2 * 2 * 2048)
    assert peak((1, 2, 1), 100, 8, efficiency, replace(SPEC, vocab=1)) == pytest.approx(expected)


def test_memory_in_fp32_doubles_weights_and_activations_not_adapters():
    adapters = 16 * 4 * 8192
    for mode in (Recompute.NONE, Recompute.FULL):
        half, whole = (peak((4,), 100, 1, recompute=mode, dtype=dtype) for dtype in ("bfloat16", "float32"))
        assert whole - adapters == pytest.approx(2 * (half - adapters))


def test_micro_batches_that_count_as_held():
    # those in flight on the first stage, or all of the step where each leaves something until its end
    assert [held_micro_batches(g, 8, FUSED) for g in (1, 4, 16)] == [1, 4, 8]
    assert [held_micro_batches(g, 8, EAGER) for g in (1, 4, 16)] == [1, 8, 8]
    assert held_micro_batches(4, 8, PUBLISHED) == 8


@pytest.mark.parametrize("mode", [Recompute.NONE, Recompute.FULL])
def test_memory_grows_with_tokens_and_held_micro_batches_and_shrinks_with_stages(mode):
    spec = BACKBONES["Qwen2.5-32B-Instruct"]

    def gib(stages, tokens, held):
        return peak(even_layers(64, stages), tokens, held, EAGER, spec, mode)

    for rising in (
        [gib(4, tokens, 8) for tokens in (1, 64, 1024, 8192)],
        [gib(4, 1024, held) for held in (1, 2, 8, 16)],
        [gib(stages, 64, 1) for stages in (8, 6, 4, 3, 2, 1)],
    ):
        assert all(a < b for a, b in pairwise(rising))
