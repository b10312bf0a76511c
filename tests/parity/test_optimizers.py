"""One contract for all optimizers: both frameworks follow the formula in NumPy."""

import io
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR

from digitlab.parity.backend import import_keras, keras_dtype
from digitlab.parity.optimizers import KerasAdam, KerasRMSprop, exact_optimizer, to_keras_optimizer
from tests.parity.references import in_numpy

Arrays = list[np.ndarray]
Optimizer = torch.optim.Optimizer
Make = Callable[..., Optimizer]

STOCK: dict[str, Make] = {
    "SGD": torch.optim.SGD,
    "SGD, momentum": partial(torch.optim.SGD, lr=0.01, momentum=0.9),
    "SGD, Nesterov": partial(torch.optim.SGD, lr=0.01, momentum=0.9, nesterov=True),
    "Adam": torch.optim.Adam,
    "Adam, settings": partial(torch.optim.Adam, lr=0.01, betas=(0.8, 0.95), eps=1e-4),
    "Adam, AMSGrad": partial(torch.optim.Adam, betas=(0.9, 0.5), amsgrad=True),
    "AdamW": partial(torch.optim.AdamW, weight_decay=0.3),
    "RMSprop": torch.optim.RMSprop,
    "RMSprop, all": partial(torch.optim.RMSprop, alpha=0.7, centered=True, momentum=0.6),
}
EXACT: dict[str, Make] = {
    "KerasAdam": KerasAdam,
    "KerasAdam, settings": partial(KerasAdam, eps=1e-3, betas=(0.8, 0.95)),
    "KerasAdam, all": partial(KerasAdam, weight_decay=0.1, amsgrad=True, betas=(0.8, 0.9)),
    "KerasRMSprop": KerasRMSprop,
    "KerasRMSprop, settings": partial(KerasRMSprop, eps=1e-3, alpha=0.8),
    "KerasRMSprop, momentum": partial(KerasRMSprop, momentum=0.9),
    "KerasRMSprop, all": partial(KerasRMSprop, centered=True, momentum=0.9, weight_decay=0.1),
}
each = pytest.mark.parametrize("make", (STOCK | EXACT).values(), ids=STOCK | EXACT)
each_exact = pytest.mark.parametrize("make", EXACT.values(), ids=EXACT)
both_classes = pytest.mark.parametrize("make", [KerasAdam, KerasRMSprop])


def problem(steps: int = 20, dtype: str = "float64") -> tuple[Arrays, list[Arrays]]:
    """Weights, and gradients of all sizes from 1e-9 to 1, so that epsilon counts; some are 0."""
    generator, shapes = np.random.default_rng(0), [(5, 3), (3,)]

    def gradient(shape: tuple[int, ...]) -> np.ndarray:
        sizes = 10 ** generator.uniform(-9, 0, size=shape)
        return (generator.normal(size=shape) * sizes).astype(dtype)

    start = [generator.normal(size=shape, scale=0.1).astype(dtype) for shape in shapes]
    gradients = [[gradient(shape) for shape in shapes] for _ in range(steps)]
    for of_step in gradients:
        of_step[0][0] = 0
    return start, gradients


def parameters(start: Arrays) -> list[nn.Parameter]:
    return [nn.Parameter(torch.tensor(array)) for array in start]


def arrays(parameters: list[nn.Parameter]) -> Arrays:
    return [parameter.detach().numpy().copy() for parameter in parameters]


def take_step(optimizer: Optimizer, gradients: Sequence[np.ndarray | None]) -> None:
    members = [p for group in optimizer.param_groups for p in group["params"]]
    for parameter, gradient in zip(members, gradients, strict=True):
        parameter.grad = None if gradient is None else torch.tensor(gradient)
    optimizer.step()


def in_torch(make: Make, start: Arrays, gradients: Sequence[Sequence[np.ndarray | None]]) -> Arrays:
    """The weights after all steps of a PyTorch optimizer."""
    weights = parameters(start)
    optimizer = make(weights)
    for of_step in gradients:
        take_step(optimizer, of_step)
    return arrays(weights)


