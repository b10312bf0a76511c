import io
import re
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import ExponentialLR

from digitlab.parity.backend import import_keras, keras_dtype
from digitlab.parity.optimizers import KerasAdam, KerasRMSprop

needs_keras = pytest.mark.skipif(
    not (find_spec("keras") and find_spec("tensorflow")), reason="needs the extra `parity`"
)
Arrays = list[np.ndarray]
OptimizerClass = type[Any]  # of torch.optim.Optimizer, whose own arguments are others

SHAPES = [(5, 3), (3,)]
STEPS = 60
SETTINGS = [
    pytest.param(KerasAdam, {}, id="Adam"),
    pytest.param(KerasAdam, {"eps": 1e-3, "betas": (0.8, 0.95)}, id="Adam, other numbers"),
    pytest.param(KerasAdam, {"weight_decay": 0.1}, id="Adam, weight decay"),
    pytest.param(KerasAdam, {"amsgrad": True, "betas": (0.8, 0.9)}, id="Adam, AMSGrad"),
    pytest.param(KerasRMSprop, {}, id="RMSprop"),
    pytest.param(KerasRMSprop, {"eps": 1e-3, "alpha": 0.8}, id="RMSprop, other numbers"),
    pytest.param(KerasRMSprop, {"weight_decay": 0.1}, id="RMSprop, weight decay"),
    pytest.param(KerasRMSprop, {"momentum": 0.9}, id="RMSprop, momentum"),
    pytest.param(KerasRMSprop, {"centered": True}, id="RMSprop, centered"),
    pytest.param(
        KerasRMSprop,
        {"centered": True, "momentum": 0.9, "weight_decay": 0.1},
        id="RMSprop, all at once",
    ),
]
KERAS_NAMES = {"lr": "learning_rate", "eps": "epsilon", "alpha": "rho"}


def problem(steps: int = STEPS, dtype: str = "float64") -> tuple[Arrays, list[Arrays]]:
    """Weights, and gradients of all sizes from 1e-9 to 1, so that epsilon counts; some are 0."""
    generator = np.random.default_rng(0)

    def gradient(shape: tuple[int, ...]) -> np.ndarray:
        sizes = 10 ** generator.uniform(-9, 0, size=shape)
        return (generator.normal(size=shape) * sizes).astype(dtype)

    start = [generator.normal(size=shape, scale=0.1).astype(dtype) for shape in SHAPES]
    gradients = [[gradient(shape) for shape in SHAPES] for _ in range(steps)]
    for of_step in gradients:
        of_step[0][0] = 0
    return start, gradients


def parameters(start: Arrays) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.tensor(array)) for array in start]


def step(optimizer: torch.optim.Optimizer, gradients: Sequence[np.ndarray | None]) -> None:
    members = [p for group in optimizer.param_groups for p in group["params"]]
    for parameter, gradient in zip(members, gradients, strict=True):
        parameter.grad = None if gradient is None else torch.tensor(gradient)
    optimizer.step()


def arrays(parameters: list[torch.nn.Parameter]) -> Arrays:
    return [parameter.detach().numpy().copy() for parameter in parameters]


def ours(
    cls: OptimizerClass, settings: dict[str, Any], start: Arrays, gradients: list[Arrays]
) -> Arrays:
    """The weights after all steps of a torch optimizer."""
    weights = parameters(start)
    optimizer = cls(weights, **settings)
    for of_step in gradients:
        step(optimizer, of_step)
    return arrays(weights)


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


def adam_in_numpy(
    weight: np.ndarray,
    gradients: Arrays,
    lr: float = 0.001,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-7,
    weight_decay: float = 0.0,
    amsgrad: bool = False,
) -> np.ndarray:
    """Reference: Kingma and Ba's formula in float64, its moments as sums over all gradients."""
    # What Keras rounds: the weight decay, and the betas in the bias correction alone.
    decay, *rounded = np.array([weight_decay, *betas], np.float32).astype(float)
    largest = np.zeros_like(weight)
    for t in range(1, len(gradients) + 1):
        ages = np.arange(t)[::-1]
        first, second = (
            np.tensordot((1 - beta) * beta**ages, np.stack(gradients[:t]) ** power, 1)
            for beta, power in zip(betas, (1, 2), strict=True)
        )
        largest = np.maximum(largest, second)
        size = lr * np.sqrt(1 - rounded[1] ** t) / (1 - rounded[0] ** t)
        root = np.sqrt(largest if amsgrad else second)
        weight = weight * (1 - lr * decay) - size * first / (root + eps)
    return weight


