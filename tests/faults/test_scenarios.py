"""A run with a fault ends as promised, and once resumed, bit for bit as one that was left alone."""

import os
import re
import shutil
import signal
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest

from digitlab.callbacks import FinalEvaluation, History, LastCheckpoint, SaveFigures
from digitlab.classifier import Classifier
from digitlab.run_folder import read_metrics
from tests.commands import checkpoint
from tests.faults import plants, processes
from tests.faults.conftest import Alone
from tests.faults.plants import at_call, at_step, kill_before, send, sent
from tests.faults.processes import BLOCKS, COMMAND, MLP, SIGKILLED, THOROUGH, Fault, fit, run, said


class Scenario(NamedTuple):
    """A run with faults, one after another.

    Args:
        name: What happens.
        promise: Its key in benchmarks/endurance/promises.py.
        model: What is trained, see `fit`.
        faults: Planted in the run and, where it ends by one, in those that resume it.
        codes: The exit codes of each.
        line: A pattern of the last line, with `{last}`, the checkpoint, and `{folder}`, the run's.
        resumed: A pattern of the output of the run that is resumed to the end.
        options: Options that change no result.
        ranks: Number of ranks; 0 for a process that no launcher has started.
        framework: Where it is trained.
        always: A fault in the run that is left alone, too.
    """

    name: str
    promise: str
    model: str
    faults: Sequence[Fault | Mapping[int, Fault] | None]
    codes: Sequence[int] = (SIGKILLED,)
    line: str = ""
    resumed: str = "^(Resuming from|Starting over)"
    options: str = ""
    ranks: int = 0
    framework: str = "torch"
    always: Fault | None = None


ROWS: list[Any] = []
row: tuple[Any, ...]
options: dict[str, Any]


def add(*row: Any, default: bool = False, **options: Any) -> None:
    """Add a scenario; `default` is whether plain `pytest` tries it."""
    scenario = Scenario(*row, **options)
    marks = [pytest.mark.promise(scenario.promise), *[pytest.mark.slow] * (not default)]
    ROWS.append(pytest.param(scenario, id=scenario.name, marks=marks))


# Killed in training.
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
IN_KERAS = ("dropout, blocks", "momentum", "schedule by step, blocks", "plateau", "max_steps")
KILLS = (11, 19, 13)  # resumed from step 8, from 25, an epoch's end, and from 36
for framework, names in (("torch", RUNS), ("keras", IN_KERAS)):
    for name in names:
        row = (f"killed three times: {framework}, {name}", "kinds", RUNS[name])
        kills = kill_before(*KILLS, framework=framework)
        default = (framework, name) == ("torch", "dropout, blocks")
        add(*row, kills, framework=framework, default=default)
BF16 = "--trainer.precision bf16-mixed"
SHORT = "--trainer.max_epochs 2 --trainer.limit_train_batches 10 --checkpoint_every_n_steps 3"
for config in sorted(Path(__file__).parents[2].glob("configs/digits/*.yaml")):
    for variant in (BLOCKS, *["--model.steps_per_execution 1", BF16] * THOROUGH):
        model = f"--config={config} {SHORT} {variant}"
        # In blocks of 4, the tenth step is the last of the first epoch's, the 18th in the next.
        add(f"killed once: {config.stem} {variant}", "architectures", model, kill_before(18))

# Killed at other moments.
RESULTS = "digitlab.callbacks.results"
after = partial(partial, at_call, after=True)
MOMENTS = {
    "before anything was saved": at_step(2),
    "half of a checkpoint was written": partial(plants.in_half_of_a_file, "last.ckpt", 8),
    "half of the best was written": partial(plants.in_half_of_a_file, "best.ckpt", 2),
    "half of the first checkpoint was written": partial(plants.in_half_of_a_file, "last.ckpt", 1),
    "a file was about to be renamed": partial(at_call, "os", "replace", 9),
    "a file had been renamed": after("os", "replace", 9),
    "the next file was about to be renamed": partial(at_call, "os", "replace", 10),
    "a checkpoint was about to be saved": partial(at_call, LastCheckpoint, "save", 9),
    "a checkpoint had been saved": after(LastCheckpoint, "save", 9),
    "a validation was under way": partial(at_call, Classifier, "validation_step", 2),
    "an epoch's row had been written": after(History, "on_train_epoch_end", 2),
    "an epoch's end had been logged": after(Classifier, "on_train_epoch_end", 2),
    "all was trained": partial(at_call, SaveFigures, "on_train_end", 1),
    "the whole splits were measured": partial(at_call, Classifier, "evaluate", 2),
    "metrics were about to be written": partial(at_call, RESULTS, "write_metrics", 1),
    "all was done": after(FinalEvaluation, "on_train_end", 1),
}
DEFAULT = ("half of a checkpoint was written", "metrics were about to be written")
UNTRAINED = r"(?s)last.ckpt, step 75\n(?!.*epoch )"
for moment, fault in MOMENTS.items():
    row = (f"killed when {moment}", "moments", COMMAND, [fault])
    options = {"resumed": "is finished"} if moment == "all was done" else {}
    add(*row, **options, default=moment in DEFAULT)
