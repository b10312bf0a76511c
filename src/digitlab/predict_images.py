"""`digitlab predict --run RUN_DIR photo.png …`: classify image files of one's own."""

import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any, cast

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser
from PIL import Image

from digitlab import runs
from digitlab.classifier import Classifier
from digitlab.data import ImageDataModule
from digitlab.images import Prepared, open_image

COLUMNS = ("file", "class", "class_name", "probability", "probabilities", "error")
TRAINER: dict[str, Any] = {"limit_predict_batches": 1.0, "fast_dev_run": False}
"""Settings of the trainer with which no image is left out."""


def add_options(parser: LightningArgumentParser) -> None:
    """Add the options that go with image files."""
    group = parser.add_argument_group(
        "Image files",
        "Words behind no option are image files, as in digitlab predict --run latest photo.png "
        "more/*.jpg. They are classified instead of the test split, each prepared as the images "
        "that the run was trained on were. Behind -- all words are files.",
    )
    group.add_argument("--json", type=str, help="JSON file to write a row for each image to.")
    group.add_argument("--csv", type=str, help="CSV file to write a row for each image to.")
    group.add_argument(
        *("--save_prepared", "--save-prepared"),
        type=str,
        help="Folder to write the prepared images to, as PNG files of 28x28 pixels to look at.",
    )


def split_files(words: list[str]) -> tuple[list[str], list[str]]:
    """Separate image files from options, each of which has its value behind it or behind a `=`.

    >>> split_files(["a.png", "--run", "latest", "b.png", "--csv=x.csv", "--", "-c.png"])
    (['a.png', 'b.png', '-c.png'], ['--run', 'latest', '--csv=x.csv'])
    """
    files: list[str] = []
    options: list[str] = []
    rest = iter(words)
    for word in rest:
        if word == "--":
            files += rest
        elif not word.startswith("-"):
            files.append(word)
        else:
            options.append(word)
            if "=" not in word and word != "--print_config":
                options += [value for value in [next(rest, None)] if value is not None]
    return files, options


@dataclass
class OwnImages:
    """Image files to be classified, and where to write what comes out.

    Args:
        files: Their paths, at least one.
        json: A file for the rows, if wanted, as is `csv`.
        csv: Another.
        save_prepared: A folder for the prepared images, if wanted; made if it is missing.
    """

    files: Sequence[str]
    json: str | None = None
    csv: str | None = None
    save_prepared: str | None = None

    def classify(self, trainer: Trainer, model: Classifier, data: ImageDataModule) -> int:
        """Prepare and classify the images, print a line for each, and write what is wanted.

        Returns:
            The exit code: 1 if there is an image that was not classified, else 0.
        """
        prepared = [_prepare(Path(file), data) for file in self.files]
        images = [image for image in prepared if isinstance(image, Prepared)]
        predictions = iter(_predict(trainer, model, data, images))
        rows: list[dict[str, Any]] = []
        for file, image in zip(self.files, prepared, strict=True):
            said = next(predictions) if isinstance(image, Prepared) else {"error": image}
            rows.append({"file": _printable(file), **said})
            _say(rows[-1], image)
        failures = sum("error" in row for row in rows)
        if len(rows) > 1:
            print(f"{len(rows) - failures} of {len(rows)} images are classified")
        self._write(rows, prepared)
        return 1 if failures else 0

    def _write(self, rows: list[dict[str, Any]], prepared: list[Prepared | str]) -> None:
        if self.save_prepared is not None:
            _save(self.files, prepared, Path(self.save_prepared))
            print(f"Written to {self.save_prepared}")
        if self.json is not None:
            lines = ",\n".join(json.dumps(row) for row in rows)
            runs.write_text(Path(self.json), f"[\n{lines}\n]\n")
            print(f"Written to {self.json}")
        if self.csv is not None:
            runs.write_csv(Path(self.csv), [dict.fromkeys(COLUMNS) | row for row in rows])
            print(f"Written to {self.csv}")


def read_options(files: Sequence[str], options: Any) -> OwnImages | None:
    """Check what is wanted of image files, and where to write it.

    Returns:
        None if there are no files, and so the test split is meant.

    Raises:
        ValueError, OSError: There is nowhere to write to, or nothing to write.
    """
    given = {name: options[name] for name in ("json", "csv", "save_prepared")}
    for name, path in given.items():
        if path is not None and not files:
            raise ValueError(
                f"{name} is {path}, but there are no images: name their files, as in "
                "digitlab predict --run latest photo.png"
            )
        if path is not None and name != "save_prepared":
            if Path(path).is_dir():
                raise ValueError(f"{name} is {path}, a folder: give a file's name")
            if not Path(path).parent.is_dir():
                raise ValueError(f"{name} is {path}: there is no folder {Path(path).parent}")
    if given["save_prepared"] is not None:
        Path(given["save_prepared"]).mkdir(parents=True, exist_ok=True)
    return OwnImages(files, **given) if files else None


def _prepare(path: Path, data: ImageDataModule) -> Prepared | str:
    """Open and prepare an image, or say what is wrong with it."""
    try:
        image, steps = open_image(path)
        prepared = data.prepare_image(image)
    except (ValueError, OSError, MemoryError) as error:
        return getattr(error, "strerror", None) or str(error) or type(error).__name__
    return Prepared(prepared.pixels, (*steps, *prepared.steps))


def _predict(
    trainer: Trainer, model: Classifier, data: ImageDataModule, images: list[Prepared]
) -> Iterator[dict[str, Any]]:
    if not images:
        return
    loader = data.image_loader(np.stack([image.pixels for image in images]))
    for batch in cast("list[dict[str, Any]]", trainer.predict(model, loader)):
        columns = (batch[name].tolist() for name in ("class", "probability", "probabilities"))
        for number, probability, probabilities in zip(*columns, strict=True):
            if not math.isfinite(probability):
                yield {"error": "the network gives a value that is not finite: train it anew"}
                continue
            yield {
                "class": number,
                "class_name": data.class_names[number],
                "probability": probability,
                "probabilities": probabilities,
            }


def _say(row: dict[str, Any], image: Prepared | str) -> None:
    if isinstance(image, str) or "error" in row:
        print(f"digitlab: error: {row['file']}: {row['error']}", file=sys.stderr)
    else:
        steps = ", ".join(image.steps)
        # Flushed, so that lines and errors keep their order where both go to one file.
        print(f"{row['file']}: {row['class_name']} ({row['probability']:.2%}); {steps}", flush=True)


def _save(files: Sequence[str], prepared: Sequence[Prepared | str], folder: Path) -> None:
    taken: set[str] = set()
    for file, image in zip(files, prepared, strict=True):
        if isinstance(image, str):
            continue
        # Another name than the photograph's own, which may lie in that folder.
        ends = chain([""], map("-{}".format, count(2)))
        names = (f"{Path(file).stem}-prepared{end}.png" for end in ends)
        name = next(name for name in names if name not in taken)
        taken.add(name)
        Image.fromarray(image.pixels).save(folder / name)


def _printable(file: str) -> str:
    """Name a file, also if its name is not in the system's encoding."""
    return file.encode("utf-8", "backslashreplace").decode()
