"""Dropout that stays on while evaluating, and predictions of a trained classifier."""

from typing import Any

import pytest
import torch
from torch import Tensor

from digitlab.classifier import Classifier
from digitlab.models import MLP, PyTorchExampleNet
from tests.fitting import trainer, whole
from tests.tiny import TinyDataModule

IMAGES, LABELS = whole("test")


@pytest.mark.parametrize(
    ("dropout_in_evaluation", "still_training"), [(True, ["dropout1", "dropout2"]), (False, [])]
)
def test_evaluation_leaves_on_the_dropout_layers_that_it_is_asked_to(
    dropout_in_evaluation: bool, still_training: list[str]
) -> None:
    seen: list[list[str]] = []

    class Watching(PyTorchExampleNet):
        def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
            logits = super().validation_step(batch, batch_idx)
            layers = self.network.named_children()
            seen.append([name for name, layer in layers if layer.training])
            assert not self.training
            return logits

    model = Watching(dropout_in_evaluation=dropout_in_evaluation)
    trainer().validate(model, TinyDataModule(), verbose=False)
    assert seen == [still_training]
    modes = {name: layer.training for name, layer in model.eval().network.named_children()}
    assert [name for name, training in modes.items() if training] == still_training
    assert all(layer.training for layer in model.train().modules())


def test_dropout_in_evaluation_changes_the_score_from_call_to_call() -> None:
    torch.manual_seed(0)
    plain, noisy = MLP([16], dropout=0.5), MLP([16], dropout=0.5, dropout_in_evaluation=True)
    noisy.load_state_dict(plain.state_dict())
    batches = [(IMAGES, LABELS)]
    first, second = (noisy.evaluate(batches)["loss"] for _ in range(2))
    assert first != second
    torch.manual_seed(7)
    score = noisy.evaluate(batches)
    # Reference: document B's program, which leaves the whole network in training mode.
    torch.manual_seed(7)
    loss = torch.nn.functional.cross_entropy(plain.train()(IMAGES), LABELS)
    torch.testing.assert_close(torch.tensor(score["loss"]), loss.detach())


def check(prediction: dict[str, Any], model: Classifier, images: Tensor) -> None:
    probabilities = prediction["probabilities"]
    torch.testing.assert_close(probabilities, model.eval()(images).softmax(1).detach())
    torch.testing.assert_close(probabilities.sum(1), torch.ones(len(images)))
    assert torch.equal(prediction["class"], probabilities.argmax(1))
    assert prediction["class"].dtype == torch.int64
    assert torch.equal(prediction["probability"], probabilities.amax(1))


def test_a_bare_tensor_of_images_is_classified_without_a_trainer() -> None:
    model = MLP([16]).eval()
    with torch.no_grad():
        prediction = model.predict_step(IMAGES)
    assert list(prediction) == ["class", "class_name", "probability", "probabilities"]
    assert prediction["class_name"] == [str(number) for number in prediction["class"].tolist()]
    check(prediction, model, IMAGES)


def test_labels_beside_the_images_are_handed_on() -> None:
    with torch.no_grad():
        prediction = MLP([16]).eval().predict_step((IMAGES, LABELS))
    assert next(iter(prediction)) == "label"
    assert torch.equal(prediction["label"], LABELS)


def test_a_data_module_names_the_classes() -> None:
    class Named(TinyDataModule):
        class_names = tuple("abcdefghij")

    model = MLP([16])
    [prediction] = trainer().predict(model, Named()) or []
    assert isinstance(prediction, dict)
    names = ["abcdefghij"[number] for number in prediction["class"]]
    assert prediction["class_name"] == names
    assert torch.equal(prediction["label"], LABELS)
    check(prediction, model, IMAGES)


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16-mixed", torch.float32), ("64-true", torch.float64)]
)
def test_probabilities_are_float32_or_wider_in_any_precision(
    precision: Any, dtype: torch.dtype
) -> None:
    run = trainer(precision=precision)
    [prediction] = run.predict(MLP([16]), TinyDataModule()) or []
    assert isinstance(prediction, dict)
    probabilities = prediction["probabilities"]
    assert probabilities.dtype == dtype
    torch.testing.assert_close(probabilities.sum(1), torch.ones(50, dtype=dtype))
