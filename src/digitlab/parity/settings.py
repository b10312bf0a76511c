"""What a YAML config means to Keras's `fit`; what has no counterpart there is refused by name."""

from dataclasses import dataclass

import torch
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from digitlab.callbacks import ClassProbabilities, GPUMemoryLimit, ProgressBar
from digitlab.classifier import Classifier
from digitlab.cli.parser import RunCLI
from digitlab.parity.backend import Policy, import_tensorflow, limit_gpu_memory

POLICIES: dict[str, Policy] = {
    "32-true": "float32",
    "64-true": "float64",
    "16-mixed": "mixed_float16",
    "bf16-mixed": "mixed_bfloat16",
}
"""Keras's dtype policy of each of Lightning's precisions."""

# What of the trainer a Keras run takes over; anything else must be left at its default.
_TAKEN_OVER = {
    *("accelerator", "precision", "logger", "callbacks", "max_epochs", "max_steps"),
    *("check_val_every_n_epoch", "log_every_n_steps", "default_root_dir"),
    *("enable_checkpointing", "enable_progress_bar", "enable_model_summary"),
    "num_sanity_val_steps",  # Keras does none
}
_CALLBACKS = (ClassProbabilities, GPUMemoryLimit, ProgressBar)


@dataclass(frozen=True)
class Settings:
    """The trainer's settings in a Keras run.

    Args:
        precision: Lightning's name of it.
        epochs: Largest number of epochs.
        steps: Largest number of optimizer steps; None for no limit.
        steps_per_execution: Optimizer steps between two calls of Keras's callbacks; 1 where they
            have something to do at each step, to follow a schedule or to stop at a step.
        validate_every: Epochs from one validation to the next.
        log_every: Optimizer steps between two points of a training curve; 0 for none.
        probabilities_every: Optimizer steps between two records of class probabilities, or None.
        saves: Whether the model is saved.
        logs: Whether events are written for TensorBoard.
        shows_bar: Whether a bar is shown.
    """

    precision: str
    epochs: int
    steps: int | None
    steps_per_execution: int
    validate_every: int
    log_every: int
    probabilities_every: int | None
    saves: bool
    logs: bool
    shows_bar: bool

    @property
    def policy(self) -> Policy:
        """Keras's dtype policy."""
        return POLICIES[self.precision]


def read_settings(cli: RunCLI, steps_per_epoch: int) -> Settings:
    """Read what Keras's `fit` needs to know, and refuse what it cannot do.

    Raises:
        ValueError: A setting has no counterpart in Keras.
    """
    _check_model(cli.model)
    trainer, defaults = cli.config.trainer, cli.parser.get_defaults().trainer
    for name, default in vars(defaults).items():
        if name not in _TAKEN_OVER and trainer[name] != default:
            raise ValueError(
                f"trainer.{name} is {trainer[name]}: Keras's fit has no such setting; leave it out"
            )
    precision = {"None": "32-true", "32": "32-true", "64": "64-true"}.get(
        str(trainer.precision), str(trainer.precision)
    )
    if precision not in POLICIES:
        raise ValueError(
            f"trainer.precision is {precision}, for which Keras has no dtype policy: use one of "
            f"{', '.join(POLICIES)}"
        )
    if trainer.logger not in (None, True, False):
        raise ValueError("trainer.logger: a Keras run has TensorBoard's or none; leave it out")
    steps = trainer.max_steps if trainer.max_steps > 0 else None
    return Settings(
        precision=precision,
        epochs=_epochs(trainer.max_epochs, steps, steps_per_epoch),
        steps=steps,
        steps_per_execution=1
        if steps or _follows_steps(cli.model)
        else cli.model.steps_per_execution,
        validate_every=trainer.check_val_every_n_epoch or 1,
        log_every=50 if trainer.log_every_n_steps is None else trainer.log_every_n_steps,
        probabilities_every=_read_callbacks(cli),
        saves=trainer.enable_checkpointing is not False,
        logs=trainer.logger is not False,
        shows_bar=trainer.enable_progress_bar is not False,
    )


