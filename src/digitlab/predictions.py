"""What a network says of images, in words and numbers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Have no dropout in the `with` block, also where a `Classifier` leaves it on in evaluation.

    So neither the weights nor the random numbers of a run are touched.
    """
    was_training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(was_training)


def name_classes(names: Sequence[str], count: int) -> list[str]:
    r"""Name so many classes, each in a line; those without a name by their numbers.

    Examples:
        >>> name_classes(("cat", "big\ndog"), 3)
        ['cat', 'big dog', '2']
    """
    named = [" ".join(name.split()) for name in names[:count]]
    return [*named, *map(str, range(len(named), count))]


def describe_predictions(
    logits: Tensor, labels: Tensor | None = None, names: Sequence[str] | None = None
) -> dict[str, Any]:
    """Turn logits into predictions.

    Args:
        logits: `(N, num_classes)`, float32 or wider.
        labels: int64 `(N,)`, if they are known.
        names: Of all classes; their numbers if not given.

    Returns:
        `label` int64 `(N,)` where labels were given, `class` int64 `(N,)`, `class_name` (N
        strings), `probability` of that class `(N,)`, and `probabilities` `(N, num_classes)`.

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
