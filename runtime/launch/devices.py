"""What there is to run on."""


def num_gpus(device: str) -> int | None:
    """Return how many GPUs there are for replicas side by side; None on the CPU, where they run in turn."""
    if device != "cuda":
        return None
    import torch  # noqa: PLC0415

    return torch.cuda.device_count()
