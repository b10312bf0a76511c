from typing import Any

import pytest
import torch
from benchmarks import gpu_check

BAND = {"32-true": [98.8, 98.9], "bf16-mixed": [98.6, 98.9], "16-mixed": [98.7, 98.8]}
TESTS = {"tests": 5, "failures": 0, "errors": 0, "skipped": 0}


@pytest.mark.parametrize(
    ("tests", "accuracy", "passed"),
    [
        ({}, {}, True),
        ({"failures": 1}, {}, False),
        ({"errors": 1}, {}, False),
        ({"skipped": 5}, {}, False),  # nothing was tested
        ({}, {"16-mixed": [98.3, 98.2]}, False),
    ],
)
def test_a_failed_test_or_a_missed_band_fails_the_check(
    tests: dict[str, int], accuracy: dict[str, Any], passed: bool
) -> None:
    result = {"tests": TESTS | tests, "accuracy": BAND | accuracy}
    assert gpu_check.judge(result) is passed


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["gpu_check"])
    assert gpu_check.main() == 2
    assert "torch finds no CUDA device" in capsys.readouterr().err
