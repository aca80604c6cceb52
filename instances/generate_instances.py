"""The shipped instances: `python -m cappuccino.instances.generate_instances` rewrites their JSON files.

What each is planned for stands in `generate_index.py`.
"""

from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from cappuccino.files import write_atomically
from cappuccino.instances.building import DATASETS, SEED_DATASETS, adapter, instance, pool, short_adapter, text_of
from cappuccino.instances.generate_lengths import SEED, LengthSummary, sample_lengths

FOLDER = Path(__file__).parent
QWEN_7B, QWEN_14B, QWEN_32B = (f"Qwen2.5-{size}-Instruct" for size in ("7B", "14B", "32B"))
LLAMA_7B, LLAMA_8B, LLAMA_13B, LLAMA_70B = "Llama-2-7b-hf", "Llama-3.1-8B", "Llama-2-13b-hf", "Llama-3.1-70B"
A100, H100 = "a100-40gb", "h100-80gb"


def tiny() -> Iterator[dict[str, Any]]:
    """Yield instances of one to three adapters and a few steps: solved within a second, good for a first look."""
    yield instance("tiny1-llama7b", LLAMA_7B, pool(A100, 1), [adapter("samsum", "samsum", 4, 1, 2)])
    two = [adapter("xsum", "xsum", 4, 1, 3, rank=8), adapter("gsm8k", "gsm8k", 8, 2, 3, max_grad_norm=1.0)]
    yield instance("tiny2-qwen7b", QWEN_7B, pool(A100, 2), two)
    three = [adapter(name, name, 4, 2, 2) for name in ("cnn_dailymail", "pubmedqa", "codealpaca_20k")]
    yield instance("tiny3-qwen32b", QWEN_32B, pool(A100, 4), three)


def seed4(name: str, backbone: str, gpu: str = A100, count: int = 16) -> dict[str, Any]:
    """Return the seed's example: four adapters alike but for their data."""
    return instance(name, backbone, pool(gpu, count), [adapter(d, d, 8, 2, 10) for d in SEED_DATASETS])


def mixed12(name: str, backbone: str, count: int = 64, steps: int | None = 10, **settings: Any) -> dict[str, Any]:
    """Return all twelve datasets, batches and micro-batches of several sizes."""
    return instance(name, backbone, pool(A100, count), _mixed_adapters(DATASETS, steps), **settings)


def mixed16() -> dict[str, Any]:
    """Return sixteen adapters of four ranks: every dataset once, four of them twice, jobs of unequal length."""
    datasets = [*DATASETS, "xsum", "mathinstruct", "magicoder_evol_instruct_110k", "wikisum"]
    ranks, batches = cycle((8, 16, 32, 64)), cycle((8, 16, 4, 32, 8))
    micros, steps = cycle((1, 2, 4)), cycle((10, 16, 8, 12, 20, 14, 18))
    adapters = [
        adapter(f"{dataset}-r{rank}", dataset, batch, micro, count, rank=rank)
        for dataset, rank, batch, micro, count in zip(datasets, ranks, batches, micros, steps, strict=False)
    ]
    return instance("mixed16-llama70b", LLAMA_70B, pool(H100, 64), adapters)


def deep() -> Iterator[dict[str, Any]]:
    """Yield few adapters on one long pipeline, all there is: the path of the longest adapter binds."""
    for stages in (4, 6):
        yield seed4(f"deep{stages}-qwen32b", QWEN_32B, count=stages)
    two = [adapter("meetingbank", "meetingbank", 8, 1, 8), adapter("wikisum", "wikisum", 8, 1, 8)]
    yield instance("deep8-llama70b", LLAMA_70B, pool(H100, 8), two)


def many() -> Iterator[dict[str, Any]]:
    """Yield dozens of adapters on fewer GPUs than they would take one by one."""
    sweep = [
        adapter(f"{dataset}-{k}", dataset, batch, 2, 12, rank=rank)
        for dataset in ("xsum", "samsum", "mathinstruct", "numinamath_cot")
        for k, (batch, rank) in enumerate((b, r) for b in (4, 8, 16, 32) for r in (8, 64))
    ]
    yield instance("many32-qwen7b", QWEN_7B, pool(A100, 16), sweep)
    yield instance("many48-llama70b", LLAMA_70B, pool(H100, 48), _cycled(48, 10))


def tight_memory() -> Iterator[dict[str, Any]]:
    """Yield pools of a single replica whose stages hold little more than the longest sample beside all adapters."""
    short = [adapter(d, d, 8, 1, 10) for d in SEED_DATASETS]
    yield instance("tight4-qwen32b", QWEN_32B, pool(A100, 2), short, max_sequence_length=1536)
    six = [adapter(d, d, 8, 1, 6) for d in DATASETS[:6]]
    yield instance("tight6-llama70b", LLAMA_70B, pool(H100, 2), six, max_sequence_length=1024)
    eight = [adapter(d, d, 8, 1, 8) for d in DATASETS[:8]]
    yield instance("tight8-qwen32b", QWEN_32B, pool(H100, 1), eight, max_sequence_length=2304)


