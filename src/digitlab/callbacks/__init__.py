"""What a run does beside training; for a `Classifier`, and `Results` for our data modules too."""

from digitlab.callbacks.console import Console
from digitlab.callbacks.exact_resume import ExactResume
from digitlab.callbacks.figures import Figures
from digitlab.callbacks.finite_loss import FiniteLoss
from digitlab.callbacks.gpu_memory import GPUMemoryLimit
from digitlab.callbacks.history import History
from digitlab.callbacks.last_checkpoint import LastCheckpoint
from digitlab.callbacks.probabilities import ClassProbabilities
from digitlab.callbacks.progress import ProgressBar
from digitlab.callbacks.results import Results
from digitlab.callbacks.step_checkpoint import StepCheckpoint
from digitlab.callbacks.stopwatch import Stopwatch

__all__ = [
    "ClassProbabilities",
    "Console",
    "ExactResume",
    "Figures",
    "FiniteLoss",
    "GPUMemoryLimit",
    "History",
    "LastCheckpoint",
    "ProgressBar",
    "Results",
    "StepCheckpoint",
    "Stopwatch",
]
