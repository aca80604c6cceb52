from itertools import pairwise
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from transformers import AutoModelForCausalLM

from cappuccino.errors import InputError
from cappuccino.instance import Adapter
from cappuccino.runtime.backbone.attention import Packing
from cappuccino.runtime.backbone.part import BackbonePart
from cappuccino.runtime.lora.multi_lora import MultiLora
from cappuccino.runtime.lora.segment import Segment

CPU = torch.device("cpu")
ADAPTERS = [
    Adapter(name="a", dataset="d", global_batch_size=1, rank=4, seed=3),
    Adapter(name="b", dataset="d", global_batch_size=1, rank=2, alpha=3, seed=11, target_modules="all-linear"),
    Adapter(
        name="c", dataset="d", global_batch_size=1, rank=3, seed=3, target_modules=("lm_head", "layers.0.mlp.up_proj")
    ),
]


def job(**fields: object) -> Adapter:
    return Adapter(name="job", dataset="d", global_batch_size=1, **fields)


def by_peft(backbone: Path, adapter: Adapter, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(backbone, dtype=dtype)
    targets = adapter.target_modules
    targets = targets if isinstance(targets, str) else list(targets)
    config = LoraConfig(r=adapter.rank, lora_alpha=adapter.alpha, target_modules=targets, task_type="CAUSAL_LM")
    torch.manual_seed(adapter.seed)
    return get_peft_model_state_dict(get_peft_model(model, config), save_embedding_layers=False)


def on_stages(backbone: Path, edges: list[int], dtype: torch.dtype) -> list[MultiLora]:
    return [MultiLora(BackbonePart(backbone, range(*split), CPU, dtype), ADAPTERS) for split in pairwise(edges)]


@pytest.mark.parametrize("edges", [[0, 4], [0, 1, 3, 4]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_initial_weights_are_those_of_peft(llama: Path, edges: list[int], dtype: torch.dtype) -> None:
    stages = on_stages(llama, edges, dtype)
    for position, adapter in enumerate(ADAPTERS):
        expected = by_peft(llama, adapter, dtype)
        found = [lora.state_dict(position) for lora in stages]
        assert sum(map(len, found)) == len(expected)  # no weight on two stages
        union = {name: weight for part in found for name, weight in part.items()}
        assert union.keys() == expected.keys()
        for name, weight in expected.items():
            assert union[name].dtype == weight.dtype
            assert torch.equal(union[name], weight), name


def test_a_stage_may_have_nothing_of_an_adapter(llama: Path) -> None:
    _, middle, _ = on_stages(llama, [0, 1, 3, 4], torch.float32)
    assert middle.parameters(2) == []
    assert middle.state_dict(2) == {}


def test_building_adapters_leaves_the_random_state_alone(llama: Path) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    on_stages(llama, [0, 4], torch.float32)
    assert torch.equal(torch.rand(3), expected)


def test_only_adapters_are_trainable(llama: Path) -> None:
    part = BackbonePart(llama, range(4), CPU, torch.float32)
    lora = MultiLora(part, ADAPTERS)
    trainable = {id(p) for p in part.model.parameters() if p.requires_grad}
    assert trainable == {id(p) for position in range(3) for p in lora.parameters(position)}


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (("no_such_proj",), r"adapter job: target_modules: \['no_such_proj'\] do not fit the backbone"),
        (("embed_tokens",), r"model.embed_tokens is no linear layer \(Embedding\)"),
        (("mlp",), "do not fit the backbone"),
    ],
)
def test_targets_that_do_not_fit_are_refused(llama: Path, targets: tuple[str, ...], message: str) -> None:
    part = BackbonePart(llama, range(2), CPU, torch.float32)
    with pytest.raises(InputError, match=message):
        MultiLora(part, [job(target_modules=targets)])


def test_routed_layers_refuse_to_run_without_segments(llama: Path) -> None:
    part = BackbonePart(llama, range(4), CPU, torch.float32)
    MultiLora(part, ADAPTERS)
    with pytest.raises(RuntimeError, match="segments"):
        part.decode(
            torch.zeros(1, 2, 32), torch.arange(2)[None], Packing((2,), torch.tensor([0, 2], dtype=torch.int32))
        )


def test_dropout_masks_belong_to_the_sample(llama: Path) -> None:
    # One layer, the same sample of 5 tokens at two places of a packing: same output, another step another output.
    part = BackbonePart(llama, range(4), CPU, torch.float64)
    lora = MultiLora(part, [job(dropout=0.5, target_modules=("q_proj",))])
    with torch.no_grad():
        lora.parameters(0)[1].normal_()
    layer = part.model.model.layers[0].self_attn.q_proj
    torch.manual_seed(0)
    sample, other = torch.randn(5, 32, dtype=torch.float64), torch.randn(2, 32, dtype=torch.float64)

    def run(rows: list[torch.Tensor], samples: tuple[tuple[int, int], ...], step: int) -> torch.Tensor:
        packed = torch.cat(rows)[None]
        with lora.routed((Segment(0, step, 0, packed.shape[1], samples),), ()):
            return layer(packed)[0]

    alone = run([sample], ((7, 5),), step=1)
    torch.testing.assert_close(run([other, sample], ((6, 2), (7, 5)), step=1)[2:], alone)
    assert not torch.allclose(run([sample], ((7, 5),), step=2), alone)
    assert not torch.allclose(run([sample], ((8, 5),), step=1), alone)
