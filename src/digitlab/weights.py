"""Weights from files: Lightning checkpoints and plain state dicts, into a model of their kind."""

import hashlib
from inspect import signature
from pathlib import Path
from typing import Any

from torch import Tensor

from digitlab import checkpoints
from digitlab.classifier import Classifier


def load_weights(model: Classifier, path: Path) -> None:
    """Copy the weights of a file into a model, all or none of them.

    Args:
        model: A model of the architecture that the weights belong to.
        path: A Lightning checkpoint, or a state dict as `torch.save(net.state_dict(), path)`
            writes it, whose names may lack the prefix `network.`.

    Raises:
        ValueError: The file is no checkpoint, needs code to be loaded, or is of another
            architecture.
    """
    weights, settings = _read(path)
    if not any(name.startswith("network.") for name in weights):
        weights = {f"network.{name}": value for name, value in weights.items()}
    difference = _differing_settings(model, settings) or _differing_shapes(model, weights)
    if difference:
        raise ValueError(
            f"{path} is of another architecture than {type(model).__name__}: {difference}; "
            "give a checkpoint of this architecture, or the --model that it was made with"
        )
    model.load_state_dict(weights)


def sha256(path: Path) -> str:
    """Compute a file's SHA-256 digest, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a file's weights and, where it has them, the settings of the model that they are of."""
    if path.is_file() and path.suffix in (".keras", ".h5"):
        raise ValueError(
            f"{path} is a Keras model: make a run of it, digitlab convert {path} RUN_DIR --config "
            "CONFIG, and give its checkpoints/last.ckpt"
        )
    content = checkpoints.read(path)
    settings: dict[str, Any] = {}
    if isinstance(content, dict) and "state_dict" in content:
        settings = content.get("hyper_parameters") or {}
        content = content["state_dict"]
    if not isinstance(content, dict) or not content or not all(isinstance(k, str) for k in content):
        raise ValueError(f"{path} holds no state dict: give a checkpoint or a saved state dict")
    return content, settings


def _differing_settings(model: Classifier, theirs: dict[str, Any]) -> str | None:
    """Compare what shapes may not show, such as the padding of a convolution."""
    training_only = {*signature(Classifier.__init__).parameters, "dropout"}
    for name, ours in model.hparams.items():
        if name not in training_only and name in theirs and _plain(theirs[name]) != _plain(ours):
            return f"its {name} is {theirs[name]}, not {ours}"
    return None


def _differing_shapes(model: Classifier, weights: dict[str, Any]) -> str | None:
    for name, ours in model.state_dict().items():
        theirs = weights.get(name)
        if not isinstance(theirs, Tensor):
            return f"it has no {name}"
        if theirs.shape != ours.shape:
            return f"its {name} is {tuple(theirs.shape)}, not {tuple(ours.shape)}"
    if extra := weights.keys() - model.state_dict().keys():
        return f"it has {min(extra)}, which is unknown"
    return None


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
