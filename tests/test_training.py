"""Training through Lightning's trainer against a plain PyTorch loop, mostly bit for bit."""

import copy
import math
import pickle
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from lightning import Trainer, seed_everything
from lightning.pytorch.cli import ReduceLROnPlateau
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ExponentialLR, OneCycleLR

from digitlab.classifier import Classifier
from digitlab.models import MLP, PyTorchExampleNet
from tests.fitting import (
    BATCHES,
    Recording,
    assert_bitwise_equal,
    fit,
    plain_loop,
    small_mlp,
    trainer,
    weights,
    whole,
)
from tests.tiny import TinyDataModule

# Lightning counts blocks of steps.
pytestmark = pytest.mark.filterwarnings("ignore:The number of training batches .* is smaller")

SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9)
OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "adam": lambda params: torch.optim.Adam(
        params, lr=0.001, betas=(0.9, 0.999), eps=1e-8, weight_decay=0, fused=True
    ),
    "sgd": SGD,
    "rmsprop": lambda params: torch.optim.RMSprop(params, lr=0.001, alpha=0.9, eps=1e-7),
}


def both(model: type[Classifier], **options: Any) -> tuple[Classifier, Classifier]:
    """Two models with the same initial weights."""
    models = []
    for _ in range(2):
        torch.manual_seed(1)
        models.append(model(**options))
    return models[0], models[1]


@pytest.mark.parametrize("optimizer", [*OPTIMIZERS, None])
@pytest.mark.parametrize("model", [MLP, PyTorchExampleNet])
def test_two_epochs_give_the_weights_of_a_plain_loop(
    model: type[Classifier], optimizer: str | None
) -> None:
    options = {"optimizer": OPTIMIZERS[optimizer]} if optimizer else {}
    ours, theirs = both(model, **options)
    before = weights(ours)
    fit(ours, max_epochs=2)
    make = OPTIMIZERS[optimizer or "adam"]  # by default the documents'
    plain_loop(theirs, make(theirs.parameters()), epochs=2)
    assert_bitwise_equal(weights(ours), weights(theirs))
    assert not torch.equal(before["network.fc1.weight"], weights(ours)["network.fc1.weight"])


def test_the_seed_decides_about_order_and_dropout() -> None:
    first, second = both(MLP)
    fit(first, seed=3)
    fit(second, seed=4)
    assert not torch.equal(first.network.get_parameter("fc1.weight"), second.network[1].weight)  # type: ignore[index]


def test_validation_and_its_sanity_check_leave_weights_and_training_scores_alone() -> None:
    ours, theirs = both(MLP)
    loggers = Recording(), Recording()
    options: dict[str, Any] = {"max_epochs": 2, "log_every_n_steps": BATCHES}
    often: dict[str, Any] = {"val_check_interval": 0.5, "num_sanity_val_steps": 2}
    fit(ours, logger=loggers[0], **often, **options)
    fit(theirs, logger=loggers[1], limit_val_batches=0, **options)
    assert_bitwise_equal(weights(ours), weights(theirs))
    for name in ("train/loss", "train/accuracy"):
        assert loggers[0].series(name) == loggers[1].series(name)
    assert len(loggers[0].series("val/loss")) == 4


COPIES: list[Callable[[Any], Any]] = [
    lambda thing: pickle.loads(pickle.dumps(thing)),
    copy.deepcopy,
]


@pytest.mark.parametrize("clone", COPIES, ids=["pickle", "deepcopy"])
@pytest.mark.parametrize("steps", [1, 4])
def test_a_pickled_model_and_its_data_module_train_and_score_alike(
    steps: int, clone: Callable[[Any], Any]
) -> None:
    model, data = small_mlp(steps_per_execution=steps), TinyDataModule()
    options: dict[str, Any] = {"max_epochs": -1, "max_steps": 9}
    run = trainer(**options)
    run.fit(model, data)
    copied, its_data, loader = clone((model, data, run.train_dataloader))
    assert (its_data.trainer, copied._trainer) == (None, None)
    assert sum(len(labels) for _, labels, *_ in loader) == 200  # no trainer limits it
    for one, its in ((model, data), (copied, its_data)):
        seed_everything(3, verbose=False)
        trainer(**options).fit(one, its)
    assert_bitwise_equal(weights(model), weights(copied))
    scores = [it.evaluate(TinyDataModule().test_dataloader()) for it in (model, copied)]
    assert scores[0] == scores[1]


