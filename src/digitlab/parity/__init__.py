"""Keras twins of the architectures, and the proof that both compute the same.

Importing this imports neither TensorFlow nor Keras; the first function that needs them does.

- A pair: `backend` is the door to TensorFlow, `twins` builds the Keras models, `pairs` knows whose
  they are, `weights` matches layers and moves weights, with `layout` and `flattening`; `network`
  wraps and loads Keras models.
- The proof: `stairs` walks it, out of `forward` (parameters to gradients) and `training` (single
  steps, whole trainings), with `documents`, `formulas`, `masks`, `optimizers`, `recipe` and
  `sides`; `compare` is a row of its table. `report` and `divergence` do it for a user's own pair.
- Commands: `command` is `digitlab parity`; `fit` and `evaluate` are `digitlab keras …`, with
  `settings` and `recorder`; `convert` is `digitlab convert`.
"""

from digitlab.parity.backend import import_keras, keras_dtype
from digitlab.parity.checks import Check
from digitlab.parity.command import run_checks
from digitlab.parity.keras_files import KerasNetwork, load_keras_model
from digitlab.parity.keras_module import KerasClassifier
from digitlab.parity.optimizers import KerasAdam, KerasRMSprop, to_keras_optimizer
from digitlab.parity.pair import Report, check
from digitlab.parity.weights import copy_weights, load_keras_weights, to_keras

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
