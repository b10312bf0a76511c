"""A trained network as a file for other programs: ONNX, or PyTorch's own `torch.export`.

A file is kept only if it computes what the model does, for all images of the test split.
"""

import io
import json
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from digitlab import __version__, files
from digitlab.classifier import Classifier
from digitlab.data import ImageDataModule
from digitlab.errors import InputError, RunError

SUFFIXES = (".onnx", ".pt2")
"""Suffixes of the files: ONNX, and PyTorch's own format."""

METADATA = "metadata.json"
"""The extra file of a `.pt2` that holds what an ONNX file has in `metadata_props`."""

TOLERANCE = 1e-5
"""Largest difference of outputs that is taken for rounding, relative to the largest output.

Programs add float32 numbers in different orders. On whole test splits of MNIST, Fashion-MNIST and
digits, that changes the outputs of the networks here by at most 1e-6.
"""

_AT_ONCE = 1000  # images, to limit memory; it changes results by rounding only


class Agreement(NamedTuple):
    """How far two networks agree on the test split.

    Attributes:
        images: Images in the split.
        same_class: Images that both give the same class.
        difference: Largest difference of their outputs, relative to the largest output.
    """

    images: int
    same_class: int
    difference: float

    def __str__(self) -> str:
        return (
            f"{self.same_class} of {self.images} test images get the same class, and the outputs "
            f"differ by at most {self.difference:.1e} of the largest"
        )


def compare_outputs(ours: Tensor, theirs: Tensor) -> Agreement:
    """Compare two networks' outputs for the test split, `(N, num_classes)`."""
    ours, theirs = ours.double(), theirs.double()
    difference, same_class = float("inf"), 0
    if ours.shape == theirs.shape:
        difference = ((ours - theirs).abs().max() / ours.abs().max()).item()
        same_class = int((ours.argmax(1) == theirs.argmax(1)).sum())
    agreement = Agreement(len(ours), same_class, difference)
    if not difference <= TOLERANCE:  # NaN fails too
        raise RunError(f"{agreement}, more than {TOLERANCE}: nothing was kept")
    return agreement


def check_target(path: Path) -> None:
    """Refuse a file whose format is unknown or needs an extra that is not installed."""
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path} is of no format to export to: end it in {' or '.join(SUFFIXES)}")
    needed = ("onnx", "onnxscript", "onnxruntime") if path.suffix == ".onnx" else ()
    if missing := [name for name in needed if not find_spec(name)]:
        raise InputError(
            f"{' and '.join(missing)} cannot be imported: install the extra, "
            'pip install "digitlab[export]", or write a .pt2, which needs PyTorch alone'
        )


def export_model(
    model: Classifier,
    path: str | Path,
    data: ImageDataModule,
    raw_pixels: bool = False,
    details: Mapping[str, str] | None = None,
) -> Agreement:
    """Write a model's network to a file, and keep the file if it agrees on the whole test split.

    The file computes in float32 and in evaluation mode, without dropout even if the model evaluates
    with it. It takes any number of images: its input is `images`, its output `logits`. An existing
    file is replaced.

    Its metadata are texts: `digitlab` (the version), `model`, `dataset`, `classes` (a JSON list, in
    the order of the logits), `input`, `normalization`, `test_accuracy` and `details`. An ONNX file
    has them as `metadata_props`, a `.pt2` in the extra file `metadata.json`.

    Args:
        model: A trained model, on any device; it is left as it is.
        path: Ends in `.onnx` or `.pt2`.
        data: Has the test split, and the normalization that the model was trained with.
        raw_pixels: Whether the file reads pixels, uint8 `(N, 1, S, S)`, and normalizes them
            itself. Otherwise it reads normalized images, float32 of the same shape.
        details: More metadata, such as the run.

    Returns:
        The agreement of file and model, in batches of 1 and of up to 1,000 images.

    Raises:
        InputError: The suffix is of no format, the extra `export` is not installed, the outputs are
            not finite, or the network cannot be exported.
        RunError: The file computes something else, so it was not kept.
        OSError: It cannot be written.
    """
    path = Path(path)
    check_target(path)
    mean_std = data.mean_and_std()
    formula = f"(pixel / 255 - {mean_std[0]}) / {mean_std[1]}" if mean_std else "pixel / 255"
    shape = f"(batch, 1, {data.image_size}, {data.image_size})"
    module = _Exported(model, mean_std, raw_pixels)
    batches = zip(*data.test_dataloader(), strict=True)  # on a trainer's device, if it has one
    images, labels = (torch.cat(parts).cpu() for parts in batches)
    with torch.no_grad():
        logits = torch.cat([module.model(part) for part in torch.split(images, _AT_ONCE)])
    if not logits.isfinite().all():
        raise InputError(f"{module.name} gives outputs that are not finite: train it again")
    accuracy = (logits.argmax(1) == labels).double().mean().item()
    metadata = {
        "digitlab": __version__,
        "model": module.name,
        "dataset": str(data.name),
        "classes": json.dumps(data.class_names, ensure_ascii=False),
        "input": f"uint8 {shape}, pixels from 0 to 255"
        if raw_pixels
        else f"float32 {shape}, normalized",
        "normalization": f"in the network: {formula}" if raw_pixels else formula,
        "test_accuracy": f"{accuracy:.6g}",
        **(details or {}),
    }
    given = torch.from_numpy(data.arrays("test")[0])[:, None] if raw_pixels else images
    serialize, load = _FORMATS[path.suffix]
    with _naming(
        module,
        "cannot be exported",
        "its forward must be the same operations of torch for any images, one or many",
    ):
        batch = torch.export.Dim("batch")  # an example of one image would fix it to one
        example = torch.zeros(2, *given.shape[1:], dtype=given.dtype)
        program = torch.export.export(module, (example,), dynamic_shapes=({0: batch},))
    with _naming(module, f"cannot be written as {path.suffix}", "the other format may take it"):
        content = serialize(program, metadata)
    with files.atomic_write(path) as beside:
        beside.write_bytes(content)
        with _naming(module, "cannot be computed from its file", "the other format may take it"):
            run = load(beside)
            parts = [given[:1], *torch.split(given[1:], _AT_ONCE)]
            theirs = torch.cat([run(part) for part in parts if len(part)])
        return compare_outputs(logits, theirs)


