"""Class probabilities while Keras trains."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from digitlab.callbacks.logging import probability_scalars
from digitlab.parity.hooks import Hooks
from digitlab.parity.keras_files import KerasNetwork
from digitlab.parity.recorder import Recorder


class ProbabilityRecorder(Hooks):
    """Logs the mean class probabilities while training, as `ClassProbabilities` does for PyTorch.

    Keras gives its callbacks no images, so those that are classified are a batch of random training
    images rather than the step's own.

    Args:
        recorder: Counts the steps; its hooks must come before these.
        images: All training images, `(N, 28, 28, C)`.
    """

    def __init__(self, recorder: Recorder, images: NDArray[Any]) -> None:
        self.recorder = recorder
        self.images = images

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Log the probabilities, if it is time."""
        recorder = self.recorder
        if not recorder.passes(recorder.settings.probabilities_every):
            return
        generator = np.random.default_rng(recorder.step)
        chosen = generator.choice(len(self.images), size=recorder.data.batch_size)
        images = torch.from_numpy(self.images[chosen]).permute(0, 3, 1, 2)
        probabilities = KerasNetwork(recorder.keras_model)(images).softmax(1).mean(0)
        scalars = probability_scalars(recorder.data.class_names, probabilities)
        recorder.log(scalars, recorder.step - 1)
