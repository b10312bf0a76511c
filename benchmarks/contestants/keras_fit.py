"""Keras's `fit` on TensorFlow, as the documents call it: float32 arrays in memory, shuffled.

The network is digitlab's twin and the optimizer has the config's settings. No bar is shown and
nothing is logged, which digitlab does.
"""

from typing import Any

import numpy as np

from benchmarks.contestants.arguments import contestant_parser
from benchmarks.turns import Turns
from digitlab.cli.parser import RunCLI
from digitlab.data import ImageDataModule
from digitlab.parity.backend import import_keras
from digitlab.parity.optimizers import to_keras_optimizer
from digitlab.parity.twins import build_twin

_SCALES = {"unit": (0.0, 1.0), "symmetric": (0.5, 0.5)}


def main() -> None:
    """Train until there are no more turns."""
    parser = contestant_parser(__doc__)
    parser.add_argument("--steps_per_execution", type=int, default=1)
    args = parser.parse_args()
    keras = import_keras()
    cli = RunCLI("fit", ["--config", str(args.config)])
    twin = build_twin(cli.model)
    twin.compile(
        to_keras_optimizer(cli.model.optimizer(cli.model.parameters())),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        steps_per_execution=args.steps_per_execution,
    )
    images, labels = _arrays(cli.datamodule)
    twin.fit(
        images,
        labels,
        batch_size=cli.datamodule.batch_size,
        epochs=1_000_000,
        callbacks=[_take_turns(args.steps, len(images), cli.datamodule.batch_size)],
        verbose=0,
    )


def _arrays(data: ImageDataModule) -> tuple[Any, Any]:
    """Give normalized images, float32 `(N, 28, 28, 1)`, and labels, int64 `(N,)`."""
    images, labels = data.arrays("train")
    mean, std = _SCALES.get(data.normalization) or data.mean_std or (0.0, 1.0)
    return ((images[..., None] / np.float32(255) - np.float32(mean)) / np.float32(std)), labels


def _take_turns(steps: int, images: int, batch_size: int) -> Any:
    """Make a callback; Keras calls it once an execution, with the last step's index."""
    turns = Turns(steps)
    per_epoch = -(-images // batch_size)
    finished = 0

    def begin_epoch(epoch: int, logs: Any) -> None:
        nonlocal finished
        finished = epoch * per_epoch

    def end_execution(batch: int, logs: Any) -> None:
        turns.count(finished + min(batch + 1, per_epoch))  # an epoch's last may be shorter

    return import_keras().callbacks.LambdaCallback(
        on_train_begin=lambda logs: turns.start(),
        on_epoch_begin=begin_epoch,
        on_train_batch_end=end_execution,
    )


if __name__ == "__main__":
    main()
