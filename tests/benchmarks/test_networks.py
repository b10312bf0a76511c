import pytest
import torch
from benchmarks.recipes import read_recipe
from benchmarks.variants import MODELS, Model

from digitlab.cli.parser import RunCLI


@pytest.mark.parametrize("model", MODELS.values(), ids=list(MODELS))
def test_a_plain_network_computes_what_digitlabs_does(model: Model) -> None:
    ours = RunCLI("fit", ["--config", str(model.path)]).model.network.eval()
    plain = read_recipe(model.path).network().eval()
    names = zip(plain.state_dict(), ours.state_dict().values(), strict=True)
    plain.load_state_dict(dict(names))
    images = torch.rand(4, 1, 28, 28)
    torch.testing.assert_close(plain(images), ours(images))  # channels last round otherwise
    assert [type(layer) for layer in plain.modules() if "Drop" in type(layer).__name__] == [
        type(layer) for layer in ours.modules() if "Drop" in type(layer).__name__
    ]


@pytest.mark.parametrize("model", MODELS.values(), ids=list(MODELS))
def test_a_plain_recipe_is_the_configs(model: Model) -> None:
    cli = RunCLI("fit", ["--config", str(model.path)])
    recipe = read_recipe(model.path)
    data = cli.datamodule
    assert recipe.dataset == type(data).__name__.removesuffix("DataModule")
    assert recipe.batch_size == data.batch_size
    assert recipe.train_images == slice(*(data.train_images or (0, None)))
    scales = {"unit": None, "symmetric": (0.5, 0.5), "standard": data.mean_std}
    assert recipe.mean_std == scales[data.normalization]
    ours = cli.model.optimizer(cli.model.parameters())
    plain = recipe.optimizer(recipe.network().parameters())
    assert isinstance(ours, type(plain))  # digitlab's RMSprop is a subclass of torch's
    of_speed = {"fused": None, "foreach": None}
    assert plain.defaults | of_speed == ours.defaults | of_speed
