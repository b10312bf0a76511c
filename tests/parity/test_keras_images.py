import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from digitlab.cli import main
from digitlab.parity.keras_files import load_keras_model
from tests.parity.keras_runs import keras_fit
from tests.pictures import SEVEN, seven


@pytest.mark.skipif(not find_spec("tensorflow"), reason="needs the extra `parity`")
def test_a_keras_run_classifies_image_files_too(tmp_path: Path) -> None:
    run = keras_fit(tmp_path / "runs")
    seven().save(tmp_path / "seven.png")
    rows = tmp_path / "rows.json"
    options = ["--run", str(run), "--json", str(rows)]
    assert main(["keras", "predict", str(tmp_path / "seven.png"), *options]) == 0
    pixels = SEVEN[None, :, :, None] / np.float32(255)
    logits = np.asarray(load_keras_model(run / "model.keras")(pixels), np.float64)[0]
    (row,) = json.loads(rows.read_text("utf-8"))
    expected = np.exp(logits) / np.exp(logits).sum()
    assert row["probabilities"] == pytest.approx(expected, rel=1e-5)  # float32