def in_keras(
    make: Callable[[], Any],
    start: Arrays,
    gradients: Sequence[Sequence[np.ndarray | None]],
    rates: Sequence[float] = (),
) -> Arrays:
    """The weights after all steps of a Keras optimizer, at these learning rates if any."""
    keras = import_keras()
    dtype: Any = str(start[0].dtype)
    with keras_dtype(dtype):
        optimizer = make()
        variables = [keras.Variable(array, dtype=dtype) for array in start]
        optimizer.build(variables)
        for i, of_step in enumerate(gradients):
            if rates:
                optimizer.learning_rate = rates[i]
            tensors = [None if g is None else keras.ops.convert_to_tensor(g) for g in of_step]
            optimizer.apply(tensors, variables)
        return [variable.numpy() for variable in variables]


def one(make: Make) -> Optimizer:
    """An optimizer that has the settings, but nothing to train."""
    return make([nn.Parameter(torch.zeros(1))])


def difference(ours: Arrays, theirs: Arrays) -> float:
    """The largest difference, relative to the largest weight."""
    largest = max(np.abs(array).max() for array in theirs)
    return float(max(np.abs(x - y).max() for x, y in zip(ours, theirs, strict=True)) / largest)


@each
def test_both_frameworks_follow_the_formula_in_float64(make: Make) -> None:
    start, gradients = problem()
    formula = in_numpy(one(make), start, gradients)
    exact = partial(exact_optimizer, one(make))
    theirs = partial(to_keras_optimizer, one(make))
    assert difference(in_torch(exact, start, gradients), formula) < 1e-14
    assert difference(in_keras(theirs, start, gradients), formula) < 1e-14
    assert difference(formula, start) > 1e-4  # they did move


@each_exact
def test_both_frameworks_agree_in_float32(make: Make) -> None:
    start, gradients = problem(5, "float32")
    zero = [np.zeros_like(array) for array in start]  # else most digits are those of the start
    theirs = in_keras(partial(to_keras_optimizer, one(make)), zero, gradients)
    # A few units in the last place: torch's float32 `sqrt` is not always the nearest.
    assert difference(in_torch(make, zero, gradients), theirs) < 5e-7


@both_classes
def test_both_frameworks_agree_while_the_learning_rate_changes(make: Make) -> None:
    start, gradients = problem()
    weights = parameters(start)
    optimizer = make(weights)
    scheduler = ExponentialLR(optimizer, gamma=0.9)
    rates = []
    for of_step in gradients:
        rates.append(optimizer.param_groups[0]["lr"])
        take_step(optimizer, of_step)
        scheduler.step()
    theirs = in_keras(partial(to_keras_optimizer, one(make)), start, gradients, rates)
    assert difference(arrays(weights), theirs) < 1e-14
    assert difference(arrays(weights), in_torch(make, start, gradients)) > 1e-3


@pytest.mark.filterwarnings("ignore:Gradients do not exist")  # Keras's own, about the late one
@both_classes
def test_a_first_gradient_may_come_late_as_in_keras_or_never(make: Any) -> None:
    start, gradients = problem()
    for first in (7, 20):
        late = [[g[0], g[1] if i >= first else None] for i, g in enumerate(gradients)]
        ours = in_torch(partial(make, weight_decay=0.1), start, late)
        optimizer = one(partial(make, weight_decay=0.1))
        theirs = in_keras(partial(to_keras_optimizer, optimizer), start, late)
        assert difference(ours, theirs) < 1e-14
    assert np.array_equal(ours[1], start[1])


