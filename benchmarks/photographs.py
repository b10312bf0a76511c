"""Measure the accuracy of `digitlab predict` on photographs made from MNIST's test images.

    DIGITLAB_DATA=data python -m benchmarks.photographs --run RUN_DIR [--out FILE.json]

The run is one of MNIST, such as `digitlab fit --config configs/mnist/lenet5.yaml`. Each image
becomes a JPEG file of 200x200 pixels: enlarged, rotated and shifted, in dark ink on unevenly lit
paper, with a sensor's noise. The command classifies the files, and its rows are compared with the
labels. The difference from the run's accuracy on the test images is due to the photographs and
their preparation.
"""

import io
import json
import os
from argparse import ArgumentParser
from contextlib import redirect_stdout
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.machine import describe_machine, versions
from digitlab import run_folder
from digitlab.cli import main as digitlab
from digitlab.data import MNISTDataModule

SIDE = 200
LIBRARIES = {name: version(name) for name in ("numpy", "pillow", "scipy")}


def main() -> None:
    """Measure, print the result, and write a file if asked to."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="run folder of a network on MNIST")
    parser.add_argument("--images", type=int, default=10_000, help="number of test images")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the photographs' random properties"
    )
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    result = measure(args.run, args.images, args.seed)
    result |= {"machine": describe_machine(args.threads, "cpu"), "versions": versions() | LIBRARIES}
    print("photographs {accuracy:.2f}% of {n}, the run {test_accuracy:.2f}%".format(**result))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


def measure(run: Path, number: int, seed: int) -> dict[str, Any]:
    """Photograph and classify; return the accuracy in per cent, and the run's on the test split."""
    images, labels = (array[:number] for array in MNISTDataModule().arrays("test"))
    with TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        files = [Path(folder, f"{i}.jpg") for i in range(len(images))]
        for i, (file, image) in enumerate(zip(files, images, strict=True)):
            file.write_bytes(photograph(image, np.random.default_rng([seed, i])))
        rows = Path(folder, "rows.json")
        words = ["predict", "--run", str(run), "--trainer.accelerator", "cpu", "--json", str(rows)]
        words += ["--threads", str(torch.get_num_threads())]
        digitlab([*words, *map(str, files)])  # a refused file counts as wrong
        predicted = [row.get("class") for row in json.loads(rows.read_text("utf-8"))]
    correct = sum(ours == label for ours, label in zip(predicted, labels.tolist(), strict=True))
    metrics = run_folder.read_metrics(run)
    return {
        "model": metrics["model"],
        "n": len(labels),
        "seed": seed,
        "correct": correct,
        "refused": predicted.count(None),
        "accuracy": 100 * correct / len(labels),
        "test_accuracy": round(100 * metrics["test"]["accuracy"], 4),
        "pixels": [SIDE, SIDE],
    }


def photograph(image: NDArray[np.uint8], generator: np.random.Generator) -> bytes:
    """Make a JPEG file of an image, uint8 `(28, 28)`, light on dark."""
    enlarged = round(28 * generator.uniform(3.5, 6.5))
    digit = Image.fromarray(image).resize((enlarged, enlarged), Image.Resampling.BICUBIC)
    digit = digit.rotate(generator.uniform(-8, 8), Image.Resampling.BICUBIC)
    page = Image.new("L", (SIDE, SIDE))
    left, top = generator.integers(0, SIDE - enlarged + 1, 2).tolist()
    page.paste(digit, (left, top))
    ink = np.asarray(page, np.float64) / 255 * generator.uniform(0.55, 0.9)
    grey = _light(generator) * (1 - ink) + generator.normal(0, generator.uniform(2, 8), ink.shape)
    file = io.BytesIO()
    quality = int(generator.integers(50, 96))
    Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=quality)
    return file.getvalue()


def _light(generator: np.random.Generator) -> NDArray[np.float64]:
    """Draw the brightness of paper, `(200, 200)`: higher towards one side, and in the middle."""
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    angle = generator.uniform(0, 2 * np.pi)
    side = generator.uniform(0, 0.25) * (x * np.cos(angle) + y * np.sin(angle))
    corners = generator.uniform(0, 0.1) * (x**2 + y**2)
    light: NDArray[np.float64] = generator.uniform(170, 240) * (1 + side - corners)
    return light


if __name__ == "__main__":
    main()
