"""The machine, the versions and the environment of a measurement."""

import os
from collections.abc import Collection
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = ("torch", "lightning", "torchvision", "torchmetrics", "keras", "tensorflow")


def describe_machine(threads: int, device: str) -> dict[str, Any]:
    """Describe the processor, the numbers of cores and threads, and the GPU if it is used."""
    cpu = {
        "cpu": _of_cpuinfo("model name") or "unknown",
        "instructions": instructions(_of_cpuinfo("flags").split()),
        "cores": len(os.sched_getaffinity(0)),
        "threads": threads,
    }
    if device == "cpu":
        return cpu
    import torch  # `benchmarks.start_up` measures memory, which a large parent would add to

    return {**cpu, "gpu": torch.cuda.get_device_name()}


def versions() -> dict[str, str]:
    """Return the versions of those packages for training that are installed."""
    found = {}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):  # Keras, on most machines with a GPU
            found[name] = version(name)
    return found


def environment(threads: int, device: str) -> dict[str, str]:
    """Make the environment of a process that is measured.

    Args:
        threads: CPU threads of plain PyTorch and TensorFlow; `digitlab fit` needs `--threads`.
        device: `cpu` hides all GPUs.
    """
    counts = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TF_NUM_INTRAOP_THREADS")
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}
    return {**os.environ, **dict.fromkeys(counts, str(threads)), **hidden}


def instructions(flags: Collection[str]) -> str:
    """Name the widest vector instructions among a CPU's flags, and its bfloat16 ones.

    Examples:
        >>> instructions(["avx2", "avx512f", "avx512_bf16", "amx_bf16"])
        'AVX-512 with AMX'
        >>> instructions(["avx", "avx2"])
        'AVX2'
    """
    width = {"avx512f": "AVX-512", "avx2": "AVX2"}
    widest = next((name for flag, name in width.items() if flag in flags), "")
    return f"{widest} with AMX" if "amx_bf16" in flags else widest


def _of_cpuinfo(name: str) -> str:
    for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
        if line.startswith(name):
            return line.partition(":")[2].strip()
    return ""
