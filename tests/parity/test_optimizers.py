from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import ExponentialLR

from digitlab.parity.backend import import_keras, keras_dtype
from digitlab.parity.optimizers import KerasAdam, KerasRMSprop
from tests.parity.pairs import (
    OPTIMIZER_SETTINGS,
    Arrays,
    OptimizerClass,
    arrays,
    difference,
    in_numpy,
    ours,
    parameters,
    problem,
    step,
)

needs_keras = pytest.mark.skipif(
    not (find_spec("keras") and find_spec("tensorflow")), reason="needs the extra `parity`"
)
KERAS_NAMES = {"lr": "learning_rate", "eps": "epsilon", "alpha": "rho"}


def keras_optimizer(name: str, settings: dict[str, Any]) -> Any:
    arguments = {KERAS_NAMES.get(key, key): value for key, value in settings.items()}
    if "betas" in arguments:
        arguments["beta_1"], arguments["beta_2"] = arguments.pop("betas")
    return getattr(import_keras().optimizers, name)(**arguments)


def theirs(
    name: str,
    settings: dict[str, Any],
    start: Arrays,
    gradients: Sequence[Sequence[np.ndarray | None]],
    rates: list[float] | None = None,
) -> Arrays:
    """The weights after all steps of the Keras optimizer of this name, at these learning rates."""
    keras = import_keras()
    dtype: Any = str(start[0].dtype)
    with keras_dtype(dtype):
        optimizer = keras_optimizer(name, settings)
        variables = [keras.Variable(array, dtype=dtype) for array in start]
        optimizer.build(variables)
        for i, of_step in enumerate(gradients):
            if rates is not None:
                optimizer.learning_rate = rates[i]
            tensors = [None if g is None else keras.ops.convert_to_tensor(g) for g in of_step]
            optimizer.apply(tensors, variables)
        return [variable.numpy() for variable in variables]


def name_in_keras(cls: OptimizerClass) -> str:
    return cls.__name__.removeprefix("Keras")


@pytest.mark.parametrize(("cls", "settings"), OPTIMIZER_SETTINGS)
def test_float64_weights_are_those_of_the_formula(
    cls: OptimizerClass, settings: dict[str, Any]
) -> None:
    start, gradients = problem()
    assert difference(ours(cls, settings, *problem()), in_numpy(cls, settings, *problem())) < 1e-14
    assert difference(ours(cls, settings, start, gradients), start) > 1e-3  # they did move


@needs_keras
@pytest.mark.parametrize(("cls", "settings"), OPTIMIZER_SETTINGS)
def test_float64_weights_are_those_of_keras(cls: OptimizerClass, settings: dict[str, Any]) -> None:
    in_keras = theirs(name_in_keras(cls), settings, *problem())
    assert difference(ours(cls, settings, *problem()), in_keras) < 1e-14


@needs_keras
@pytest.mark.parametrize(("cls", "settings"), OPTIMIZER_SETTINGS)
def test_float32_weights_are_those_of_keras(cls: OptimizerClass, settings: dict[str, Any]) -> None:
    start, gradients = problem(5, "float32")
    zero = [np.zeros_like(array) for array in start]  # else most digits are those of the start
    in_keras = theirs(name_in_keras(cls), settings, zero, gradients)
    # A few units in the last place: torch's float32 `sqrt` is not always the nearest.
    assert difference(ours(cls, settings, zero, gradients), in_keras) < 5e-7


@needs_keras
def test_adam_with_weight_decay_is_also_keras_adamw() -> None:
    settings = {"weight_decay": 0.004}
    in_keras = theirs("AdamW", {}, *problem())  # 0.004 is its default
    assert difference(ours(KerasAdam, settings, *problem()), in_keras) < 1e-14


