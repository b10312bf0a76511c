import pytest
import torch

from digitlab.parity.proof import run_checks
from tests.fitting import assert_bitwise_equal
from tests.parity.nets import RECIPES, digit_batches, digit_images, make, random_batches

SLOW = pytest.mark.slow
EXACT = {"pytorch_example_net", "tensorflow_tutorial_cnn"}  # SGD is the same in both


# Default tests also compare each twin's logits and gradients (test_twins), and nn128's steps with
# every optimizer (test_trajectory). `python -m benchmarks.parity` takes 200 steps of all.
DEFAULT = ("lenet5", "pytorch_example_net")
OTHERS = [pytest.param(name, marks=SLOW) for name in RECIPES if name not in DEFAULT]


@pytest.mark.parametrize("name", [*DEFAULT, *OTHERS])
def test_every_architecture_equals_its_twin_with_its_documents_optimizer(name: str) -> None:
    steps, images = 7, 32
    checks = list(run_checks(make(name), digit_batches(steps), *digit_images(images), steps=steps))
    required = {check.name: check for check in checks if not check.informational}
    assert all(check.passed for check in required.values()), checks
    model = make(name)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    statistics = [it for it in model.buffers() if it.is_floating_point()]  # running ones
    weights = parameters + sum(it.numel() for it in statistics)
    averaged = parameters if model.average_decay else 0
    assert {name: check.compared for name, check in required.items()} == {
        "parameters": len([*model.parameters(), *statistics]),
        "round trip of the weights": weights,
        "logits, float64": 10 * images,
        "logits, float32": 10 * images,
        "loss, float64": 1,
        "gradients, float64": parameters,
        f"{steps} training steps, float64": steps * (1 + weights + averaged),
    }
    others = [check for check in checks if check.informational]
    assert len(others) == (name not in EXACT)
    for stock in others:  # PyTorch's own class, which must differ or the exact one has no purpose
        assert not stock.passed
        assert stock.difference > 1e-6


def test_the_model_stays_as_it_is() -> None:
    model = make("linear")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    batches = random_batches(2)
    assert len(list(run_checks(model, batches, *batches[0], steps=2))) == 8
    assert_bitwise_equal(model.state_dict(), before)
    assert next(model.parameters()).dtype == torch.float32
    assert all(parameter.grad is None for parameter in model.parameters())


def test_each_check_is_yielded_as_soon_as_it_is_made() -> None:
    shown: list[str] = []

    def progress(batches: object, description: str, steps: int) -> object:
        shown.append(f"{description}, {steps}")
        return batches

    batches = random_batches(7)
    model = make("linear")
    checks = run_checks(model, batches, *batches[0], steps=7, progress=progress)  # type: ignore[arg-type]
    names = []
    for check in checks:
        names.append(check.name)
        if check.name.startswith("gradients"):
            assert not shown  # no trajectory was begun before it was asked for
    assert shown == ["Trajectory in float64, 7", "stock Adam, 7"]
    assert names[-1] == "7 training steps, float64, stock Adam"
