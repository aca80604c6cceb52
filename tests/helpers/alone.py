"""Every adapter trained alone by plain PEFT: what the runtime must reproduce."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from cappuccino.instance import Instance


@dataclass(frozen=True)
class Trained:
    losses: list[float]
    norms: list[float | None]
    weights: dict[str, torch.Tensor]
    evaluations: dict[int, float]
    """Mean cross-entropy on all of the evaluation data, by the step behind which it was worked out."""
    after: dict[int, dict[str, torch.Tensor]]
    """Weights behind those steps."""


def train_alone(
    instance: Instance,
    position: int,
    backbone: Path,
    data: Path,
    dtype: torch.dtype,
    *,
    attention: str = "sdpa",
    until: int | None = None,
) -> Trained:
    """Train one adapter in one process, sample by sample, on the whole backbone, up to a step that is not made."""
    job = instance.adapters[position]
    model = AutoModelForCausalLM.from_pretrained(backbone, dtype=dtype, attn_implementation=attention)
    targets = job.target_modules if isinstance(job.target_modules, str) else list(job.target_modules)
    config = LoraConfig(r=job.rank, lora_alpha=job.alpha, target_modules=targets, task_type="CAUSAL_LM")
    torch.manual_seed(job.seed)
    model = get_peft_model(model, config)
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    steps = instance.num_steps(position)
    optimizer = torch.optim.AdamW(parameters, lr=job.learning_rate, weight_decay=job.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda k: learning_rate_factor(job.lr_scheduler, k, job.warmup_steps, steps)
    )

    def rows_of(dataset: str) -> list[dict]:
        return [json.loads(line) for line in (data / f"{dataset}.jsonl").read_text().splitlines()]

    rows, evaluations, after = rows_of(job.dataset), {}, {}
    total = len(instance.dataset_lengths[job.dataset])
    losses: list[float] = []
    norms: list[float | None] = []
    for step in range(steps if until is None else until):
        batch = [rows[n % total] for n in range(step * job.global_batch_size, (step + 1) * job.global_batch_size)]
        longest = instance.max_sequence_length
        labels = [torch.tensor(row.get("labels", row["input_ids"])[:longest])[1:] for row in batch]
        count = sum(int((x != -100).sum()) for x in labels)
        losses.append(0.0)
        for row, targets_L in zip(batch, labels, strict=True):
            if (targets_L == -100).all():
                continue
            logits = model(torch.tensor([row["input_ids"][:longest]]), use_cache=False).logits[0, :-1]
            loss = cross_entropy(logits, targets_L, ignore_index=-100, reduction="sum") / count
            loss.backward()
            losses[-1] += loss.item()
        norms.append(None)
        if job.max_grad_norm is not None:
            norms[-1] = float(torch.nn.utils.clip_grad_norm_(parameters, job.max_grad_norm))
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        last = step == steps - 1
        if job.eval_dataset is not None and (last or (job.eval_every and (step + 1) % job.eval_every == 0)):
            number = len(instance.dataset_lengths[job.eval_dataset])
            evaluations[step] = mean_loss(model, rows_of(job.eval_dataset)[:number], instance.max_sequence_length)
            weights = get_peft_model_state_dict(model, save_embedding_layers=False)
            after[step] = {name: weight.detach().clone() for name, weight in weights.items()}
    return Trained(losses, norms, get_peft_model_state_dict(model, save_embedding_layers=False), evaluations, after)


def mean_loss(model: torch.nn.Module, rows: list[dict], longest: int) -> float:
    """Return the mean cross-entropy over all tokens with loss, without dropout.

    transformers' own loss agrees up to float32, in which it works it out whatever the model's type.
    """
    model.eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for row in rows:
            ids = torch.tensor([row["input_ids"][:longest]])
            labels = torch.tensor([row.get("labels", row["input_ids"])[:longest]])
            predicted = int((labels[:, 1:] != -100).sum())
            if predicted:
                out = model(ids, labels=labels, use_cache=False)
                loss = cross_entropy(out.logits[0, :-1], labels[0, 1:], ignore_index=-100, reduction="sum")
                assert abs(float(out.loss) - float(loss) / predicted) < 1e-5 or not loss.isfinite()
                total += float(loss)
                count += predicted
    model.train()
    return total / count


def learning_rate_factor(kind: str, step: int, warmup: int, steps: int) -> float:
    """Return the factor of the learning rate of a step, written from its definition."""
    if step < warmup:
        return step / warmup
    share = (step - warmup) / max(1, steps - warmup)
    return {"constant": 1.0, "linear": 1 - share, "cosine": 0.5 + 0.5 * math.cos(math.pi * share)}[kind]


def largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Return the largest absolute difference of weights under the same names."""
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)
