"""The documents' own pattern: torchvision's data set, a transform per sample, a plain loop.

As the documents' PyTorch programs do, it reads values back from the steps: document B's program
reads the loss and the correct answers of each step and prints every 50 steps; document A's, the
example net, reads every tenth loss. Document A's recipes for Keras and TensorFlow are trained in
document B's way.
"""

import sys
from itertools import chain, repeat

from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.contestants.arguments import contestant_parser
from benchmarks.contestants.samples import make_loader
from benchmarks.recipes import read_recipe
from benchmarks.turns import Turns

_OF_DOCUMENT_A = "pytorch_example_net"


def main() -> None:
    """Train until there are no more turns."""
    args = contestant_parser(__doc__).parse_args()
    recipe = read_recipe(args.config)
    loader = make_loader(recipe)
    network = recipe.network().to(args.device)
    optimizer = recipe.optimizer(network.parameters())
    progress: Progress = ProgressOfA() if args.config.stem == _OF_DOCUMENT_A else ProgressOfB()
    turns = Turns(args.steps)
    turns.start()
    epochs = chain.from_iterable(repeat(loader))
    for step, (images, labels) in enumerate(epochs, start=1):
        images, labels = images.to(args.device), labels.to(args.device)
        logits = network(images)
        loss = cross_entropy(logits, labels)
        progress.read(loss, logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        progress.show(step, loss)
        turns.count(step)


class Progress:
    """The values that a document's program reads and prints."""

    def read(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Read a step's values, before its gradients are computed."""

    def show(self, step: int, loss: Tensor) -> None:
        """Print, if it is time, after a step."""


class ProgressOfA(Progress):
    """Document A: a loss is read only to be printed."""

    def show(self, step: int, loss: Tensor) -> None:
        """Print every tenth loss."""
        if step % 10 == 0:
            print(f"step {step} loss {loss.item():.6f}")


class ProgressOfB(Progress):
    """Document B: loss and accuracy are means over 50 steps."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self._loss, self._correct, self._images = 0.0, 0.0, 0

    def read(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add up loss and correct answers, as Python's numbers."""
        self._correct += (logits.argmax(1) == labels).sum().item()
        self._loss += loss.item() * labels.size(0)
        self._images += labels.size(0)

    def show(self, step: int, loss: Tensor) -> None:
        """Print the means and start over."""
        if step % 50 == 0:
            means = self._loss / self._images, self._correct / self._images
            sys.stdout.write(f"\r{step} loss {means[0]:.3f} accuracy {means[1]:.3f}")
            self._start()


if __name__ == "__main__":
    main()
