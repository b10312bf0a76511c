"""Imports what each process needs, once, before it is forked."""

import encodings.utf_8_sig  # noqa: F401  # read now, since another user may not find it later
import io

import numpy as np

import tests.tiny
from digitlab import cli

cli.prepare_process()

# Only now: it would import TensorFlow.
import torch.utils.tensorboard  # noqa: E402, F401
from sklearn.model_selection import train_test_split  # noqa: E402, F401

import tests.faults.processes  # noqa: E402, F401
from digitlab.callbacks.pictures import draw_curves, draw_images  # noqa: E402
from digitlab.cli.fit import read_fit  # noqa: E402

draw_images(np.zeros((2, 28, 28), np.uint8), ["0", "1"])
draw_curves({}, "", "").savefig(io.BytesIO())
words = ["--model", "MLP", "--data", "tests.tiny.TinyDataModule", "--trainer.max_epochs", "1"]
read_fit("fit", words)
