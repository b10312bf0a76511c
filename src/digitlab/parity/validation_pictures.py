"""Pictures of each validation that Keras makes."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from digitlab.callbacks import ConfusionMatrix, WorstMistakes
from digitlab.callbacks.tensorboard import show_picture
from digitlab.parity.backend import import_tensorflow
from digitlab.parity.hooks import Hooks
from digitlab.parity.keras_files import as_logits, ends_in_softmax
from digitlab.parity.recorder import Recorder


class ValidationPictures(Hooks):
    """Shows in TensorBoard what `ConfusionMatrix` and `WorstMistakes` draw of a validation.

    Args:
        recorder: Counts the steps. Its hooks must come after these, whose time is the validation's.
        images: All images validated on, in Keras's order, `(N, 28, 28, C)`.
        labels: Their classes, `(N,)`.
    """

    def __init__(
        self, recorder: Recorder, images: NDArray[np.float32], labels: NDArray[np.int64]
    ) -> None:
        self.recorder = recorder
        self.images = torch.from_numpy(images).permute(0, 3, 1, 2)
        self.labels = torch.from_numpy(labels)
        self._validation = Validation(recorder.keras_model, len(labels))

    def on_test_begin(self, logs: Any = None) -> None:
        """Forget what was validated before."""
        self._validation.start()

    def on_test_end(self, logs: Any = None) -> None:
        """Draw the pictures."""
        logits = self._validation.logits()
        if logits is None:
            return
        data, loggers = self.recorder.data, self.recorder.loggers
        step = self.recorder.epoch_end_step
        for of_validation in (ConfusionMatrix(), WorstMistakes()):
            kept = of_validation.look_at(self.images, self.labels, logits)
            if picture := of_validation.draw([kept], data.class_names):
                show_picture(loggers, of_validation.tag, picture, step)


class Validation:
    """Keeps what a model says of the images while Keras validates it.

    Keras shows its callbacks the scores alone, and classifying the images once more would cost 3%
    of a run of LeNet-5. `compute_loss`, which Keras has for subclasses to override, gets to see the
    outputs and is told when they are not of training. They are written to a variable, since Keras
    may make all steps of a validation in one compiled call.

    Args:
        keras_model: Compiled, and not yet trained: Keras traces what it does only once.
        images: Number of images validated on.
    """

    def __init__(self, keras_model: Any, images: int) -> None:
        tensorflow = import_tensorflow()
        (output,) = keras_model.outputs
        dtype = "float64" if output.dtype == "float64" else "float32"
        kept = tensorflow.Variable(tensorflow.zeros((images, output.shape[-1]), dtype))
        seen = tensorflow.Variable(0, dtype="int64")
        compute_loss = keras_model.compute_loss

        def look(x: Any, y: Any, y_pred: Any, sample_weight: Any, **options: Any) -> Any:
            if options == {"training": False}:
                rows = seen + tensorflow.range(tensorflow.shape(y_pred, out_type="int64")[0])
                outputs = tensorflow.cast(y_pred, dtype)
                # An operation that XLA has, too, with which Keras compiles for a GPU.
                kept.scatter_update(tensorflow.IndexedSlices(outputs, rows))
                seen.assign(rows[-1] + 1)
            return compute_loss(x, y, y_pred, sample_weight, **options)

        keras_model.compute_loss = look
        self._kept, self._seen = kept, seen
        self._gives_probabilities = ends_in_softmax(keras_model)

    def start(self) -> None:
        """Start with the first image."""
        self._seen.assign(0)

    def logits(self) -> Tensor | None:
        """Give the logits `(N, K)`; None for a model with a `test_step` of its own."""
        if self._seen.numpy() != self._kept.shape[0]:
            return None
        return as_logits(self._kept.numpy(), self._gives_probabilities)
