import itertools
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import pytest

from digitlab.callbacks import Stopwatch, logging
from tests.fitting import fit, small_mlp, trainer
from tests.tiny import TinyDataModule


def test_phases_add_up_to_the_wall_time_of_a_fit() -> None:
    watch = Stopwatch()
    started = perf_counter()
    fit(None, watch, max_epochs=2, val_check_interval=3)
    elapsed = perf_counter() - started
    assert set(watch.seconds) == {"training", "validation"}
    assert all(seconds > 0 for seconds in watch.seconds.values())
    assert sum(watch.seconds.values()) < elapsed
    assert watch.images == 2 * 200


def test_every_moment_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(step=1.0)  # a second passes at each look
    monkeypatch.setattr(logging, "perf_counter", lambda: next(clock))
    watch: Any = Stopwatch()
    run = SimpleNamespace()
    watch.on_train_start(run, None)  # looks at 0
    for _ in range(2):
        watch.on_validation_start(run, None)  # 1 and 3
        watch.on_validation_end(run, None)  # 2 and 4
    watch.on_train_end(run, None)  # 5
    assert watch.seconds == {"training": 3.0, "validation": 2.0}
    with watch.time("evaluation"):
        pass
    with watch.time("evaluation"):
        pass
    assert watch.seconds == {"training": 3.0, "validation": 2.0, "evaluation": 2.0}


@pytest.mark.parametrize("sanity_check", [0, 2])
def test_only_a_fit_is_timed(sanity_check: int) -> None:
    watch = Stopwatch()
    started = perf_counter()
    fit(None, watch, num_sanity_val_steps=sanity_check)
    assert sum(watch.seconds.values()) < perf_counter() - started  # not the machine's uptime
    before = dict(watch.seconds)
    trainer(callbacks=[watch]).validate(small_mlp(), TinyDataModule(), verbose=False)
    assert watch.seconds == before
