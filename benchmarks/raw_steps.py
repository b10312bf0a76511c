"""Microseconds a step of a raw loop on random images on the device, or of its CUDA graph."""

from collections.abc import Callable
from time import perf_counter

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.networks import lenet5, mlp

IMAGES, BATCH = 8192, 32
Step = Callable[[Tensor], None]


def measure(name: str, device: str, precision: str, channels_last: bool, graph: bool) -> float:
    """Train NN 128 or LeNet-5 for some hundred steps; return the time of one after the first."""
    torch.manual_seed(0)
    network = (lenet5() if "lenet5" in name else mlp([128])).to(device)
    network.to(memory_format=torch.channels_last if channels_last else torch.preserve_format)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.001, fused=True, capturable=graph)
    scaler = torch.amp.GradScaler(device, enabled=precision == "16-mixed")
    pixels = torch.randint(256, (IMAGES, 1, 28, 28), dtype=torch.uint8, device=device)
    labels = torch.randint(10, (IMAGES,), device=device)
    kind = torch.float16 if precision == "16-mixed" else torch.bfloat16

    def step(chosen: Tensor) -> None:
        images = pixels.index_select(0, chosen).to(torch.float32).div_(255).sub_(0.5).div_(0.5)
        optimizer.zero_grad()
        with torch.autocast(device, kind, precision != "32-true", cache_enabled=not graph):
            logits = network(images)
        loss = cross_entropy(logits.float(), labels.index_select(0, chosen))
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    orders = torch.randint(IMAGES, (1536 if device == "cuda" else 192, BATCH), device=device)
    make_step = _capture(step, orders[0].clone()) if graph else step
    warm, started = len(orders) // 3, 0.0
    for i, chosen in enumerate(orders):
        if i == warm:
            started = now(device)
        make_step(chosen)
    return 1e6 * (now(device) - started) / (len(orders) - warm)


def _capture(step: Step, chosen: Tensor) -> Step:
    """Capture a step as a CUDA graph, as torch's notes on CUDA semantics describe it."""
    side, captured = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step(chosen)
    torch.cuda.current_stream().wait_stream(side)
    with torch.cuda.graph(captured):
        step(chosen)

    def replay(given: Tensor) -> None:
        chosen.copy_(given)
        captured.replay()

    return replay


def now(device: str) -> float:
    """Return the time at which the device has nothing left to do."""
    if device == "cuda":
        torch.cuda.synchronize()
    return perf_counter()
