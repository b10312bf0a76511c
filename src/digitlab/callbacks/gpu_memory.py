"""A cap on GPU memory, as document B's TensorFlow program sets it."""

import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class GPUMemoryLimit(Callback):
    """Lets this process take only so much of a GPU's memory, to leave the rest to others.

    What exceeds it fails with torch's out-of-memory error. The CUDA context itself, some hundreds
    of MB, is not counted. On a CPU there is nothing to limit.

    Args:
        megabytes: Memory for tensors, in MB of 2²⁰ bytes (at least 1); document B's program has
            1024.

    Raises:
        ValueError: `megabytes` is below 1, or above what the GPU has.
    """

    def __init__(self, megabytes: int = 1024) -> None:
        if megabytes < 1:
            raise ValueError(f"megabytes is {megabytes}: it must be at least 1")
        self.megabytes = megabytes

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Set the limit, before the model moves to the GPU."""
        device = trainer.strategy.root_device
        if device.type != "cuda":
            return
        available = torch.cuda.get_device_properties(device).total_memory / 2**20
        if self.megabytes > available:
            raise ValueError(f"megabytes is {self.megabytes}: the GPU has {available:.0f}")
        torch.cuda.set_per_process_memory_fraction(self.megabytes / available, device)
