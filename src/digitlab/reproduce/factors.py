"""The differences between two configs, divided into factors that can be switched one by one."""

import copy
import inspect
from collections.abc import Iterator, Sequence
from pydoc import locate
from typing import Any, NamedTuple

import yaml

from digitlab.classifier import Classifier
from digitlab.cli.fit import FitCLI
from digitlab.cli.parser import check_settings, check_together
from digitlab.errors import InputError
from digitlab.reproduce.rows import SPEED

Config = dict[str, Any]
"""All settings of a run, nested as in its config.yaml."""
Keys = tuple[str, ...]
"""The keys that lead to a setting."""

DROPOUT = "dropout in evaluation"
IMAGES = "images evaluated"

_MODEL = ("model", "init_args")
_DATA = ("data", "init_args")
_SHARED = {*inspect.signature(Classifier).parameters} - {"network"}  # of all models
# Settings that only matter together, or that express one thing in several ways.
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
# The trainer's other settings that change the weights; it has some 40.
_TRAINER = (
    *("devices", "num_nodes", "precision", "callbacks", "plugins", "sync_batchnorm"),
    *("limit_train_batches", "overfit_batches", "accumulate_grad_batches"),
)
# Names, places and seeds do not distinguish experiments.
_IGNORED = (
    *(("name",), ("weights",), ("seed_everything",)),
    *((*_DATA, "root"), (*_DATA, "validation_seed")),
)
_FIRST = (DROPOUT, "normalization", "model", "initialization")
"""The factors shown first."""


def read_config(path: str) -> FitCLI:
    """Parse a config file as `digitlab fit` does, so that all defaults are explicit.

    Raises:
        ValueError, OSError: The config is wrong, or starts from another run's weights.
    """
    cli = _parse(["--config", path])
    if cli.config.weights:
        raise InputError(
            f"{path} starts from the weights {cli.config.weights}, a setting that cannot be "
            "switched: name a config that starts from random weights"
        )
    return cli


def parse_config(config: Config) -> FitCLI:
    """Parse a whole config, as if it were read from a file.

    Raises:
        ValueError: Its settings do not go together.
    """
    return _parse([], yaml.safe_dump(config))


def _parse(options: list[str], base: str = "{}") -> FitCLI:
    cli = FitCLI("fit", options, base=base)
    check_settings(cli)
    check_together(cli.model, cli.datamodule)
    return cli


def config_of(cli: FitCLI) -> Config:
    """Return all settings of a parsed config, except the run's name and its threads."""
    config: Config = yaml.safe_load(cli.dump())
    config["name"] = None
    config.pop("threads", None)  # the queue's
    trainer = config["trainer"]
    # The library's own callbacks do not change the weights.
    ours, callbacks = "digitlab.callbacks.", trainer["callbacks"] or []
    others = [callback for callback in callbacks if not callback["class_path"].startswith(ours)]
    # Without the last two a run leaves no weights to evaluate.
    trainer |= {"callbacks": others or None, "fast_dev_run": False, "enable_checkpointing": True}
    return config


def images_evaluated(cli: FitCLI) -> int:
    """Count the test images in the batches that a config evaluates on."""
    size, batch_size = cli.datamodule.size("test"), cli.datamodule.eval_batch_size
    return min(size, batches_evaluated(cli) * batch_size)


def batches_evaluated(cli: FitCLI) -> int:
    """Count the batches of the test split that `trainer.limit_val_batches` leaves, from the first.

    As in Lightning, a fraction means whole batches. 0 means no validation during training; the
    test split is still evaluated, so here it means all.
    """
    every = len(cli.datamodule.test_dataloader())
    limit = cli.config.trainer.limit_val_batches
    if not limit:
        return every
    return min(every, limit if isinstance(limit, int) else int(limit * every))


class Factor(NamedTuple):
    """A difference between two configs that is switched as a whole."""

    name: str  # the setting, such as `normalization` or `optimizer.eps`
    first: str  # the first config's value, for display
    second: str  # the second config's
    settings: tuple[Keys, ...] = ()  # the settings that are switched

    @property
    def needs_training(self) -> bool:
        """Whether it changes the training, and not only how a trained network is evaluated."""
        return self.name not in (DROPOUT, IMAGES)


