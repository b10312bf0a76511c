from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LambdaCallback
from torch import nn
from torch.optim.lr_scheduler import StepLR

from digitlab.callbacks import (
    ClassProbabilities,
    GPUMemoryLimit,
    History,
    PrintEpoch,
    Throughput,
    logging,
)
from digitlab.callbacks.logging import layer_table, output_shapes, tabulate_layers
from digitlab.classifier import Classifier
from digitlab.models import LeNet5
from tests.fitting import BATCHES, Recording, fit, small_mlp, trainer
from tests.tiny import TinyDataModule

pytestmark = pytest.mark.filterwarnings("ignore:The number of training batches .* is smaller")


@pytest.mark.parametrize("options", [{}, {"val_check_interval": 3}], ids=["end", "middle too"])
def test_a_row_has_the_epochs_logged_scores(tmp_path: Path, options: dict[str, Any]) -> None:
    history, logger = History(tmp_path / "history.csv"), Recording()
    fit(None, history, logger=logger, max_epochs=3, log_every_n_steps=BATCHES, **options)
    assert [row["epoch"] for row in history.rows] == [1, 2, 3]
    assert [row["step"] for row in history.rows] == [BATCHES, 2 * BATCHES, 3 * BATCHES]
    for phase in ("train", "val"):
        for quantity in ("loss", "accuracy"):
            # The last validation of an epoch counts.
            logged = [value for _, value in logger.series(f"{phase}/{quantity}")]
            last = logged[len(logged) // 3 - 1 :: len(logged) // 3]
            assert [row[f"{phase}_{quantity}"] for row in history.rows] == pytest.approx(
                last, rel=1e-6  # logged as float32
            )  # fmt: skip
    assert all(0 < (row["seconds"] or 0) < 60 for row in history.rows)
    table = pd.read_csv(history.path)
    names = "epoch step train_loss train_accuracy val_loss val_accuracy learning_rate seconds"
    assert [*table] == names.split()
    assert table.to_dict("records") == history.rows
    assert b"\r" not in history.path.read_bytes()


def test_an_epoch_without_validation_has_no_validation_score(tmp_path: Path) -> None:
    history = History(tmp_path / "history.csv")
    fit(None, history, max_epochs=3, check_val_every_n_epoch=2, num_sanity_val_steps=2)
    validated = [row["val_loss"] is not None for row in history.rows]
    assert validated == [False, True, False]
    assert pd.read_csv(history.path)["val_accuracy"].notna().tolist() == validated


def test_the_learning_rate_is_that_of_the_epoch_s_start(tmp_path: Path) -> None:
    history, logger = History(tmp_path / "history.csv"), Recording()
    model = small_mlp(lr_scheduler=lambda optimizer: StepLR(optimizer, step_size=1, gamma=0.5))
    fit(model, history, Throughput(), logger=logger, max_epochs=3, log_every_n_steps=BATCHES)
    expected = pytest.approx([0.001, 0.0005, 0.00025])
    assert [row["learning_rate"] for row in history.rows] == expected
    assert [rate for _, rate in logger.series("train/learning_rate")] == expected


def test_a_run_resumed_inside_an_epoch_has_a_row_and_rates_for_its_rest(tmp_path: Path) -> None:
    path = tmp_path / "inside.ckpt"

    def save(trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == 3:
            trainer.save_checkpoint(path)

    before = Throughput()
    with before.time("data"):
        pass
    fit(None, before, LambdaCallback(on_train_batch_end=save))
    history, throughput, logger = History(tmp_path / "history.csv"), Throughput(), Recording()
    throughput.seconds["data"] = 100
    run = trainer(callbacks=[history, throughput], logger=logger, log_every_n_steps=BATCHES)
    run.fit(small_mlp(), TinyDataModule(), ckpt_path=path, weights_only=True)
    [row] = history.rows
    assert (row["epoch"], row["step"], row["learning_rate"]) == (1, BATCHES, 0.001)
    assert 0 < (row["seconds"] or 0) < 60  # not the machine's uptime
    assert logger.series("train/learning_rate") == [(BATCHES - 1, 0.001)]
    assert throughput.images == 200
    assert throughput.seconds["data"] == 100 + before.seconds["data"]


@pytest.mark.parametrize(("size", "name"), [(0, "val (test split)"), (50, "val")])
def test_the_screen_shows_layers_and_a_line_for_each_epoch_that_names_the_split(
    size: int, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    history = History(tmp_path / "history.csv")
    run = trainer(callbacks=[history, PrintEpoch(history)], max_epochs=2, check_val_every_n_epoch=2)
    run.fit(small_mlp(), TinyDataModule(validation_size=size))
    *layers, _, heading, first, second = capsys.readouterr().out.splitlines()
    model = small_mlp()
    assert layers == tabulate_layers(layer_table(model), output_shapes(model)).splitlines()
    assert heading == f"           train loss  accuracy  {name} loss  accuracy"
    for line, row in zip((first, second), history.rows, strict=True):
        said = f"epoch {row['epoch']:>3} {row['train_loss']:.4f} {row['train_accuracy']:.2%}"
        if row["val_loss"] is not None:
            said += f" {row['val_loss']:.4f} {row['val_accuracy']:.2%}"
        assert line.split() == [*said.split(), f"{row['seconds']:.1f}", "s"]
        assert len(line) <= 80
    assert second[: len(heading)].endswith(f"{history.rows[1]['val_accuracy']:.2%}")
    assert first.index(" s") == second.index(" s")  # they are aligned


def test_the_table_of_layers_has_every_parameter_tensor_and_the_outputs_shapes() -> None:
    model = LeNet5()
    lines = tabulate_layers(layer_table(model), output_shapes(model)).splitlines()
    assert len(lines) == 1 + len(list(LeNet5().network.children())) + 1
    row = "conv1 Conv2d (6, 28, 28) weight (6, 1, 5, 5), bias (6,) 156"
    assert " ".join(lines[1].split()) == row
    assert lines[-1] == "61,706 parameters in 10 tensors"
    assert len({len(line) for line in lines[:-1]}) == 1 < len(lines[0]) < 80
    shapes = iter(output_shapes(model).values())
    image = torch.zeros(1, 1, 28, 28)
    for layer in model.network.children():
        image = layer(image)
        assert next(shapes) == tuple(image.shape[1:])
    assert model.network.training
    assert not any(layer._forward_hooks for layer in model.network.modules())


def test_a_network_for_other_images_has_a_table_without_the_outputs_it_cannot_compute() -> None:
    model = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(12, 10)))
    assert output_shapes(model) == {"0": (784,)}
    assert not any(layer._forward_hooks for layer in model.network.modules())


class Clock(Callback):
    """Two seconds for a batch of training, and a thousand for a batch of validation."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(logging, "perf_counter", lambda: self.now)

    def on_train_batch_start(self, *_: Any) -> None:
        self.now += 2

    def on_validation_batch_start(self, *_: Any) -> None:
        self.now += 1000


class Shared(Callback):
    """As if another process trained on as many images."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.strategy.__class__ = type(
            "Two", (type(trainer.strategy),), {"world_size": property(lambda _: 2)}
        )


