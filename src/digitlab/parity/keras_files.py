"""Keras models in files, and a Keras model as the network of a `Classifier`."""

import logging
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from numpy.typing import NDArray
from torch import Tensor, nn

from digitlab.checkpoints import load_weights
from digitlab.classifier import Classifier
from digitlab.files import atomic_write
from digitlab.parity.backend import import_keras, to_tensorflow
from digitlab.parity.weights import build_twin, load_keras_weights

SUFFIXES = (".keras", ".h5")
"""Suffixes of Keras models' files: Keras 3's own format, and the older HDF5."""


class KerasNetwork(nn.Module):
    """A Keras model as the network of a `Classifier`, for evaluation with the same code.

    It runs in inference mode, has no parameters of its own and passes no gradients.

    Shape:
        - Input: `(N, C, 28, 28)`, which the Keras model gets as `(N, 28, 28, C)`.
        - Output: logits `(N, num_classes)`, from `as_logits`.

    Args:
        keras_model: Takes images with channels last.
    """

    def __init__(self, keras_model: Any) -> None:
        super().__init__()
        self.keras_model = keras_model
        self.gives_probabilities = ends_in_softmax(keras_model)

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits, by Keras's compiled `predict` function.

        It is much faster than eager calls, which also round bfloat16 differently.
        """
        if self.keras_model.predict_function is None:
            self.keras_model.make_predict_function()
        outputs = self.keras_model.predict_function([(channels_last(images),)])
        return as_logits(outputs.numpy(), self.gives_probabilities)


def channels_last(images: Tensor) -> Any:
    """Pass images `(N, C, H, W)` to TensorFlow as `(N, H, W, C)`."""
    return to_tensorflow(images.permute(0, 2, 3, 1))


def as_logits(outputs: NDArray[Any], are_probabilities: bool) -> Tensor:
    """Convert a Keras model's outputs, `(N, num_classes)`, to logits, float32 or wider.

    The logits of probabilities are their logarithms, clipped at 1e-7 as in Keras's loss.
    """
    outputs = outputs.astype(np.promote_types(outputs.dtype, np.float32))
    return torch.from_numpy(np.log(np.clip(outputs, 1e-7, 1)) if are_probabilities else outputs)


def ends_in_softmax(keras_model: Any) -> bool:
    """Return whether a Keras model returns probabilities instead of logits."""
    last = keras_model.layers[-1]
    activation = getattr(last, "activation", None)
    return type(last).__name__ == "Softmax" or getattr(activation, "__name__", "") == "softmax"


def load_keras_model(path: Path) -> Any:
    """Load a Keras model in safe mode: a file that would run code of its own is refused.

    Raises:
        ValueError: There is no such file, it is damaged, or it needs code to be loaded.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path} is not a Keras model file: give one that ends in .keras or .h5")
    if not path.is_file():
        raise ValueError(
            f"there is no Keras model {path}: train one with digitlab fit --framework keras"
        )
    if path.suffix == ".keras" and not is_zipfile(path):
        raise ValueError(f"{path} is damaged: give a model as keras.Model.save writes it")
    keras = import_keras()
    try:
        return keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # a damaged file can raise anything
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(
            f"{path} is damaged, or needs code of its own to be loaded ({reason:.200}): give a "
            "model of Keras's own layers, as digitlab fit --framework keras writes it"
        ) from error


def save_keras_model(keras_model: Any, path: Path) -> None:
    """Write a Keras model in the format of the suffix."""
    logger = logging.getLogger("absl")  # Keras warns there that HDF5 is a legacy format
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        keras_model.save(path)
    finally:
        logger.setLevel(level)


def load_from_keras(model: Classifier, path: Path) -> None:
    """Copy the weights of a Keras model's file into a model of the same architecture.

    Raises:
        ValueError: As for `load_keras_model` and `weights.match`, or the file has one of our twins
            with other layers, such as another padding, which the shapes of weights do not show.
    """
    theirs, ours = load_keras_model(path), build_twin(model)
    left, right = (
        [(type(layer).__name__, layer.name) for layer in twin.layers if layer.name != "softmax"]
        for twin in (ours, theirs)
    )
    try:
        # Compared by class, since Keras numbers the names of unnamed layers.
        if ours.name == theirs.name and [kind for kind, _ in left] != [kind for kind, _ in right]:
            names = {name for _, name in left} ^ {name for _, name in right}
            differing = ", ".join(sorted(names or {"the order of layers"}))
            raise ValueError(f"they differ in {differing}; give the --model that it was made with")
        load_keras_weights(model, theirs)
    except ValueError as error:
        raise ValueError(
            f"{path} is of another architecture than {type(model).__name__}: {error}"
        ) from error


def load_classifier(model: Classifier, path: Path) -> Classifier:
    """Load the Keras model of a run as a classifier, to evaluate it in place of `model`.

    Raises:
        ValueError: As for `load_from_keras`, such as another architecture.
    """
    load_from_keras(model, path)  # refuses another architecture
    return Classifier(network=KerasNetwork(load_keras_model(path)))


def load_initial_weights(model: Classifier, path: Path) -> None:
    """Copy the weights of a file into a model; the suffix tells the framework of the file.

    Raises:
        ValueError: As for `load_from_keras` and `digitlab.checkpoints.load_weights`.
    """
    (load_from_keras if path.suffix in SUFFIXES else load_weights)(model, path)


class KerasFiles(Callback):
    """Writes `model.keras` after each epoch, and `checkpoints/best.keras` when it is the best.

    The best has the highest validation accuracy so far, the first of equal ones.

    Args:
        folder: The run folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._best = -1.0

    def state_dict(self) -> dict[str, Any]:
        """Return the best accuracy so far, for a checkpoint."""
        return {"best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from a checkpoint."""
        self._best = state_dict["best"]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the best."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        assert isinstance(pl_module, Classifier)
        accuracy = pl_module.epoch_score("val")["accuracy"]
        if accuracy > self._best:
            self._best = accuracy
            best = self.folder / "checkpoints" / "best.keras"
            best.parent.mkdir(exist_ok=True)
            _save(pl_module, best)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the last."""
        _save(pl_module, self.folder / "model.keras")


def _save(module: Any, path: Path) -> None:
    with atomic_write(path) as beside:
        module.network.keras_model.save(beside)
