"""Training on CUDA, on a machine without a GPU: no value is read back, and no devices are mixed.

`FakeTensorMode` makes CUDA tensors that have a shape, a dtype and a device, but no memory. An
operation that mixes devices raises, and so does one that needs a value. The autograd engine asks
the driver for a context, so gradients are given instead of computed.
"""

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice, product
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from digitlab import models
from digitlab.batches import Batch, Block
from digitlab.callbacks import ConfusionMatrix, WorstMistakes
from digitlab.classifier import Classifier
from digitlab.data.augmentation import Augmentation
from digitlab.data.loader import EpochSampler, ImageLoader
from digitlab.optimizers import FusedRMSprop, fused_adam_step
from digitlab.scores import RunningScore

CUDA = torch.device("cuda", 0)
PRECISIONS = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
IMAGES, BATCH = 200, 32


class Copies(TorchDispatchMode):
    """Counts the operations whose tensors are on several devices: copies."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [it for it in tree_leaves((args, kwargs, out)) if isinstance(it, Tensor)]
        self.found[str(func)] += len({it.device for it in tensors if it.ndim}) > 1
        return out


@contextmanager
def copies(count: int) -> Iterator[None]:
    """Fails unless tensors are copied between devices so many times in the `with` block."""
    with Copies() as made:
        yield
    assert made.found.total() == count, +made.found


@pytest.fixture(autouse=True)
def _fake_gpu() -> Iterator[None]:
    with (
        mock.patch("torch.cuda.amp.common.amp_definitely_not_available", return_value=False),
        mock.patch("torch.cuda.is_bf16_supported", return_value=True),
        FakeTensorMode(allow_non_fake_inputs=True),
    ):
        yield


def on_cuda(name: str, **options: Any) -> Classifier:
    """Makes a model, and puts CUDA tensors of the same strides in place of its own."""
    with unset_fake_temporarily():  # which a module cannot move
        model: Classifier = getattr(models, name)(**options)
    for module in model.modules():
        places: Any = (module._parameters, nn.Parameter), (module._buffers, nn.Buffer)
        for place, wrap in places:
            for key, it in place.items():
                if it is not None:
                    fake = torch.empty_strided(it.shape, it.stride(), dtype=it.dtype, device=CUDA)
                    place[key] = wrap(fake)
    return model


def make_loader(steps: int, augmentation: Augmentation | None = None) -> ImageLoader:
    images, labels = np.zeros((IMAGES, 28, 28), np.uint8), np.zeros(IMAGES, np.int64)
    sampler = EpochSampler(IMAGES, seed=1, shuffle=True, pad=True)
    options: dict[str, Any] = {"steps_per_execution": steps, "augmentation": augmentation}
    return ImageLoader(images, labels, sampler, BATCH, (0.5, 0.5), CUDA, **options)


def serve(steps: int) -> Iterator[Batch]:
    """Yields batches for ever, with `steps` above 1 those of blocks."""
    while True:
        for it in make_loader(steps):
            yield from it.batches() if isinstance(it, Block) else [it]


@pytest.mark.parametrize(
    ("steps", "augmentation", "at_start"),
    [(1, None, 1), (4, None, 1), (4, Augmentation(shift=2, flip=True, erase=0.5), 2)],
)
def test_a_loader_copies_an_epoch_s_order_and_nothing_for_a_batch(
    steps: int, augmentation: Augmentation | None, at_start: int
) -> None:
    served = iter(make_loader(steps, augmentation))
    with copies(at_start):
        next(served)
    with copies(0):
        rest = list(served)
    assert len(rest) == math.ceil(math.ceil(IMAGES / BATCH) / steps) - 1
    assert {it[0].device for it in rest} == {it[1].device for it in rest} == {CUDA}


KINDS = [*product(PRECISIONS, (False, True), (1, 4))]


@pytest.mark.parametrize("name", models.__all__)
def test_a_step_reads_nothing_back_and_copies_nothing(name: str) -> None:
    for precision, channels_last, steps in KINDS:
        model = on_cuda(name, channels_last=channels_last, steps_per_execution=steps)
        model.sums["train"] = RunningScore(CUDA)
        optimizer = model.configure_optimizers()
        scaler = torch.amp.GradScaler("cuda") if precision == "16-mixed" else None
        batches = serve(steps)
        train(model, next(batches), precision, optimizer, scaler)  # makes the optimizer's state
        fast = fused_adam_step(optimizer) if steps > 1 and not scaler else optimizer.step
        assert scaler or steps == 1 or fast != optimizer.step
        with copies(0):
            for batch in islice(batches, 1):
                train(model, batch, precision, optimizer, scaler, fast)
            _ = model.sums["train"].correct  # compares predictions and labels
            model.sums["train"].window()


def train(
    model: Classifier,
    batch: Batch,
    precision: str,
    optimizer: Any,
    scaler: torch.amp.GradScaler | None,
    step: Any = None,
) -> None:
    """Makes a step as Lightning or `MultiStepModule` does, with gradients that are given."""
    dtype = PRECISIONS[precision]
    with torch.autocast("cuda", dtype or torch.float32, enabled=dtype is not None):
        loss = model.batch_loss(batch)
    assert (loss.device, loss.dtype) == (CUDA, torch.float32)
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter)
    if scaler:
        scaler.scale(loss)
        scaler.step(optimizer)
        scaler.update()
    else:
        (step or optimizer.step)()


def test_clipping_and_the_fused_rmsprop_read_nothing_back() -> None:
    model = on_cuda("LeNet5")
    optimizer = FusedRMSprop(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter)
    optimizer.step()
    with copies(0):
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def test_what_a_validation_keeps_of_a_batch_stays_on_the_gpu() -> None:
    model = on_cuda("LeNet5").eval()
    model.sums["val"] = RunningScore(CUDA)
    images, labels = next(serve(1))
    with copies(0), torch.no_grad():
        logits = model.validation_step((images, labels), 0)
        kept = [it.update(images, labels, logits) for it in (ConfusionMatrix(), WorstMistakes())]
    assert {tensor.device for tensors in kept for tensor in tensors} == {CUDA}


@pytest.mark.parametrize("read", [RunningScore.score, RunningScore.not_finite])
def test_a_value_that_is_read_is_found(read: Any) -> None:
    sums = RunningScore(CUDA)
    sums.add(
        torch.zeros((), device=CUDA),
        torch.zeros(3, 10, device=CUDA),
        torch.zeros(3, dtype=torch.int64, device=CUDA),
    )
    with pytest.raises(DataDependentOutputException):
        read(sums)
