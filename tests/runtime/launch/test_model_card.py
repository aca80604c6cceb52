import pytest
from helpers.builders import changed, make_plan, make_replica
from helpers.small import instance_of
from huggingface_hub import ModelCard

from cappuccino.instance import Adapter
from cappuccino.plan import Plan, Replica
from cappuccino.runtime.launch.model_card import model_card
from cappuccino.runtime.pipeline.stopping import StopReason

ADAPTER = Adapter(
    name="chat", dataset="org/talks", global_batch_size=4, num_steps=5, rank=8, target_modules=("q_proj", "v_proj")
)
INSTANCE = instance_of([ADAPTER, changed(ADAPTER, name="code")], {"org/talks": [3, 4]})


def planned(*names: str) -> tuple[Plan, Replica]:
    replica = changed(make_replica([[(0, 0)]], [[("F", 0)], [("F", 0)]], names, gpu="a100"), makespan_s=12.5)
    return make_plan(INSTANCE, replica).model_copy(update={"gap": 0.0123}), replica


def test_the_card_says_what_was_trained_and_how() -> None:
    card = ModelCard(model_card(ADAPTER, [2.5, 2.0, 1.5, 1.3, 1.25], None, *planned("chat", "code"), "Qwen/Qwen2.5-7B"))
    assert card.data.to_dict() == {
        "base_model": "Qwen/Qwen2.5-7B",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["base_model:adapter:Qwen/Qwen2.5-7B", "cappuccino", "lora", "transformers"],
    }
    for said in (
        "# chat\n",
        "5 optimizer steps on the dataset `org/talks` (20 samples)",
        "2.5000 at the first step and 1.2500 at the last",
        "| rank | 8 |",
        "| target_modules | q_proj, v_proj |",
        "| learning_rate | 0.0001 |",
        "together with 1 other adapter, 2 pipeline stages on a100, 1 micro-batch;",
        "made for gpu_time\n(feasible, gap to the bound 1.23%)",
        "predicted to take 12.5 s",
    ):
        assert said in card.text, said
    assert "Diverged" not in card.text
    assert "topped" not in card.text


def test_a_path_is_no_metadata(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "backbones" / "tiny").mkdir(parents=True)
    card = ModelCard(model_card(ADAPTER, [], StopReason.DIVERGED, *planned("chat"), "backbones/tiny"))
    assert card.data.base_model is None
    assert card.data.tags == ["cappuccino", "lora", "transformers"]
    assert "A LoRA adapter of `backbones/tiny`" in card.text
    assert "Trained alone, 2 pipeline stages" in card.text
    assert "Not trained: no optimizer step was made on the dataset `org/talks`." in card.text
    assert "**Diverged:** its loss or its gradients were not finite, at step 0 (counted from 0)" in card.text


@pytest.mark.parametrize(("reason", "said"), [(StopReason.PATIENCE, "did not improve"), (StopReason.ASKED, "asked")])
def test_a_card_says_why_the_training_ended_early(reason: StopReason, said: str) -> None:
    text = model_card(ADAPTER, [2.5], reason, *planned("chat"), "Qwen/Qwen2.5-7B")
    assert "1 optimizer step on the dataset `org/talks` (4 samples)" in text
    line = next(line for line in text.splitlines() if line.startswith("Stopped early"))
    assert said in line
    assert "at step 1 (counted from 0)" in line
