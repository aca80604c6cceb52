"""One pipeline stage as megatron-core sees it.

Shapes: T tokens of the micro-batch, L of them with loss, H hidden size, V vocabulary.
"""

from functools import partial

import torch
from megatron.core.enums import ModelType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.utils import make_viewless_tensor

from cappuccino.runtime.backbone.part import BackbonePart
from cappuccino.runtime.data.micro_batch import PackedMicroBatch
from cappuccino.runtime.lora.multi_lora import MultiLora
from cappuccino.runtime.pipeline.part_costs import Part
from cappuccino.runtime.pipeline.part_meter import PartMeter


class Stage(MegatronModule):
    """A part of the backbone with the adapters on it.

    Parameters
    ----------
    config
        Megatron's configuration of the pipeline.
    part
        The layers of this stage.
    lora
        The adapters in them.
    recompute
        Whether layers run again in the backward, instead of keeping what it needs.
    """

    def __init__(self, config: TransformerConfig, part: BackbonePart, lora: MultiLora, recompute: bool = False) -> None:
        super().__init__(config)
        self.model_type = ModelType.encoder_or_decoder
        self.part = part
        self.lora = lora
        self.recompute = recompute
        self.meter: PartMeter | None = None
        """Measures the parts of every operation, where there is one."""
        self._received: torch.Tensor | None = None

    def set_input_tensor(self, input_tensor: list[torch.Tensor | None] | torch.Tensor | None) -> None:
        """Take the activations of the previous stage, shape (1, T, H); None on the first stage."""
        self._received = input_tensor[0] if isinstance(input_tensor, list) else input_tensor

    def forward(self, batch: PackedMicroBatch) -> torch.Tensor:
        """Run the stage: logits of shape (L, V) on the last stage, else activations of shape (1, T, H)."""
        received, self._received = self._received, None
        routing = partial(self.lora.routed, batch.segments, batch.loss_segments)
        again = routing if self.recompute else None
        with routing():
            hidden_1TH = self.part.embed(batch.input_ids) if received is None else received
            self._mark("input")
            hidden_1TH = self.part.decode(hidden_1TH, batch.position_ids, batch.packing, again)
            self._mark("layers")
            if self.part.is_last:
                logits_LV = self.part.logits(hidden_1TH, batch.loss_positions)
                self._mark("head")
                if self.meter is not None:
                    self.meter.mark_gradient(hidden_1TH, "head")
                    self.meter.mark_gradient(logits_LV, "loss")
                return logits_LV
        return make_viewless_tensor(hidden_1TH, requires_grad=hidden_1TH.requires_grad, keep_graph=True)

    def _mark(self, part: Part) -> None:
        if self.meter is not None:
            self.meter.mark(part)
