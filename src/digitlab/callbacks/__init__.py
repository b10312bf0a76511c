"""What a run does beside training; for a `Classifier`, and `Results` for our data modules too."""

from digitlab.callbacks.console import Console
from digitlab.callbacks.figures import Figures
from digitlab.callbacks.gpu_memory import GPUMemoryLimit
from digitlab.callbacks.history import History
from digitlab.callbacks.probabilities import ClassProbabilities
from digitlab.callbacks.progress import ProgressBar
from digitlab.callbacks.results import Results
from digitlab.callbacks.step_checkpoint import StepCheckpoint
from digitlab.callbacks.stopwatch import Stopwatch

__all__ = [
    "ClassProbabilities",
    "Console",
    "Figures",
    "GPUMemoryLimit",
    "History",
    "ProgressBar",
    "Results",
    "StepCheckpoint",
    "Stopwatch",
]