def test_pytorchs_own_classes_equal_keras_as_the_documentation_says() -> None:
    rmsprop = partial(torch.optim.RMSprop, lr=1e-3, alpha=0.9, eps=1e-7)
    of_2018 = in_numpy(one(rmsprop), *problem(), year=2018)
    assert difference(in_torch(rmsprop, *problem()), of_2018) < 1e-14
    momentum = STOCK["SGD, momentum"]  # which Keras rounds to float32
    theirs = in_keras(partial(to_keras_optimizer, one(momentum)), *problem())
    assert 1e-10 < difference(in_torch(momentum, *problem()), theirs) < 1e-6
    decay: dict[str, Any] = {"weight_decay": 0.5}
    theirs = in_keras(lambda: import_keras().optimizers.SGD(0.01, **decay), *problem())
    ours = in_torch(partial(torch.optim.SGD, lr=0.01, **decay), *problem())
    assert difference(ours, theirs) < 1e-14


@both_classes
def test_each_group_of_parameters_keeps_its_own_settings(make: Any) -> None:
    start, gradients = problem()
    own = [{"lr": 0.01, "weight_decay": 0.1}, {"eps": 1e-3}]
    weights = parameters(start)
    groups = [{"params": [p], **settings} for p, settings in zip(weights, own, strict=True)]
    optimizer = make(groups, lr=0.002)
    for of_step in gradients:
        take_step(optimizer, of_step)
    for i, settings in enumerate(own):
        alone = one(partial(make, **{"lr": 0.002, **settings}))
        expected = in_numpy(alone, start[i : i + 1], [[g[i]] for g in gradients])
        assert difference(arrays(weights)[i : i + 1], expected) < 1e-14


@both_classes
def test_a_closure_is_called_once_with_gradients_on_and_its_loss_returned(make: Make) -> None:
    start, _ = problem()
    weights = parameters(start)
    optimizer: Any = make(weights)
    losses = []

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = torch.stack([p.square().sum() for p in weights]).sum()
        loss.backward()
        losses.append(loss)
        return loss

    assert optimizer.step(closure) is losses[0]
    assert len(losses) == 1
    expected = in_numpy(one(make), start, [[2 * array for array in start]])
    assert difference(arrays(weights), expected) < 1e-14


@each_exact
def test_a_reloaded_optimizer_resumes_bit_for_bit(make: Make) -> None:
    start, gradients = problem()
    weights = parameters(start)
    optimizer = make(weights)
    for of_step in gradients[:9]:
        take_step(optimizer, of_step)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    weights = parameters(arrays(weights))
    optimizer = type(optimizer)(weights, lr=1.0)  # type: ignore[call-arg] # the file has the others
    optimizer.load_state_dict(torch.load(file, weights_only=True))
    for of_step in gradients[9:]:
        take_step(optimizer, of_step)
    uninterrupted = in_torch(make, start, gradients)
    assert all(map(np.array_equal, arrays(weights), uninterrupted))


def test_a_step_without_any_gradient_is_not_counted() -> None:
    start, gradients = problem()
    with_empty = [step for of_step in gradients for step in ([None, None], of_step)]
    ours, expected = (in_torch(KerasAdam, start, steps) for steps in (with_empty, gradients))
    assert all(map(np.array_equal, ours, expected))


@both_classes
def test_bfloat16_weights_move_and_stay_finite(make: Any) -> None:
    weights = nn.Parameter(torch.ones(8, dtype=torch.bfloat16))
    optimizer = make([weights], lr=0.05)
    for _ in range(10):
        weights.grad = torch.full_like(weights, 0.1)
        optimizer.step()
    assert weights.isfinite().all()
    assert (weights < 0.9).all()


@pytest.mark.parametrize(
    ("make", "name", "value", "rule"),
    [
        *((KerasAdam, "lr", value, "it must be at least 0") for value in (-1, float("nan"))),
        *((KerasAdam, name, -0.1, "it must be at least 0") for name in ("eps", "weight_decay")),
        *((KerasAdam, "betas", value, "give two numbers of") for value in ((0.9, 1.0), (0.9,))),
        *((KerasRMSprop, "alpha", value, "it must be at least 0 and b") for value in (1.0, -0.5)),
        (KerasRMSprop, "momentum", -0.9, "it must be at least 0"),
    ],
)
def test_a_setting_out_of_range_is_refused(make: Any, name: str, value: Any, rule: str) -> None:
    weights, message = parameters(problem()[0]), re.escape(f"{name} is {value}: {rule}")
    for groups, settings in ((weights, {name: value}), ([{"params": weights, name: value}], {})):
        with pytest.raises(ValueError, match=f"^{message}.*$"):
            make(groups, **settings)


