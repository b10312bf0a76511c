"""What differs between two configs, divided into factors that can be switched one by one."""

import copy
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pydoc import locate
from typing import Any

import yaml

from digitlab.classifier import Classifier
from digitlab.cli.fit import FitCLI
from digitlab.cli.parser import check_settings, check_together
from digitlab.reproduce.rows import SPEED

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


Keys = tuple[str, ...]
"""Where a setting is: the keys that lead to it."""

DROPOUT = "dropout in evaluation"
IMAGES = "images evaluated"

_MODEL = ("model", "init_args")
_DATA = ("data", "init_args")
_SHARED = {*inspect.signature(Classifier).parameters} - {"network"}  # what all models have
# Settings that matter only together, or that say one thing in several ways.
_TOGETHER: dict[str, tuple[Keys, ...]] = {
    "length of training": tuple(
        ("trainer", name) for name in ("max_epochs", "max_steps", "min_epochs", "min_steps")
    ),
    "learning rate schedule": ((*_MODEL, "lr_scheduler"), (*_MODEL, "lr_scheduler_interval")),
    "gradient clipping": (
        (*_MODEL, "gradient_clip_norm"),
        ("trainer", "gradient_clip_val"),
        ("trainer", "gradient_clip_algorithm"),
    ),
    IMAGES: (("trainer", "limit_val_batches"), (*_DATA, "eval_batch_size")),
}
# Of the trainer's some 40 settings, those besides that change what a network learns.
_TRAINER = (
    *("devices", "num_nodes", "precision", "callbacks", "plugins", "sync_batchnorm"),
    *("limit_train_batches", "overfit_batches", "accumulate_grad_batches"),
)
# Names, places and seeds: no difference between experiments.
_IGNORED = (
    *(("name",), ("weights",), ("seed_everything",)),
    *((*_DATA, "root"), (*_DATA, "validation_seed")),
)
_FIRST = (DROPOUT, "normalization", "model", "initialization")  # the usual suspects


@dataclass(frozen=True)
class Factor:
    """A difference between two configs that is switched as a whole.

    Args:
        name: What differs, such as `normalization` or `optimizer.eps`.
        first: The first config's value, for display.
        second: The second config's.
        settings: The settings that are switched.
    """

    name: str
    first: str
    second: str
    settings: tuple[Keys, ...] = ()

    @property
    def needs_training(self) -> bool:
        """Whether it changes the training, and not only how a trained network is evaluated."""
        return self.name not in (DROPOUT, IMAGES)


def find_factors(first: FitCLI, second: FitCLI) -> list[Factor]:
    """Find what differs between two parsed configs.

    A setting whose classes differ is one factor with all their arguments, and so is the model; but
    what all models have, such as an optimizer and initial values, is compared by itself.

    Raises:
        ValueError: They are of different data sets.
    """
    ours, theirs = settings_of(first), settings_of(second)
    data = [settings["data"]["class_path"] for settings in (ours, theirs)]
    if data[0] != data[1]:
        raise ValueError(
            f"data is {data[0]} in one config and {data[1]} in the other: no setting explains "
            "accuracies on different images, so name configs of one data set"
        )
    groups: dict[str, tuple[Keys, ...]] = {}
    for keys in _differences(ours, theirs):
        name = _name(keys, ours, theirs)
        groups[name] = _TOGETHER.get(name) or (*groups.get(name, ()), keys)
    groups.pop("", None)
    factors = [
        Factor(name, _say(name, ours, theirs, groups), _say(name, theirs, ours, groups), settings)
        for name, settings in groups.items()
        if name != IMAGES
    ]
    counts = [images_evaluated(cli) for cli in (first, second)] if IMAGES in groups else [0, 0]
    if counts[0] != counts[1]:
        factors.append(Factor(IMAGES, f"{counts[0]:,}", f"{counts[1]:,}", groups[IMAGES]))
    return sorted(factors, key=_order)


def switch(settings: Settings, factors: Sequence[Factor], source: Settings) -> Settings:
    """Give settings in which the factors' values are those of `source`."""
    result = copy.deepcopy(settings)
    for *parents, name in (keys for factor in factors for keys in factor.settings):
        target, theirs = _get(result, parents), _get(source, parents)
        target.pop(name, None)
        if name in theirs:  # some arguments are of one model only
            target[name] = copy.deepcopy(theirs[name])
    return result


def _differences(ours: Any, theirs: Any, keys: Keys = ()) -> Iterator[Keys]:
    """Give the keys of all settings that differ, down to where classes do."""
    if not isinstance(ours, dict) or not isinstance(theirs, dict):
        if ours != theirs:
            yield keys
    elif keys != ("model",) and ours.get("class_path") != theirs.get("class_path"):
        yield keys
    else:
        for key in {**ours, **theirs}:
            if key in SPEED:
                continue
            if key in ours and key in theirs:
                yield from _differences(ours[key], theirs[key], (*keys, key))
            else:
                yield (*keys, key)


def _name(keys: Keys, ours: Settings, theirs: Settings) -> str:
    """Name the factor that a differing setting belongs to; nothing where it is none."""
    for name, group in _TOGETHER.items():
        if any(keys[: len(prefix)] == prefix for prefix in group):
            return name
    if keys in _IGNORED or (keys[0] == "trainer" and keys[1] not in _TRAINER):
        return ""
    models = ours["model"], theirs["model"]
    if keys[0] == "model" and models[0]["class_path"] != models[1]["class_path"]:
        shared = _SHARED.intersection(*(model["init_args"] for model in models))
        if not shared.intersection(keys):
            return "model"
    words = [key for key in keys[1:] if key != "init_args"]
    return words[0].replace("_", " ") if len(words) == 1 else ".".join(words)


def _say(name: str, ours: Settings, theirs: Settings, groups: dict[str, tuple[Keys, ...]]) -> str:
    """Say one side's value of a factor."""
    if name == "model":
        arguments = ours["model"]["init_args"].items()
        own = {key: value for key, value in arguments if (*_MODEL, key) in groups[name]}
        return _say_value(ours["model"] | {"init_args": own})
    values = {keys[-1]: _get(ours, keys) for keys in groups[name]}
    if name not in _TOGETHER:
        return ", ".join(map(_say_value, values.values()))
    others = {keys[-1]: _get(theirs, keys) for keys in groups[name]}
    return ", ".join(f"{n} {_say_value(v)}" for n, v in values.items() if v != others[n])


def _say_value(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if value is None:
        return "none"
    if isinstance(value, list):
        return f"[{', '.join(map(_say_value, value))}]"
    if not isinstance(value, dict) or "class_path" not in value:
        return f"{value:g}" if isinstance(value, float) else str(value)
    of_class = inspect.signature(locate(value["class_path"])).parameters  # type: ignore[arg-type]
    arguments = ", ".join(
        f"{name}={_say_value(argument)}"
        for name, argument in value.get("init_args", {}).items()
        if name not in SPEED
        and (name not in of_class or _differs(argument, of_class[name].default))
    )
    short = value["class_path"].rpartition(".")[2]
    return f"{short}({arguments})" if arguments else short


def _differs(argument: Any, default: Any) -> bool:
    return bool(argument != (list(default) if isinstance(default, tuple) else default))


def _get(settings: Settings, keys: Sequence[str]) -> Any:
    value: Any = settings
    for key in keys:
        value = value.get(key)
    return value


def _order(factor: Factor) -> int:
    if factor.name == IMAGES:
        return len(_FIRST) + 1
    return _FIRST.index(factor.name) if factor.name in _FIRST else len(_FIRST)
