from importlib import import_module
from importlib.util import find_spec

import pytest
import torch

from digitlab.parity.checks import Check
from digitlab.parity.command import run_checks
from tests.parity.pairs import RECIPES, make, random_batches, real_batches, real_images

pytestmark = pytest.mark.skipif(not find_spec("tensorflow"), reason="needs the extra `parity`")

EXACT = {"pytorch_example_net", "tensorflow_tutorial_cnn"}  # SGD is the same in both


def walk(name: str, steps: int, images: int, batch_size: int) -> dict[str, Check]:
    batches = real_batches(steps, batch_size)
    checks = list(run_checks(make(name), batches, *real_images(images), steps=steps))
    assert all(check.passed for check in checks if not check.informational), checks
    found = {check.name: check for check in checks}
    assert len(found) == len(checks)
    return found


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.usefixtures("real_data")
def test_every_architecture_climbs_the_staircase_with_its_documents_optimizer(name: str) -> None:
    steps = 3 if name == "tensorflow_tutorial_cnn" else 50
    checks = walk(name, steps, images=200, batch_size=16)
    parameters = sum(parameter.numel() for parameter in make(name).parameters())
    short = min(steps, 5)
    expected = {
        "parameters": len(list(make(name).parameters())),
        "round trip of the weights": parameters,
        "logits, float64": 2000,
        "logits, float32": 2000,
        "loss, float64": 1,
        "gradients, float64": parameters,
        "5 optimizer steps, torch, float64": 5000,
        "5 optimizer steps, keras, float64": 5000,
        f"{steps} training steps, float64": steps * (parameters + 1),
        f"{short} training steps, float32": short * (parameters + 1),
    }
    required = {name: check.compared for name, check in checks.items() if not check.informational}
    assert required == expected
    others = [check for check in checks.values() if check.informational]
    assert len(others) == (name not in EXACT)
    for stock in others:  # PyTorch's own class, which must differ or the exact one has no purpose
        assert not stock.passed
        assert stock.difference > 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.usefixtures("real_data")
def test_trajectories_still_agree_after_200_steps(name: str) -> None:
    assert "200 training steps, float64" in walk(name, 200, images=1000, batch_size=32)


def test_the_model_stays_as_it_is() -> None:
    model = make("nn128")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    batches = random_batches(2)
    assert len(list(run_checks(model, batches, *batches[0], steps=2))) == 11
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
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
        if check.name.startswith("5 optimizer steps, keras"):
            assert not shown  # no trajectory was begun before it was asked for
    assert shown == ["Trajectory in float64, 7", "stock Adam, 7"]
    assert names[-1] == "7 training steps, float64, stock Adam"


def test_a_trajectory_in_float32_starts_anew_where_rounding_spoils_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    room = import_module("digitlab.parity.command")  # the package's name is the function
    started: list[float] = []

    def spoilt(module: object, twin: object, batches: list, *others: object) -> Check:
        started.append(float(batches[0][0].mean()))
        return Check("trajectory", 1, 1e-3 if len(started) < 3 else 1e-7, 1e-5, "most in fc1")

    batches = random_batches(7)
    monkeypatch.setattr(room, "trajectory", spoilt)
    model = make("linear")
    check = room._in_float32(model, None, batches, None, None, steps=7, seed=0)
    assert check.passed
    assert check.note == "from batch 1 on 1.0e-03; from batch 2 on 1.0e-03; most in fc1"
    assert started == [float(images.mean()) for images, _ in batches[:3]]
    del started[:]
    check = room._in_float32(model, None, batches, None, None, steps=6, seed=0)
    assert not check.passed  # 6 batches give two starts
    assert len(started) == 2
    check = room._in_float32(model, None, batches, None, None, steps=7, seed=0)
    assert check.note == "most in fc1"
    assert len(started) == 3  # the first of these starts passed, so it is the last
