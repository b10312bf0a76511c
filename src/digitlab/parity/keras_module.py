"""A Keras twin as a LightningModule: Keras's own compiled step in the ordinary Trainer."""

import random
from collections.abc import Iterator
from inspect import getattr_static
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn

from digitlab.batches import Batch, Block
from digitlab.classifier import Classifier
from digitlab.data.loader import run_seed
from digitlab.execution import counted_step, overrides
from digitlab.parity.backend import (
    POLICIES,
    Policy,
    describe_device,
    import_keras,
    import_tensorflow,
    keras_dtype,
    to_tensorflow,
    unchanged_random_state,
)
from digitlab.parity.graph import Graph, keras_layers
from digitlab.parity.keras_files import KerasNetwork
from digitlab.parity.optimizers import (
    average_weights,
    averages,
    decay_kernels_only,
    to_keras_optimizer,
)
from digitlab.parity.sides import arrange
from digitlab.parity.twins import build_twin, to_keras
from digitlab.parity.weights import match
from digitlab.unsupported import of_automatic_optimization

_GRADIENT_HOOKS = (
    *("on_before_zero_grad", "on_before_backward", "on_after_backward"),
    "on_before_optimizer_step",
)


class KerasClassifier(Classifier):
    """Trains the Keras twin of a classifier, on TensorFlow, in Lightning's Trainer.

    Each optimizer step is Keras's own compiled training step, so the weights are, bit for bit,
    those that Keras's `fit` gives on the same batches. Scores, logging, checkpoints and learning
    rate schedules are those of `Classifier`: the torch optimizer has no parameters to update, and
    only counts steps and holds the learning rate.

    TensorFlow chooses its own device; use a trainer on the CPU with its default precision.

    Shape:
        - Input: as for `Classifier`, channels first.
        - Output: logits `(N, num_classes)`; for a softmax output, the logarithms of its
          probabilities.

    Args:
        original: The model whose twin is trained. Its optimizer, schedule and settings are used.
        policy: Keras's dtype policy; `POLICIES` has that of each of Lightning's precisions.
        output: End in logits, or as document A writes its Keras network: in a softmax, with
            one-hot labels and the cross-entropy of clipped probabilities.
        copy_weights: Start from the original's weights. By default, from Keras's own initial
            weights where the original's `initialization` is `keras`, and from its weights
            otherwise.

    Attributes:
        keras_model: The compiled `keras.Model`.

    Raises:
        ValueError: The original has no twin, or a setting that Keras does not support.
        ImportError: The extra `parity` is not installed.

    Examples:
        >>> from lightning import Trainer
        >>> from digitlab.data import DigitsDataModule
        >>> from digitlab.models import LeNet5
        >>> model = KerasClassifier(LeNet5())
        >>> Trainer(max_epochs=1).fit(model, DigitsDataModule())  # doctest: +SKIP
    """

    framework = "keras"

    def __init__(
        self,
        original: Classifier,
        policy: Policy = "float32",
        output: Literal["logits", "softmax"] = "logits",
        copy_weights: bool | None = None,
    ) -> None:
        _check_original(original)
        keras_model = _compile_twin(original, policy, output == "softmax", copy_weights)
        idle = nn.Parameter(torch.zeros(()))
        # Not by `super()`, by which Lightning would find the arguments here: the hyperparameters
        # are the original's.
        Classifier.__init__(
            self,
            network=KerasNetwork(keras_model),
            optimizer=lambda _: original.optimizer([idle]),
            lr_scheduler=original.lr_scheduler,
            lr_scheduler_interval=original.lr_scheduler_interval,
            gradient_clip_norm=original.gradient_clip_norm,
            steps_per_execution=original.steps_per_execution,
            average_decay=original.average_decay,
        )
        self.save_hyperparameters(dict(original.hparams))
        self.automatic_optimization = False
        self.architecture = type(original).__name__
        self.keras_model = keras_model
        self.policy = policy
        self.output = output
        self._original = (original,)  # in a tuple, so that its weights are none of this module's
        self._penultimate: KerasNetwork | None = None
        self._train_steps = _compile_steps(keras_model, policy, output == "softmax")

    def configure_optimizers(self) -> Any:
        """Make the torch optimizer that counts steps, and its learning rate scheduler."""
        made = super().configure_optimizers()
        optimizer = made["optimizer"] if isinstance(made, dict) else made
        optimizer.step()  # does nothing but keep schedulers from warning that they come first
        if isinstance(made, dict) and _cycles_momentum(made["lr_scheduler"]["scheduler"]):
            raise ValueError(
                "lr_scheduler has cycle_momentum True: Keras's optimizers keep their momentum; set "
                "cycle_momentum to false"
            )
        return made

    def check_supported(self, trainer: Trainer) -> None:
        """Refuse settings of a trainer that Keras's training step cannot honour."""
        for setting, remedy in _unsupported(trainer, self.policy):
            raise ValueError(f"{setting} is not supported by a Keras model: {remedy}")
        super().check_supported(trainer)

    def training_step(self, batch: Batch | Block, batch_idx: int) -> None:
        """Train on a batch, or on each batch of a block, by Keras's own training step."""
        self.start_training_score()
        sizes = [len(labels) for _, labels in self._batches(batch)]
        rates = [self._advance_schedule() for _ in sizes]
        dtype = torch.float64 if self.policy == "float64" else torch.float32
        images = to_tensorflow(arrange(batch[0].to(dtype), self.keras_model))
        labels = to_tensorflow(batch[1])
        with keras_dtype(self.policy):  # which counts while TensorFlow traces the step
            scores = self._train_steps(images, labels, rates, sizes[0])
        self._record_steps(sizes, rates, scores.numpy().tolist())

    def _advance_schedule(self) -> float:
        """Return the learning rate of the next step, and step a scheduler with interval `step`."""
        (optimizer,) = self.trainer.optimizers
        rate = float(optimizer.param_groups[0]["lr"])
        for scheduler in self._schedulers("step"):
            scheduler.step()
        return rate

    def _record_steps(
        self, sizes: list[int], rates: list[float], scores: list[tuple[float, float]]
    ) -> None:
        """Count and log finished steps, and step schedulers with interval `epoch`."""
        optimizer, sums = self.optimizers(), self.sums["train"]
        assert isinstance(optimizer, LightningOptimizer)
        group = optimizer.param_groups[0]
        next_rate, steps_before = group["lr"], self.global_step
        for size, rate, (loss, accuracy) in zip(sizes, rates, scores, strict=True):
            sums.add_counts(loss, round(accuracy * size), size)
            group["lr"] = rate  # is logged
            with counted_step(optimizer):
                self.log_step(optimizer.optimizer)
        group["lr"] = next_rate
        self._finish_block(steps_before)

    def start_average(self) -> None:
        """Let the averages, which Keras's optimizer makes, start with the weights, or resume."""
        trained, self._trained = self._trained, {}
        self._average = [self.keras_model.optimizer] if self.average_decay is not None else []
        self._in_place = bool(trained)
        if trained:
            self._put_average(False)
        elif self._average:
            for variable, average in averages(self.keras_model):
                average.assign(variable)

    def exchange_average(self) -> None:
        """Exchange the weights and their averages."""
        for variable, average in averages(self.keras_model):
            value = np.array(variable.numpy())
            variable.assign(average)
            average.assign(value)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add Keras's variables: weights, seeds of dropout, and the optimizer's.

        Averaged weights are saved as the weights, and the others in the place of the averages.
        """
        with self.averaged():
            checkpoint["keras"] = {
                name: [_to_tensor(variable) for variable in variables]
                for name, variables in self._variables().items()
            }
        checkpoint["averaging"] = {"in_keras": True} if self._average else {}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore Keras's variables, all or none of them."""
        if "keras" not in checkpoint:
            raise ValueError(
                "the checkpoint is not of a Keras run: resume a run in the framework that it was "
                "started with"
            )
        super().on_load_checkpoint(checkpoint)
        self._assign(checkpoint["keras"])

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy what a model is made of: a compiled step cannot be pickled."""
        checkpoint: dict[str, Any] = {}
        self.on_save_checkpoint(checkpoint)
        return _restore, (*self._original, self.policy, self.output, checkpoint["keras"])

    def _assign(self, values: dict[str, list[Tensor]]) -> None:
        pairs: list[tuple[Any, Tensor]] = []
        for name, variables in self._variables().items():
            saved = values[name]
            shapes = [[tuple(it.shape) for it in side] for side in (variables, saved)]
            if shapes[0] != shapes[1]:
                raise ValueError(
                    f"the checkpoint's {name} variables have shapes {shapes[1]}, those of this "
                    f"{self.architecture} {shapes[0]}: give the model that it was made with"
                )
            pairs += zip(variables, saved, strict=True)
        for variable, value in pairs:
            variable.assign(value.numpy())

    def _variables(self) -> dict[str, list[Any]]:
        model = self.keras_model
        return {"model": model.variables, "optimizer": model.optimizer.variables}

    @property
    def run_details(self) -> dict[str, str]:
        """Entries of metrics.json from TensorFlow's side: precision, device and output."""
        (precision,) = (name for name, policy in POLICIES.items() if policy == self.policy)
        return {"precision": precision, "device": describe_device(), "output": self.output}

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield copies of the trained weights, in Keras's layout, named as `conv1/kernel`."""
        for layer in keras_layers(self.keras_model):
            for variable in layer.trainable_weights:
                yield f"{layer.name}/{variable.name}", _to_tensor(variable)

    def layer_table(self) -> list[tuple[str, str, dict[str, tuple[int, ...]]]]:
        """List the layers: name, type, and the shapes of their weights by name."""
        return [
            (layer.name, type(layer).__name__, {v.name: tuple(v.shape) for v in layer.weights})
            for layer in self.keras_model.layers
        ]

    def output_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each layer's output for an image, in Keras's layout."""
        outputs = {layer.name: layer.output for layer in self.keras_model.layers}
        return {it: tuple(one.shape[1:]) for it, one in outputs.items() if hasattr(one, "shape")}

    def features(self, images: Tensor) -> Tensor | None:
        """Compute the input of the last dense layer, `(N, D)`.

        None for a model without a dense layer outside of inner models.
        """
        if self._penultimate is None:
            keras = import_keras()
            dense = [it for it in self.keras_model.layers if isinstance(it, keras.layers.Dense)]
            if not dense:
                return None
            (image,) = self.keras_model.inputs
            self._penultimate = KerasNetwork(keras.Model(image, dense[-1].input))
        given: Tensor = self._penultimate(images)
        return given.flatten(1).float()

    def trace_graph(self) -> Any:
        """Return the graph that Keras computes in inference mode, as a `GraphDef`.

        TensorBoard's own conversion of a model's layers leaves out the operations inside of them,
        and fails for a model that adds a number to a tensor.
        """
        tensorflow = import_tensorflow()
        (given,) = self.keras_model.inputs
        signature = tensorflow.TensorSpec(given.shape, given.dtype, name="images")
        compute = tensorflow.function(lambda images: self.keras_model(images, training=False))
        return compute.get_concrete_function(signature).graph.as_graph_def()


def _restore(
    original: Classifier, policy: Policy, output: Any, values: dict[str, list[Tensor]]
) -> KerasClassifier:
    model = KerasClassifier(original, policy, output)
    model._assign(values)
    return model


def _compile_twin(
    original: Classifier, policy: Policy, softmax: bool, copy_weights: bool | None
) -> Any:
    """Build and compile the twin, with all of its variables, as a plain Keras program does."""
    keras = import_keras()
    if copy_weights is None:
        copy_weights = original.hparams["initialization"] != "keras"
    with keras_dtype(policy), unchanged_random_state():
        random.seed(run_seed())  # from which Keras draws the seeds of initial weights and dropout
        keras_model = (to_keras if copy_weights else build_twin)(original, softmax)
        optimizer = to_keras_optimizer(original.optimizer(original.parameters()))
        optimizer.global_clipnorm = original.gradient_clip_norm
        average_weights(optimizer, original.average_decay)
        if original.decay_kernels_only:
            decay_kernels_only(optimizer, match(original, Graph(keras_model)))
        sparse = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        loss = keras.losses.CategoricalCrossentropy() if softmax else sparse
        keras_model.compile(optimizer, loss, metrics=["accuracy"])
        keras_model.optimizer.build(keras_model.trainable_variables)
        outputs = keras.ops.zeros((1, *keras_model.output_shape[1:]))
        labels = outputs if softmax else keras.ops.zeros((1,), "int64")
        keras_model.compute_metrics(None, labels, outputs, None)  # makes the accuracy's variables
        keras_model.make_train_function()
    return keras_model


def _compile_steps(keras_model: Any, policy: Policy, softmax: bool) -> Any:
    """Make a function that trains on several batches in turn, by Keras's `train_function`.

    Its loop is TensorFlow's: the way back to Python costs as much as a small network's step. It
    takes images `(N, 28, 28, C)` and labels `(N,)` of all batches, a learning rate for each, and
    the size of the first; and returns the mean loss and accuracy of each, float64 `(batches, 2)`.
    """
    tensorflow = import_tensorflow()
    floats = "float64" if policy == "float64" else "float32"
    classes = keras_model.output_shape[-1]

    def train_steps(images: Any, labels: Any, rates: Any, size: Any) -> Any:
        def step(i: Any, scores: Any) -> tuple[Any, Any]:
            batch = slice(i * size, (i + 1) * size)
            targets = labels[batch]
            if softmax:
                targets = tensorflow.one_hot(targets, classes, dtype=floats)
            keras_model.optimizer.learning_rate.assign(rates[i])
            keras_model.reset_metrics()
            logs = keras_model.train_function([(images[batch], targets)])
            score = [tensorflow.cast(logs[name], "float64") for name in ("loss", "accuracy")]
            return i + 1, scores.write(i, tensorflow.stack(score))

        steps = tensorflow.shape(rates)[0]
        scores = tensorflow.TensorArray("float64", steps, element_shape=(2,))
        start = (tensorflow.constant(0), scores)
        _, scores = tensorflow.while_loop(
            lambda i, _: i < steps, step, start, parallel_iterations=1
        )
        return scores.stack()

    shapes = [(None, *keras_model.input_shape[1:]), (None,), (None,), ()]
    signature = list(map(tensorflow.TensorSpec, shapes, (floats, "int64", floats, "int32")))
    return tensorflow.function(train_steps, input_signature=signature, autograph=False)


def _to_tensor(variable: Any) -> Tensor:
    array = np.array(variable.numpy())
    # Few of torch's functions know unsigned integers, which the seeds are.
    return torch.from_numpy(array.astype(np.int64) if array.dtype.kind == "u" else array)


def _check_original(original: Classifier) -> None:
    if original.label_smoothing:
        raise ValueError(
            f"label_smoothing is {original.label_smoothing}: Keras's cross-entropy of integer "
            "labels has none; set --model.label_smoothing 0"
        )
    if original.dropout_in_evaluation:
        raise ValueError(
            "dropout_in_evaluation is True: Keras switches dropout off when it evaluates; leave it "
            "out"
        )
    kind = type(original)
    for name in dir(Classifier):
        own = getattr_static(kind, name) is not getattr_static(Classifier, name)
        if own and callable(getattr(Classifier, name)) and name[:2] != "__" and name != "forward":
            raise ValueError(
                f"{kind.__name__} has its own {name}, which the training of its Keras twin does "
                "not call: leave it out"
            )


def _unsupported(trainer: Trainer, policy: Policy) -> Iterator[tuple[str, str]]:
    """Yield each setting or callback that Keras's training step cannot honour, and the remedy."""
    precision, world = str(trainer.precision), trainer.world_size
    needed = POLICIES.get(precision)
    own = f'make the model with policy="{needed}"'
    for is_set, setting, remedy in (
        (needed is None, f"precision {precision}", f"use one of {', '.join(POLICIES)}"),
        (needed not in (None, "float32", policy), f"precision {precision} of the trainer", own),
        (world > 1, f"training in {world} processes", "set devices and num_nodes to 1"),
    ):
        if is_set:
            yield setting, remedy
    yield from of_automatic_optimization(trainer)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # set at run time
        for hook in _GRADIENT_HOOKS:
            if overrides(callback, Callback, hook):
                setting = f"{type(callback).__name__}.{hook}"
                yield setting, "leave the callback out, since it would see no gradients"


def _cycles_momentum(scheduler: Any) -> bool:
    parts = (scheduler, *getattr(scheduler, "_schedulers", ()))
    return any(getattr(part, "cycle_momentum", False) for part in parts)
