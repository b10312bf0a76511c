from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

import digitlab.cli.parity as room
from digitlab.cli import main
from digitlab.cli.parity import FullBatches
from digitlab.data import MNISTDataModule
from digitlab.parity.checks import Check
from tests.tiny import TinyDataModule

pytestmark = pytest.mark.skipif(not find_spec("tensorflow"), reason="needs the extra `parity`")


def test_full_batches_go_on_into_the_next_epochs_and_are_the_same_each_time() -> None:
    torch.manual_seed(3)
    loader = TinyDataModule(batch_size=60).train_dataloader()
    batches = FullBatches(loader, count=7)
    first = list(batches)
    assert [len(labels) for _, labels in first] == [60] * 7  # an epoch's last has 20 images
    expected = []
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)
        expected += list(loader)[:3]
    for _ in range(2):
        for (ours, _), (theirs, _) in zip(batches, expected[:7], strict=True):
            assert torch.equal(ours, theirs)


def test_the_images_are_the_configs_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, real_data: Path
) -> None:
    seen: dict[str, torch.Tensor] = {}

    def spy(model: object, batches: Any, images: torch.Tensor, labels: Any, *others: Any) -> Any:
        seen["images"], seen["labels"] = images, labels
        seen["batch"] = next(iter(batches))[0]
        yield Check("seen", 1, 0.0, 0.0)

    monkeypatch.setattr(room, "staircase", spy)
    place = ["--trainer.default_root_dir", str(tmp_path), "--data.eval_batch_size", "300"]
    assert main(["parity", "--config", "configs/mnist/pytorch_example_net.yaml", *place]) == 0
    data = MNISTDataModule(root=str(real_data), normalization="standard", eval_batch_size=1000)
    images, labels = next(iter(data.test_dataloader()))
    assert torch.equal(seen["images"], images)
    assert torch.equal(seen["labels"], labels)
    assert seen["batch"].shape == (64, 1, 28, 28)
