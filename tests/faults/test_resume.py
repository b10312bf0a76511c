"""A run that is killed and resumed ends, bit for bit, where one that was left alone does."""

from functools import partial
from pathlib import Path

import pytest

from tests.faults.conftest import Alone
from tests.faults.runs_of_tiny import (
    BLOCKS,
    MLP,
    fit,
    kill_before,
    killed,
    killed_again,
    left_alone,
    resume,
)
from tests.faults.victims import differences, scalars

BY_STEP = "--model.lr_scheduler StepLR --model.lr_scheduler.step_size 3"
BY_STEP += " --model.lr_scheduler.gamma 0.9 --model.lr_scheduler_interval step"
BY_EPOCH = "--model.lr_scheduler CosineAnnealingLR --model.lr_scheduler.T_max 3"
PLATEAU = "--model.lr_scheduler torch.optim.lr_scheduler.ReduceLROnPlateau"
PLATEAU += " --model.lr_scheduler.patience 0 --model.lr_scheduler.threshold 0.9"
STOPPING = "--trainer.callbacks EarlyStopping --trainer.callbacks.monitor val/loss"
STOPPING += " --trainer.callbacks.patience 0 --trainer.callbacks.min_delta 0.5"
LATER = f"{STOPPING} --trainer.max_epochs 4 --trainer.min_epochs 3"
PROBABILITIES = "--trainer.callbacks ClassProbabilities --trainer.callbacks.every_n_steps 5"
SGD = "--model.optimizer SGD --model.optimizer.lr 0.01 --model.optimizer.momentum 0.9"
RUNS = {
    "no dropout": "LinearClassifier",
    "dropout": MLP,
    "dropout, blocks": f"{MLP} {BLOCKS}",
    "dropout in evaluation, blocks": f"{MLP} {BLOCKS} --model.dropout_in_evaluation true",
    "bf16, blocks": f"{MLP} {BLOCKS} --trainer.precision bf16-mixed",
    "momentum": f"{MLP} {SGD}",
    "schedule by step": f"{MLP} {BY_STEP}",
    "schedule by step, blocks": f"{MLP} {BLOCKS} {BY_STEP}",
    "schedule by epoch, blocks": f"{MLP} {BLOCKS} {BY_EPOCH}",
    "plateau": f"{MLP} {PLATEAU}",
    "plateau, blocks": f"{MLP} {BLOCKS} {PLATEAU}",
    "accumulated gradients": f"{MLP} --trainer.accumulate_grad_batches 2",
    "validation inside epochs": f"{MLP} --trainer.val_check_interval 0.3",
    "validation by batches": f"{MLP} --trainer.val_check_interval 8",
    "validation every second epoch": f"{MLP} {BLOCKS} --trainer.check_val_every_n_epoch 2",
    "hold-out": f"{MLP} {BLOCKS} --data.validation_size 50",
    "no validation": f"{MLP} {BLOCKS} --trainer.limit_val_batches 0",
    "part of the epoch": f"{MLP} {BLOCKS} --trainer.limit_train_batches 18",
    "max_steps": f"{MLP} --trainer.max_steps 60",
    "max_steps inside a block": f"{MLP} {BLOCKS} --trainer.max_steps 62",
    "early stopping": f"{MLP} {BLOCKS} {STOPPING}",
    "early stopping, but not yet": f"{MLP} {BLOCKS} {LATER}",
    "another callback": f"{MLP} {BLOCKS} {PROBABILITIES}",
}


KILLS = (11, 19, 13)  # resumed from step 8, from 25, an epoch's end, and from 36
slow = partial(pytest.param, marks=pytest.mark.slow)
IN_KERAS = ("dropout, blocks", "momentum", "schedule by step, blocks", "plateau", "max_steps")
CASES = [
    ("torch", "dropout, blocks", KILLS),
    slow("keras", "dropout, blocks", (36,)),
    *(slow("torch", run, KILLS) for run in RUNS if run != "dropout, blocks"),
    *(slow("keras", run, KILLS) for run in IN_KERAS),
]


@pytest.mark.parametrize(("framework", "run", "kills"), CASES)
def test_a_run_that_was_killed_ends_where_one_left_alone_does(
    tmp_path: Path, alone: Alone, framework: str, run: str, kills: tuple[int, ...]
) -> None:
    first, *others = kill_before(*kills, framework=framework)
    folder = killed(fit(RUNS[run], tmp_path, framework=framework), tmp_path, first)
    for fault in others:
        killed_again(folder, fault)
    assert "Resuming from" in resume(folder)
    assert differences(folder, alone(RUNS[run], framework=framework)) == []
    for tag, curve in scalars(folder).items():
        steps = [step for step, _ in curve]
        assert steps == sorted(set(steps)), tag


CONFIGS = sorted(Path(__file__).parents[2].glob("configs/digits/*.yaml"))
BF16 = "--trainer.precision bf16-mixed"


@pytest.mark.slow
@pytest.mark.parametrize("variant", [BLOCKS, "--model.steps_per_execution 1", BF16])
@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_a_killed_run_of_the_config_ends_where_one_left_alone_does(
    tmp_path: Path, config: Path, variant: str
) -> None:
    def fit(place: Path) -> list[str]:
        short = "--trainer.max_epochs 2 --trainer.limit_train_batches 10 --trainer.accelerator cpu"
        often = "--trainer.log_every_n_steps 2 --checkpoint_every_n_steps 3"
        where = ["--trainer.default_root_dir", str(place)]
        return ["fit", "--config", str(config), *where, *f"{short} {often} {variant}".split()]

    alone, other = tmp_path / "alone", tmp_path / "killed"
    # In blocks of 4, the tenth step is the last of the first epoch's, the 18th in the next.
    (fault,) = kill_before(18)
    folder = killed(fit(other), other, fault)
    resume(folder)
    assert differences(folder, left_alone(fit(alone), alone)) == []