EXPONENTIAL = partial(ExponentialLR, gamma=0.1)
ONE_CYCLE = partial(OneCycleLR, max_lr=0.1, total_steps=2 * BATCHES)
# The settings of a classifier, and what a plain loop calls with the model and its optimizer.
OPTIONS: dict[str, tuple[dict[str, Any], Callable[[Classifier, Optimizer], dict[str, Any]]]] = {
    "clipping": (
        {"gradient_clip_norm": 0.05},
        lambda model, _: {"before_step": partial(clip_grad_norm_, [*model.parameters()], 0.05)},
    ),
    "one cycle": (
        {"lr_scheduler": ONE_CYCLE, "lr_scheduler_interval": "step"},
        lambda _, optimizer: {"after_step": ONE_CYCLE(optimizer).step},
    ),
    "per step": (
        {"lr_scheduler": EXPONENTIAL, "lr_scheduler_interval": "step"},
        lambda _, optimizer: {"after_step": EXPONENTIAL(optimizer).step},
    ),
    "per epoch": (
        {"lr_scheduler": EXPONENTIAL},
        lambda _, optimizer: {"after_epoch": EXPONENTIAL(optimizer).step},
    ),
    "channels last": ({"channels_last": True}, lambda *_: {}),
}


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("name", OPTIONS)
def test_clipping_and_schedulers_give_the_weights_of_a_plain_loop(name: str, steps: int) -> None:
    options, calls = OPTIONS[name]
    ours, theirs = both(MLP, optimizer=SGD, steps_per_execution=steps, **options)
    fit(ours, max_epochs=2)
    optimizer = SGD(theirs.parameters())
    plain_loop(theirs, optimizer, epochs=2, **calls(theirs, optimizer))
    assert_bitwise_equal(weights(ours), weights(theirs))


@pytest.mark.parametrize(
    ("name", "values", "rule"),
    [
        ("gradient_clip_norm", [0.0, math.nan], "give a norm above 0"),
        ("label_smoothing", [-0.1, 1.1, math.nan], "it must be from 0 to 1"),
        ("steps_per_execution", [0, -2], "it must be at least 1"),
    ],
)
def test_arguments_out_of_range_are_refused(name: str, values: list[float], rule: str) -> None:
    for value in values:
        with pytest.raises(ValueError, match=f"{name} is {value}: {rule}"):
            MLP(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
def test_clipping_is_refused_only_where_gradients_are_still_scaled(
    precision: str, fused: bool
) -> None:
    model = small_mlp(gradient_clip_norm=1.0)
    optimizer = torch.optim.Adam(model.parameters(), fused=fused)
    run = SimpleNamespace(precision=precision, optimizers=[optimizer], global_rank=0)
    model.trainer = cast("Trainer", run)
    if fused and precision == "16-mixed":
        with pytest.raises(ValueError, match=r"gradient_clip_norm is 1\.0: .* use bf16-mixed"):
            model.on_fit_start()
    else:
        model.on_fit_start()


def test_smoothed_labels_are_minimized_but_not_evaluated() -> None:
    model = small_mlp(label_smoothing=0.2, dropout=0.0)
    images, labels = whole("test")
    model.eval()
    log_probabilities = model(images).log_softmax(1)
    plain = -log_probabilities[torch.arange(len(labels)), labels]
    smoothed = 0.8 * plain - 0.2 * log_probabilities.mean(1)  # Szegedy et al. 2016, section 7
    data = TinyDataModule()
    assert model.evaluate(data.test_dataloader())["loss"] == pytest.approx(plain.mean().item())
    model.train()
    torch.testing.assert_close(model._loss_and_logits(images, labels)[0], smoothed.mean())


@pytest.mark.parametrize(("monitor", "steps"), [("train/loss", 4), ("val/accuracy", 1)])
def test_a_scheduler_can_wait_for_a_plateau(monitor: str, steps: int) -> None:
    watched: list[float] = []

    class Watching(ReduceLROnPlateau):
        def step(self, metrics: Any, epoch: int | None = None) -> None:  # type: ignore[override]
            watched.append(float(metrics))
            super().step(metrics)

    def plateau(optimizer: Optimizer) -> ReduceLROnPlateau:
        # A threshold that nothing passes: each epoch but the first is on the plateau.
        return Watching(
            optimizer, monitor=monitor, patience=0, factor=0.1, threshold=1e3, threshold_mode="abs"
        )

    logger, model = Recording(), small_mlp(lr_scheduler=plateau, steps_per_execution=steps)
    run = fit(model, logger=logger, max_epochs=3, log_every_n_steps=7)
    assert watched == pytest.approx([value for _, value in logger.series(monitor)])
    assert len(watched) == 3
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.001 * 0.1**2)


