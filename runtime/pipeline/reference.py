"""A small fixed piece of work: the time it takes tells how fast a device is at the moment."""

import time

import torch

_TOKENS = {"cpu": 128, "cuda": 2048}
_WIDTH = {"cpu": 512, "cuda": 4096}
_LAYERS = {"cpu": 16, "cuda": 8}
_SAMPLES = 7


class ReferenceKernel:
    """Matrix products and activations of a fixed size in the dtype of the run: several milliseconds.

    Many small pieces rather than one large one, as in a decoder layer: so it suffers as layers do when threads have to
    wait for each other on cores that others use too.

    Parameters
    ----------
    device, dtype
        Of the run.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        kind = device.type
        self._device, self._layers = device, _LAYERS[kind]
        tokens, width = _TOKENS[kind], _WIDTH[kind]
        self._weight = torch.full((width, width), 1.0 / width, device=device, dtype=dtype)
        self._input = torch.ones((tokens, width), device=device, dtype=dtype)
        self._between, self._output = torch.empty_like(self._input), torch.empty_like(self._input)
        self._run()

    def samples(self) -> tuple[float, ...]:
        """Run it several times after a first one that fills the caches; return what each run took, seconds."""
        self._run()
        return tuple(self._run() for _ in range(_SAMPLES))

    def _run(self) -> float:
        begin = time.perf_counter()
        for _ in range(self._layers):
            torch.mm(self._input, self._weight, out=self._between)
            torch.tanh(self._between, out=self._output)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter() - begin
