"""Optimizers in both frameworks: Keras's formulas in PyTorch, and the counterpart of each class."""

from collections.abc import Callable, Iterable
from functools import lru_cache
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from digitlab.errors import check_at_least
from digitlab.optimizers import FusedRMSprop
from digitlab.parity.backend import import_keras
from digitlab.parity.weights import Match


class _KerasOptimizer(torch.optim.Optimizer):
    """Base class of Keras's optimizers: step count, decoupled weight decay, checks of settings."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, after checking its settings and the defaults."""
        for name, value in {**self.defaults, **param_group}.items():
            if name in {"lr", "eps", "weight_decay", "momentum"}:
                check_at_least(0, **{name: value})
            if name == "alpha" and not 0 <= value < 1:
                raise ValueError(f"alpha is {value}: it must be at least 0 and below 1")
            if name == "betas" and not (len(value) == 2 and all(0 <= beta < 1 for beta in value)):
                raise ValueError(f"betas is {value}: give two numbers of at least 0 and below 1")
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient, and return the loss of `closure`, if given.

        Raises:
            ValueError: A gradient is sparse or complex.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        members = [(p, group) for group in self.param_groups for p in group["params"]]
        gradients = [p.grad for p, _ in members if p.grad is not None]
        for gradient in gradients:
            if gradient.layout != torch.strided or gradient.is_complex():
                kind = "complex" if gradient.is_complex() else "sparse"
                raise ValueError(f"a gradient is {kind}: it must be real and dense")
        if not gradients:
            return loss  # not counted as a step: Keras refuses it
        for parameter, group in members:
            state = self.state[parameter]
            # Keras counts the optimizer's steps, not the parameter's: they differ where a parameter
            # gets its first gradient late.
            state["step"] = state.get("step", 0) + 1
            if parameter.grad is not None:
                if group["weight_decay"]:
                    decay = parameter * _rounded(group["weight_decay"])
                    parameter.sub_(decay.mul_(float(group["lr"])))
                self._update(parameter, parameter.grad, state, group)
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor, state: Any, group: Any) -> None:
        raise NotImplementedError


class KerasAdam(_KerasOptimizer):
    """Adam as Keras 3 computes it on its TensorFlow backend, also with weight decay (AdamW).

    For a weight w with gradient g, at the t-th step of the optimizer, with betas (b1, b2)::

        w = w - lr * weight_decay * w
        m = m + (1 - b1) * (g - m)
        v = v + (1 - b2) * (g**2 - v)
        w = w - lr * sqrt(1 - b2**t) / (1 - b1**t) * m / (sqrt(v) + eps)

    AMSGrad has the largest v so far under the root. `torch.optim.Adam` divides by
    `sqrt(v) / sqrt(1 - b2**t) + eps`, where the same eps weighs less, and adds weight decay to the
    gradient. Keras rounds `weight_decay`, and the betas of the powers, to float32 in float64 too.
    For 16-bit parameters the powers are float32 here: in bfloat16, where 0.999 is 1, Keras's own
    step has size 0.

    Reference: Kingma and Ba, "Adam: a method for stochastic optimization", ICLR 2015, whose
    "epsilon hat", at the end of section 2, is this eps.

    Args:
        params: Parameters or groups of them, as PyTorch's own optimizers take them.
        lr: Learning rate, at least 0. If it changes, Keras uses the current one too.
        betas: Decay rates of m and v, at least 0 and below 1.
        eps: At least 0. The default is Keras's, but in a config LightningCLI keeps the 1e-8 of the
            model's default optimizer: write it out.
        weight_decay: At least 0, decoupled from the gradient as everywhere in Keras.
        amsgrad: Divide by the largest v so far.

    Raises:
        ValueError: A setting is out of its range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-7,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
    ) -> None:
        settings = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**settings, "amsgrad": amsgrad})

    def _update(self, parameter: Tensor, gradient: Tensor, state: Any, group: Any) -> None:
        beta_1, beta_2 = group["betas"]
        m, v = _buffer("m", state, parameter), _buffer("v", state, parameter)
        m.add_((gradient - m).mul_(1 - beta_1))
        v.add_((gradient.square() - v).mul_(1 - beta_2))
        if group["amsgrad"]:
            largest = _buffer("largest_v", state, parameter)
            v = torch.maximum(largest, v, out=largest)
        size = _adam_step_size(float(group["lr"]), beta_1, beta_2, state["step"], parameter.dtype)
        parameter.sub_((m * size).div_(v.sqrt().add_(group["eps"])))


class KerasRMSprop(_KerasOptimizer):
    """RMSprop as Keras 3 computes it on its TensorFlow backend.

    For a weight w with gradient g, where `mean` is 0 unless `centered`::

        w = w - lr * weight_decay * w
        v = alpha * v + (1 - alpha) * g**2
        mean = alpha * mean + (1 - alpha) * g
        b = momentum * b + lr * g / sqrt(v - mean**2 + eps)
        w = w - b

    `torch.optim.RMSprop` divides by `sqrt(v) + eps`, as Keras of 2018 did, multiplies b instead of
    g by the learning rate, which matters once that changes, and adds weight decay to the gradient.
    Keras rounds `weight_decay` to float32 in float64 too.

    Reference: Hinton, "Neural networks for machine learning", lecture 6e, 2012, which has no eps.

    Args:
        params: Parameters or groups of them, as PyTorch's own optimizers take them.
        lr: Learning rate, at least 0. The default is Keras's; PyTorch's is 0.01.
        alpha: Decay rate of v, at least 0 and below 1; Keras's `rho`. The default is Keras's;
            PyTorch's is 0.99.
        eps: At least 0. The default is Keras's, but in a config LightningCLI keeps the 1e-8 of the
            model's default optimizer: write it out.
        weight_decay: At least 0, decoupled from the gradient as everywhere in Keras.
        momentum: Decay rate of b, at least 0.
        centered: Divide by an estimate of the gradient's standard deviation.

    Raises:
        ValueError: A setting is out of its range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.001,
        alpha: float = 0.9,
        eps: float = 1e-7,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
    ) -> None:
        settings = {"lr": lr, "alpha": alpha, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**settings, "momentum": momentum, "centered": centered})

    def _update(self, parameter: Tensor, gradient: Tensor, state: Any, group: Any) -> None:
        alpha = group["alpha"]
        v = _buffer("v", state, parameter)
        # Separate products and sums, as in TensorFlow: `addcmul_` may round once instead of twice.
        v.mul_(alpha).add_(gradient.square().mul_(1 - alpha))
        denominator = v
        if group["centered"]:
            average = _buffer("average", state, parameter)
            average.mul_(alpha).add_(gradient * (1 - alpha))
            denominator = v - average.square()
        increment = (gradient * float(group["lr"])).div_((denominator + group["eps"]).sqrt_())
        if group["momentum"]:
            b = _buffer("momentum", state, parameter)
            increment = b.mul_(group["momentum"]).add_(increment)
        parameter.sub_(increment)