def find_factors(first: FitCLI, second: FitCLI) -> list[Factor]:
    """Find the differences between two parsed configs.

    A setting whose classes differ is one factor with all their arguments, and so is the model; but
    the arguments of all models, such as the optimizer and initial values, are compared one by one.

    Raises:
        InputError: Their data sets differ.
    """
    ours, theirs = config_of(first), config_of(second)
    data = [config["data"]["class_path"] for config in (ours, theirs)]
    if data[0] != data[1]:
        raise InputError(
            f"data is {data[0]} in one config and {data[1]} in the other: no setting explains "
            "accuracies on different images, so name configs of one data set"
        )
    groups: dict[str, tuple[Keys, ...]] = {}
    for keys in _differences(ours, theirs):
        if name := _name(keys, ours, theirs):
            groups[name] = _TOGETHER.get(name) or (*groups.get(name, ()), keys)
    factors = [
        Factor(name, _format(name, ours, theirs, keys), _format(name, theirs, ours, keys), keys)
        for name, keys in groups.items()
        if name != IMAGES
    ]
    counts = [images_evaluated(cli) for cli in (first, second)] if IMAGES in groups else [0, 0]
    if counts[0] != counts[1]:
        factors.append(Factor(IMAGES, f"{counts[0]:,}", f"{counts[1]:,}", groups[IMAGES]))
    order = {name: place for place, name in enumerate(_FIRST)} | {IMAGES: len(_FIRST) + 1}
    return sorted(factors, key=lambda factor: order.get(factor.name, len(_FIRST)))


def switch(config: Config, factors: Sequence[Factor], source: Config) -> Config:
    """Return a config with the factors' values from `source`."""
    result = copy.deepcopy(config)
    for *parents, name in (keys for factor in factors for keys in factor.settings):
        target, theirs = _get(result, parents), _get(source, parents)
        target.pop(name, None)
        if name in theirs:  # some arguments belong to one model only
            target[name] = copy.deepcopy(theirs[name])
    return result


def _differences(ours: Any, theirs: Any, keys: Keys = ()) -> Iterator[Keys]:
    """Yield the keys of all settings that differ; a differing class is one setting."""
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


def _name(keys: Keys, ours: Config, theirs: Config) -> str:
    """Name the factor that a differing setting belongs to; empty if it is none."""
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


def _format(name: str, ours: Config, theirs: Config, settings: tuple[Keys, ...]) -> str:
    """Write one side's value of a factor."""
    if name == "model":
        arguments = ours["model"]["init_args"].items()
        own = {key: value for key, value in arguments if (*_MODEL, key) in settings}
        return _format_value(ours["model"] | {"init_args": own})
    values = {keys[-1]: _get(ours, keys) for keys in settings}
    if name not in _TOGETHER:
        return ", ".join(map(_format_value, values.values()))
    others = {keys[-1]: _get(theirs, keys) for keys in settings}
    return ", ".join(f"{n} {_format_value(v)}" for n, v in values.items() if v != others[n])


def _format_value(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if value is None:
        return "none"
    if isinstance(value, list):
        return f"[{', '.join(map(_format_value, value))}]"
    if not isinstance(value, dict) or "class_path" not in value:
        return f"{value:g}" if isinstance(value, float) else str(value)
    of_class = inspect.signature(locate(value["class_path"])).parameters  # type: ignore[arg-type]
    defaults = {name: parameter.default for name, parameter in of_class.items()}
    arguments = ", ".join(
        f"{name}={_format_value(argument)}"
        for name, argument in value.get("init_args", {}).items()
        if name not in SPEED and argument != _as_list(defaults.get(name, inspect.Parameter.empty))
    )
    short = value["class_path"].rpartition(".")[2]
    return f"{short}({arguments})" if arguments else short


def _as_list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value  # YAML has no tuples


def _get(config: Config, keys: Sequence[str]) -> Any:
    value: Any = config
    for key in keys:
        value = value.get(key)
    return value
