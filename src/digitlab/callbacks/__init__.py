"""Callbacks of a run: logging, TensorBoard, pictures, checkpoints and results.

The callbacks are for a `Classifier`; `FinalEvaluation`, `ModelGraph` and `Projector` also need one
of our data modules.
"""

from digitlab.callbacks.checkpointing import BestCheckpoint, ExactResume, FiniteLoss, LastCheckpoint
from digitlab.callbacks.logging import (
    ClassProbabilities,
    GPUMemoryLimit,
    History,
    PrintEpoch,
    Throughput,
)
from digitlab.callbacks.progress import ProgressBar
from digitlab.callbacks.results import FinalEvaluation, SaveConfig, SaveFigures
from digitlab.callbacks.tensorboard import (
    ConfusionMatrix,
    FirstLayerKernels,
    ModelGraph,
    Projector,
    ValidationPicture,
    WorstMistakes,
)

__all__ = [
    "BestCheckpoint",
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
    "SaveConfig",
    "SaveFigures",
    "Throughput",
    "ValidationPicture",
    "WorstMistakes",
]