def _buffer(name: str, state: dict[str, Any], parameter: Tensor) -> Tensor:
    if name not in state:
        state[name] = torch.zeros_like(parameter)
    buffer: Tensor = state[name]
    return buffer


def _rounded(value: float) -> float:
    # Keras casts some settings with `tf.cast`, which converts a Python float to float32 first:
    # 0.999 becomes 0.9990000128746033 in float64 too.
    return torch.tensor(value, dtype=torch.float32).item()


@lru_cache(maxsize=8)  # 40 µs, once a step instead of once a parameter
def _adam_step_size(
    lr: float, beta_1: float, beta_2: float, step: int, dtype: torch.dtype
) -> float:
    # In the parameters' dtype, as in Keras: 1 - 0.999 in float32 has a relative error of 1.3e-5.
    dtype = torch.promote_types(dtype, torch.float32)
    betas = torch.tensor([_rounded(beta_1), _rounded(beta_2)], dtype=dtype)
    correction_1, correction_2 = 1 - betas ** torch.tensor(step, dtype=dtype)
    size: float = (lr * correction_2.sqrt() / correction_1).item()
    return size


Settings = dict[str, Any]
Optimizer = Callable[..., torch.optim.Optimizer]

_KERAS_NAMES: dict[str, tuple[str, ...]] = {
    "lr": ("learning_rate",),
    "betas": ("beta_1", "beta_2"),
    "eps": ("epsilon",),
    "alpha": ("rho",),
}
_ADAM = ("lr", "betas", "eps", "amsgrad")
_RMSPROP = ("lr", "alpha", "eps", "momentum", "centered")
# By class: Keras's class, the class with Keras's formula, and the settings that both have.
_COUNTERPARTS: dict[type[torch.optim.Optimizer], tuple[str, Optimizer, tuple[str, ...]]] = {
    torch.optim.SGD: ("SGD", torch.optim.SGD, ("lr", "momentum", "nesterov")),
    torch.optim.Adam: ("Adam", KerasAdam, _ADAM),
    torch.optim.AdamW: ("AdamW", KerasAdam, (*_ADAM, "weight_decay")),
    torch.optim.RMSprop: ("RMSprop", KerasRMSprop, _RMSPROP),
    FusedRMSprop: ("RMSprop", KerasRMSprop, _RMSPROP),
    KerasAdam: ("Adam", KerasAdam, (*_ADAM, "weight_decay")),
    KerasRMSprop: ("RMSprop", KerasRMSprop, (*_RMSPROP, "weight_decay")),
}
# They choose an implementation or belong to a scheduler, and change no result; the last is AdamW's.
_WITHOUT_EFFECT = {"params", "param_names", "foreach", "fused", "capturable", "differentiable"}
_WITHOUT_EFFECT |= {"initial_lr", "decoupled_weight_decay"}


