"""Runs of all architectures that are killed at random moments, and end as if they were not."""

import random
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.victims import SIGKILLED, differences, run, start

_CONFIGS = sorted(Path("configs", "digits").glob("*.yaml"))
_VARIANTS = {
    "single steps": "--model.steps_per_execution 1",
    "blocks of 4": "--model.steps_per_execution 4",
    "blocks of 4, bf16": "--model.steps_per_execution 4 --trainer.precision bf16-mixed",
}
_MOST = 10  # kills of a run, which then may end
_OFTEN = "--trainer.max_epochs 3 --trainer.log_every_n_steps 5 --checkpoint_every_n_steps 9"


@dataclass
class Victim:
    """A run that is killed again and again.

    Args:
        config: What it trains.
        variant: How.
        place: Where it may write.
    """

    config: Path
    variant: str
    place: Path

    def try_it(self, generator: random.Random) -> dict[str, Any]:
        """Train it once alone and once under kills, and say how often and what differs."""
        started = time.monotonic()
        alone = self._finish("alone")
        seconds = time.monotonic() - started
        kills, early = self._kill(generator, seconds)
        self._finish("killed")
        found = differences(_folder(self.place / "killed"), _folder(alone))
        shutil.rmtree(self.place)
        return {
            "config": str(self.config),
            "variant": self.variant,
            "kills": kills,
            "killed_before_training": early,
            "differences": found,
        }

    def _kill(self, generator: random.Random, seconds: float) -> tuple[int, int]:
        """Give the number of kills while it trained, and of those before, while it started."""
        kills = early = 0
        while kills < _MOST:
            said = len(self._said())
            process = start(self._command("killed"), self._log("killed"))
            process.join(timeout=generator.uniform(0.1, 1.1 * seconds))
            process.kill()
            process.join()
            if process.exitcode == 0:
                break
            if process.exitcode != SIGKILLED:
                raise RuntimeError(self._said())
            # The table of layers is printed when training starts.
            trained = "parameters in" in self._said()[said:]
            kills, early = kills + trained, early + (not trained)
        return kills, early

    def _said(self) -> str:
        log = self._log("killed")
        return log.read_text("utf-8") if log.exists() else ""

    def _finish(self, name: str) -> Path:
        if run(self._command(name), self._log(name)) != 0:
            raise RuntimeError(self._log(name).read_text("utf-8"))
        return self.place / name

    def _command(self, name: str) -> list[str]:
        if (self.place / name).is_dir() and list((self.place / name).glob("*/*/config.yaml")):
            return ["fit", "--run", str(_folder(self.place / name))]
        # It was killed before it had a config: there is no run yet that could go on.
        shutil.rmtree(self.place / name, ignore_errors=True)
        where = ["--trainer.default_root_dir", str(self.place / name)]
        options = f"{_VARIANTS[self.variant]} {_OFTEN} --trainer.accelerator cpu"
        return ["fit", "--config", str(self.config), *where, *options.split()]

    def _log(self, name: str) -> Path:
        self.place.mkdir(parents=True, exist_ok=True)
        return self.place / f"{name}.log"


def kill_at_random(kills: int, seed: int, place: Path) -> dict[str, Any]:
    """Kill runs of all architectures, in turn, until there were so many kills.

    Args:
        kills: Least number of kills.
        seed: Of the random moments.
        place: Where the runs may write.
    """
    generator = random.Random(seed)
    tried: list[dict[str, Any]] = []
    victims = [(config, variant) for variant in _VARIANTS for config in _CONFIGS]
    while sum(it["kills"] for it in tried) < kills or len(tried) < len(victims):
        config, variant = victims[len(tried) % len(victims)]
        tried.append(Victim(config, variant, place / str(len(tried))).try_it(generator))
        it = tried[-1]
        same = "same bits" if not it["differences"] else f"DIFFERS: {it['differences']}"
        print(f"{config.stem}, {variant}: {it['kills']} kills, {same}", flush=True)
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
