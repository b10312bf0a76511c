"""Keras models in files, and a Keras model as the network of a `Classifier`."""

import json
import re
from collections.abc import Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from digitlab.checkpoints import load_weights
from digitlab.classifier import Classifier
from digitlab.files import atomic_write
from digitlab.parity.backend import POLICIES, find_precision, import_keras, to_tensorflow
from digitlab.parity.copies import copy_layer
from digitlab.parity.graph import Graph, first_line, keras_layers
from digitlab.parity.layouts import relative_difference
from digitlab.parity.sides import arrange, outputs
from digitlab.parity.twins import build_twin
from digitlab.parity.weights import load_keras_weights

SUFFIXES = (".keras", ".h5")
"""Suffixes of Keras models' files: Keras 3's own format, and the older HDF5."""

# What a file may name: Keras's layers and their parts, and none of its functions that read files.
_PARTS = "activations constraints dtype_policies initializers layers losses metrics models ops"
_PARTS += " optimizers quantizers regularizers src.models src.ops"
_MODULES = re.compile(
    rf"None|builtins|keras(\.({'|'.join(map(re.escape, _PARTS.split()))})(\..+)?)?"
)
_CODE = {"__lambda__", "Lambda", "TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer"}


class KerasNetwork(nn.Module):
    """A Keras model as the network of a `Classifier`, for evaluation with the same code.

    It runs in inference mode, has no parameters of its own and passes no gradients.

    Shape:
        - Input: `(N, C, 28, 28)`, which the Keras model gets as `arrange` lays it out.
        - Output: logits `(N, num_classes)`, float32 or wider. Those of probabilities are their
          logarithms, clipped at 1e-7 as in Keras's loss.

    Args:
        keras_model: Has one input, and returns logits or probabilities.
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
        given = to_tensorflow(arrange(images, self.keras_model))
        made = self.keras_model.predict_function([(given,)]).numpy()
        made = made.astype(np.promote_types(made.dtype, np.float32))
        is_softmax = self.gives_probabilities
        return torch.from_numpy(np.log(np.clip(made, 1e-7, 1)) if is_softmax else made)

    def first_kernels(self) -> tuple[str, Tensor] | None:
        """Return the first convolution's name and kernels `(out, in, height, width)`, if any."""
        kind = import_keras().layers.Conv2D
        found = [it for it in keras_layers(self.keras_model) if isinstance(it, kind)]
        if not found:
            return None
        return found[0].name, torch.from_numpy(np.array(found[0].kernel)).permute(3, 2, 0, 1)


def ends_in_softmax(keras_model: Any) -> bool:
    """Return whether a Keras model returns probabilities instead of logits."""
    last = keras_model.layers[-1]
    activation = getattr(last, "activation", None)
    return type(last).__name__ == "Softmax" or getattr(activation, "__name__", "") == "softmax"


def load_keras_model(path: Path) -> Any:
    """Load a Keras model; a file that names code that is not Keras's own is refused.

    A layer of one's own is known if the module that registers it with Keras was imported.

    Raises:
        ValueError: There is no such file, it is damaged, or it needs code to be loaded.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path} is not a Keras model file: give one that ends in .keras or .h5")
    if not path.is_file():
        raise ValueError(
            f"there is no Keras model {path}: train one with digitlab fit --framework keras"
        )
    keras = import_keras()
    try:
        for name in _foreign_names(_read_config(path)):
            raise ValueError(f"it names {name}")
        return keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # a damaged file can raise anything
        raise ValueError(
            f"{path} is damaged, or needs code of its own to be loaded ({first_line(error)}): give "
            "a model of Keras's own layers, as digitlab fit --framework keras writes it"
        ) from error


def _read_config(path: Path) -> Any:
    if path.suffix == ".keras":
        with ZipFile(path) as archive:
            # A compiled model's loss may be anything: it is not loaded.
            return {**json.loads(archive.read("config.json")), "compile_config": None}
    import h5py  # type: ignore[import-untyped]  # which Keras has installed

    with h5py.File(path) as file:
        return json.loads(file.attrs["model_config"])


def _foreign_names(config: Any) -> Iterator[str]:
    """Find what a config names that is neither Keras's own nor registered, as its safe mode may."""
    if isinstance(config, list):
        for part in config:
            yield from _foreign_names(part)
    if not isinstance(config, dict):
        return
    yield from _foreign_names(list(config.values()))
    if "class_name" in config:
        name, module = str(config["class_name"]), config.get("module")
        registered = import_keras().saving.get_registered_object(config.get("registered_name"))
        if name in _CODE or not (_MODULES.fullmatch(str(module)) or registered):
            named = config.get("config") if name == "function" else name
            yield ".".join(str(part) for part in (module, named) if part)


