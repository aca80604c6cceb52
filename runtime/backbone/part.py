"""The part of a frozen decoder-only backbone that one pipeline stage holds.

Shapes: T tokens of the micro-batch, L of them with loss, H hidden size, V vocabulary.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from cappuccino.errors import InputError
from cappuccino.files import read_json
from cappuccino.runtime.backbone.attention import NAME, Packing
from cappuccino.runtime.backbone.config import is_configuration

_EMBEDDING = "model.embed_tokens.weight"
_HEAD = "lm_head.weight"
_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"


class BackbonePart(nn.Module):
    """Consecutive decoder layers, with the embedding on the first stage and norm and head on the last.

    Parameters
    ----------
    path
        Folder of a Hugging Face checkpoint in safetensors files, or a `config.json` alone: weights are random then.
    layers
        Indices of the decoder layers to hold.
    device
        Where the weights go.
    dtype
        Type the weights are converted to.

    Raises
    ------
    InputError
        When a file or a tensor of this part is missing or unreadable.
    """

    def __init__(self, path: Path, layers: range, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        config = AutoConfig.from_pretrained(path, local_files_only=True)
        self.layers = layers
        self.is_first = layers.start == 0
        self.is_last = layers.stop == config.num_hidden_layers
        model = meta_model(config, dtype)
        _drop_foreign(model, layers, self.is_first, self.is_last)
        read = _random_tensors(model, device) if is_configuration(path) else _read_tensors(path, model, device, dtype)
        model.load_state_dict(read, strict=True, assign=True)
        model.model.rotary_emb = type(model.model.rotary_emb)(config=config).to(device)
        model.requires_grad_(False)
        self.model = model

    def embed(self, input_ids_1T: torch.Tensor) -> torch.Tensor:
        """Return the embedded tokens, shape (1, T, H); first stage only."""
        return self.model.model.embed_tokens(input_ids_1T)

    def decode(
        self,
        hidden_1TH: torch.Tensor,
        position_ids_1T: torch.Tensor,
        packing: Packing,
        recompute_in: Callable[[], AbstractContextManager[None]] | None = None,
    ) -> torch.Tensor:
        """Return the hidden states after this part's layers, shape (1, T, H).

        Parameters
        ----------
        recompute_in
            Keep the input of every layer only, and run the layer again in this context when the backward needs the
            rest. Layers must not draw random numbers: dropout masks are functions of the sample, not of a generator.
        """
        rotary = self.model.model.rotary_emb(hidden_1TH, position_ids_1T)
        options = {"position_ids": position_ids_1T, "position_embeddings": rotary, "packing": packing}
        for index in self.layers:
            layer = partial(self.model.model.layers[index], attention_mask=None, use_cache=False, **options)
            hidden_1TH = layer(hidden_1TH) if recompute_in is None else _recomputed(layer, hidden_1TH, recompute_in)
        return hidden_1TH

    def logits(self, hidden_1TH: torch.Tensor, positions_L: torch.Tensor) -> torch.Tensor:
        """Return the logits at the given tokens only, shape (L, V); last stage only."""
        return self.model.lm_head(self.model.model.norm(hidden_1TH[0, positions_L]))


def _recomputed(
    layer: Callable[[torch.Tensor], torch.Tensor],
    hidden_1TH: torch.Tensor,
    recompute_in: Callable[[], AbstractContextManager[None]],
) -> torch.Tensor:
    return checkpoint(
        layer,
        hidden_1TH,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=lambda: (nullcontext(), recompute_in()),
    )


def meta_model(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """Return the whole backbone without memory for its weights."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=NAME)


def _drop_foreign(model: PreTrainedModel, layers: range, is_first: bool, is_last: bool) -> None:
    """Replace what other stages hold; the layers that stay keep their indices and so their names."""
    for index in range(len(model.model.layers)):
        if index not in layers:
            model.model.layers[index] = nn.Identity()
    if not is_first:
        model.model.embed_tokens = nn.Identity()
    if is_last:
        # An untied head of its own, since the embedding may be on another stage.
        head = model.lm_head
        model.lm_head = nn.Linear(
            head.in_features, head.out_features, bias=head.bias is not None, device="meta", dtype=head.weight.dtype
        )
    else:
        model.model.norm = nn.Identity()
        model.lm_head = nn.Identity()


def _random_tensors(model: PreTrainedModel, device: torch.device) -> dict[str, torch.Tensor]:
    """Return weights that keep activations of a size that training has: what is measured is time and memory."""
    generator = torch.Generator(device).manual_seed(0)
    spread = getattr(model.config, "initializer_range", 0.02)
    tensors = {}
    for name, value in model.state_dict().items():
        tensor = torch.empty(value.shape, dtype=value.dtype, device=device)
        is_norm = value.dim() == 1 and name.endswith("norm.weight")
        tensors[name] = tensor.fill_(1.0) if is_norm else tensor.normal_(0.0, spread, generator=generator)
    return tensors


def _read_tensors(
    path: Path, model: PreTrainedModel, device: torch.device, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Return the tensors that `model` needs, from those files only that hold one of them."""
    files = _files_by_tensor(path)
    tied = bool(model.config.tie_word_embeddings)
    wanted: dict[Path, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name in model.state_dict():
        stored = _EMBEDDING if name == _HEAD and tied else name
        if stored not in files:
            raise InputError(path, stored, "is missing in the checkpoint", "download the checkpoint again")
        wanted[files[stored]][stored].append(name)
    tensors, shapes = {}, {name: tuple(value.shape) for name, value in model.state_dict().items()}
    for file, names in wanted.items():
        try:
            with safe_open(file, framework="pt", device=str(device)) as content:
                for stored, targets in names.items():
                    found = tuple(content.get_slice(stored).get_shape())
                    if found != shapes[targets[0]]:
                        problem = f"has shape {found}, by config.json {shapes[targets[0]]}"
                        raise InputError(file, stored, problem, "give weights and config.json of one checkpoint")
                    tensors.update(dict.fromkeys(targets, content.get_tensor(stored).to(dtype)))
        except (OSError, SafetensorError) as error:
            raise InputError(file, "", f"cannot be read ({error})", "download the checkpoint again") from error
    return tensors


def _files_by_tensor(path: Path) -> Mapping[str, Path]:
    """Return the file of every tensor; a single file goes before an index, which may be left over from earlier."""
    file = path / _SINGLE
    if not file.exists() and (path / _INDEX).exists():
        index = read_json(path / _INDEX)
        shards = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(shards, dict):
            raise InputError(path / _INDEX, "weight_map", "is missing", "download the checkpoint again")
        for name, shard in shards.items():
            if not isinstance(shard, str) or Path(shard).name != shard:
                problem = f"{shard!r} is no name of a file in the folder"
                raise InputError(path / _INDEX, f"weight_map.{name}", problem, "download the checkpoint again")
        return {name: path / shard for name, shard in shards.items()}
    try:
        with safe_open(file, framework="pt") as content:
            return dict.fromkeys(content.keys(), file)
    except (OSError, SafetensorError) as error:
        problem = f"cannot be read ({error})"
        raise InputError(file, "", problem, "give a checkpoint saved as safetensors files") from error