for moment in ("all was trained", "metrics were about to be written"):
    row = (f"killed four times when {moment}", "moments", COMMAND, [MOMENTS[moment]] * 4)
    add(*row, codes=[SIGKILLED], resumed=UNTRAINED)

# Killed at the end of a run that ended inside an epoch, whose row is kept.
STOP = "--trainer.callbacks tests.faults.plants.StopAt --trainer.callbacks.step 37"
ENDS = {  # epochs have 25 steps
    "max_steps": f"{MLP} {BY_EPOCH} --trainer.max_steps 37",
    "max_steps inside a block": f"{MLP} {BLOCKS} --trainer.max_steps 38",
    "max_steps and plateau": f"{MLP} {PLATEAU} --trainer.max_steps 37",
    "max_steps at a validation": f"{MLP} --trainer.val_check_interval 8 --trainer.max_steps 33",
    "a callback": f"{MLP} {PLATEAU} {STOP}",
    "a callback, blocks": f"{MLP} {BLOCKS} {BY_EPOCH} {STOP}",
    "a callback in the last epoch": f"{MLP} {BLOCKS} {STOP} --trainer.max_epochs 2",
    "early stopping": f"{MLP} {STOPPING} --trainer.val_check_interval 8",
    "max_time": f"{MLP} --trainer.max_time 00:01:00:00",
    "max_time, blocks": f"{MLP} {BLOCKS} --trainer.max_time 00:01:00:00",
}
LAST: dict[str, Any] = {
    "before the last row was written": partial(partial, at_call, History, "on_train_epoch_end"),
    "after the last row was written": partial(after, History, "on_train_epoch_end"),
    "in the final evaluation": lambda _: partial(at_call, Classifier, "evaluate", 1),
}
for framework, ended in (("torch", [*ENDS]), ("keras", [*ENDS][1::4])):
    for end in ended:
        for moment, at_epoch in LAST.items():
            fault = at_epoch(1 if end == "early stopping" else 2)  # which ends in its first epoch
            add(
                *(f"killed {moment}: {framework}, {end}", "moments", ENDS[end], [fault]),
                framework=framework,
                always=plants.when_time_is_up if "max_time" in end else None,
                default=(framework, end, moment) == ("torch", [*ENDS][1], [*LAST][1]),
            )

# Stopped by signals.
CODES = {"SIGTERM": 143, "Ctrl-C": 130, "SIGHUP": 129}
SAVED = "interrupted by {}: saved {{last}} at step {}; resume with: digitlab fit --run {{folder}}$"
for name, model, step, saved in (
    *((name, COMMAND, 30, 33) for name in CODES),  # blocks of four end at 25, 29, 33
    ("SIGTERM", MLP, 30, 30),
    ("Ctrl-C", f"{MLP} --trainer.accumulate_grad_batches 3", 5, 5),
    ("SIGTERM", MLP, 25, 25),  # the epoch's last, which its validation follows
    ("Ctrl-C", f"{MLP} --trainer.val_check_interval 10", 10, 11),
):
    row = (f"{name} in step {step} of {model}", "signals", model)
    fault, default = at_step(step, sent(name)), (name, model) == ("SIGTERM", COMMAND)
    rare = "--checkpoint_every_n_steps 1000"
    add(*row, [fault], [CODES[name]], SAVED.format(name, saved), options=rare, default=default)
for name, code in CODES.items():
    fault, line = partial(at_call, Classifier, "evaluate", 1, sent(name)), f"interrupted by {name}"
    row = (f"{name} in the final evaluation", "signals", COMMAND)
    add(*row, [fault], [code], line, default=name == "SIGHUP")
TWICE = partial(send, signal.SIGINT, signal.SIGINT)
KEPT = "interrupted by Ctrl-C: {last} was saved at step 12; "
rare = "--checkpoint_every_n_steps 10"
row = ("a second Ctrl-C", "signals", COMMAND, [at_step(18, TWICE)], [130], KEPT)
add(*row, options=rare, default=True)
fault = partial(at_call, LastCheckpoint, "save", 9, TWICE)
add("a second Ctrl-C while it saves", "signals", MLP, [fault], [130])
add("SIGHUP under nohup", "signals", COMMAND, [plants.nohup], [0], default=True)

# Output and files that cannot be written.
add("output to a full disk", "output", COMMAND, [plants.full], [0], default=True)
add("closed output", "output", COMMAND, [plants.closed], [0])
add("a terminal is lost", "output", COMMAND, [partial(plants.lose, os.openpty)], [0])
add("a pipe is lost", "output", COMMAND, [partial(plants.lose, os.pipe)], [0], default=True)
fault = at_step(30, partial(plants.fill_disk, 100_000))
FULL = "training failed after 33 steps: .*File too large.*; {last} was saved at step 29; resume"
add("a checkpoint does not fit", "files", COMMAND, [fault], [1], FULL, default=True)

