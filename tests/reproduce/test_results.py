import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from digitlab import __version__
from digitlab.errors import InputError
from digitlab.reproduce import results
from digitlab.reproduce.results import Result
from digitlab.reproduce.rows import Row
from digitlab.resume import processor
from digitlab.run_folder import read_history, read_metrics
from tests.commands import fit
from tests.reproduce.samples import RESULT

ROW = Row("B3", Path("configs", "mnist", "lenet5.yaml"))


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    without = replace(RESULT, seed=5, framework="keras", train_seconds=None, val_curve=())
    long = replace(RESULT, seed=6, val_curve=tuple((step, 0.9) for step in range(1, 20_001)))
    results.add(tmp_path / "results.csv", [RESULT, without, long])
    assert results.read(tmp_path / "results.csv") == [RESULT, without, long]


@pytest.mark.parametrize("path", sorted(Path("docs", "results").glob("**/results.csv")), ids=str)
def test_the_recorded_results_are_rewritten_byte_for_byte(path: Path, tmp_path: Path) -> None:
    results.add(tmp_path / "results.csv", results.read(path))
    assert (tmp_path / "results.csv").read_bytes() == path.read_bytes()


def test_the_same_run_is_kept_once_and_the_first_one_stays(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    results.add(path, [RESULT])
    results.add(path, [replace(RESULT, test_accuracy=0.5), replace(RESULT, seed=6)])
    assert [(r.seed, r.test_accuracy) for r in results.read(path)] == [(4, 0.9877), (6, 0.9877)]


def test_no_line_is_lost_when_many_are_added_at_once(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda seed: results.add(path, [replace(RESULT, seed=seed)]), range(40)))
    assert sorted(result.seed for result in results.read(path)) == list(range(40))


def test_a_finished_run_is_read_from_its_folder(tmp_path: Path) -> None:
    folder = fit(tmp_path, "--trainer.max_epochs", "2", "--seed_everything", "3")
    result = Result.of_run(ROW, folder)
    metrics, history = read_metrics(folder), read_history(folder)
    assert result.test_accuracy == metrics["test"]["accuracy"]
    assert result.train_accuracy == pytest.approx(metrics["train"]["accuracy"], abs=1e-6)
    assert result.train_accuracy != result.test_accuracy
    assert result.config == "tiny/lenet5"  # of the data set that was trained on
    assert result.key == ("B3", "torch", 3)
    assert result.optimizer_steps == 14  # 7 batches an epoch
    for curve, column in ((result.val_curve, "val"), (result.train_curve, "train")):
        assert [step for step, _ in curve] == [7, 14]
        values = history[f"{column}_accuracy"].tolist()
        assert [value for _, value in curve] == pytest.approx(values, abs=1e-6)


def test_a_result_names_the_cpu_and_digitlab_s_version_and_reports_list_them(
    tmp_path: Path,
) -> None:
    result = Result.of_run(ROW, fit(tmp_path))
    assert result.device == f"{processor()}, 1 thread"
    assert result.versions.startswith(f"digitlab {__version__}, torch ")
    measured = [result, replace(RESULT, seed=5), RESULT, replace(RESULT, seed=6, device="Tesla T4")]
    assert results.list_devices(measured).splitlines()[2:] == [
        "| CPU unrecorded, 1 thread | 2 |",
        f"| {result.device} | 1 |",
        "| Tesla T4 | 1 |",
    ]


def test_validations_within_an_epoch_are_points_of_the_curve(tmp_path: Path) -> None:
    folder = fit(tmp_path, "--trainer.val_check_interval", "2")
    assert [step for step, _ in Result.of_run(ROW, folder).val_curve] == [2, 4, 6]


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        ({"test": {"loss": None}}, "has no loss on the test split: its training diverged"),
        ({"val": {"loss": 0.1}}, "has no loss on the test split"),
        ({"test": []}, r"metrics\.json is damaged"),
        ({"test": {"loss": "1"}}, r"metrics\.json is damaged"),
        ({"test": {"loss": 1.0}}, r"metrics\.json is damaged, 'accuracy'"),
    ],
)
def test_a_run_without_a_whole_result_is_named(
    metrics: dict[str, object], said: str, tmp_path: Path
) -> None:
    whole = {"framework": "torch", "seed": 0, "train": {"accuracy": 0.5}, "optimizer_steps": 1}
    whole |= {"dataset": "tiny"}
    (tmp_path / "metrics.json").write_text(json.dumps(whole | metrics))
    with pytest.raises(ValueError, match=said):
        Result.of_run(ROW, tmp_path)


def test_text_is_no_formula_in_a_spreadsheet_and_is_read_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    odd = replace(RESULT, row="=1+1", config="@x/-y", device="'+cpu")
    results.add(path, [odd])
    assert path.read_text("utf-8").splitlines()[1].startswith("'=1+1,'@x/-y,")
    assert results.read(path) == [odd]
    results.add(path, [odd, replace(odd, seed=5)])
    assert results.read(path) == [odd, replace(odd, seed=5)]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (None, "", "No columns to parse"),
        (None, b"\xff\xfe", "codec can't decode"),
        ("1875:0.9817 3750:0.986", "1875:0.98 37", "val_curve is '1875:0.98 37'"),
        ("torch,4", "torch,-4", "seed is '-4'"),
        ("0.9877", "nan", "test_accuracy is 'nan'"),
        ("9375", "many\x1b[31m", r"optimizer_steps is 'many\\x1b\[31m'"),
        (",cpu", "\nB3", "in run 1, device is ''"),
    ],
)
def test_a_damaged_file_is_named_with_what_is_wrong(
    old: str | None, new: str | bytes, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "results.csv"
    results.add(path, [RESULT])
    given = path.read_text("utf-8").replace(old, str(new)) if old else new
    path.write_bytes(given if isinstance(given, bytes) else given.encode())
    with pytest.raises(InputError, match=said) as refused:
        results.read(path)
    assert str(refused.value).startswith(f"{path} is damaged or of another kind: ")


def test_a_run_that_is_in_a_file_twice_is_named(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    results.add(path, [RESULT])
    path.write_text(path.read_text("utf-8") + path.read_text("utf-8").partition("\n")[2], "utf-8")
    with pytest.raises(InputError, match="B3 torch seed 4 is repeated"):
        results.read(path)
