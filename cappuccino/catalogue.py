"""Published specifications of backbones and GPUs."""

from dataclasses import dataclass


@dataclass(frozen=True)
class BackboneSpec:
    """Shape of a decoder-only transformer, from its published configuration."""

    num_layers: int
    hidden: int
    intermediate: int
    num_heads: int
    num_kv_heads: int
    vocab: int
    tied_embeddings: bool = False

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden // self.num_heads

    @property
    def layer_parameters(self) -> int:
        """Parameters of one decoder layer's matrices (norms and biases, below 0.1%, are left out)."""
        kv = self.num_kv_heads * self.head_dim
        return self.hidden * (2 * self.hidden + 2 * kv) + 3 * self.hidden * self.intermediate

    @property
    def embedding_parameters(self) -> int:
        """Parameters of the token embedding; the head has as many again unless tied."""
        return self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        """Parameters of the whole backbone."""
        tables = 1 if self.tied_embeddings else 2
        return self.num_layers * self.layer_parameters + tables * self.embedding_parameters


@dataclass(frozen=True)
class GpuSpec:
    """A GPU's data sheet."""

    bf16_tflops: float
    """Dense bf16 matrix peak, TFLOP/s."""
    bandwidth_gb_s: float
    """Memory bandwidth, GB/s (10^9 bytes)."""
    memory_gib: float
    """Memory as sold, taken as GiB."""
    link_gb_s: float
    """One direction of the GPU-to-GPU link, GB/s."""


BACKBONES = {
    "Llama-2-7b-hf": BackboneSpec(32, 4096, 11008, 32, 32, 32000),
    "Llama-2-13b-hf": BackboneSpec(40, 5120, 13824, 40, 40, 32000),
    "Llama-3.1-8B": BackboneSpec(32, 4096, 14336, 32, 8, 128256),
    "Llama-3.1-70B": BackboneSpec(80, 8192, 28672, 64, 8, 128256),
    "Qwen2.5-7B-Instruct": BackboneSpec(28, 3584, 18944, 28, 4, 152064),
    "Qwen2.5-14B-Instruct": BackboneSpec(48, 5120, 13824, 40, 8, 152064),
    "Qwen2.5-32B-Instruct": BackboneSpec(64, 5120, 27648, 40, 8, 152064),
    "SmolLM2-135M-Instruct": BackboneSpec(30, 576, 1536, 9, 3, 49152, tied_embeddings=True),
}

GPUS = {
    "a100-40gb": GpuSpec(312, 1555, 40, 300),
    "a100-80gb": GpuSpec(312, 2039, 80, 300),
    "h100-80gb": GpuSpec(989, 3350, 80, 450),
    "h200-141gb": GpuSpec(989, 4800, 141, 450),
    "l40s-48gb": GpuSpec(362, 864, 48, 32),
}