# Numbers.
for model, step, left in (
    (MLP, 30, "{last} was saved at step 28"),
    (MLP, 1, "nothing was saved"),
    (COMMAND, 31, "{last} was saved at step 29"),
):
    line = f"^digitlab: error: the loss is nan at step {step}, learning rate 0.001; {left}$"
    row = (f"NaN at step {step} of {model}", "numbers", model)
    add(*row, [partial(plants.spoil_step, step)], [1], line, default=step == 31)
seed = "--seed_everything 0"
add("the same seed", "seed", COMMAND, [None], [0], options=seed, default=True)

# Ranks. Saved at step 4 or 8 of 13, inside an epoch; at its end; and again before anything new.
for model, steps in ((MLP, (6, 14, 2)), (COMMAND, (7, 2, 14)), (COMMAND, (7,))):
    row = (f"ranks are killed at {steps}: {model}", "ranks", model, kill_before(*steps))
    add(*row, [SIGKILLED] * 2, ranks=2, default=len(steps) == 1)
row = ("a rank gets SIGTERM", "ranks", COMMAND, [{1: at_step(7, sent("SIGTERM"))}])
# srun may take another code than 0 for a failure, and end rank 0 too soon.
add(*row, [143, 0], SAVED.format("SIGTERM", 8), ranks=2)
row = ("an infinite loss in a rank", "ranks", COMMAND, [{1: partial(plants.lose_the_loss, 3)}])
line = "^digitlab: error: the loss is inf at step 12, learning rate 0.001; "
add(*row, [1, 0], line, ranks=2)
LOST = "^digitlab: error: the connection to another rank is lost; {last} was saved at step "
row = ("rank 1 is lost", "lost", COMMAND, [{1: at_step(7)}])
add(*row, [1, SIGKILLED], LOST, ranks=2, default=True)
add("rank 0 is lost", "lost", COMMAND, [{0: at_step(7)}], [SIGKILLED, 1], ranks=2)


@pytest.mark.parametrize("scenario", ROWS)
def test_a_run_ends_as_promised_and_as_one_left_alone(
    tmp_path: Path, alone: Alone, scenario: Scenario
) -> None:
    it, arguments = scenario, fit(scenario.model, tmp_path, framework=scenario.framework)
    arguments += it.options.split()
    for fault in it.faults:
        planted = fault if isinstance(fault, Mapping) else partial(plants.both, it.always, fault)
        assert run(arguments, tmp_path, planted, it.ranks) == [*it.codes], said(tmp_path)
        assert "Traceback" not in said(tmp_path)
        folder = processes.folder_of(tmp_path)
        arguments = ["fit", "--run", str(folder)]
    *_, line = ["", *said(tmp_path).splitlines()]
    last = re.escape(str(folder / "checkpoints" / "last.ckpt"))
    assert re.search(it.line.format(last=last, folder=re.escape(str(folder))), line), line
    if SIGKILLED not in it.codes:
        assert processes.hidden(folder) == []
        assert (folder / "metrics.json").exists() == (it.codes[0] == 0)
    if [*it.codes] != [0]:
        assert re.search(it.resumed, processes.resume(folder, it.ranks, it.always), re.MULTILINE)
    assert processes.differences(folder, alone(it.model, it.ranks, it.framework, it.always)) == []
    assert processes.hidden(folder) == []
    saved = checkpoint(folder)["global_step"]
    assert saved == read_metrics(folder)["optimizer_steps"]
    assert saved == pd.read_csv(folder / "history.csv")["step"].iloc[-1]
    for tag, curve in processes.scalars(folder).items():
        steps = [step for step, _ in curve]
        assert steps == sorted(set(steps)), tag


@pytest.mark.slow
@pytest.mark.promise("moved")
def test_a_run_that_was_moved_is_resumed_and_keeps_its_best(tmp_path: Path, alone: Alone) -> None:
    # With this rate nothing is learned: the first epoch is the best, as none is better.
    command, moved = f"{COMMAND} --model.optimizer.lr 0.05", tmp_path / "elsewhere"
    assert run(fit(command, tmp_path), tmp_path, at_step(60)) == [SIGKILLED]
    shutil.move(processes.folder_of(tmp_path), moved)
    processes.resume(moved)
    assert processes.differences(moved, alone(command)) == []
    assert checkpoint(moved, "best")["epoch"] == 0
    assert not list(tmp_path.glob("tiny-run/version_*"))


@pytest.mark.slow
@pytest.mark.promise("seed")
def test_another_seed_gives_other_bits(tmp_path: Path, alone: Alone) -> None:
    folder = processes.left_alone([*fit(COMMAND, tmp_path), "--seed_everything", "6"], tmp_path)
    parts = ["last", "best", "history.csv", "metrics.json", "events", "pictures"]
    assert processes.differences(folder, alone(COMMAND)) == parts


@pytest.mark.slow
@pytest.mark.promise("numbers")
def test_a_rate_that_is_too_large_is_named(tmp_path: Path) -> None:
    model = "LeNet5 --model.optimizer SGD --model.optimizer.lr 1e38"
    assert run(fit(model, tmp_path), tmp_path) == [1]
    assert "is nan at step 2, learning rate 1e+38; nothing was saved" in said(tmp_path)