def rates(monkeypatch: pytest.MonkeyPatch, *others: Callback, **options: Any) -> list[Any]:
    """Rates by epoch and by step, and phases, of two epochs of 6 batches of 32 and one of 8."""
    logger, model = Recording(), small_mlp(steps_per_execution=options.pop("steps", 1))
    throughput = Throughput()
    callbacks = [Clock(monkeypatch), *others, throughput]
    fit(model, *callbacks, logger=logger, max_epochs=2, log_every_n_steps=4, **options)
    names = ("train/images_per_second", "train/images_per_second_step")
    return [*(logger.series(name) for name in names), throughput.seconds]


@pytest.mark.parametrize("world_size", [1, 2])
def test_rates_leave_validation_out_and_count_all_processes(
    monkeypatch: pytest.MonkeyPatch, world_size: int
) -> None:
    others = [Shared()] if world_size == 2 else []
    of_epochs, of_steps, phases = rates(monkeypatch, *others, val_check_interval=2)
    epoch = pytest.approx(world_size * 200 / 14)
    assert of_epochs == [(6, epoch), (13, epoch)]
    # 4 batches of 32; then the first of the second epoch, since its start.
    whole = pytest.approx(world_size * 32 / 2)
    assert of_steps == [(3, whole), (7, whole), (11, whole)]
    assert phases == {"training": 2 * 7 * 2, "validation": 2 * 3 * 1000}


def test_the_rate_of_several_steps_per_execution_is_logged_at_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of_epochs, of_steps, _ = rates(monkeypatch, steps=3)
    # Executions of 3, 3 and 1 steps take 2 s each here.
    assert of_epochs == [(6, 200 / 6), (13, 200 / 6)]
    assert of_steps == [(5, 6 * 32 / 4), (9, 3 * 32 / 2), (12, 3 * 32 / 2)]


