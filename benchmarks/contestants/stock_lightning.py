"""The documents' loader under a stock Lightning Trainer, as its guide teaches.

Loss and torchmetrics' accuracy are logged each step; bar, TensorBoard logger and checkpoints are
on, with Lightning's own settings. Its bar is Rich's if Rich is installed, as it is with Keras.
"""

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchmetrics.classification import MulticlassAccuracy

from benchmarks.callbacks import TakeTurns
from benchmarks.contestants.arguments import contestant_parser
from benchmarks.contestants.samples import make_loader
from benchmarks.recipes import Recipe, read_recipe


class StockModule(LightningModule):
    """A network as a LightningModule in the style of Lightning's guide.

    Args:
        recipe: What to train.
    """

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.network = recipe.network()
        self.accuracy = MulticlassAccuracy(10, average="micro")

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Compute the loss; log it, and the accuracy."""
        images, labels = batch
        logits = self.network(images)
        loss = cross_entropy(logits, labels)
        self.accuracy(logits, labels)
        self.log("train/loss", loss, prog_bar=True)
        self.log("train/accuracy", self.accuracy, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        """Make the optimizer."""
        return self.recipe.optimizer(self.parameters())


def main() -> None:
    """Train until there are no more turns."""
    parser = contestant_parser(__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="Folder for the run's files.")
    args = parser.parse_args()
    trainer = Trainer(
        accelerator="gpu" if args.device == "cuda" else "cpu",
        devices=1,
        max_epochs=-1,
        logger=TensorBoardLogger(args.folder),
        callbacks=[TakeTurns(args.steps)],
        default_root_dir=args.folder,
    )
    recipe = read_recipe(args.config)
    trainer.fit(StockModule(recipe), make_loader(recipe))


if __name__ == "__main__":
    main()
