"""What a run does beside training; for a `Classifier`.

`FinalEvaluation`, `ModelGraph` and `Projector` are for our data modules too.
"""

from digitlab.callbacks.checkpointing import ExactResume, FiniteLoss, LastCheckpoint, StepCheckpoint
from digitlab.callbacks.logging import (
    ClassProbabilities,
    GPUMemoryLimit,
    History,
    PrintEpoch,
    ProgressBar,
    Rates,
    SaveConfig,
    Stopwatch,
)
from digitlab.callbacks.results import FinalEvaluation, SaveFigures
from digitlab.callbacks.tensorboard import (
    ConfusionMatrix,
    FirstLayerKernels,
    ModelGraph,
    Projector,
    ValidationPicture,
    WorstMistakes,
)

__all__ = [
    "ClassProbabilities",
    "ConfusionMatrix",
    "ExactResume",
    "FinalEvaluation",
    "FiniteLoss",
    "FirstLayerKernels",
    "GPUMemoryLimit",
    "History",
    "LastCheckpoint",
    "ModelGraph",
    "PrintEpoch",
    "ProgressBar",
    "Projector",
    "Rates",
    "SaveConfig",
    "SaveFigures",
    "StepCheckpoint",
    "Stopwatch",
    "ValidationPicture",
    "WorstMistakes",
]
