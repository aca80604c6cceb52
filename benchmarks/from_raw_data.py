"""From raw data to adapters as a new user goes, and beside it TRL on the same files: commands, lines, seconds, losses.

    python benchmarks/from_raw_data.py --backbone DIR -o FOLDER [--trl]

The data are questions, completions and texts about Python's standard library, made of its own documentation: a chat,
a prompt/completion and a text file with as many held-out rows as `--held-out` says. Six adapters come out, two ranks on
each. The losses of both are worked out here by one measure: transformers' model with the adapter loaded by PEFT, on
the held-out tokens that Cappuccino learns from. `--trl` needs the package trl in this environment; it learns all of a
chat, since it refuses to learn the assistant's turns alone where a chat template does not mark them.
"""

import argparse
import ast
import importlib
import inspect
import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from cappuccino.instance import Instance
from cappuccino.runtime.backbone.config import read_trainable_shape
from cappuccino.runtime.data.samples import AdapterSamples, TokenizedDataset, load_datasets

MODULES = (
    "json csv os shutil pathlib re random statistics heapq bisect collections itertools functools datetime calendar "
    "textwrap string logging argparse tempfile zipfile tarfile threading subprocess socket email.utils urllib.parse "
    "html xml.etree.ElementTree sqlite3 decimal fractions math operator contextlib inspect"
)
RANKS = (8, 16)
LONGEST = 320
"""Characters of an answer."""
TRL = """\
from datasets import load_dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

for name in ("chat", "code", "notes"):
    files = {{"train": f"raw/{{name}}.jsonl", "test": f"held-out/{{name}}.jsonl"}}
    data = load_dataset("json", data_files=files)
    for rank in {ranks}:
        lora = LoraConfig(r=rank, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        config = SFTConfig(
            output_dir=f"trl/{{name}}-r{{rank}}", num_train_epochs=1, per_device_train_batch_size=4, learning_rate=2e-4,
            lr_scheduler_type="cosine", eval_strategy="steps", eval_steps=4,
            gradient_checkpointing=False, bf16=False, report_to="none",
        )
        trainer = SFTTrainer(
            {backbone!r}, args=config, train_dataset=data["train"], eval_dataset=data["test"], peft_config=lora
        )
        trainer.train()
        trainer.save_model()
"""
"""What a user of TRL writes by hand."""


def documented() -> Iterator[tuple[str, str, list[str]]]:
    """Yield (name, signature, paragraphs) of the functions and classes of the standard library."""
    for module in MODULES.split():
        for name, found in sorted(vars(importlib.import_module(module)).items()):
            text = inspect.getdoc(found) if inspect.isfunction(found) or inspect.isclass(found) else None
            if name.startswith("_") or not text or getattr(found, "__module__", "") != module:
                continue
            try:
                signature = re.sub(r" at 0x\w+", "", str(inspect.signature(found)))  # which is another in every run
            except ValueError:
                continue
            paragraphs = [" ".join(p.split()) for p in text.split("\n\n")]
            kept = [p for p in paragraphs if 20 <= len(p) <= LONGEST]
            if kept:
                yield f"{module}.{name}", signature, kept


def write_data(folder: Path, samples: int, held_out: int) -> None:
    """Write three files of training data, and three of held-out data."""
    rows: dict[str, list[dict[str, Any]]] = {"chat": [], "code": [], "notes": []}
    for name, signature, paragraphs in documented():
        question = {"role": "user", "content": f"What does `{name}` do in Python?"}
        rows["chat"].append({"messages": [question, {"role": "assistant", "content": paragraphs[0]}]})
        rows["code"].append({"prompt": f"{name}{signature[:80]}\n#", "completion": f" {paragraphs[0]}"})
        rows["notes"].append({"text": f"{name}: {paragraphs[-1]}"})
    for name, found in rows.items():
        step = len(found) // (samples + held_out)  # of all modules
        chosen = found[:: max(1, step)][: samples + held_out]
        if len(chosen) < samples + held_out:
            raise SystemExit(f"the standard library documents too little for {samples + held_out} rows of {name}")
        every = len(chosen) // held_out
        apart = set(range(0, every * held_out, every))
        for where, wanted in (("raw", False), ("held-out", True)):
            lines = [json.dumps(row) for k, row in enumerate(chosen) if (k in apart) == wanted]
            (folder / where).mkdir(exist_ok=True)
            (folder / where / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


def timed(command: list[str], folder: Path, log: Path) -> tuple[str, float]:
    """Run a command in a folder; return what it printed and the seconds it took."""
    print("$", shlex.join(command), file=sys.stderr, flush=True)
    began = time.perf_counter()
    with log.open("w") as errors:
        done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=errors, text=True, check=False)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"exit code {done.returncode} of {command[0]}, see {log}")
    return done.stdout, seconds