def to_keras_optimizer(optimizer: torch.optim.Optimizer) -> Any:
    """Make the Keras optimizer with the settings of a PyTorch one, and none of its state.

    Equal settings do not make equal formulas: `exact_optimizer` makes the PyTorch optimizer that
    steps exactly as this one. The learning rate has Keras's current float type.

    Args:
        optimizer: `SGD`, `Adam`, `AdamW`, `RMSprop`, `KerasAdam` or `KerasRMSprop`.

    Returns:
        A `keras.optimizers.Optimizer`.

    Raises:
        ValueError: The class, or one of the settings, has no counterpart in Keras.
        ImportError: The extra `parity` is not installed.
    """
    name, _, common = _read(optimizer)
    settings: Settings = {}
    for setting, value in common.items():
        values = value if isinstance(value, tuple) else (value,)
        settings |= zip(_KERAS_NAMES.get(setting, (setting,)), values, strict=True)
    if not settings.get("weight_decay") and name != "AdamW":
        settings.pop("weight_decay", None)  # Keras's default is None; a 0 would cost a product
    return getattr(import_keras().optimizers, name)(**settings)


def average_weights(keras_optimizer: Any, decay: float | None) -> None:
    """Let a Keras optimizer that is not built yet average the weights, unless `decay` is None."""
    if decay is not None:
        keras_optimizer.use_ema, keras_optimizer.ema_momentum = True, decay


def averages(keras_model: Any) -> list[tuple[Any, Any]]:
    """Return a compiled model's trainable variables, each with its average.

    Keras has the averages under a private name: checked against version 3.15.
    """
    optimizer = getattr(keras_model.optimizer, "inner_optimizer", keras_model.optimizer)
    found = optimizer._model_variables_moving_average
    return list(zip(keras_model.trainable_variables, found, strict=True))


def decay_kernels_only(keras_optimizer: Any, pairs: Iterable[Match]) -> None:
    """Exempt from weight decay what has one dimension in PyTorch, as `decay_groups` does."""
    exempt = [pair.variable for pair in pairs if pair.tensors[0].ndim <= 1]
    keras_optimizer.exclude_from_weight_decay(exempt)


def exact_optimizer(optimizer: torch.optim.Optimizer, parameters: ParamsT) -> torch.optim.Optimizer:
    """Make the PyTorch optimizer that steps exactly as `to_keras_optimizer(optimizer)` does.

    That is `KerasAdam` for `Adam` and `AdamW`, `KerasRMSprop` for `RMSprop`, and `SGD` itself,
    which is the same in both while the learning rate is constant; its momentum is rounded to
    float32, as Keras does in float64 too.
    """
    _, exact, settings = _read(optimizer)
    if exact is torch.optim.SGD:
        settings["momentum"] = _rounded(settings["momentum"])
    return exact(parameters, **settings)


def _read(optimizer: torch.optim.Optimizer) -> tuple[str, Optimizer, Settings]:
    """Return Keras's class, the exact one, and the settings that both have, or refuse others."""
    kind = type(optimizer).__name__
    if type(optimizer) not in _COUNTERPARTS:  # a subclass may compute anything
        raise ValueError(
            f"optimizer is {kind}, which has no counterpart in Keras: use one of "
            f"{', '.join(known.__name__ for known in _COUNTERPARTS)}"
        )
    name, exact, names = _COUNTERPARTS[type(optimizer)]
    settings, *others = (
        {name: _plain(value) for name, value in group.items() if name not in _WITHOUT_EFFECT}
        for group in optimizer.param_groups
    )
    for other, (setting, value) in product(others, settings.items()):
        if other.get(setting) != value:
            raise ValueError(
                f"{setting} is {value} in a parameter group of {kind} and {other.get(setting)} in "
                "another: Keras has one setting for all, so give all groups the same"
            )
    for setting, value in settings.items():
        if setting not in names and value:  # false or 0 is the default of all others
            raise ValueError(f"{setting} is {value}: {_refusal(kind, setting)}")
    if kind == "SGD" and settings["momentum"] > 1:
        raise ValueError(
            f"momentum is {settings['momentum']}: Keras's SGD takes 0 to 1; give it less"
        )
    return name, exact, {setting: settings[setting] for setting in names}


def _plain(value: Any) -> Any:
    """Convert numbers and one-element tensors to the floats that Keras insists on."""
    if isinstance(value, tuple | list):
        return tuple(map(_plain, value))
    return value if isinstance(value, bool) or value is None else float(value)


def _refusal(kind: str, setting: str) -> str:
    if setting != "weight_decay":
        return f"Keras's counterpart of {kind} has no such setting; leave it out"
    remedy = {"Adam": "use AdamW", "RMSprop": "use KerasRMSprop"}.get(kind, "set it to 0")
    return (
        f"{kind} adds it to the gradient, and Keras subtracts it from the weights, which gives "
        f"another result; {remedy}"
    )
