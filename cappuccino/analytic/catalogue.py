"""Data sheets of GPUs."""

from dataclasses import dataclass

DTYPES = {"bfloat16": 2, "float16": 2, "float32": 4, "tf32": 4}
"""Bytes of a weight by type of computation; `tf32` keeps float32 and multiplies matrices in TF32."""


@dataclass(frozen=True)
class GpuSpec:
    """A GPU's data sheet; peaks are dense, TFLOP/s."""

    bf16_tflops: float
    """Matrix peak in bf16, and in fp16."""
    tf32_tflops: float
    """Matrix peak in TF32."""
    fp32_tflops: float
    """Peak in fp32, which has no matrix units."""
    bandwidth_gb_s: float
    """Memory bandwidth, GB/s (10^9 bytes)."""
    memory_gib: float
    """Memory as sold, taken as GiB."""
    link_gb_s: float
    """One direction of the GPU-to-GPU link, GB/s."""

    def tflops(self, dtype: str) -> float:
        """Return the peak in a type of computation of `DTYPES`, TFLOP/s."""
        return {"tf32": self.tf32_tflops, "float32": self.fp32_tflops}.get(dtype, self.bf16_tflops)


GPUS = {
    "a100-40gb": GpuSpec(312, 156, 19.5, 1555, 40, 300),
    "a100-80gb": GpuSpec(312, 156, 19.5, 2039, 80, 300),
    "h100-80gb": GpuSpec(989, 494.7, 66.9, 3350, 80, 450),
    "h200-141gb": GpuSpec(989, 494.7, 66.9, 4800, 141, 450),
    "l40s-48gb": GpuSpec(362, 183, 91.6, 864, 48, 32),
}
