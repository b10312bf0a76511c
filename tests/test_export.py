"""An exported file computes what its model does, or the model is refused in one line."""

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import dlpack

import digitlab
from digitlab import export, models
from digitlab.classifier import Classifier
from digitlab.data.download import Arrays, Split
from digitlab.errors import InputError, RunError
from digitlab.export import compare_outputs, export_model
from digitlab.models import MLP, LinearClassifier
from tests import tiny
from tests.fitting import small_mlp, whole
from tests.tiny import TinyDataModule

Layer = Callable[[Tensor], Tensor]
IMAGES, LABELS = whole("test")
PIXELS = torch.from_numpy(tiny.TEST[0])[:, None]
FORMATS = (".onnx", ".pt2")
# ONNX takes four seconds.
both = pytest.mark.parametrize("suffix", [pytest.param(".onnx", marks=pytest.mark.slow), ".pt2"])


def load(path: Path) -> tuple[Callable[[Tensor], Tensor], dict[str, str]]:
    """Reference: load a file as another program does, and return its function and metadata."""
    if path.suffix == ".pt2":
        extra = {"metadata.json": ""}
        module = torch.export.load(path, extra_files=extra).module()
        return module, json.loads(extra["metadata.json"])
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(path)
    (name,) = [it.name for it in session.get_inputs()]

    def run(images: Tensor) -> Tensor:
        (logits,) = session.run(None, {name: images.numpy()})
        return torch.from_numpy(logits)

    return run, session.get_modelmeta().custom_metadata_map


@pytest.mark.parametrize(
    ("model", "suffix"),
    [
        pytest.param(
            model, suffix, marks=() if (model, suffix) == ("LeNet5", ".onnx") else pytest.mark.slow
        )
        for model in models.__all__
        for suffix in FORMATS
    ],
)
def test_the_file_of_every_architecture_computes_the_model_s_logits_for_any_number_of_images(
    model: str, suffix: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    made: Classifier = getattr(models, model)()
    agreement = export_model(made, tmp_path / f"file{suffix}", TinyDataModule())
    assert (agreement.images, agreement.same_class) == (50, 50)
    assert agreement.difference < 2e-6
    run, metadata = load(tmp_path / f"file{suffix}")
    assert metadata["model"] == model
    for part in (IMAGES, IMAGES[:1], IMAGES[:7]):
        torch.testing.assert_close(run(part), made.eval()(part).detach())
    assert [path.name for path in tmp_path.iterdir()] == [f"file{suffix}"]


@both
@pytest.mark.parametrize("normalization", ["unit", "symmetric", "standard"])
def test_a_file_may_normalize_raw_pixels_as_the_data_module_does(
    normalization: Any, suffix: str, tmp_path: Path
) -> None:
    data, model = TinyDataModule(normalization=normalization), small_mlp()
    export_model(model, path := tmp_path / f"raw{suffix}", data, raw_pixels=True)
    ((images, _),) = data.test_dataloader()
    run, _ = load(path)
    torch.testing.assert_close(run(PIXELS), model.eval()(images).detach())


class Normalized(nn.Sequential):
    """A network whose batch normalization and dropout differ in evaluation mode."""

    def __init__(self) -> None:
        super().__init__(
            nn.Flatten(), nn.BatchNorm1d(784, momentum=0.7), nn.Dropout(0.5), nn.Linear(784, 10)
        )
        self(whole("train")[0])  # moves the running means


@both
def test_a_file_is_in_evaluation_mode_and_float32_and_its_model_as_it_was(
    suffix: str, tmp_path: Path
) -> None:
    model = Classifier(Normalized(), dropout_in_evaluation=True).double().train()
    before = [part.training for part in model.modules()], model.dtype
    export_model(model, path := tmp_path / f"file{suffix}", TinyDataModule())
    assert ([part.training for part in model.modules()], model.dtype) == before
    run, metadata = load(path)
    expected = model.network.eval()(IMAGES.double()).detach().float()
    torch.testing.assert_close(run(IMAGES), expected)
    assert metadata["model"] == "Normalized"


class Named(TinyDataModule):
    class_names = ("zéro", *"123456789")


@both
def test_the_metadata_name_classes_input_normalization_accuracy_and_origin(
    suffix: str, tmp_path: Path
) -> None:
    model, path = small_mlp(), tmp_path / f"file{suffix}"
    right = int((model.eval()(IMAGES * 2 - 1).argmax(1) == LABELS).sum())
    data = Named(normalization="symmetric")
    export_model(model, path, data, details={"run": "tiny-mlp/version_0"})
    common = {
        "digitlab": digitlab.__version__,
        "model": "MLP",
        "dataset": "tiny",
        "classes": '["zéro", "1", "2", "3", "4", "5", "6", "7", "8", "9"]',
        "test_accuracy": str(right / 50),
    }
    normalized = {
        "input": "float32 (batch, 1, 28, 28), normalized",
        "normalization": "(pixel / 255 - 0.5) / 0.5",
    }
    assert load(path)[1] == common | normalized | {"run": "tiny-mlp/version_0"}
    export_model(model, path, data, raw_pixels=True)  # replaces the file
    raw = {
        "input": "uint8 (batch, 1, 28, 28), pixels from 0 to 255",
        "normalization": "in the network: (pixel / 255 - 0.5) / 0.5",
    }
    assert load(path)[1] == common | raw


class Small(TinyDataModule):
    image_size = 8

    def read(self, split: Split) -> Arrays:
        images, labels = super().read(split)
        return images[:, :8, :8].copy(), labels


def test_the_metadata_name_the_size_of_the_data_s_images(tmp_path: Path) -> None:
    layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    model = Classifier(layers, optimizer=lambda them: torch.optim.SGD(them, lr=0.1))
    export_model(model, path := tmp_path / "file.pt2", Small(), raw_pixels=True)
    assert load(path)[1]["input"] == "uint8 (batch, 1, 8, 8), pixels from 0 to 255"


class Net(nn.Module):
    """A layer on pixels in rows, between two functions."""

    def __init__(self, before: Layer = nn.Flatten(), after: Layer = nn.Identity()) -> None:  # noqa: B008
        super().__init__()
        self.layer, self.before, self.after = nn.Linear(784, 10), before, after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.layer(self.before(x)))


