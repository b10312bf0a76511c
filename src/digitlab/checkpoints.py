"""Checkpoint files that are written atomically and checked when read; weights from files."""

import hashlib
import io
import pickle
import re
from difflib import get_close_matches
from inspect import signature
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile, is_zipfile

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from torch import Tensor

from digitlab import files
from digitlab.classifier import Classifier
from digitlab.distributed import print_rank_zero
from digitlab.terminal import command

_ADDED = re.compile(r"^(?:(?:module|_orig_mod|model|network)\.)+|(?<=\.)_orig_mod\.")
"""What DDP, `torch.compile`, other Lightning modules and `Classifier` add to a weight's name."""

_RENAMED_CALLBACKS = {
    "Results": "FinalEvaluation",
    "StepCheckpoint": "BestCheckpoint",
    "Stopwatch": "Throughput",
}
"""Callbacks by their names in version 0.1, under which its checkpoints hold their states."""


def read_checkpoint(path: Path) -> Any:
    """Read a file of `torch.save`, tensors on the CPU, without running any code in it.

    Raises:
        ValueError: There is no such file, a byte of it was changed, or it holds more than tensors
            and plain values.
        OSError: It cannot be read.
    """
    if not path.is_file():
        raise ValueError(
            f"there is no checkpoint {path}: train the run that it belongs to, or name another"
        )
    content = io.BytesIO(path.read_bytes())  # so that later errors are not the disk's
    try:
        _check_sums(content)
        return torch.load(content, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # a damaged byte can lead the unpickler anywhere
        raise ValueError(
            f"{path} is damaged, or not a checkpoint of plain tensors: give one that loads with "
            "torch.load(..., weights_only=True)"
        ) from error


def _check_sums(content: io.BytesIO) -> None:
    """Verify the checksums of the whole archive; `torch.load` verifies only some."""
    if is_zipfile(content):  # torch before 1.6 wrote another format
        with ZipFile(content) as archive:
            if damaged := archive.testzip():
                raise BadZipFile(f"{damaged} is damaged")
    content.seek(0)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a trainer's checkpoints atomically, and reads them without running code.

    Lightning does not flush its own to the disk, and a crash may leave an empty file if the folder
    for temporary files is on another file system.
    """

    def __init__(self) -> None:
        super().__init__()
        self._is_readable = False  # until the first was read back

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint.

        Raises:
            OSError: The disk is full, say; then the old file stays.
            ValueError: It holds more than tensors and plain values, in a callback's state, say, and
                could not be read again.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()  # on a full disk, torch's own writer reports no reason
        torch.save(checkpoint, content)
        if not self._is_readable:
            content.seek(0)
            try:
                torch.load(content, map_location="cpu", weights_only=True)
            except pickle.UnpicklingError as error:
                raise ValueError(
                    f"{path} would hold more than tensors and plain values, and could not be read "
                    f"again: {str(error).splitlines()[0]}"
                ) from error
            self._is_readable = True
        with files.atomic_write(path) as beside:
            beside.write_bytes(content.getbuffer())

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint of tensors and plain values, as `read_checkpoint` does."""
        checkpoint: dict[str, Any] = read_checkpoint(Path(path))
        checkpoint["callbacks"] = {
            _current_key(key): state for key, state in checkpoint.get("callbacks", {}).items()
        }
        return checkpoint


def _current_key(key: str) -> str:
    """Replace the class's name in the key of a callback's state by the current one."""
    name, brace, settings = key.partition("{")
    return _RENAMED_CALLBACKS.get(name, name) + brace + settings


def load_weights(model: Classifier, path: Path) -> None:
    """Copy the weights of a file into a model, all or none of them.

    What other programs add is left out, and a printed line says so: the prefixes `module.`,
    `_orig_mod.`, `model.` and `network.` of names, and a dict around the state dict, under
    `state_dict`, `model_state_dict` or `model`.

    Args:
        model: A model of the weights' architecture.
        path: A Lightning checkpoint, or a state dict as `torch.save(net.state_dict(), path)`
            writes it.

    Raises:
        ValueError: The file is not a checkpoint, needs code to be loaded, or belongs to another
            architecture.
    """
    content, settings, wrapper = _read(path)
    weights, prefixes = _rename(model, content, path)
    difference = _differing_settings(model, settings) or _differing_shapes(model, weights, content)
    if difference:
        raise ValueError(
            f"{path} is of another architecture than {type(model).__name__}: {difference}; "
            "give a checkpoint of this architecture, or the --model that it was made with"
        )
    model.load_state_dict(weights)
    if wrapper or prefixes:
        under = f"took the weights under {wrapper}" if wrapper else ""
        stripped = f"stripped {', '.join(prefixes)} from their names" if prefixes else ""
        print_rank_zero(f"{path}: {' and '.join(filter(None, (under, stripped)))}")


def sha256(path: Path) -> str:
    """Compute a file's SHA-256 digest, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Read a file's weights, their model's settings if it has them, and the keys around them."""
    if path.is_file() and path.suffix in (".keras", ".h5"):
        raise ValueError(
            f"{path} is a Keras model: convert it to a run, {command('digitlab', 'convert', path)} "
            "RUN_DIR --config CONFIG, and give its checkpoints/last.ckpt"
        )
    content = read_checkpoint(path)
    settings: dict[str, Any] = {}
    wrapper: list[str] = []
    if isinstance(content, dict) and "keras" in content:
        raise ValueError(f"{path} is a checkpoint of a Keras run: give that run's model.keras")
    while holders := _holders(content):
        if len(holders) > 1:
            raise ValueError(
                f"{path} holds weights under {' and '.join(holders)}: save the state dict that you "
                "mean alone"
            )
        settings = content.get("hyper_parameters") or settings
        if "pytorch-lightning_version" not in content:  # whose checkpoints are the usual ones
            wrapper += holders
        content = content[holders[0]]
    if not _is_state_dict(content):
        raise ValueError(f"{path} holds no state dict: give a checkpoint or a saved state dict")
    return content, settings if isinstance(settings, dict) else {}, ".".join(wrapper)


def _holders(content: Any) -> list[str]:
    """List the keys under which a file has weights, if it is a dict around a state dict."""
    if not isinstance(content, dict):
        return []
    inner = ((key, content.get(key)) for key in ("state_dict", "model_state_dict", "model"))
    return [key for key, value in inner if _is_state_dict(value) or _holders(value)]


def _is_state_dict(content: Any) -> bool:
    return (
        isinstance(content, dict)
        and all(isinstance(name, str) for name in content)
        and any(isinstance(value, Tensor) for value in content.values())
    )


def _rename(
    model: Classifier, weights: dict[str, Any], path: Path
) -> tuple[dict[str, Any], list[str]]:
    """Rename weights as the model's, and list the prefixes that this strips from their names."""
    ours = {_ADDED.sub("", name): name for name in model.state_dict()}
    sources: dict[str, str] = {}
    prefixes = set()
    for name in weights:
        prefix = "".join(_ADDED.findall(name))
        new = ours.get(_ADDED.sub("", name), name) if len(ours) == len(model.state_dict()) else name
        if new in sources:
            raise ValueError(
                f"{path} has {sources[new]} and {name}, as if of two models: give the state dict "
                "of one"
            )
        sources[new] = name
        if prefix and new not in (name, f"network.{name}"):
            prefixes.add(prefix)
    return {new: weights[name] for new, name in sources.items()}, sorted(prefixes)


def _differing_settings(model: Classifier, theirs: dict[str, Any]) -> str | None:
    """Compare settings that shapes may not show, such as the padding of a convolution."""
    training_only = {*signature(Classifier.__init__).parameters, "dropout"}
    for name, ours in model.hparams.items():
        if name not in training_only and name in theirs and _plain(theirs[name]) != _plain(ours):
            return f"its {name} is {theirs[name]}, not {ours}"
    return None


def _differing_shapes(
    model: Classifier, weights: dict[str, Any], content: dict[str, Any]
) -> str | None:
    for name, ours in model.state_dict().items():
        theirs = weights.get(name)
        if not isinstance(theirs, Tensor):
            tensors = [known for known, value in content.items() if isinstance(value, Tensor)]
            (nearest,) = get_close_matches(name, tensors, n=1, cutoff=0)
            return f"it has no {name}, but {nearest}"
        if theirs.shape != ours.shape:
            return f"its {name} is {tuple(theirs.shape)}, not {tuple(ours.shape)}"
    if extra := weights.keys() - model.state_dict().keys():
        return f"it has {min(extra)}, which is unknown"
    return None


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