def long_tails() -> Iterator[dict[str, Any]]:
    """Yield rare samples forty times the median, and jobs a hundred times as long as others."""
    lengths = {f"rare-{k}": _rare_long_samples(k) for k in range(6)}
    rare = [adapter(name, name, batch, 2, 12) for name, batch in zip(lengths, cycle((8, 16, 32)), strict=False)]
    yield instance("tails6-qwen32b", QWEN_32B, pool(A100, 32), rare, lengths=lengths)
    steps = (2, 4, 8, 16, 32, 64, 128, 200)
    uneven = [adapter(f"{d}-{n}", d, 8, 2, n) for d, n in zip(DATASETS, steps, strict=False)]
    yield instance("uneven8-llama8b", LLAMA_8B, pool(A100, 16), uneven)
    uneven = [adapter(f"{d}-{n}", d, 8, 2, n) for d, n in zip(reversed(DATASETS), steps[:6], strict=False)]
    yield instance("uneven6-llama70b", LLAMA_70B, pool(H100, 32), uneven)


def mixed_pools() -> Iterator[dict[str, Any]]:
    """Yield two GPU types at different prices, the faster one scarce."""
    pools = [pool(A100, 24), pool(H100, 4)]
    yield instance("pools8-qwen32b", QWEN_32B, pools, _mixed_adapters(DATASETS[:8], 8))
    yield instance("pools24-qwen32b", QWEN_32B, [pool(A100, 48), pool(H100, 8)], _cycled(24, 10))
    eight = [pool(A100, 8), pool(H100, 4)]
    yield instance("pools12-llama8b", LLAMA_8B, eight, _mixed_adapters(DATASETS, 16))


def padded() -> Iterator[dict[str, Any]]:
    """Yield micro-batches that cost samples times the longest."""
    six = [adapter(d, d, 8, 4, 10) for d in DATASETS[:6]]
    yield instance("padded6-llama8b", LLAMA_8B, pool(A100, 8), six, layout="padded")
    yield mixed12("padded12-qwen32b", QWEN_32B, layout="padded")


def scale(name: str, backbone: str, gpu: str, gpus: int, adapters: int, steps: int) -> dict[str, Any]:
    """Return hundreds of adapters over all datasets."""
    return instance(name, backbone, pool(gpu, gpus), _cycled(adapters, steps))


def instance_documents() -> list[dict[str, Any]]:
    """Return all generated instances."""
    return [
        *tiny(),
        seed4("seed4-qwen32b", QWEN_32B),
        seed4("seed4-llama7b", LLAMA_7B),
        seed4("seed4-llama70b", LLAMA_70B, H100),
        mixed12("mixed12-qwen32b", QWEN_32B),
        mixed12("mixed12-llama7b", LLAMA_7B),
        mixed12("mixed12-llama13b", LLAMA_13B, count=24),
        mixed12("mixed12-qwen14b", QWEN_14B, count=24),
        mixed16(),
        *deep(),
        *many(),
        *tight_memory(),
        *long_tails(),
        *mixed_pools(),
        *padded(),
        mixed12("full12-qwen32b", QWEN_32B, steps=None),
        instance("full4-llama7b", LLAMA_7B, pool(A100, 8), [adapter(d, d, 16, 2, None) for d in SEED_DATASETS]),
        scale("scale100-qwen32b", QWEN_32B, A100, 128, 100, 20),
        scale("scale100-llama8b", LLAMA_8B, H100, 32, 100, 20),
        scale("scale300-llama70b", LLAMA_70B, H100, 256, 300, 10),
        scale("scale1000-qwen32b", QWEN_32B, A100, 256, 1000, 20),
    ]


def instance_texts() -> dict[str, str]:
    """Return the text of every generated instance file, by file name."""
    return {f"{document['name']}.json": text_of(document) for document in instance_documents()}


def _mixed_adapters(datasets: Sequence[str], steps: int | None) -> list[dict[str, Any]]:
    sizes = zip(datasets, cycle((8, 16, 4, 8)), cycle((1, 2, 4, 1)), strict=False)
    return [adapter(dataset, dataset, batch, micro, steps) for dataset, batch, micro in sizes]


def _cycled(count: int, steps: int) -> list[dict[str, Any]]:
    """Return adapters that go round the datasets, with the next batch size on every round."""
    adapters = []
    for i in range(count):
        turn = i + i // len(DATASETS)
        batch, micro = (8, 16, 4, 8)[turn % 4], (1, 2, 4, 1)[turn % 4]
        adapters.append(short_adapter(f"a{i:04}", DATASETS[i % len(DATASETS)], batch, micro, steps))
    return adapters


def _rare_long_samples(number: int) -> list[int]:
    """Return 200 lengths around 60 tokens, three of them 3,000 and more."""
    rng = np.random.default_rng([SEED, len(DATASETS) + number])
    short = sample_lengths(LengthSummary(20, 60, 110, 150, 180, 66), 197, rng)
    return [int(n) for n in rng.permutation(np.append(short, [3000, 3500, 4096]))]


def main() -> None:
    """Rewrite the instance files."""
    for name, text in instance_texts().items():
        write_atomically(FOLDER / name, text)


if __name__ == "__main__":
    main()
