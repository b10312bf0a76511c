import json
import subprocess
import sys
from pathlib import Path

from tests.commands import SHORT


def test_two_processes_share_a_run_folder_and_count_every_image_once(tmp_path: Path) -> None:
    place = ["--trainer.default_root_dir", str(tmp_path), "--trainer.devices", "2"]
    command = [sys.executable, "-m", "digitlab", "fit", "--model", "LinearClassifier"]
    shown = subprocess.run([*command, *SHORT, *place], capture_output=True, text=True, check=True)
    assert shown.stdout.count("Results are in") == 1
    assert "sync_dist" not in shown.stderr
    (folder,) = tmp_path.glob("*/*")
    metrics = json.loads((folder / "metrics.json").read_text("utf-8"))
    assert (metrics["train"]["n"], metrics["test"]["n"]) == (200, 50)
    assert metrics["optimizer_steps"] == 4  # 100 images a process, 32 at a time
