"""What every architecture promises; a new one in `digitlab.models` is covered by being there."""

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import seed_everything
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from digitlab import models
from digitlab.classifier import Classifier
from tests.fitting import checkpoint_of, trainer, whole

VARIANTS: dict[str, list[tuple[dict[str, Any], int]]] = {
    "LinearClassifier": [({}, 7_850)],
    "MLP": [({}, 669_706), ({"hidden_features": [128]}, 101_770)],
    "PyTorchExampleNet": [({}, 21_840)],
    "TensorFlowTutorialCNN": [({}, 3_274_634)],
    "LeNet5": [({}, 61_706)],
    "FastCNN": [({}, 212_682)],
    "ResNet": [({}, 120_986), ({"width": 10}, 47_600), ({"width": 40}, 750_770)],
    "LeNet1": [({"padding": 2}, 121_994), ({"padding": "same"}, 121_994)],
}
CASES = [(name, *case) for name, cases in VARIANTS.items() for case in cases]
SMALL = ("ResNet", {"width": 8, "growth": [1, 4], "blocks": [1, 1]}, 0)
TRAINED = [*(case for case in CASES if case[0] != "ResNet"), SMALL]  # its others take a minute
Make = Callable[..., Classifier]


@pytest.fixture(params=TRAINED, ids=lambda case: "-".join([case[0], *map(str, case[1].values())]))
def make(request: pytest.FixtureRequest) -> Make:
    """Makes a model of each architecture, always with the same weights."""
    name, options, _ = request.param

    def build(**more: Any) -> Classifier:
        torch.manual_seed(0)
        model = getattr(models, name)(**options, **more)
        assert isinstance(model, Classifier)
        return model

    return build


def test_every_listed_architecture_has_its_parameter_count_here() -> None:
    assert sorted(VARIANTS) == sorted(models.__all__)


@pytest.mark.parametrize(("name", "options", "count"), CASES)
def test_it_has_the_documented_number_of_parameters(
    name: str, options: dict[str, Any], count: int
) -> None:
    model = getattr(models, name)(**options)
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    written = re.findall(r"\b\d{1,3}(?:,\d{3})+\b", type(model).__doc__ or "")
    assert f"{count:,}" in written


@pytest.mark.parametrize(("in_channels", "num_classes"), [(1, 10), (3, 7)])
def test_it_gives_a_logit_for_each_class(make: Make, in_channels: int, num_classes: int) -> None:
    model = make(in_channels=in_channels, num_classes=num_classes)
    logits = model(torch.rand(5, in_channels, 28, 28))
    assert (logits.shape, logits.dtype) == ((5, num_classes), torch.float32)


def test_an_image_is_classified_alike_alone_and_among_others(make: Make) -> None:
    model = make().double().eval()
    images = whole("test")[0][:4].double()
    torch.testing.assert_close(model(images)[2:3], model(images[2:3]))


def test_it_learns_sixteen_images_by_heart(make: Make) -> None:
    model = make()
    images, labels = (tensor[:16] for tensor in whole("train"))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    for _ in range(100):
        model.train()
        optimizer.zero_grad()
        cross_entropy(model(images), labels).backward()
        optimizer.step()
        model.eval()
        if torch.equal(model(images).argmax(1), labels):
            return
    pytest.fail("16 images are not learned in 100 steps")


def test_bfloat16_autocast_is_finite_and_its_loss_float32(make: Make) -> None:
    model = make()
    images, labels = (tensor[:16] for tensor in whole("train"))
    with torch.autocast("cpu", torch.bfloat16):
        assert model(images).dtype == torch.bfloat16
        loss, logits = model._loss_and_logits(images, labels)
    loss.backward()
    assert (loss.dtype, logits.dtype) == (torch.float32, torch.float32)
    gradients = [parameter.grad for parameter in model.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    model.eval()  # without dropout, which would draw another mask for each side
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        ours = model._loss_and_logits(images, labels)[0]
    theirs = cross_entropy(model(images), labels)
    torch.testing.assert_close(ours, theirs, rtol=0.01, atol=0)  # bfloat16 keeps 8 bits


def test_a_checkpoint_gives_the_model_back_without_running_code(make: Make, tmp_path: Path) -> None:
    own = {"num_classes": 7, "initialization": "keras", "gradient_clip_norm": 2.0}
    model = make(**own, optimizer=torch.optim.SGD)
    path = checkpoint_of(model, tmp_path / "model.ckpt")
    content = torch.load(path, weights_only=True)
    assert content["hyper_parameters"].items() >= own.items()
    assert content["hyper_parameters"].keys().isdisjoint({"optimizer", "lr_scheduler", "network"})
    loaded = type(model).load_from_checkpoint(path)
    assert loaded.hparams == model.hparams
    images = whole("test")[0][:8]
    assert torch.equal(loaded.eval()(images), model.eval()(images))


def test_it_is_pickled_with_its_default_optimizer(make: Make) -> None:
    model = make()
    copied = pickle.loads(pickle.dumps(model))
    images = whole("test")[0][:8]
    assert torch.equal(copied.eval()(images), model.eval()(images))
    ours, theirs = (one.configure_optimizers().param_groups[0] for one in (model, copied))
    assert (theirs["lr"], theirs["fused"]) == (ours["lr"], ours["fused"]) == (0.001, True)


@pytest.mark.filterwarnings("ignore:.*does not have many workers")  # on machines of many cores
def test_it_trains_under_any_lightning_trainer_with_any_loader(make: Make) -> None:
    seed_everything(0, verbose=False)
    model = make()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    loader = DataLoader(TensorDataset(*(tensor[:40] for tensor in whole("train"))), batch_size=32)
    fitted = trainer(max_epochs=2)
    fitted.fit(model, loader, loader)
    assert all(
        not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True)
    )
    assert fitted.callback_metrics.keys() == {
        f"{phase}/{quantity}" for phase in ("train", "val") for quantity in ("loss", "accuracy")
    }
    assert all(value.isfinite() for value in fitted.callback_metrics.values())
    [result] = fitted.test(model, loader, verbose=False)
    predicted: Any = fitted.predict(model, loader)
    right = sum((batch["class"] == batch["label"]).sum().item() for batch in predicted)
    assert result["test/accuracy"] == pytest.approx(right / 40)
