"""What the bits of a result depend on besides a run's settings: device, threads, flags of torch."""

import platform
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer


def numerics(trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
    """Return what the bits of a result depend on besides the settings of a run."""
    device = trainer.strategy.root_device
    of_keras = getattr(pl_module, "run_details", {}).get("device", "cpu")
    if not of_keras.startswith("cpu"):
        kind, model = "cuda", of_keras
    elif device.type == "cuda":
        kind, model = "cuda", torch.cuda.get_device_name(device)
    else:
        kind, model = device.type, processor()
    return {
        "device": kind,
        "device_model": model,
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "benchmark": torch.backends.cudnn.benchmark,
        "float32_matmul_precision": _read(torch.get_float32_matmul_precision),
        "allow_tf32": _read(lambda: torch.backends.cudnn.allow_tf32),
        "torch": str(torch.__version__),
    }


@cache
def processor() -> str:
    """Name the CPU, and the instructions that torch uses of it."""
    name = platform.processor() or platform.machine()
    with suppress(OSError):  # Linux
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        name = next(iter(names), name)
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"


def _read(flag: Callable[[], Any]) -> Any:
    try:
        return flag()
    except RuntimeError:  # it was set by both of torch's ways
        return "mixed"


def compare_numerics(
    saved: dict[str, Any], trainer: Trainer, pl_module: LightningModule, allow: bool
) -> list[str]:
    """Describe each difference between a checkpoint's `numerics` and those of this process.

    Raises:
        ValueError: Not only the model of the device or torch's version differs, and `allow` is
            false.
    """
    differing = {
        name: f"{name} is {value}, but the run had {saved[name]}"
        for name, value in numerics(trainer, pl_module).items()
        if saved.get(name, value) != value
    }
    for name, difference in differing.items():
        if name not in ("device_model", "torch") and not allow:
            raise ValueError(
                f"{difference}: resume with that, or add --allow_inexact_resume true (in Python, "
                "ExactResume(allow_inexact=True)) and give up the exact result"
            )
    return list(differing.values())