def choose_device(accelerator: str) -> str:
    """Let TensorFlow use the device that the trainer would, and name it.

    Raises:
        ValueError: A GPU is asked for, and TensorFlow finds none.
    """
    config = import_tensorflow().config
    gpus = config.list_physical_devices("GPU")
    if accelerator not in ("auto", "cpu", "gpu", "cuda"):
        raise ValueError(f"trainer.accelerator is {accelerator}: TensorFlow has cpu and gpu")
    if accelerator in ("gpu", "cuda") and not gpus:
        raise ValueError(
            f"trainer.accelerator is {accelerator}: TensorFlow finds no GPU on this machine; leave "
            "configs/gpu.yaml out, or set --trainer.accelerator auto"
        )
    if gpus and accelerator != "cpu":
        name: str = config.experimental.get_device_details(gpus[0]).get("device_name", "GPU")
        return name
    if gpus:
        config.set_visible_devices([], "GPU")
    threads = config.threading.get_intra_op_parallelism_threads() or torch.get_num_threads()
    return f"cpu ({threads} thread{'' if threads == 1 else 's'})"


class Schedule:
    """The learning rate that a PyTorch scheduler gives, for an optimizer of another framework.

    Args:
        model: Makes optimizer and scheduler; neither changes its weights.

    Raises:
        ValueError: The scheduler needs to see the validation's results.
    """

    def __init__(self, model: Classifier) -> None:
        made = model.configure_optimizers()
        self.interval = model.lr_scheduler_interval
        self.optimizer: torch.optim.Optimizer = (
            made["optimizer"] if isinstance(made, dict) else made
        )
        self.scheduler: LRScheduler | None = None
        if isinstance(made, dict):
            self.scheduler = made["lr_scheduler"]["scheduler"]
        if isinstance(self.scheduler, ReduceLROnPlateau):
            raise ValueError(
                "model.lr_scheduler is ReduceLROnPlateau, which a Keras run does not follow: use a "
                "scheduler that depends on the step or the epoch alone, or none"
            )

    def step(self) -> None:
        """Go on by an epoch or a step."""
        if self.scheduler:
            self.optimizer.step()  # without gradients it does nothing but count
            self.scheduler.step()

    @property
    def learning_rate(self) -> float:
        """The learning rate of now."""
        return float(self.optimizer.param_groups[0]["lr"])


def _follows_steps(model: Classifier) -> bool:
    return model.lr_scheduler is not None and model.lr_scheduler_interval == "step"


def _check_model(model: Classifier) -> None:
    if model.label_smoothing:
        raise ValueError(
            f"model.label_smoothing is {model.label_smoothing}: Keras's cross-entropy of integer "
            "labels has none; set --model.label_smoothing 0"
        )
    if model.dropout_in_evaluation:
        raise ValueError(
            "model.dropout_in_evaluation is True: Keras's fit switches dropout off when it "
            "evaluates; leave it out"
        )


def _read_callbacks(cli: RunCLI) -> int | None:
    """Do what the config's callbacks ask for, and give the interval of `ClassProbabilities`."""
    every = None
    given = cli.config_init.trainer.callbacks or []
    for callback in given if isinstance(given, list) else [given]:
        if not isinstance(callback, _CALLBACKS):
            raise ValueError(
                f"trainer.callbacks has {type(callback).__name__}, which a Keras run does not "
                f"have: it has {', '.join(kind.__name__ for kind in _CALLBACKS)}"
            )
        if isinstance(callback, GPUMemoryLimit):
            limit_gpu_memory(callback.megabytes)
        if isinstance(callback, ClassProbabilities):
            every = callback.every_n_steps
    return every


def _epochs(epochs: int | None, steps: int | None, steps_per_epoch: int) -> int:
    if epochs is not None and epochs >= 0:
        return epochs
    if steps:
        return -(-steps // steps_per_epoch)
    if epochs == -1:
        raise ValueError("trainer.max_epochs is -1: Keras's fit must end; give a number of epochs")
    return 1000  # Lightning's default
