import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from lightning import LightningModule, Trainer, seed_everything
from torch import Tensor

from digitlab.data.download import Split
from tests import tiny
from tests.fitting import trainer
from tests.tiny import SpiedDataModule, TinyDataModule

TRAIN = {image.tobytes(): number for number, image in enumerate(tiny.TRAIN[0])}
TEST = {image.tobytes(): number for number, image in enumerate(tiny.TEST[0])}


class Recorder(LightningModule):
    """Trains one weight, notes which images it is served, and saves where it is told to."""

    def __init__(self, checkpoint: Path | None = None, save_at: tuple[int, int] = (-1, -1)) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.checkpoint = checkpoint
        self.save_at = save_at
        self.seen: list[tuple[int, int, list[int]]] = []
        self.validations: list[list[list[int]]] = []
        self.tested: list[int] = []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        self.seen.append((self.current_epoch, batch_idx, numbers(batch, TRAIN)))
        return self.weight.sum()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.checkpoint and (self.current_epoch, batch_idx) == self.save_at:
            self.trainer.save_checkpoint(self.checkpoint)

    def on_validation_start(self) -> None:
        self.validations.append([])

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.validations[-1].append(numbers(batch, TRAIN | TEST))

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.tested += numbers(batch, TEST)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def numbers(batch: tuple[Tensor, Tensor], whole: dict[bytes, int]) -> list[int]:
    """Where a batch's images stand in the split that they come from."""
    return [whole[image.tobytes()] for image in batch[0].mul(255).round().byte().numpy()]


def expected(epochs: int, seed: int = 0, batches: int = 7) -> list[tuple[int, int, list[int]]]:
    """What a loop without Lightning is served."""
    seed_everything(seed, verbose=False)
    loader = TinyDataModule().train_dataloader()
    seen = []
    for epoch in range(epochs):
        loader.sampler.set_epoch(epoch)
        order = loader.sampler.indices().tolist()
        seen += [(epoch, i, order[32 * i : 32 * (i + 1)]) for i in range(batches)]
    return seen