def test_an_evaluation_before_or_after_a_fit_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    throughput = Throughput()
    fit(None, Clock(monkeypatch), throughput, max_epochs=2, num_sanity_val_steps=2)
    assert throughput.seconds == {"training": 2 * 7 * 2, "validation": 2 * 1000}
    assert throughput.images == 2 * 200
    before = dict(throughput.seconds)
    trainer(callbacks=[throughput]).validate(small_mlp(), TinyDataModule(), verbose=False)
    assert throughput.seconds == before


def probabilities(logger: Recording) -> tuple[list[int], torch.Tensor]:
    """The steps and the probabilities of all classes, `(steps, 10)`."""
    records = [
        (step, [value for name, value in values.items() if name.startswith("probabilities/")])
        for step, values in logger.records
        if "probabilities/0" in values
    ]
    return [step for step, _ in records], torch.tensor([values for _, values in records])


@pytest.mark.parametrize(
    ("steps", "logged"),
    [
        (1, [2, 5, 8, 11]),  # counted from 0
        (4, [3, 6, 10, 13]),  # every block passes a multiple of 3; its last batch is recorded
    ],
)
def test_every_class_has_its_mean_probability_every_n_steps(steps: int, logged: list[int]) -> None:
    means: list[torch.Tensor] = []

    def reference(trainer: Trainer, model: LightningModule, _: Any, batch: Any, __: int) -> None:
        """The mean probabilities by torch's own functions, in evaluation mode."""
        if trainer.global_step - 1 in logged:
            images = batch[0] if steps == 1 else [*batch.batches()][-1][0]
            with torch.no_grad():
                means.append(model.eval()(images).softmax(1).mean(0))
            model.train()

    logger, model = Recording(), small_mlp(steps_per_execution=steps)
    callbacks = [ClassProbabilities(3), LambdaCallback(on_train_batch_end=reference)]
    fit(model, *callbacks, logger=logger, max_epochs=2, log_every_n_steps=7)
    recorded, ours = probabilities(logger)
    assert recorded == logged
    torch.testing.assert_close(ours, torch.stack(means))
    torch.testing.assert_close(ours.sum(1), torch.ones(4))


def test_a_class_name_with_a_slash_stays_in_one_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TinyDataModule, "class_names", ("T-shirt/top", *"123456789"))
    logger = Recording()
    fit(None, ClassProbabilities(7), logger=logger, log_every_n_steps=7)
    assert len(logger.series("probabilities/T-shirt or top")) == 1


def test_under_accumulation_and_mixed_precision_a_step_is_recorded_once() -> None:
    logger = Recording()
    options: dict[str, Any] = {"accumulate_grad_batches": 3, "precision": "bf16-mixed"}
    options |= {"max_epochs": 2, "log_every_n_steps": 7}
    fit(None, ClassProbabilities(1), logger=logger, **options)
    recorded, ours = probabilities(logger)
    assert recorded == [0, 1, 2, 3, 4, 5]
    torch.testing.assert_close(ours.sum(1), torch.ones(6), rtol=0, atol=1e-6)  # in float32


@pytest.mark.parametrize("value", [0, -1])
@pytest.mark.parametrize(
    ("kind", "name"), [(ClassProbabilities, "every_n_steps"), (GPUMemoryLimit, "megabytes")]
)
def test_a_number_below_one_is_refused(kind: type, name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value}: it must be at least 1"):
        kind(value)


GPU = torch.device("cuda", 0)


def limit_memory(limit: GPUMemoryLimit) -> None:
    run: Any = SimpleNamespace(strategy=SimpleNamespace(root_device=GPU))
    limit.setup(run, small_mlp(), "fit")


def test_the_limit_is_a_fraction_of_the_gpu_s_memory_and_a_cpu_has_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fractions: list[tuple[float, torch.device]] = []
    properties = SimpleNamespace(total_memory=4096 * 2**20)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    of_cuda = "set_per_process_memory_fraction"
    monkeypatch.setattr(torch.cuda, of_cuda, lambda *limit: fractions.append(limit))
    for given in ([], [4096], [1]):
        limit_memory(GPUMemoryLimit(*given))  # 1024 in document B
    fit(None, GPUMemoryLimit(1))
    assert fractions == [(0.25, GPU), (1.0, GPU), (1 / 4096, GPU)]
    with pytest.raises(ValueError, match="megabytes is 4097: the GPU has 4096"):
        limit_memory(GPUMemoryLimit(4097))


@pytest.mark.gpu
def test_a_gpu_gives_no_more_than_the_limit() -> None:
    try:
        limit_memory(GPUMemoryLimit(256))
        small = torch.empty(64 * 2**20, dtype=torch.uint8, device=GPU)
        assert small.numel() == 64 * 2**20
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(512 * 2**20, dtype=torch.uint8, device=GPU)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, GPU)
