import numpy as np
import pytest

from digitlab.data import FashionMNISTDataModule, MNISTDataModule


@pytest.mark.parametrize(
    ("module", "train_size", "test_size"),
    [(MNISTDataModule, 60_000, 10_000), (FashionMNISTDataModule, 60_000, 10_000)],
    ids=["mnist", "fashion_mnist"],
)
@pytest.mark.usefixtures("real_data")
def test_real_data_sets_have_their_known_facts(
    module: type[MNISTDataModule], train_size: int, test_size: int
) -> None:
    data = module()
    images, labels = data.arrays("train")
    assert images.shape == (train_size, 28, 28)
    assert data.arrays("test")[0].shape == (test_size, 28, 28)
    assert sorted(set(labels.tolist())) == list(range(len(data.class_names)))
    mean_std = (round(float((images / 255).mean()), 4), round(float((images / 255).std()), 4))
    assert mean_std == data.mean_std
    assert (
        np.bincount(data.arrays("test")[1]).tolist()
        == {
            "mnist": [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
            "fashion_mnist": [1000] * 10,
        }[data.name]
    )


@pytest.mark.usefixtures("real_data")
def test_the_tutorials_training_images_are_the_last_55000_of_mnist() -> None:
    data = MNISTDataModule(train_images=(5000, 60_000))
    whole, _ = MNISTDataModule().arrays("train")
    assert np.array_equal(data.arrays("train")[0], whole[-55_000:])
