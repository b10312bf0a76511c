"""Targets for step times: bounds on the ratio of two variants' times, for each model."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

Rounds = Sequence[float]
"""Microseconds per optimizer step, or ratios of them, of each round."""


@dataclass(frozen=True)
class Target:
    """A bound on the ratio of two variants' times.

    Args:
        ours: Variant in the numerator; of several, such as `keras_*`, the fastest counts.
        theirs: Variants for the denominator; the first that was measured counts.
        bounds: The bound of each model that has one.
        at_most: Whether the ratio is to be at most, rather than at least, that.
    """

    ours: str
    theirs: tuple[str, ...]
    bounds: dict[str, float]
    at_most: bool = False

    def sides(self, measured: dict[str, Rounds]) -> tuple[str, str] | None:
        """Choose the two variants, if both were measured; `keras_*` takes Keras's fastest."""
        prefix, star, _ = self.ours.partition("*")
        ours = [name for name in measured if name == prefix or (star and name.startswith(prefix))]
        theirs = [name for name in self.theirs if name in measured]
        if not ours or not theirs:
            return None
        return min(ours, key=lambda name: median(measured[name])), theirs[0]


_RAW = ("raw_fused", "raw")  # the same optimizer as digitlab's
_SMALL = ("nn128", "lenet5", "example_net", "mlp512")
_LARGE = ("lenet1", "tutorial_cnn")

_FULL_SPEED = dict.fromkeys(_SMALL[:3], 1.10) | dict.fromkeys((*_SMALL[3:], *_LARGE), 1.05)

TARGETS = [
    Target("digitlab", _RAW, _FULL_SPEED, at_most=True),
    # The same bound against a loop that knows all of digitlab's tricks.
    Target("digitlab", ("raw_tuned",), _FULL_SPEED, at_most=True),
    Target(
        "digitlab_1",
        _RAW,
        {"nn128": 1.35} | dict.fromkeys((*_SMALL[1:], *_LARGE), 1.15),
        at_most=True,
    ),
    Target("documents", ("digitlab",), {"nn128": 3.5} | dict.fromkeys(_SMALL[1:], 1.7)),
    Target("stock_lightning", ("digitlab",), {"nn128": 6.0}),
    Target("keras_*", ("digitlab",), dict.fromkeys(_SMALL, 1.15) | dict.fromkeys(_LARGE, 1.0)),
    Target("keras_*", ("digitlab_bf16",), dict.fromkeys(_LARGE, 1.4)),
]
"""The targets, in the order of the table."""
