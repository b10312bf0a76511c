from pathlib import Path

from benchmarks import explain

import digitlab


def test_with_everything_switched_a_run_is_the_keras_program_s(tmp_path: Path) -> None:
    trainer = {"max_epochs": 1, "accelerator": "cpu", "logger": False, "default_root_dir": tmp_path}
    settings = {"data": "tests.tiny.TinyDataModule", "trainer": trainer}
    lines = list(explain.measure("B2", 3, (1, 1, 1), **settings))
    alone = digitlab.fit("B2", settings, seed=3)
    assert alone
    assert lines[-1] == {
        **dict.fromkeys(explain.NAMES, 1),
        **{"seed": 3, "accuracy": alone.metrics["test"]["accuracy"], "n": 50},
    }
    assert len({tuple(line.values())[:5] for line in lines}) == 4
    without_dropout = {line["accuracy"] for line in lines if line["dropout in evaluation"]}
    assert len(without_dropout) == 1  # 50 batches are all of the tiny data
    assert lines[0]["accuracy"] not in without_dropout
    switched_back = list(explain.measure("B2", 3, (0, 1, 1), **settings))
    assert [line["normalization"] for line in switched_back] == [0] * 4
    assert switched_back[-1]["accuracy"] != lines[-1]["accuracy"]
