from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from digitlab import models
from digitlab.parity.backend import import_keras, keras_dtype
from digitlab.parity.checks import evaluation_mode, keras_images, logits
from digitlab.parity.weights import to_keras
from tests.parity.nets import DocumentStyle

pytestmark = pytest.mark.skipif(not find_spec("tensorflow"), reason="needs the extra `parity`")


def test_dropout_is_off_and_every_mode_is_restored() -> None:
    model = models.MLP([16], dropout=0.5, dropout_in_evaluation=True)
    model.train()
    model.network.get_submodule("relu1").eval()
    modes = [part.training for part in model.modules()]
    state = torch.get_rng_state()
    images = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    assert logits(model, to_keras(model), images).passed
    assert [part.training for part in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)


def test_modes_and_random_state_are_restored_after_an_error() -> None:
    model, state = DocumentStyle(), torch.get_rng_state()
    model.f1.eval()

    def fail() -> None:
        with evaluation_mode(model):
            assert not any(part.training for part in model.modules())
            torch.rand(1)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [part.training for part in model.modules()] == [True, True, True, False, True]
    assert torch.equal(torch.get_rng_state(), state)


def test_images_are_laid_out_as_the_keras_model_reads_them() -> None:
    keras = import_keras()
    images = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5).float()

    def read(shape: tuple[int | None, ...], given: Tensor = images) -> Any:
        inputs = keras.Input(shape)
        return keras_images(keras.Model(inputs, keras.layers.Identity()(inputs)), given)

    last = images.permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(read((4, 5, 3)), last)
    np.testing.assert_array_equal(read((None, None, 3)), last)
    np.testing.assert_array_equal(read((60,)), images.flatten(1).numpy())
    np.testing.assert_array_equal(read((3, 4, 5)), images.numpy())
    np.testing.assert_array_equal(read((4, 5), images[:, :1]), images[:, 0].numpy())
    with keras_dtype("float64"):
        assert read((4, 5, 3)).dtype == np.float64
    with pytest.raises(ValueError, match=r"reads \(4, 5\), and the images are .* = \(3, 4, 5\)"):
        read((4, 5))
    with pytest.raises(ValueError, match=r"images are \(2, 60\): they must be \(N, C, H, W\)"):
        read((60,), images.flatten(1))
    with pytest.raises(ValueError, match="has 0 inputs of known shape: give it one keras"):
        keras_images(keras.Sequential([keras.layers.Dense(1)]), images)
