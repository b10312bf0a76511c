import io
import re
from typing import Any

import numpy as np
import pytest
import torch

from digitlab.parity.optimizers import KerasAdam, KerasRMSprop
from tests.parity.pairs import (
    OPTIMIZER_SETTINGS,
    OptimizerClass,
    arrays,
    difference,
    in_numpy,
    ours,
    parameters,
    problem,
    step,
)


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


@pytest.mark.parametrize(("cls", "settings"), OPTIMIZER_SETTINGS)
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


def test_a_step_without_any_gradient_is_not_counted() -> None:
    start, gradients = problem()
    weights = parameters(start)
    optimizer = KerasAdam(weights)
    for of_step in gradients:
        step(optimizer, [None, None])
        step(optimizer, of_step)
    whole = ours(KerasAdam, {}, start, gradients)
    assert all(np.array_equal(x, y) for x, y in zip(arrays(weights), whole, strict=True))


@pytest.mark.parametrize(("cls", "settings"), OPTIMIZER_SETTINGS)
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
