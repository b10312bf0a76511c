"""The models and variants that `benchmarks.step_time` measures, and their commands."""

import re
import sys
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

from benchmarks.recipes import read_recipe


@dataclass(frozen=True)
class Model:
    """A recipe to be measured.

    Args:
        title: Its name in tables.
        config: The config, below `configs`.
        steps: Optimizer steps of a turn, .2 to 2 s in most variants on one core.
    """

    title: str
    config: str
    steps: int

    @property
    def path(self) -> Path:
        """The config's path from the repository's root."""
        return Path("configs", f"{self.config}.yaml")


MODELS = {
    "nn128": Model("NN 128", "mnist/nn128", 256),
    "lenet5": Model("LeNet-5", "mnist/lenet5", 96),
    "example_net": Model("example net", "mnist/pytorch_example_net", 64),
    "mlp512": Model("MLP 512-512", "mnist/mlp512_keras_recipe", 64),
    "lenet1": Model("LeNet1", "fashion_mnist/lenet1_keras_recipe", 64),
    "tutorial_cnn": Model("tutorial CNN", "mnist/tensorflow_tutorial_cnn", 10),
}
"""The recipes, the smallest first."""

_LOOPS = {
    "documents": ["documents"],
    "stock_lightning": ["stock_lightning"],
    "raw": ["raw"],
    "raw_fused": ["raw", "--fused"],
    "raw_channels_last": ["raw", "--fused", "--channels_last"],
    "raw_tuned": ["raw", "--tuned"],
}
_DIGITLAB = re.compile(r"(digitlab|before)(_keras)?(?:_(\d+))?(_bf16)?")
_KERAS = re.compile(r"keras_(\d+)")

DEFAULT = [
    *("documents", "stock_lightning", "raw", "raw_fused", "raw_tuned"),
    *("digitlab_1", "digitlab", "digitlab_bf16", "keras_1", "keras_32"),
]
"""The variants that are measured if none are named."""

HELP = (
    f"{', '.join(_LOOPS)}; digitlab (the config's steps_per_execution), digitlab_K, digitlab_bf16, "
    "digitlab_K_bf16; digitlab_keras, digitlab_keras_K, its Keras twin; before, before_K, the "
    "digitlab of --before; keras_K, Keras's own fit with K steps per execution"
)
"""The names of all variants."""


def is_variant(name: str) -> bool:
    """Return whether there is a variant of that name."""
    return name in _LOOPS or bool(_DIGITLAB.fullmatch(name) or _KERAS.fullmatch(name))


def exists(variant: str, model: Model) -> bool:
    """Return whether a variant is one of its own for a model: RMSprop cannot be fused."""
    return variant != "raw_fused" or read_recipe(model.path).can_fuse


def command(variant: str, model: Model, folder: Path, args: Namespace) -> list[str]:
    """Make the command line of a contestant.

    Args:
        variant: Its name.
        model: The recipe that it trains.
        folder: The folder for its files.
        args: `device`, `cpu` or `cuda`; `threads`; and `before`, another checkout of digitlab, for
            the variants `before`.
    """
    if digitlab := _DIGITLAB.fullmatch(variant):
        whose, keras, steps, bf16 = digitlab.groups()
        options = ["--framework", "keras"] if keras else []
        path = ["env", f"PYTHONPATH={args.before}/src"] if whose == "before" else []
        # An older checkout has no such option, and obeys OMP_NUM_THREADS.
        fits = Path(args.before).rglob("src/**/fit.py") if path else []
        if not path or any("--threads" in fit.read_text("utf-8") for fit in fits):
            options += ["--threads", str(args.threads)]
        return [*path, *_digitlab(model, folder, args.device, steps, bf16), *options]
    options = ["--config", str(model.path), "--steps", str(model.steps), "--device", args.device]
    if keras := _KERAS.fullmatch(variant):
        name, *flags = ["keras_fit", "--steps_per_execution", keras[1]]
    else:
        name, *flags = _LOOPS[variant]
    place = ["--folder", str(folder)] if name == "stock_lightning" else []
    return [sys.executable, "-m", f"benchmarks.contestants.{name}", *options, *flags, *place]


def _digitlab(
    model: Model, folder: Path, device: str, steps_per_execution: str | None, bf16: str | None
) -> list[str]:
    """Make the command line of a real `digitlab fit`, which neither ends nor validates."""
    settings = {
        "trainer.default_root_dir": str(folder),
        "trainer.accelerator": "gpu" if device == "cuda" else "cpu",
        "trainer.max_epochs": "-1",
        "trainer.max_steps": "-1",
        "trainer.limit_val_batches": "0",
        "trainer.callbacks+": "benchmarks.callbacks.TakeTurns",
        "trainer.callbacks.steps": str(model.steps),
    }
    if steps_per_execution:
        settings["model.steps_per_execution"] = steps_per_execution
    if bf16:
        settings["trainer.precision"] = "bf16-mixed"
    options = [f"--{name}={value}" for name, value in settings.items()]
    return [sys.executable, "-m", "digitlab", "fit", "--config", str(model.path), *options]