class _Exported(nn.Module):
    """A copy of a model in evaluation mode, in float32 and on the CPU, behind a normalization."""

    def __init__(
        self, model: Classifier, mean_std: tuple[float, float] | None, raw_pixels: bool
    ) -> None:
        super().__init__()
        self.name = type(model.network if type(model) is Classifier else model).__name__
        self.mean_std = mean_std
        self.raw_pixels = raw_pixels
        self.model = deepcopy(model).cpu().float().requires_grad_(False)
        for part in self.modules():
            part.training = False  # `eval()` of a Classifier may keep dropout on

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits, after the same operations as in `ImageLoader`."""
        if self.raw_pixels:
            images = images.to(torch.float32) / 255
            if self.mean_std:
                images = (images - self.mean_std[0]) / self.mean_std[1]
        logits: Tensor = self.model(images)
        return logits


def _to_onnx(program: Any, metadata: dict[str, str]) -> bytes:
    names: Any = {"input_names": ["images"], "output_names": ["logits"]}
    exported = torch.onnx.export(program, **names, dynamic_shapes=({0: "batch"},), verbose=False)
    assert exported  # None only from the older exporter
    exported.model.metadata_props.update(metadata)
    content: bytes = exported.model_proto.SerializeToString()
    return content


def _load_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def _to_pt2(program: Any, metadata: dict[str, str]) -> bytes:
    content = io.BytesIO()  # on a full disk, torch's own writer reports no reason
    torch.export.save(program, content, extra_files={METADATA: json.dumps(metadata, indent=2)})
    return content.getvalue()


def _load_pt2(path: Path) -> Callable[[Tensor], Tensor]:
    return torch.export.load(path).module()


_FORMATS = {".onnx": (_to_onnx, _load_onnx), ".pt2": (_to_pt2, _load_pt2)}


@contextmanager
def _naming(module: _Exported, what: str, rule: str) -> Iterator[None]:
    """Let any error in the `with` block name the model, the line that caused it, and a rule."""
    try:
        with redirect_stderr(io.StringIO()):  # torch prints warnings and graphs
            yield
    except (OSError, MemoryError):
        raise
    except Exception as error:  # whatever the network's code, torch or ONNX Runtime raise
        raise InputError(f"{module.name} {what}: {_reason(error)}; {rule}") from error


def _reason(error: BaseException) -> str:
    """Return an error's first line, and the last line of the user's own code that led to it."""
    libraries = str(Path(torch.__file__).parents[1]), str(Path(__file__).parent)
    frames = traceback.extract_tb(error.__traceback__)
    where = ""
    for frame in frames:
        if frame.line and not frame.filename.startswith(libraries):
            where = f", at `{frame.line}` ({Path(frame.filename).name}, line {frame.lineno})"
    while error.__cause__:
        error = error.__cause__
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    for sign, reason in _REASONS.items():
        if sign in text:
            text = reason
    return text[:200] + where


_REASONS = {
    "Cannot access data pointer": "another library than torch computes it, such as Keras, whose "
    "model becomes a PyTorch run by digitlab convert MODEL.keras NEW_RUN_DIR",
    "data-dependent": "what it computes depends on the pixels' values",
    "Constraints violated": "it takes one number of images only",
}
