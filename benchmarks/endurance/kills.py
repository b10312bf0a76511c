"""Runs of all architectures that are killed at random moments, and end as if they were not."""

import multiprocessing
import random
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.processes import SIGKILLED, differences, start

_CONFIGS = sorted(Path("configs", "digits").glob("*.yaml"))
_BLOCKS = "--model.steps_per_execution 4"
_STOP = "--trainer.callbacks tests.faults.plants.StopAt --trainer.callbacks.step 100"
_VARIANTS = {
    "single steps": "--model.steps_per_execution 1",
    "blocks of 4": _BLOCKS,
    "blocks of 4, bf16": f"{_BLOCKS} --trainer.precision bf16-mixed",
    # Epochs have 45 steps: these two end inside the third.
    "max_steps inside an epoch": f"{_BLOCKS} --data.batch_size 32 --trainer.max_steps 102",
    "stopped inside an epoch": f"{_BLOCKS} --data.batch_size 32 {_STOP}",
}
_IN_KERAS = ("blocks of 4", "max_steps inside an epoch")
_MOST = 5  # kills of a run, which then may end
_OFTEN = "--trainer.max_epochs 3 --trainer.log_every_n_steps 5 --checkpoint_every_n_steps 9"


@dataclass
class Victim:
    """A run that is killed again and again.

    Args:
        framework: Where it is trained.
        config: What it trains.
        variant: How.
        place: Where it may write.
        seed: Of the random moments.
    """

    framework: str
    config: Path
    variant: str
    place: Path
    seed: str

    def try_it(self) -> dict[str, Any]:
        """Train it once alone and once under kills, and count the kills and what differs."""
        generator = random.Random(self.seed)
        process = start(self._command("alone"), self._log("alone"))
        self._wait_for_training(process, "alone")
        started = time.monotonic()
        process.join()
        if process.exitcode != 0:
            raise RuntimeError(self._said("alone"))
        kills = self._kill(generator, time.monotonic() - started)
        process = start(self._command("killed"), self._log("killed"))
        process.join()
        if process.exitcode != 0:
            raise RuntimeError(self._said("killed"))
        found = differences(_folder(self.place / "killed"), _folder(self.place / "alone"))
        shutil.rmtree(self.place)
        return {
            "framework": self.framework,
            "config": str(self.config),
            "variant": self.variant,
            "kills": kills,
            "differences": found,
        }

    def _kill(self, generator: random.Random, seconds: float) -> int:
        """Kill it while it trains, validates or is measured at its end; return how often."""
        for kills in range(_MOST):
            process = start(self._command("killed"), self._log("killed"))
            self._wait_for_training(process, "killed")
            process.join(timeout=generator.uniform(0, 0.9 * seconds))
            process.kill()
            process.join()
            if process.exitcode == 0:
                return kills
            if process.exitcode != SIGKILLED:
                raise RuntimeError(self._said("killed"))
        return _MOST

    def _wait_for_training(self, process: Any, name: str) -> None:
        """Wait for the table of layers, which is printed when training starts."""
        tables = self._said(name).count("parameters in")
        while process.is_alive() and self._said(name).count("parameters in") == tables:
            time.sleep(0.02)

    def _said(self, name: str) -> str:
        log = self._log(name)
        return log.read_text("utf-8") if log.exists() else ""

    def _command(self, name: str) -> list[str]:
        if list((self.place / name).glob("*/*/config.yaml")):
            return ["fit", "--run", str(_folder(self.place / name))]
        where = ["--trainer.default_root_dir", str(self.place / name)]
        where += ["--framework", self.framework, "--config", str(self.config)]
        options = f"{_VARIANTS[self.variant]} {_OFTEN} --trainer.accelerator cpu"
        return ["fit", *where, *options.split()]

    def _log(self, name: str) -> Path:
        self.place.mkdir(parents=True, exist_ok=True)
        return self.place / f"{name}.log"


def kill_at_random(kills: int, seed: int, place: Path) -> dict[str, Any]:
    """Kill runs of all architectures, in turn and two at a time, until there were so many kills.

    Args:
        kills: Least number of kills; 200 try about every case.
        seed: Of the random moments.
        place: Where the runs may write.
    """
    cases = [("torch", config, variant) for variant in _VARIANTS for config in _CONFIGS]
    cases += [("keras", config, variant) for variant in _IN_KERAS for config in _CONFIGS]
    random.Random(seed).shuffle(cases)  # a short trial sees both frameworks
    tried: list[dict[str, Any]] = []
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=spawn) as pool:
        while sum(it["kills"] for it in tried) < kills:
            numbers = range(len(tried), len(tried) + min(kills, 8))
            victims = [
                Victim(*cases[number % len(cases)], place / str(number), f"{seed} {number}")
                for number in numbers
            ]
            for it in pool.map(Victim.try_it, victims):
                tried.append(it)
                same = "same bits" if not it["differences"] else f"DIFFERS: {it['differences']}"
                name = f"{it['framework']} {Path(it['config']).stem}, {it['variant']}"
                print(f"{name}: {it['kills']} kills, {same}", flush=True)
    return {
        "seed": seed,
        "kills": sum(it["kills"] for it in tried),
        "runs": len(tried),
        "equal": sum(not it["differences"] for it in tried),
        "tried": tried,
    }


def _folder(place: Path) -> Path:
    (folder,) = place.glob("*/*")
    return folder