@needs_keras
@pytest.mark.parametrize(("cls", "settings"), OPTIMIZER_SETTINGS)
def test_a_changing_learning_rate_changes_both_alike(
    cls: OptimizerClass, settings: dict[str, Any]
) -> None:
    start, gradients = problem()
    weights = parameters(start)
    optimizer = cls(weights, **settings)
    scheduler = ExponentialLR(optimizer, gamma=0.9)
    rates = []
    for of_step in gradients:
        rates.append(optimizer.param_groups[0]["lr"])
        step(optimizer, of_step)
        scheduler.step()
    in_keras = theirs(name_in_keras(cls), settings, start, gradients, rates)
    assert difference(arrays(weights), in_keras) < 1e-14
    assert difference(arrays(weights), ours(cls, settings, start, gradients)) > 1e-3


@needs_keras
@pytest.mark.filterwarnings("ignore:Gradients do not exist")  # Keras says so, and goes on
@pytest.mark.parametrize("cls", [KerasAdam, KerasRMSprop])
def test_a_first_gradient_may_come_late_as_in_keras(cls: OptimizerClass) -> None:
    start, gradients = problem()
    late = [[g[0], g[1] if i >= 7 else None] for i, g in enumerate(gradients)]
    weights = parameters(start)
    optimizer = cls(weights)
    for of_step in late:
        step(optimizer, of_step)
    in_keras = theirs(name_in_keras(cls), {}, start, late)
    assert difference(arrays(weights), in_keras) < 1e-14


@pytest.mark.parametrize(
    ("exact", "stock", "settings", "measured"),
    [
        (KerasAdam, torch.optim.Adam, {"eps": 1e-7}, 0.00327),
        (KerasAdam, torch.optim.Adam, {"eps": 1e-7, "weight_decay": 0.1}, 0.2187),
        (KerasAdam, torch.optim.AdamW, {"eps": 1e-7, "weight_decay": 0.1}, 0.00327),
        (KerasRMSprop, torch.optim.RMSprop, {"alpha": 0.9, "eps": 1e-7}, 0.01889),
        (KerasRMSprop, torch.optim.RMSprop, {"alpha": 0.9, "eps": 1e-7, "momentum": 0.9}, 0.2011),
    ],
)
def test_the_stock_optimizer_with_the_same_numbers_ends_elsewhere(
    exact: OptimizerClass, stock: OptimizerClass, settings: dict[str, Any], measured: float
) -> None:
    settings = {"lr": 0.001, **settings}
    end = ours(exact, settings, *problem())
    assert difference(ours(stock, settings, *problem()), end) == pytest.approx(measured, rel=0.01)


def test_stock_rmsprop_is_that_of_keras_in_2018() -> None:
    settings = {"lr": 1e-3, "alpha": 0.9, "eps": 1e-7}
    end = in_numpy(KerasRMSprop, {**settings, "year": 2018}, *problem())
    assert difference(ours(torch.optim.RMSprop, settings, *problem()), end) < 1e-14


@needs_keras
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"weight_decay": 0.5},  # without momentum, coupled and decoupled decay are the same
        {"momentum": 0.5},
        {"momentum": 0.5, "nesterov": True},
    ],
    ids=str,
)
def test_stock_sgd_is_that_of_keras_at_a_constant_learning_rate(settings: dict[str, Any]) -> None:
    settings = {"lr": 0.01, **settings}
    in_keras = theirs("SGD", settings, *problem())
    assert difference(ours(torch.optim.SGD, settings, *problem()), in_keras) < 1e-14


@needs_keras
@pytest.mark.parametrize("nesterov", [False, True])
def test_keras_sgd_rounds_its_momentum_to_float32(nesterov: bool) -> None:
    settings = {"lr": 0.01, "nesterov": nesterov}
    in_keras = theirs("SGD", {**settings, "momentum": 0.9}, *problem())
    rounded = {**settings, "momentum": float(np.float32(0.9))}
    assert difference(ours(torch.optim.SGD, rounded, *problem()), in_keras) < 1e-14
    exact = {**settings, "momentum": 0.9}
    assert 1e-10 < difference(ours(torch.optim.SGD, exact, *problem()), in_keras) < 1e-6
