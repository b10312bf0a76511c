import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock, Timeout

from digitlab.reproduce.queue import Item, Queue
from tests.reproduce.test_queue import FIRST, Trainings, make_queue


@pytest.mark.parametrize(("command", "succeeds"), [("exit 0", True), ("exit 1", False)])
def test_a_process_s_exit_code_says_whether_it_succeeded(
    command: str, succeeds: bool, tmp_path: Path
) -> None:
    queue = Queue(tmp_path, lambda item: False, lambda item, folder: "", threads=3)
    shown = f"echo $OMP_NUM_THREADS $TF_NUM_INTRAOP_THREADS; {command}"
    with FileLock(tmp_path / "lock") as held:
        assert queue._call(["sh", "-c", shown], tmp_path / "log", held) is succeeds
    assert (tmp_path / "log").read_text() == "3 3\n"


def test_a_run_whose_queue_is_gone_keeps_its_item(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from digitlab.reproduce.queue import Item, Queue
from digitlab.reproduce.rows import Row
Queue._train = lambda self, item, held: self._call(["sleep", "30"], Path("log"), held)
Queue(Path("."), lambda item: False, lambda item, folder: "").work(
    [Item(Row("one", Path("configs", "tiny", "one.yaml")), "torch", 0)]
)
"""
    with subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path) as process:
        deadline = time.monotonic() + 60
        while not (tmp_path / "log").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.3)  # until the run is started
        process.kill()
    item = Item(FIRST, "torch", 0)
    lock = FileLock(tmp_path / "runs" / "locks" / f"{item.name}.lock", blocking=False)
    try:
        with pytest.raises(Timeout), lock:
            pass
    finally:
        subprocess.run(["pkill", "-f", "^sleep 30$"], check=True)
    with FileLock(lock.lock_file, timeout=5):
        pass  # it is free once the run has ended


def test_sigterm_ends_the_runs_and_the_queue_with_143(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue, recorded = make_queue(tmp_path, Trainings(), monkeypatch)
    monkeypatch.undo()
    log = tmp_path / "log"
    lasting = ["sh", "-c", f"kill -TERM {os.getpid()}; sleep 600"]
    monkeypatch.setattr(Queue, "_train", lambda self, item, held: self._call(lasting, log, held))
    with pytest.raises(SystemExit) as left:
        queue.work([Item(FIRST, "torch", 0)])
    assert left.value.code == 143
    assert not recorded
