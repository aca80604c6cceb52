"""The model card of an adapter: what it is, how it was trained and planned; needs no torch."""

import math
from collections.abc import Sequence

from cappuccino.instance import Adapter
from cappuccino.plan import Plan, Replica
from cappuccino.runtime.backbone.hub import is_hub_name
from cappuccino.runtime.monitoring.metrics import first_not_finite


def model_card(
    adapter: Adapter, num_steps: int, losses: Sequence[float], plan: Plan, replica: Replica | None, backbone: str
) -> str:
    """Return the text of an adapter's README.md, with the metadata that PEFT writes in front.

    A backbone that is no model of the hub is named in the text only: the hub refuses paths as metadata.

    Parameters
    ----------
    adapter
        The job.
    num_steps
        Its optimizer steps.
    losses
        By step.
    plan
        What was run.
    replica
        The adapter's in the plan; None where an earlier plan trained it.
    backbone
        Name of the backbone, or its path.
    """
    from huggingface_hub import ModelCard, ModelCardData  # noqa: PLC0415

    on_hub = is_hub_name(backbone)
    data = ModelCardData(
        base_model=backbone if on_hub else None,
        library_name="peft",
        pipeline_tag="text-generation",
        tags=[*([f"base_model:adapter:{backbone}"] if on_hub else []), "cappuccino", "lora", "transformers"],
    )
    settings = adapter.model_dump(mode="json", exclude_none=True, exclude=_ELSEWHERE)
    rows = "\n".join(f"| {name} | {_shown(value)} |" for name, value in settings.items())
    text = f"""---
{data.to_yaml()}
---

# {adapter.name}

A LoRA adapter of `{backbone}`, trained by [PEFT](https://github.com/huggingface/peft)'s layers with Cappuccino.

```python
from peft import AutoPeftModelForCausalLM

model = AutoPeftModelForCausalLM.from_pretrained("{adapter.name}")  # this folder
```

## Training

{num_steps} optimizer steps on the dataset `{adapter.dataset}` ({num_steps * adapter.global_batch_size} samples), loss
{_loss(losses[0])} at the first step and {_loss(losses[-1])} at the last.{_diverged(losses)}

| setting | value |
|---|---|
{rows}

## Planning

{"By an earlier plan than the last one of its run." if replica is None else _planned(plan, replica)}
"""
    return str(ModelCard(text))


_ELSEWHERE = {"name", "dataset", "num_steps", "micro_batch_size"}
"""Settings that stand in the text, or that say nothing of the training."""


def _shown(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _loss(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else "that is no number"


def _diverged(losses: Sequence[float]) -> str:
    step = first_not_finite(losses)
    if step is None:
        return ""
    return f"\n\n**Diverged:** the loss is not finite from step {step} (counted from 0); the weights are of no use."


def _planned(plan: Plan, replica: Replica) -> str:
    """Return how the adapter's training was planned, in sentences."""
    others = len(replica.adapters) - 1
    company = "alone" if not others else f"together with {others} other adapter{'s' if others > 1 else ''}"
    stages = f"{replica.num_stages} pipeline stage{'s' if replica.num_stages > 1 else ''} on {replica.gpu}"
    gap = "no bound known" if plan.gap is None else f"gap to the bound {100 * plan.gap:.2f}%"
    return (
        f"Trained {company}, {stages}, {len(replica.micro_batches)} micro-batches; what else is in them\n"
        f"changes nothing about an adapter. The plan was made for {plan.objective.value}\n"
        f"({plan.status.value}, {gap}); its replica was predicted to take {replica.makespan_s:.4g} s."
    )
