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
        instructions: The bounds are for CPUs with these instructions alone, such as AVX2.
    """

    ours: str
    theirs: tuple[str, ...]
    bounds: dict[str, float]
    at_most: bool = False
    instructions: str = ""

    def bound(self, model: str, instructions: str) -> float | None:
        """Return the bound for a model on a CPU with these instructions, if there is one."""
        return self.bounds.get(model) if instructions.startswith(self.instructions) else None

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

# Of the last three, what was measured when the targets were set.
_KERAS_AVX_512 = {"nn128": 1.0, "mlp512": 1.0, "lenet5": 0.97}
_KERAS_AVX_512 |= {"example_net": 0.84, "lenet1": 0.87, "tutorial_cnn": 1.0}

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
    Target("keras_*", ("digitlab",), dict.fromkeys((*_SMALL, *_LARGE), 1.05), instructions="AVX2"),
    Target("keras_*", ("digitlab",), _KERAS_AVX_512, instructions="AVX-512"),
    Target("keras_*", ("digitlab_bf16",), dict.fromkeys(_LARGE, 1.4)),
]
"""The targets, in the order of the table."""