class Branching(Net):
    def forward(self, x: Tensor) -> Tensor:
        if x.mean() > 0.5:
            x = 1 - x
        return super().forward(x)


def by_image(x: Tensor) -> Tensor:
    return torch.stack([image.flatten() for image in x])


def by_numpy(x: Tensor) -> Tensor:
    return torch.from_numpy(x.flatten(1).numpy())


def by_dlpack(x: Tensor) -> Tensor:
    copy: Tensor = dlpack.from_dlpack(dlpack.to_dlpack(x))  # type: ignore[attr-defined]
    return copy.flatten(1)


CONDITION = "what it computes depends on the pixels' values, at `if x.mean() > 0.5:` (test_export"


@pytest.mark.parametrize(
    ("network", "error", "reason"),
    [
        (Branching(), InputError, f"Branching cannot be exported: {CONDITION}"),
        (Net(by_image), InputError, "Net cannot be exported: it takes one number of images only; "),
        (Net(by_numpy), InputError, "Net cannot be exported: .numpy() is not supported"),
        (Net(by_dlpack), InputError, "Net cannot be exported: another library than torch computes"),
        (Net(after=lambda x: x / 0), InputError, "Net gives outputs that are not finite: train it"),
        (Net(after=nn.functional.dropout), RunError, "more than 1e-05: nothing was kept"),
        (Net(after=lambda x: x - x.mean(0)), RunError, "more than 1e-05: nothing was kept"),
    ],
)
def test_a_network_that_no_file_computes_is_refused_in_one_line_and_nothing_written(
    network: nn.Module,
    error: type[Exception],
    reason: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(error) as caught:
        export_model(Classifier(network), tmp_path / "file.pt2", TinyDataModule())
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")  # torch prints pages


def eigenvalues(x: Tensor) -> Tensor:
    values: Tensor = torch.linalg.eigvalsh(x[:, 0] @ x[:, 0].mT)
    return values.repeat(1, 28)


def test_an_operation_that_onnx_lacks_is_named_and_the_other_format_takes_it(
    tmp_path: Path,
) -> None:
    model = Classifier(Net(eigenvalues))
    with pytest.raises(InputError, match=r"^Net cannot be written as \.onnx: No ONNX func"):
        export_model(model, tmp_path / "file.onnx", TinyDataModule())
    export_model(model, tmp_path / "file.pt2", TinyDataModule())
    assert [path.name for path in tmp_path.iterdir()] == ["file.pt2"]


@pytest.mark.parametrize("failing", ["write", "agree"])
def test_a_file_that_fails_leaves_the_one_before(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "file.pt2"
    path.write_text("old")
    if failing == "write":
        monkeypatch.setattr(Path, "write_bytes", fail)
        expected: Any = pytest.raises(OSError, match="No space left on device")
    else:
        loader = lambda path: lambda images: torch.ones(len(images), 10)  # noqa: E731
        monkeypatch.setitem(export._FORMATS, ".pt2", (export._FORMATS[".pt2"][0], loader))
        expected = pytest.raises(RunError, match=r"nothing was kept$")
    with expected:
        export_model(LinearClassifier(), path, TinyDataModule())
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["file.pt2"]


def test_outputs_agree_up_to_rounding_of_the_largest() -> None:
    ours = torch.tensor([[1.0, -8.0], [3.0, 4.0]])
    near = ours + 8 * torch.tensor([[0.9e-5, 0.0], [0.0, 0.0]])
    agreement = compare_outputs(ours, near)
    assert agreement[:2] == (2, 2)
    assert agreement.difference == pytest.approx(0.9e-5, rel=1e-2)  # float32's rounding
    assert "2 of 2 test images get the same class, and" in str(agreement)
    for theirs, same in (
        (ours + 8 * torch.tensor([[1.1e-5, 0.0], [0.0, 0.0]]), 2),
        (ours.flip(1), 0),
        (ours[:1], 0),
        (ours / torch.tensor([[1.0], [0.0]]) * 0, 1),  # has NaN
    ):
        with pytest.raises(RunError, match=f"^{same} of 2 test images .* nothing was kept$"):
            compare_outputs(ours, theirs)


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("file.pt", "file.pt is of no format to export to: end it in .onnx or .pt2"),
        ("file", "end it in .onnx or .pt2"),
        ("file.onnx", 'onnxruntime cannot be imported: install the extra, pip install "digitlab'),
    ],
)
def test_a_suffix_of_no_format_and_a_missing_extra_are_refused_with_the_remedy(
    name: str, rule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "find_spec", lambda module: module != "onnxruntime")
    with pytest.raises(InputError) as caught:
        export_model(MLP([4]), tmp_path / name, TinyDataModule())
    assert rule in str(caught.value)
    export.check_target(Path("file.pt2"))  # which needs PyTorch alone
