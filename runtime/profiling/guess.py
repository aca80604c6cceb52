"""What a point may take, as long as none was measured."""

import time

import numpy as np

from cappuccino.backbone import BackboneShape
from cappuccino.errors import InputError
from cappuccino.runtime.profiling.grid import Point, ProfileGrid

_FLOPS_PER_WEIGHT_TOKEN = 5.0
"""Forward 2, gradient of the inputs 2, and the adapters."""
_SHARE_OF_PRODUCT = 0.4
"""Speed of a step relative to that of one large matrix product, about."""
_PRODUCTS = 5


class FirstGuess:
    """Guesses what a point takes, from the weights and the speed of a matrix product here: before any was measured."""

    def __init__(self, shape: BackboneShape, grid: ProfileGrid, device: str, dtype: str) -> None:
        self._weights = shape.num_layers * shape.layer.parameters + shape.vocab * shape.hidden
        self._micro_batches = grid.grad_acc_steps * grid.num_steps
        self._device, self._dtype = device, dtype
        self._rate: float | None = None

    def __call__(self, point: Point) -> float:
        """Return the seconds."""
        if self._rate is None:
            self._rate = _product_rate(self._device, self._dtype) * _SHARE_OF_PRODUCT
        return point.tokens * self._micro_batches * self._weights * _FLOPS_PER_WEIGHT_TOKEN / self._rate


def _product_rate(device: str, dtype: str) -> float:
    """Return the speed of a matrix product on one device, FLOP/s."""
    if device == "cuda":
        import torch  # noqa: PLC0415

        size = 4096
        if not torch.cuda.is_available():
            raise InputError("--device", "", "this machine has no GPU that torch can use", "use device cpu")
        factor = torch.ones((size, size), device="cuda", dtype=getattr(torch, dtype))
        torch.cuda.synchronize()

        def product() -> None:
            factor @ factor
            torch.cuda.synchronize()
    else:
        size = 768
        matrix = np.ones((size, size), np.float64 if dtype == "float64" else np.float32)

        def product() -> None:
            matrix @ matrix

    product()
    fastest = float("inf")
    for _ in range(_PRODUCTS):
        begin = time.perf_counter()
        product()
        fastest = min(fastest, time.perf_counter() - begin)
    return float(2 * size**3 / fastest)
