"""Keras twins of the architectures, and the proof that both compute the same.

Importing this package imports neither TensorFlow nor Keras; the first function that needs them
does.

- Models: `backend` imports TensorFlow and Keras, `twins` builds the Keras twins, `weights` converts
  weights, `optimizers` has Keras's optimizers in PyTorch, `keras_files` loads and saves models.
- Training: `keras_module` makes a twin a LightningModule.
- The proof: `checks` compares parameters, logits and gradients, `trajectory` whole trainings;
  `proof` makes all of these checks for a model and its twin. `pair` compares any two models, and
  finds the first layer that differs.
"""

from digitlab.parity.backend import import_keras, keras_dtype
from digitlab.parity.keras_files import KerasNetwork, load_keras_model
from digitlab.parity.keras_module import KerasClassifier
from digitlab.parity.optimizers import KerasAdam, KerasRMSprop, to_keras_optimizer
from digitlab.parity.pair import check
from digitlab.parity.proof import run_checks
from digitlab.parity.report import Check, Report
from digitlab.parity.twins import to_keras
from digitlab.parity.weights import copy_weights, load_keras_weights

__all__ = [
    "Check",
    "KerasAdam",
    "KerasClassifier",
    "KerasNetwork",
    "KerasRMSprop",
    "Report",
    "check",
    "copy_weights",
    "import_keras",
    "keras_dtype",
    "load_keras_model",
    "load_keras_weights",
    "run_checks",
    "to_keras",
    "to_keras_optimizer",
]