def test_every_epoch_has_its_own_order_and_every_image() -> None:
    reference = expected(3, seed=5)
    model = Recorder()
    trainer(max_epochs=3).fit(model, TinyDataModule())
    assert model.seen == reference
    epochs = [[n for e, _, batch in model.seen if e == epoch for n in batch] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(200)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_an_epoch_after_one_that_was_cut_short_starts_at_its_first_batch() -> None:
    reference = expected(3, batches=3)
    model = Recorder()
    trainer(max_epochs=3, limit_train_batches=3).fit(model, TinyDataModule())
    assert model.seen == reference


@pytest.mark.parametrize(("limit", "batches"), [(1.0, 3), (1, 1), (2, 2)])
def test_every_validation_starts_at_the_first_image(limit: float, batches: int) -> None:
    model = Recorder()
    data = TinyDataModule(eval_batch_size=20)
    trainer(max_epochs=2, limit_val_batches=limit, val_check_interval=3).fit(model, data)
    whole = [[*range(20)], [*range(20, 40)], [*range(40, 50)]]
    sanity_check, *validations = model.validations
    assert sanity_check == whole[: min(2, batches)]
    assert validations == [whole[:batches]] * 4


@pytest.mark.parametrize("length", [{"max_epochs": 3}, {"max_steps": 21, "max_epochs": -1}])
@pytest.mark.parametrize("save_at", [(0, 0), (0, 6), (1, 2), (1, 5), (1, 6)])
def test_a_run_resumed_inside_an_epoch_is_served_the_remaining_images(
    tmp_path: Path, save_at: tuple[int, int], length: dict[str, int]
) -> None:
    reference = expected(3)
    checkpoint = tmp_path / "middle.ckpt"
    stopped = Recorder(checkpoint, save_at)
    trainer(**length).fit(stopped, TinyDataModule())
    assert stopped.seen == reference
    resumed = Recorder()
    trainer(**length).fit(resumed, TinyDataModule(), ckpt_path=checkpoint, weights_only=True)
    position = save_at[0] * 7 + save_at[1] + 1
    assert [batch for *_, batch in resumed.seen] == [batch for *_, batch in reference[position:]]


def test_a_run_resumed_in_a_shortened_epoch_ends_it_where_it_would_have(tmp_path: Path) -> None:
    reference = expected(2, batches=5)
    checkpoint = tmp_path / "middle.ckpt"
    trainer(max_epochs=1, limit_train_batches=5).fit(Recorder(checkpoint, (0, 2)), TinyDataModule())
    resumed = Recorder()
    trainer(max_epochs=2, limit_train_batches=5).fit(
        resumed, TinyDataModule(), ckpt_path=checkpoint, weights_only=True
    )
    assert resumed.seen == reference[3:]


def test_resuming_inside_an_epoch_with_another_batch_size_is_refused(tmp_path: Path) -> None:
    checkpoint = tmp_path / "middle.ckpt"
    trainer(max_epochs=1).fit(Recorder(checkpoint, (0, 2)), TinyDataModule())
    with pytest.raises(ValueError, match=r"batch_size is 64, .* with batch_size 32: resume"):
        trainer(max_epochs=1).fit(
            Recorder(), TinyDataModule(batch_size=64), ckpt_path=checkpoint, weights_only=True
        )


def test_overfitting_repeats_the_same_batches() -> None:
    model = Recorder()
    # Lightning tells by the sampler's class, so it speaks of the validation split too.
    with pytest.warns(UserWarning, match=r"turning off the (train|val) dataloader shuffling"):
        trainer(max_epochs=2, overfit_batches=2, limit_val_batches=0).fit(model, TinyDataModule())
    first, second = ([batch for e, _, batch in model.seen if e == epoch] for epoch in (0, 1))
    assert first == second == [[*range(32)], [*range(32, 64)]]


def test_fitting_with_a_hold_out_never_reads_the_test_split(read_splits: list[Split]) -> None:
    data = SpiedDataModule(validation_size=50)
    model = Recorder()
    trainer(max_epochs=1).fit(model, data)
    assert read_splits == ["train"]
    validated = [n for batch in model.validations[-1] for n in batch]
    trained = [n for *_, batch in model.seen for n in batch]
    assert sorted(validated + trained) == list(range(200))
    trainer().test(model, data, verbose=False)
    assert read_splits == ["train", "test"]
    assert model.tested == list(range(50))


def test_the_loader_takes_device_and_rank_from_the_trainer() -> None:
    data = TinyDataModule()
    strategy = SimpleNamespace(root_device=torch.device("meta"))
    data.trainer = cast(
        "Trainer",
        SimpleNamespace(strategy=strategy, global_rank=1, world_size=3, lightning_module=None),
    )
    for loader in (data.train_dataloader(), data.val_dataloader(), data.predict_dataloader()):
        assert (loader.sampler.rank, loader.sampler.world_size) == (1, 3)
        assert {tensor.device.type for tensor in next(iter(loader))} == {"meta"}
    assert (len(data.train_dataloader().sampler), len(data.val_dataloader().sampler)) == (67, 17)


class DistributedRecorder(Recorder):
    """Leaves what each rank was served in a folder, for ranks are processes of their own."""

    def on_fit_end(self) -> None:
        self.leave([batch for *_, batch in self.seen], "fit")

    def on_test_end(self) -> None:
        self.leave(self.tested, "test")

    def leave(self, content: list[Any], name: str) -> None:
        assert self.checkpoint is not None
        (self.checkpoint / f"{name}{self.global_rank}.json").write_text(json.dumps(content))


# Python 3.12 warns of any fork beside threads; torch's are idle here.
@pytest.mark.filterwarnings("ignore:.*use of fork.. may lead to deadlocks:DeprecationWarning")
def test_ranks_share_each_batch_and_evaluate_every_image_once(tmp_path: Path) -> None:
    seed_everything(5, verbose=False)
    model, data = DistributedRecorder(tmp_path), TinyDataModule(batch_size=16)
    ranks = trainer(strategy="ddp_fork", devices=3, max_epochs=1, limit_val_batches=0)
    ranks.fit(model, data)
    ranks.test(model, data, verbose=False)
    fitted = [json.loads((tmp_path / f"fit{rank}.json").read_text()) for rank in range(3)]
    whole = data.train_dataloader().sampler.indices().tolist()
    whole.append(whole[0])  # 201 is the next multiple of 3
    for step in range(5):
        together = [n for rank in fitted for n in rank[step]]
        assert sorted(together) == sorted(whole[48 * step : 48 * (step + 1)])
    tested = [json.loads((tmp_path / f"test{rank}.json").read_text()) for rank in range(3)]
    assert [len(rank) for rank in tested] == [17, 17, 16]
    assert sorted(n for rank in tested for n in rank) == list(range(50))