def save_keras_model(keras_model: Any, path: Path) -> None:
    """Write a Keras model in the format of the suffix."""
    keras_model.save(path)


def load_from_keras(model: Classifier, path: Path, compare: bool = True) -> Any:
    """Copy the weights of a Keras model's file into a model, all or none, and return it.

    With `compare`, both must compute the same: another padding, say, shows in no weight's shape.
    """
    theirs, ours = load_keras_model(path), deepcopy(model).float()
    channels = model.hparams.get("in_channels", 1)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(4, channels, 28, 28, generator=generator)
    try:
        arrange(images, theirs)  # says better than the weights that it reads other images
        load_keras_weights(ours, theirs)
        expected, given = outputs(ours, Graph(in_float32(theirs)), images)
        if ends_in_softmax(theirs):
            expected = torch.from_numpy(expected).softmax(1).numpy()
        # Rounding alone causes far less than 1e-3.
        if compare and (difference := relative_difference(expected, given)) > 1e-3:
            names = [{it.name for it in twin.layers} for twin in (build_twin(model), theirs)]
            layers = ", ".join(sorted((names[0] ^ names[1]) - {"softmax"}))
            raise ValueError(
                f"with the same weights, outputs differ by {difference:.1e} of the largest"
                f"{f', and they differ in {layers}' if layers else ''}; give the --model that it "
                "was made with"
            )
    except ValueError as error:
        raise ValueError(
            f"{path} is of another architecture than {type(model).__name__}: {error}"
        ) from error
    except Exception as error:  # TensorFlow's own, of an operation that a CPU lacks, say
        raise ValueError(f"{path} cannot be computed here: {first_line(error)}") from error
    load_keras_weights(model, theirs)
    return theirs


def in_float32(keras_model: Any) -> Any:
    """Return a model of mixed precision in float32, as its weights are, and others as they are."""
    low = {"float16", "bfloat16"} & {layer.compute_dtype for layer in keras_layers(keras_model)}
    clone = import_keras().models.clone_model
    copy = partial(copy_layer, policy="float32")
    return clone(keras_model, clone_function=copy, recursive=True) if low else keras_model


def load_classifier(model: Classifier, path: Path, precision: object = None) -> Classifier:
    """Load the Keras model of a run as a classifier, to evaluate it in place of `model`."""
    keras_model, policy = load_from_keras(model, path), POLICIES[find_precision(precision)]
    saved = {layer.dtype_policy.name for layer in keras_layers(keras_model) if layer.weights}
    if policy not in saved:
        names = [name for name, known in POLICIES.items() if known in saved]
        raise ValueError(
            f"trainer.precision is {precision}, but {path} computes in {', '.join(sorted(saved))}: "
            f"set --trainer.precision {', '.join(names)}"
        )
    return Classifier(network=KerasNetwork(keras_model))


def load_initial_weights(model: Classifier, path: Path) -> None:
    """Copy the weights of a file into a model; the suffix tells the framework of the file."""
    (load_from_keras if path.suffix in SUFFIXES else load_weights)(model, path)


class KerasFiles(Callback):
    """Writes `model.keras` after each epoch and with each checkpoint, and `checkpoints/best.keras`.

    The best has the highest validation accuracy so far, the first of equal ones.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._best = -1.0
        self._last = -1  # step of model.keras

    def state_dict(self) -> dict[str, Any]:
        """Return the best accuracy so far."""
        return {"best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from a checkpoint."""
        self._best = state_dict["best"]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the best, if it is the best so far."""
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
        if trainer.global_step != self._last:
            self._last = trainer.global_step
            _save(pl_module, self.folder / "model.keras")

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Write the last, so that a run that was killed in its first epoch has one too."""
        self.on_train_epoch_end(trainer, pl_module)


def _save(module: Any, path: Path) -> None:
    with module.averaged(), atomic_write(path) as beside:
        module.network.keras_model.save(beside)