def rmsprop_in_numpy(
    weight: np.ndarray,
    gradients: Arrays,
    lr: float = 0.001,
    alpha: float = 0.9,
    eps: float = 1e-7,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    centered: bool = False,
    year: int = 2025,
) -> np.ndarray:
    """Reference: Hinton's formula in float64; in 2018, Keras had epsilon outside the root."""
    square, mean, increment = (np.zeros_like(weight) for _ in range(3))
    for gradient in gradients:
        square = square + (1 - alpha) * (gradient**2 - square)
        mean = mean + (1 - alpha) * (gradient - mean)
        variance = square - centered * mean**2
        root = np.sqrt(variance) + eps if year == 2018 else np.sqrt(variance + eps)
        increment = momentum * increment + lr * gradient / root
        weight = weight * (1 - lr * float(np.float32(weight_decay))) - increment
    return weight


IN_NUMPY: dict[OptimizerClass, Callable[..., np.ndarray]] = {
    KerasAdam: adam_in_numpy,
    KerasRMSprop: rmsprop_in_numpy,
}


def in_numpy(
    cls: OptimizerClass, settings: dict[str, Any], start: Arrays, gradients: list[Arrays]
) -> Arrays:
    histories = zip(*gradients, strict=True)
    return [
        IN_NUMPY[cls](weight, list(history), **settings)
        for weight, history in zip(start, histories, strict=True)
    ]


def difference(ours: Arrays, theirs: Arrays) -> float:
    """The largest difference, relative to the largest weight."""
    largest = max(np.abs(array).max() for array in theirs)
    return float(max(np.abs(x - y).max() for x, y in zip(ours, theirs, strict=True)) / largest)


def name_in_keras(cls: OptimizerClass) -> str:
    return cls.__name__.removeprefix("Keras")


@pytest.mark.parametrize(("cls", "settings"), SETTINGS)
def test_float64_weights_are_those_of_the_formula(
    cls: OptimizerClass, settings: dict[str, Any]
) -> None:
    start, gradients = problem()
    assert difference(ours(cls, settings, *problem()), in_numpy(cls, settings, *problem())) < 1e-14
    assert difference(ours(cls, settings, start, gradients), start) > 1e-3  # they did move


@needs_keras
@pytest.mark.parametrize(("cls", "settings"), SETTINGS)
def test_float64_weights_are_those_of_keras(cls: OptimizerClass, settings: dict[str, Any]) -> None:
    in_keras = theirs(name_in_keras(cls), settings, *problem())
    assert difference(ours(cls, settings, *problem()), in_keras) < 1e-14


@needs_keras
@pytest.mark.parametrize(("cls", "settings"), SETTINGS)
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
@pytest.mark.parametrize(("cls", "settings"), SETTINGS)
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


@pytest.mark.parametrize("cls", [KerasAdam, KerasRMSprop])
def test_each_group_of_parameters_keeps_its_own_settings(cls: OptimizerClass) -> None:
    start, gradients = problem()
    own = [{"lr": 0.01, "weight_decay": 0.1}, {"eps": 1e-3}]
    weights = parameters(start)
    optimizer = cls(
        [{"params": [p], **settings} for p, settings in zip(weights, own, strict=True)], lr=0.002
    )
    for of_step in gradients:
        step(optimizer, of_step)
    for i, settings in enumerate(own):
        apart = in_numpy(
            cls, {"lr": 0.002, **settings}, start[i : i + 1], [[g[i]] for g in gradients]
        )
        assert difference(arrays(weights)[i : i + 1], apart) < 1e-14


@pytest.mark.parametrize("cls", [KerasAdam, KerasRMSprop])
def test_a_closure_is_called_once_with_gradients_on_and_gives_the_loss(cls: OptimizerClass) -> None:
    weights = parameters(problem()[0])
    optimizer = cls(weights)
    losses = []

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = torch.stack([p.square().sum() for p in weights]).sum()
        loss.backward()
        losses.append(loss)
        return loss

    gradients = [[2 * array for array in problem()[0]]]
    assert optimizer.step(closure) is losses[0]
    assert len(losses) == 1
    assert difference(arrays(weights), in_numpy(cls, {}, problem()[0], gradients)) < 1e-14


