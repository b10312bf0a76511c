"""All settings of a config: what of a run they say, and a parser's checks of them."""

from typing import Any

import yaml

from digitlab.checks import check_settings, check_together
from digitlab.fit import FitCLI

Settings = dict[str, Any]
"""All settings of a run, nested as in its config.yaml."""

_WATCHERS = "digitlab.callbacks."


def resolve(config: str) -> FitCLI:
    """Parse a config file as `digitlab fit` does, so that all defaults are explicit.

    Raises:
        ValueError, OSError: The config is wrong, or goes on from another run's weights.
    """
    cli = _check(FitCLI("fit", ["--config", config]))
    if cli.config.weights:
        raise ValueError(
            f"{config} goes on from the weights {cli.config.weights}, which is no setting that "
            "can be switched: name a config that starts from random weights"
        )
    return cli


def parse(settings: Settings) -> FitCLI:
    """Parse whole settings, as a config file with them would be.

    Raises:
        ValueError: They do not go together.
    """
    return _check(FitCLI("fit", [], base=yaml.safe_dump(settings)))


def settings_of(cli: FitCLI) -> Settings:
    """Give all settings of a parsed config, but for a run's name."""
    settings: Settings = yaml.safe_load(cli.dump())
    settings["name"] = None
    trainer = settings["trainer"]
    # Our own callbacks only watch.
    others = [c for c in trainer["callbacks"] or [] if not c["class_path"].startswith(_WATCHERS)]
    # Without the last two a run leaves no weights that could be evaluated.
    trainer |= {"callbacks": others or None, "fast_dev_run": False, "enable_checkpointing": True}
    return settings


def images_evaluated(cli: FitCLI) -> int:
    """Count the test images in the batches that a config evaluates on."""
    size, batch_size = cli.datamodule.size("test"), cli.datamodule.eval_batch_size
    return min(size, batches_evaluated(cli) * batch_size)


def batches_evaluated(cli: FitCLI) -> int:
    """Count the batches of the test split that `trainer.limit_val_batches` leaves, from the first.

    As in Lightning, a fraction means whole batches. 0 means no validation during training; the
    test split is evaluated on nevertheless, so here it means all.
    """
    every = len(cli.datamodule.test_dataloader())
    limit = cli.config.trainer.limit_val_batches
    if not limit:
        return every
    return min(every, limit if isinstance(limit, int) else int(limit * every))


def _check(cli: FitCLI) -> FitCLI:
    check_settings(cli)
    check_together(cli.model, cli.datamodule)
    return cli
