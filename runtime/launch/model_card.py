"""The model card of an adapter: what it is, how it was trained and planned; needs no torch."""

from collections.abc import Sequence

from cappuccino.errors import counted
from cappuccino.instance import Adapter
from cappuccino.plan import Plan, Replica
from cappuccino.runtime.backbone.hub import is_hub_name
from cappuccino.runtime.pipeline.stopping import StopReason


def model_card(
    adapter: Adapter,
    losses: Sequence[float],
    stopped: StopReason | None,
    plan: Plan,
    replica: Replica | None,
    backbone: str,
) -> str:
    """Return the text of an adapter's README.md, with the metadata that PEFT writes in front.

    A backbone that is no model of the hub is named in the text only: the hub refuses paths as metadata.

    Parameters
    ----------
    adapter
        The job.
    losses
        By optimizer step made.
    stopped
        Why no more were made; None when all were.
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

{_trained(adapter, losses)}{_stopped(len(losses), stopped)}

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


def _trained(adapter: Adapter, losses: Sequence[float]) -> str:
    """Return how much the adapter was trained, in a sentence."""
    if not losses:
        return f"Not trained: no optimizer step was made on the dataset `{adapter.dataset}`."
    steps = len(losses)
    return (
        f"{steps} optimizer step{'s' if steps > 1 else ''} on the dataset `{adapter.dataset}` "
        f"({steps * adapter.global_batch_size} samples), loss\n"
        f"{losses[0]:.4f} at the first step and {losses[-1]:.4f} at the last."
    )


_REASONS = {
    StopReason.DIVERGED: "**Diverged:** its loss or its gradients were not finite",
    StopReason.PATIENCE: "Stopped early: the loss on the evaluation data did not improve any more",
    StopReason.ASKED: "Stopped early, as was asked for",
}


def _stopped(step: int, reason: StopReason | None) -> str:
    """Return why the adapter was not trained to its end, as a paragraph."""
    if reason is None:
        return ""
    return f"\n\n{_REASONS[reason]}, at step {step} (counted from 0); the weights are those before that step."


def _planned(plan: Plan, replica: Replica) -> str:
    """Return how the adapter's training was planned, in sentences."""
    others = len(replica.adapters) - 1
    company = "alone" if not others else f"together with {counted(others, 'other adapter')}"
    stages = f"{counted(replica.num_stages, 'pipeline stage')} on {replica.gpu}"
    gap = "no bound known" if plan.gap is None else f"gap to the bound {100 * plan.gap:.2f}%"
    batches = counted(len(replica.micro_batches), "micro-batch", "micro-batches")
    return (
        f"Trained {company}, {stages}, {batches}; what else is in them\n"
        f"changes nothing about an adapter. The plan was made for {plan.objective.value}\n"
        f"({plan.status.value}, {gap}); its replica was predicted to take {replica.makespan_s:.4g} s."
    )