@pytest.mark.parametrize(
    ("precision", "dtype"), [("64-true", torch.float64), ("bf16-mixed", torch.float32)]
)
def test_a_run_of_another_precision_learns_and_scores_in_float32_or_wider(
    precision: Any, dtype: torch.dtype
) -> None:
    seen: set[torch.dtype] = set()

    class Watching(MLP):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss: Any = super().training_step(batch, batch_idx)
            seen.update((loss.dtype, *(p.dtype for p in self.parameters())))
            return loss

    torch.manual_seed(1)
    model = Watching([16])
    run = fit(model, precision=precision, max_epochs=5)
    assert seen == {dtype}
    assert all(value.isfinite() for value in run.callback_metrics.values())
    assert 0.5 < run.callback_metrics["val/accuracy"] <= 1
    data = TinyDataModule()
    inside_a_run = model.evaluate(data.test_dataloader())
    assert inside_a_run["accuracy"] == pytest.approx(run.callback_metrics["val/accuracy"].item())
    assert inside_a_run["loss"] == pytest.approx(run.callback_metrics["val/loss"].item())


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-mixed"])
def test_a_gpu_learns_the_tiny_data_in_any_precision(precision: Any) -> None:
    options: dict[str, Any] = {"accelerator": "gpu", "devices": 1, "precision": precision}
    scores = fit(small_mlp(), max_epochs=20, **options).callback_metrics
    assert all(value.isfinite() for value in scores.values())
    assert 0.9 <= scores["val/accuracy"] <= 1
    assert 0.5 < scores["train/loss"] < 0.75  # 0.62 on a CPU, in float32 and bfloat16


@pytest.mark.gpu
def test_a_gpu_evaluates_as_the_cpu_does() -> None:
    seed_everything(0, verbose=False)
    model, data = small_mlp(), TinyDataModule()
    on_cpu = model.evaluate(data.test_dataloader())
    on_gpu = model.cuda().evaluate(data.test_dataloader())
    assert on_gpu["correct"] == on_cpu["correct"]
    torch.testing.assert_close(torch.tensor(on_gpu["loss"]), torch.tensor(on_cpu["loss"]))


def test_accumulated_gradients_are_those_of_the_larger_batch() -> None:
    ours, theirs = (small_mlp(dropout=0.0, optimizer=SGD) for _ in range(2))
    # 192 of 200 images: the mean of two means is the mean only where the batches are equal.
    fit(ours, accumulate_grad_batches=2, limit_train_batches=6)
    seed_everything(3, verbose=False)
    trainer(limit_train_batches=3).fit(theirs, TinyDataModule(batch_size=64))
    torch.testing.assert_close(weights(ours), weights(theirs))
