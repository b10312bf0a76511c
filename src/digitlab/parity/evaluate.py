"""`digitlab keras validate`, `test` and `predict`: what a Keras run gives on whole splits."""

from collections.abc import Callable
from functools import partial

from digitlab.cli.evaluate import read_evaluation
from digitlab.parity.keras_files import load_classifier


def prepare(command: str, options: list[str]) -> Callable[[], int]:
    """Check all input of an evaluation, and return the evaluation that is then left to do.

    It is that of PyTorch's runs, with the Keras model in place of the network.

    Raises:
        ValueError, OSError, MisconfigurationException: The input is bad.
    """
    evaluation = read_evaluation(command, options, "keras")
    cli = evaluation.cli
    cli.model = load_classifier(cli.model, evaluation.checkpoint)
    # TensorFlow chooses its own device, and the saved model knows its precision.
    trainer = evaluation.make_trainer(accelerator="cpu", precision="32-true")
    return partial(evaluation.run, trainer)