@both_classes
def test_sparse_and_complex_gradients_are_refused_before_anything_moves(make: Make) -> None:
    first, sparse = (nn.Parameter(torch.ones(2)) for _ in range(2))
    first.grad, sparse.grad = torch.ones(2), torch.ones(2).to_sparse()
    with pytest.raises(ValueError, match=r"^a gradient is sparse: it must be real and dense$"):
        make([first, sparse]).step()
    imaginary = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    imaginary.grad = torch.ones_like(imaginary)
    with pytest.raises(ValueError, match=r"^a gradient is complex: it must be real and dense$"):
        make([first, imaginary]).step()
    assert first.tolist() == [1, 1]


def test_keras_gets_the_settings_under_its_own_names() -> None:
    first, second = (nn.Parameter(torch.zeros(1)) for _ in range(2))
    groups = [{"params": [first]}, {"params": [second]}]
    adamw = torch.optim.AdamW(groups, 0.01, (0.8, 0.9), 1e-5, weight_decay=0.2, foreach=False)
    torch.optim.lr_scheduler.StepLR(adamw, 5)  # which adds the initial learning rate
    theirs = to_keras_optimizer(adamw)
    config = theirs.get_config()
    expected = {"beta_1": 0.8, "beta_2": 0.9, "epsilon": 1e-5, "weight_decay": 0.2}
    assert expected.items() <= config.items()
    assert type(theirs).__name__ == "AdamW"
    assert config["learning_rate"] == pytest.approx(0.01, abs=1e-9)  # Keras keeps it as float32
    integers = torch.optim.SGD([first], lr=torch.tensor(1), momentum=0)
    assert to_keras_optimizer(integers).get_config()["learning_rate"] == 1.0


class OwnSGD(torch.optim.SGD):
    """A user's subclass, which may compute anything."""


def unequal_groups(weights: list[nn.Parameter]) -> Optimizer:
    other = nn.Parameter(torch.zeros(1))
    groups: list[dict[str, Any]] = [{"params": weights}, {"params": [other], "lr": 0.5}]
    return torch.optim.SGD(groups, lr=0.25)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (torch.optim.Adagrad, "optimizer is Adagrad, which has no counterpart in Keras: use one"),
        (OwnSGD, "optimizer is OwnSGD, which has no counterpart"),
        (partial(torch.optim.Adam, weight_decay=0.1), r"weight_decay is 0\.1: Adam adds .* AdamW$"),
        (partial(torch.optim.RMSprop, weight_decay=0.1), "RMSprop adds .* use KerasRMSprop$"),
        (partial(torch.optim.SGD, weight_decay=0.1), "SGD adds it to the gradient.* set it to 0$"),
        (
            partial(torch.optim.SGD, momentum=0.9, dampening=0.5),
            r"dampening is 0\.5: Keras's count",
        ),
        (partial(torch.optim.SGD, momentum=1.5), r"momentum is 1\.5: Keras's SGD takes 0 to 1"),
        (partial(torch.optim.Adam, maximize=True), "maximize is True: Keras's counterpart of Adam"),
        (unequal_groups, r"lr is 0\.25 in a parameter group of SGD and 0\.5 in another: .* same"),
    ],
)
def test_an_optimizer_without_a_counterpart_in_keras_is_refused(make: Make, message: str) -> None:
    optimizer = one(make)
    for convert in (to_keras_optimizer, lambda it: exact_optimizer(it, [nn.Parameter()])):
        with pytest.raises(ValueError, match=message) as refused:
            convert(optimizer)
        assert "\n" not in str(refused.value)
