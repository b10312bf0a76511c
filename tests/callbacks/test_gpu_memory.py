from types import SimpleNamespace
from typing import Any

import pytest
import torch

from digitlab.callbacks import GPUMemoryLimit
from tests.fitting import fit, small_mlp

GPU = torch.device("cuda", 0)


@pytest.fixture
def fractions(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, torch.device]]:
    """What torch is told, on a machine that pretends to have a GPU of 4096 MB."""
    set_fractions: list[tuple[float, torch.device]] = []

    def set_fraction(fraction: float, device: torch.device) -> None:
        set_fractions.append((fraction, device))

    properties = SimpleNamespace(total_memory=4096 * 2**20)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", set_fraction)
    return set_fractions


def setup(limit: GPUMemoryLimit, device: torch.device) -> None:
    run: Any = SimpleNamespace(strategy=SimpleNamespace(root_device=device))
    limit.setup(run, small_mlp(), "fit")


@pytest.mark.parametrize(("megabytes", "fraction"), [(1024, 0.25), (4096, 1.0), (1, 1 / 4096)])
def test_the_limit_is_a_fraction_of_the_gpus_memory(
    fractions: list[tuple[float, torch.device]], megabytes: int, fraction: float
) -> None:
    setup(GPUMemoryLimit(megabytes), GPU)
    assert fractions == [(fraction, GPU)]


def test_the_default_is_that_of_document_b(fractions: list[tuple[float, torch.device]]) -> None:
    setup(GPUMemoryLimit(), GPU)
    assert fractions == [(1024 / 4096, GPU)]


def test_more_than_the_gpu_has_is_refused(fractions: list[tuple[float, torch.device]]) -> None:
    with pytest.raises(ValueError, match="megabytes is 4097: the GPU has 4096"):
        setup(GPUMemoryLimit(4097), GPU)
    assert fractions == []


@pytest.mark.parametrize("megabytes", [0, -1])
def test_less_than_a_megabyte_is_refused(megabytes: int) -> None:
    with pytest.raises(ValueError, match=f"megabytes is {megabytes}: it must be at least 1"):
        GPUMemoryLimit(megabytes)


def test_on_a_cpu_there_is_nothing_to_limit(fractions: list[tuple[float, torch.device]]) -> None:
    fit(None, GPUMemoryLimit(1))
    assert fractions == []


@pytest.mark.gpu
def test_a_gpu_gives_no_more_than_the_limit() -> None:
    try:
        setup(GPUMemoryLimit(256), GPU)
        small = torch.empty(64 * 2**20, dtype=torch.uint8, device=GPU)
        assert small.numel() == 64 * 2**20
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(512 * 2**20, dtype=torch.uint8, device=GPU)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, GPU)
