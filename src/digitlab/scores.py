"""Loss and accuracy over a set of images, exact for any batch sizes; predictions as rows."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self, TypedDict

import torch
from lightning.pytorch.strategies import Strategy
from torch import Tensor, nn

BATCHES_AT_ONCE = 32
"""Batches whose predictions are compared with the labels at once."""


class Score(TypedDict):
    """Mean `loss` in nats and `accuracy` in [0, 1]: `correct` of `n` images."""

    loss: float
    accuracy: float
    correct: int
    n: int


def describe_score(split: str, score: Score) -> str:
    """Format a score.

    Examples:
        >>> score = Score(loss=0.04124, accuracy=0.9871, correct=9871, n=10000)
        >>> describe_score("test", score)
        'test accuracy 98.71% (9871/10000), loss 0.0412'
    """
    counts = f"{score['correct']}/{score['n']}"
    return f"{split} accuracy {score['accuracy']:.2%} ({counts}), loss {score['loss']:.4f}"


class RunningScore:
    """Loss and correct predictions summed over the images seen so far, on their device.

    Nothing is read back before the end: reading a value each step would stall a GPU. Predictions of
    several batches are compared with the labels, and their losses added, at once: on small batches
    either costs as much as a layer. The sums are not buffers of the module: DDP overwrites every
    rank's buffers with the first rank's.

    Examples:
        >>> sums = RunningScore(torch.device("cpu"))
        >>> sums.add(torch.tensor(0.3), logits=torch.eye(3), labels=torch.tensor([0, 1, 0]))
        >>> sums.add(torch.tensor(0.7), logits=torch.eye(3)[:1], labels=torch.tensor([0]))
        >>> score = sums.score()
        >>> round(score["loss"], 6), score["accuracy"], score["correct"], score["n"]
        (0.4, 0.75, 3, 4)
    """

    def __init__(self, device: torch.device) -> None:
        # In float64, 60,000 summands stay exact to a float32's rounding; Apple's GPUs have none.
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self._loss = torch.zeros((), dtype=dtype, device=device)
        self._correct = torch.zeros((), dtype=torch.int64, device=device)
        self._waiting: list[tuple[Tensor, Tensor, Tensor]] = []  # of batches to be added up
        self._unchecked: list[Tensor] = []  # losses
        self.n = 0
        self._window_start = (self._loss.clone(), self._correct.clone(), 0)

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add a batch.

        Args:
            loss: Mean over the batch, a scalar.
            logits: `(N, num_classes)`, any float dtype.
            labels: int64 `(N,)`.
        """
        self._waiting.append((loss.detach(), logits.detach(), labels))
        if len(self._waiting) == BATCHES_AT_ONCE:
            self._add_up()
        self.n += labels.shape[0]

    def add_counts(self, loss: float, correct: int, n: int) -> None:
        """Add a batch whose mean loss and number of correct predictions are known."""
        self._loss += loss * n
        self._correct += correct
        self._unchecked.append(torch.tensor(loss))
        self.n += n

    @property
    def unchecked(self) -> int:
        """Number of batches since the last call of `not_finite`."""
        return len(self._unchecked) + len(self._waiting)

    def not_finite(self) -> tuple[int, float] | None:
        """Find the first infinite or NaN loss since the last call.

        Returns:
            How many batches ago it was (0 for the last), and the loss.
        """
        self._add_up()
        losses: list[float] = torch.stack(self._unchecked).tolist() if self._unchecked else []
        self._unchecked.clear()
        found = (i for i, loss in enumerate(losses) if not math.isfinite(loss))
        first = next(found, None)
        return None if first is None else (len(losses) - 1 - first, losses[first])

    @property
    def loss(self) -> Tensor:
        """Sum of the images' losses so far, scalar."""
        self._add_up()
        return self._loss

    @property
    def correct(self) -> Tensor:
        """Number of images classified correctly so far, int64 scalar."""
        self._add_up()
        return self._correct

    def _add_up(self) -> None:
        if self._waiting:
            losses, *tensors = zip(*self._waiting, strict=True)
            logits, labels = map(torch.cat, tensors)
            for loss, its_labels in zip(losses, tensors[1], strict=True):  # in the batches' order
                self._loss.add_(loss, alpha=len(its_labels))
            self._correct.add_((logits.argmax(1) == labels).sum())
            self._unchecked += losses
            self._waiting.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return the sums so far, on the CPU."""
        start = self._window_start
        return {
            "loss": self.loss.cpu(),
            "correct": self.correct.cpu(),
            "n": self.n,
            "window_start": (start[0].cpu(), start[1].cpu(), start[2]),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the sums that `state_dict` returned."""
        device = self.loss.device
        self._loss, self._correct = state["loss"].to(device), state["correct"].to(device)
        self.n = state["n"]
        loss, correct, n = state["window_start"]
        self._window_start = (loss.to(device), correct.to(device), n)

    def window(self) -> tuple[Tensor, Tensor]:
        """Compute mean loss and accuracy since the last call, scalars on the device."""
        loss, correct, n = self._window_start
        self._window_start = (self.loss.clone(), self.correct.clone(), self.n)
        return (self.loss - loss) / (self.n - n), (self.correct - correct) / (self.n - n)

    def reduce(self, strategy: Strategy) -> Self:
        """Add the sums of all processes, in place."""
        sums = torch.stack([self.loss, self.correct, torch.full_like(self.loss, self.n)])
        loss, correct, n = strategy.reduce(sums, reduce_op="sum")
        self._loss, self._correct, self.n = loss, correct.long(), int(n.item())
        return self

    def score(self) -> Score:
        """Read the sums back and divide; NaN where no image was added."""
        loss, correct = torch.stack([self.loss, self.correct.to(self.loss)]).tolist()
        n = self.n or float("nan")
        return {"loss": loss / n, "accuracy": correct / n, "correct": int(correct), "n": self.n}


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Switch dropout off in the `with` block, even for a `Classifier` that evaluates with it.

    Afterwards the modes of all its modules and the CPU's random numbers are as they were.
    """
    modes = {part: part.training for part in network.modules()}
    try:
        for part in modes:
            part.training = False  # `eval()` of a Classifier may keep dropout on
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def name_classes(names: Sequence[str], count: int) -> list[str]:
    r"""Name `count` classes, each on one line; a class without a name gets its number.

    Examples:
        >>> name_classes(("cat", "big\ndog"), 3)
        ['cat', 'big dog', '2']
    """
    named = [" ".join(name.split()) for name in names[:count]]
    return [*named, *map(str, range(len(named), count))]


def describe_predictions(
    logits: Tensor, labels: Tensor | None = None, names: Sequence[str] | None = None
) -> dict[str, Any]:
    """Turn logits `(N, num_classes)` into values for N images; names are by default numbers.

    Examples:
        >>> import torch
        >>> said = describe_predictions(torch.tensor([[0.0, 3.0]]), names=["cat", "dog"])
        >>> said["class_name"], round(said["probability"].item(), 4)
        (['dog'], 0.9526)
    """
    probabilities = logits.softmax(1)
    probability, predicted = probabilities.max(1)
    return {
        **({} if labels is None else {"label": labels}),
        "class": predicted,
        "class_name": [names[i] if names else str(i) for i in predicted.tolist()],
        "probability": probability,
        "probabilities": probabilities,
    }
