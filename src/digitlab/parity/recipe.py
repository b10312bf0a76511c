"""The same optimizer in both frameworks: Keras's, and the PyTorch one that steps exactly as it."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from digitlab.parity.backend import import_keras
from digitlab.parity.optimizers import KerasAdam, KerasRMSprop

Settings = dict[str, Any]

# Keras's name of each of PyTorch's settings; of `betas`, the two names.
_KERAS_NAMES = {
    "lr": "learning_rate",
    "betas": ("beta_1", "beta_2"),
    "eps": "epsilon",
    "alpha": "rho",
}
_ADAM = ("lr", "betas", "eps", "amsgrad")
_RMSPROP = ("lr", "alpha", "eps", "momentum", "centered")
# By class: Keras's class, the class that steps exactly as it, and the settings that both have.
_COUNTERPARTS: dict[
    type[torch.optim.Optimizer], tuple[str, type[torch.optim.Optimizer], tuple[str, ...]]
] = {
    torch.optim.SGD: ("SGD", torch.optim.SGD, ("lr", "momentum", "nesterov")),
    torch.optim.Adam: ("Adam", KerasAdam, _ADAM),
    torch.optim.AdamW: ("AdamW", KerasAdam, (*_ADAM, "weight_decay")),
    torch.optim.RMSprop: ("RMSprop", KerasRMSprop, _RMSPROP),
    KerasAdam: ("Adam", KerasAdam, (*_ADAM, "weight_decay")),
    KerasRMSprop: ("RMSprop", KerasRMSprop, (*_RMSPROP, "weight_decay")),
}
# They choose an implementation or belong to a scheduler, and change no result.
_WITHOUT_EFFECT = {"params", "param_names", "foreach", "fused", "capturable", "differentiable"}
_WITHOUT_EFFECT |= {"initial_lr", "decoupled_weight_decay"}  # which AdamW has, and Adam may not


def to_keras_optimizer(optimizer: torch.optim.Optimizer) -> Any:
    """Make the Keras optimizer with the settings of a PyTorch one, and none of its state.

    Settings are the same in both, formulas are not: `exact_optimizer` gives the PyTorch optimizer
    that steps exactly as what this returns. Its learning rate has Keras's dtype of the moment.

    Args:
        optimizer: `SGD`, `Adam`, `AdamW`, `RMSprop`, `KerasAdam` or `KerasRMSprop`.

    Returns:
        A `keras.optimizers.Optimizer`.

    Raises:
        ValueError: The class, or one of the settings, has no counterpart in Keras.
        ImportError: The extra `parity` is not installed.
    """
    name, settings = keras_settings(optimizer)
    if not settings.get("weight_decay") and name != "AdamW":
        settings.pop("weight_decay", None)  # Keras's default is None; a 0 would cost a product
    return getattr(import_keras().optimizers, name)(**settings)


def keras_settings(optimizer: torch.optim.Optimizer) -> tuple[str, Settings]:
    """Give the name of Keras's class for a PyTorch optimizer, and its settings by Keras's names.

    Raises:
        ValueError: As for `to_keras_optimizer`.
    """
    settings: Settings = {}
    for setting, value in _common_settings(optimizer).items():
        theirs = _KERAS_NAMES.get(setting, setting)
        if isinstance(theirs, str):
            settings[theirs] = value
        else:
            settings |= dict(zip(theirs, value, strict=True))
    return _counterpart(optimizer)[0], settings


def exact_optimizer(
    optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter]
) -> torch.optim.Optimizer:
    """Make the optimizer that steps exactly as `to_keras_optimizer(optimizer)` does.

    That is `KerasAdam` in place of `Adam` and `AdamW`, `KerasRMSprop` in place of `RMSprop`, and
    `SGD` itself, which is the same in both while the learning rate is constant. Its momentum is
    rounded to float32, as Keras's is in float64 too.

    Args:
        optimizer: As for `to_keras_optimizer`; its settings are taken over, its state is not.
        parameters: What the new optimizer is for.

    Raises:
        ValueError: As for `to_keras_optimizer`.
    """
    exact: Any = _counterpart(optimizer)[1]
    settings = _common_settings(optimizer)
    if exact is torch.optim.SGD:
        settings["momentum"] = torch.tensor(settings["momentum"], dtype=torch.float32).item()
    made: torch.optim.Optimizer = exact(parameters, **settings)
    return made


def _counterpart(
    optimizer: torch.optim.Optimizer,
) -> tuple[str, type[torch.optim.Optimizer], tuple[str, ...]]:
    # By the very class: a subclass, as AdamW is of Adam, may compute anything.
    found = _COUNTERPARTS.get(type(optimizer))
    if found is None:
        known = ", ".join(kind.__name__ for kind in _COUNTERPARTS)
        raise ValueError(
            f"optimizer is {type(optimizer).__name__}, which has no counterpart in Keras: use one "
            f"of {known}"
        )
    return found


def _common_settings(optimizer: torch.optim.Optimizer) -> Settings:
    """Give the settings that both frameworks have, as plain numbers, or refuse the others."""
    kind, names = type(optimizer).__name__, _counterpart(optimizer)[2]
    groups = [_settings(group) for group in optimizer.param_groups]
    for other in groups[1:]:
        for name, value in groups[0].items():
            if other.get(name) != value:
                raise ValueError(
                    f"{name} is {value} in a parameter group of {kind} and {other.get(name)} in "
                    "another: Keras has one setting for all, so give all groups the same"
                )
    for name, value in groups[0].items():
        if name not in names and value:  # none is the default of all others, in every class
            raise ValueError(_refusal(kind, name, value))
    if kind == "SGD" and groups[0]["momentum"] > 1:
        raise ValueError(
            f"momentum is {groups[0]['momentum']}: Keras's SGD takes 0 to 1; give it less"
        )
    return {name: groups[0][name] for name in names}


def _settings(group: Settings) -> Settings:
    return {
        name: tuple(map(_plain, value)) if isinstance(value, tuple | list) else _plain(value)
        for name, value in group.items()
        if name not in _WITHOUT_EFFECT
    }


def _plain(value: Any) -> Any:
    """Turn an integer into the float that Keras insists on, and a tensor of one number too."""
    return value if isinstance(value, bool) or value is None else float(value)


def _refusal(kind: str, name: str, value: Any) -> str:
    if name == "weight_decay":
        remedy = {"Adam": "use AdamW", "RMSprop": "use KerasRMSprop"}.get(kind, "set it to 0")
        return (
            f"weight_decay is {value}: {kind} adds it to the gradient, and Keras takes it from the "
            f"weights, which is another result; {remedy}"
        )
    return f"{name} is {value}: Keras's counterpart of {kind} has no such setting; leave it out"