def held_out_loss(backbone: Path, adapter: Path | None, data: TokenizedDataset) -> float:
    """Return the mean cross-entropy over the tokens with a label, of the backbone alone without an adapter."""
    model: Any = AutoModelForCausalLM.from_pretrained(backbone, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    model.eval()
    total, count = 0.0, 0
    samples = AdapterSamples(data, len(data.offsets) - 1, 1)
    with torch.no_grad():
        for number in range(samples.num_lengths):
            tokens, labels = (torch.as_tensor(x, dtype=torch.long) for x in samples.tokens(number))
            logits = model(tokens[None]).logits[0, :-1]
            total += float(cross_entropy(logits, labels[1:], ignore_index=-100, reduction="sum"))
            count += int((labels[1:] != -100).sum())
    return total / count


def main() -> None:
    """Walk both ways."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=60, help="rows of each training file")
    parser.add_argument("--held-out", type=int, default=15, help="rows of each held-out file")
    parser.add_argument("--trl", action="store_true", help="train the same adapters with TRL, too")
    arguments = parser.parse_args()
    folder, backbone = arguments.output.resolve(), arguments.backbone.resolve()
    folder.mkdir(parents=True)
    write_data(folder, arguments.samples, arguments.held_out)
    cappuccino = str(Path(sys.executable).parent / "cappuccino")
    data = [f"raw/{name}.jsonl" for name in ("chat", "code", "notes")]
    evaluation = [x for name in ("chat", "code", "notes") for x in ("--eval", f"held-out/{name}.jsonl")]
    sweep = ["--sweep", f"rank={','.join(map(str, RANKS))}", "--epochs", "1"]
    command = [cappuccino, "init", "--backbone", str(backbone), "--data", *data, *evaluation, *sweep, "--json"]
    said, seconds = timed(command, folder, folder / "init.log")
    spent = {"init": seconds}
    for line in json.loads(said)["next"]:
        words = [cappuccino, *shlex.split(line)[1:]]
        said, spent[words[1]] = timed([*words, "--json"], folder, folder / f"{words[1]}.log")
    result = json.loads(said)
    if arguments.trl:
        script = folder / "trl_train.py"
        script.write_text(TRL.format(ranks=RANKS, backbone=str(backbone)))
        _, spent["TRL"] = timed([sys.executable, script.name], folder, folder / "trl.log")
    print("seconds: " + ", ".join(f"{name} {taken:.0f}" for name, taken in spent.items()))
    predicted, measured = (result["makespan"][x] for x in ("predicted_s", "measured_s"))
    print(f"of run's {spent['run']:.0f} s, training: predicted {predicted:.1f} s, measured {measured:.1f} s")
    if arguments.trl:
        lines = len(ast.unparse(ast.parse(script.read_text())).splitlines())
        print(f"lines written by hand: 0 and {lines} (statements, a line each)")
    _print_losses(folder, backbone, result, arguments.trl)


def _print_losses(folder: Path, backbone: Path, result: dict[str, Any], trl: bool) -> None:
    instance = Instance.load(folder / "instance.yaml")
    tokens = load_datasets(instance, None, backbone, read_trainable_shape(backbone).vocab).datasets
    without = {name: held_out_loss(backbone, None, tokens[f"{name}-eval"]) for name in ("chat", "code", "notes")}
    print("held-out loss     backbone  evaluations of the run      loaded by PEFT" + ("     TRL" if trl else ""))
    for adapter in instance.adapters:
        data = tokens[adapter.eval_dataset or ""]
        told = " ".join(f"{e['loss']:.4f}" for e in result["adapters"][adapter.name]["evaluations"])
        own = held_out_loss(backbone, folder / "adapters" / adapter.name, data)
        row = f"{adapter.name:<16}  {without[adapter.dataset]:8.4f}  {told:<27} {own:14.4f}"
        print(row + (f"  {held_out_loss(backbone, folder / 'trl' / adapter.name, data):6.4f}" if trl else ""))


if __name__ == "__main__":
    main()
