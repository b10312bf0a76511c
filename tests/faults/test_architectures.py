"""Every architecture is resumed exactly, with its own settings, in single steps and in blocks."""

from functools import partial
from pathlib import Path

import pytest

from tests.faults.runs_of_tiny import folder_of, kill_before_step, killed, left_alone, resume
from tests.faults.victims import differences

CONFIGS = sorted(Path(__file__).parents[2].glob("configs/digits/*.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "variant",
    [
        "--model.steps_per_execution 4",
        "--model.steps_per_execution 1",
        "--trainer.precision bf16-mixed",
    ],
)
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
    left_alone(fit(alone), alone)
    # In blocks of 4, the tenth step is the last of the first epoch's, the 18th in the next.
    folder = killed(fit(other), other, partial(kill_before_step, 18))
    resume(folder)
    assert differences(folder, folder_of(alone)) == []
