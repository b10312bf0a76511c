"""Settings of another type than their signature's are refused where an object is made."""

import re
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from digitlab.classifier import Classifier
from digitlab.data import MNISTDataModule
from digitlab.models import MLP, LeNet1


class OwnModel(Classifier):
    """Passes settings on by itself, and has one of its own."""

    def __init__(self, width: int = 3, interval: Any = "epoch", unknown: "Unknown" = 1) -> None:  # type: ignore[name-defined]  # noqa: F821
        super().__init__(nn.Linear(2, width), lr_scheduler_interval=interval)


class PassingModel(OwnModel):
    """Has no settings of its own."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)


own = partial(OwnModel, 3)
A_LIST, PAIR = "a list, each value a whole number", "a list of 2, each value a whole number"
REFUSED: list[tuple[Callable[..., Any], str, list[Any], str]] = [
    (MLP, "lr_scheduler_interval", [None, "batch", 1, ["step"]], "epoch or step"),
    (MLP, "initialization", [None, "glorot"], "torch or keras"),
    (MLP, "dropout_in_evaluation channels_last", [None, "false", 0], "true or false"),
    (MLP, "optimizer", [None, "Adam"], "a class or a function"),
    (MLP, "lr_scheduler", ["StepLR"], "a class or a function, or null"),
    (MLP, "steps_per_execution num_classes in_channels", [None, "3", 3.5], "a whole number"),
    (MLP, "label_smoothing dropout", [None, "0.1", [0.1]], "a number"),
    (MLP, "gradient_clip_norm", ["1"], "a number, or null"),
    (MLP, "hidden_features", [None, "16", 16, [16, None], ["16"]], A_LIST),
    (LeNet1, "padding", [None, "valid", 3], "2 or same"),
    (PassingModel, "width", [None, "3"], "a whole number"),
    (own, "interval", [None, "batch"], "epoch or step"),
    (MNISTDataModule, "normalization", [None, "none", 2], "unit, symmetric or standard"),
    (MNISTDataModule, "batch_size validation_size", [None, "32", 32.0], "a whole number"),
    (MNISTDataModule, "eval_batch_size validation_seed", [None, "1"], "a whole number"),
    (MNISTDataModule, "train_images", [5, [5], (0, "9")], f"{PAIR}, or null"),
    (MNISTDataModule, "root", [5], "text, or null"),
]


@pytest.mark.parametrize(("make", "names", "values", "rule"), REFUSED, ids=[x[1] for x in REFUSED])
def test_a_value_of_another_type_is_refused_with_its_name_and_the_rule(
    make: Callable[..., Any], names: str, values: list[Any], rule: str
) -> None:
    for name, value in product(names.split(), values):
        written = "lr_scheduler_interval" if make is own else name
        message = re.escape(f"{written} is {value!r}: it must be {rule}")
        with pytest.raises(ValueError, match=f"^{message}$"):
            make(**{name: value})


def test_values_that_convert_without_loss_are_taken() -> None:
    numbers: dict[str, Any] = {"num_classes": np.int64(3), "dropout": np.float32(0.1)}
    MLP(**numbers, hidden_features=np.array([3, 4]), label_smoothing=0)  # type: ignore[arg-type]
    of_data: dict[str, Any] = {"root": Path("data"), "train_images": [0, 5]}
    MNISTDataModule(**of_data, batch_size=np.int32(3))
    assert OwnModel(unknown=None).network.out_features == 3


def test_positions_are_named_too() -> None:
    with pytest.raises(ValueError, match="width is '3': it must be a whole number"):
        OwnModel("3")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="unexpected keyword argument 'width'"):
        MLP(width=3)