@pytest.mark.parametrize(("cls", "settings"), SETTINGS)
def test_a_reloaded_optimizer_goes_on_bit_for_bit(
    cls: OptimizerClass, settings: dict[str, Any]
) -> None:
    start, gradients = problem()
    weights = parameters(start)
    optimizer = cls(weights, **settings)
    for of_step in gradients[:25]:
        step(optimizer, of_step)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    weights = parameters(arrays(weights))
    optimizer = cls(weights, lr=1.0)  # the settings too come from the file
    optimizer.load_state_dict(torch.load(file, weights_only=True))
    for of_step in gradients[25:]:
        step(optimizer, of_step)
    whole = ours(cls, settings, start, gradients)
    assert all(np.array_equal(x, y) for x, y in zip(arrays(weights), whole, strict=True))


@pytest.mark.parametrize("cls", [KerasAdam, KerasRMSprop])
def test_a_parameter_without_gradient_stays_and_takes_no_memory(cls: OptimizerClass) -> None:
    start, gradients = problem()
    weights = parameters(start)
    optimizer = cls(weights, weight_decay=0.1)
    for of_step in gradients:
        step(optimizer, [of_step[0], None])
    assert np.array_equal(arrays(weights)[1], start[1])
    assert not any(
        isinstance(value, torch.Tensor) for value in optimizer.state[weights[1]].values()
    )


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


def test_a_step_without_any_gradient_is_not_counted() -> None:
    start, gradients = problem()
    weights = parameters(start)
    optimizer = KerasAdam(weights)
    for of_step in gradients:
        step(optimizer, [None, None])
        step(optimizer, of_step)
    whole = ours(KerasAdam, {}, start, gradients)
    assert all(np.array_equal(x, y) for x, y in zip(arrays(weights), whole, strict=True))


@pytest.mark.parametrize(("cls", "settings"), SETTINGS)
def test_bfloat16_weights_move_and_stay_finite(
    cls: OptimizerClass, settings: dict[str, Any]
) -> None:
    weights = torch.nn.Parameter(torch.ones(8, dtype=torch.bfloat16))
    optimizer = cls([weights], lr=0.05, **settings)
    for _ in range(10):
        weights.grad = torch.full_like(weights, 0.1)
        optimizer.step()
    assert weights.isfinite().all()
    assert (weights < 0.9).all()


@pytest.mark.parametrize(
    ("cls", "settings", "message"),
    [
        (KerasAdam, {"lr": -1}, "lr is -1: it must be at least 0"),
        (KerasAdam, {"lr": float("nan")}, "lr is nan: it must be at least 0"),
        (KerasAdam, {"eps": -1e-7}, "eps is -1e-07: it must be at least 0"),
        (KerasAdam, {"weight_decay": -0.1}, "weight_decay is -0.1: it must be at least 0"),
        (KerasAdam, {"betas": (0.9, 1.0)}, "betas is (0.9, 1.0): give two numbers of"),
        (KerasAdam, {"betas": (-0.1, 0.9)}, "betas is (-0.1, 0.9): give two numbers of"),
        (KerasAdam, {"betas": (0.9,)}, "betas is (0.9,): give two numbers of"),
        (KerasRMSprop, {"lr": -1}, "lr is -1: it must be at least 0"),
        (KerasRMSprop, {"alpha": 1.0}, "alpha is 1.0: it must be at least 0 and below 1"),
        (KerasRMSprop, {"alpha": -0.5}, "alpha is -0.5: it must be at least 0 and below 1"),
        (KerasRMSprop, {"momentum": -0.9}, "momentum is -0.9: it must be at least 0"),
    ],
)
def test_a_setting_out_of_range_is_refused_in_one_line(
    cls: OptimizerClass, settings: dict[str, Any], message: str
) -> None:
    weights = parameters(problem()[0])
    with pytest.raises(ValueError, match=f"^{re.escape(message)}.*$"):
        cls(weights, **settings)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}.*$"):
        cls([{"params": weights, **settings}])


@pytest.mark.parametrize("cls", [KerasAdam, KerasRMSprop])
def test_sparse_and_complex_gradients_are_refused_before_anything_moves(
    cls: OptimizerClass,
) -> None:
    first = torch.nn.Parameter(torch.ones(2))
    first.grad = torch.ones(2)
    sparse = torch.nn.Parameter(torch.ones(2))
    sparse.grad = torch.ones(2).to_sparse()
    with pytest.raises(ValueError, match=r"^a gradient is sparse: it must be real and dense$"):
        cls([first, sparse]).step()
    imaginary = torch.nn.Parameter(torch.ones(2, dtype=torch.complex64))
    imaginary.grad = torch.ones_like(imaginary)
    with pytest.raises(ValueError, match=r"^a gradient is complex: it must be real and dense$"):
        cls([first, imaginary]).step()
    assert first.tolist() == [1, 1]


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
