"""What a run does beside training; for a `Classifier`.

`Results`, `ModelGraph` and `Projector` are for our data modules too.
"""

from digitlab.callbacks.confusion_matrix import ConfusionMatrix
from digitlab.callbacks.console import Console
from digitlab.callbacks.exact_resume import ExactResume
from digitlab.callbacks.figures import Figures
from digitlab.callbacks.filters import Filters
from digitlab.callbacks.finite_loss import FiniteLoss
from digitlab.callbacks.gpu_memory import GPUMemoryLimit
from digitlab.callbacks.history import History
from digitlab.callbacks.last_checkpoint import LastCheckpoint
from digitlab.callbacks.model_graph import ModelGraph
from digitlab.callbacks.probabilities import ClassProbabilities
from digitlab.callbacks.progress import ProgressBar
from digitlab.callbacks.projector import Projector
from digitlab.callbacks.rates import Rates
from digitlab.callbacks.results import Results
from digitlab.callbacks.settings import Settings
from digitlab.callbacks.step_checkpoint import StepCheckpoint
from digitlab.callbacks.stopwatch import Stopwatch
from digitlab.callbacks.validation_picture import ValidationPicture
from digitlab.callbacks.worst_mistakes import WorstMistakes

__all__ = [
    "ClassProbabilities",
    "ConfusionMatrix",
    "Console",
    "ExactResume",
    "Figures",
    "Filters",
    "FiniteLoss",
    "GPUMemoryLimit",
    "History",
    "LastCheckpoint",
    "ModelGraph",
    "ProgressBar",
    "Projector",
    "Rates",
    "Results",
    "Settings",
    "StepCheckpoint",
    "Stopwatch",
    "ValidationPicture",
    "WorstMistakes",
]
