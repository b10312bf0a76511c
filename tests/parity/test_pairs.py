"""`parity.check` gives pairs of benchmarks/pairs their verdicts; a few of each topic by default.

`python -m benchmarks.pairs` checks all of them, in ten minutes; the slow tests check each fifth.
"""

from typing import Any

import pytest
from benchmarks.pairs import topics
from benchmarks.pairs.common import Pair, run

ALSO = {
    "attention: projections frozen in PyTorch alone",
    "channels first: transposed convolution",
    "constants in float32: ReLU(max_value=0.7)",
    "constants in float32: a tiny epsilon's difference behind GELU",
    "flattening: PReLU behind, a slope for all",
    "flattening: a residual sum behind",
    "flattening: one beside other features",
    "hidden faults: a shift of all logits, without a gradient",
    "hidden faults: nothing for a ReLU of its name",
    "hidden faults: pooled before the ReLU",
    "hidden faults: pooled before the ReLU, a fault behind",
    "hidden faults: zeros that agree downstream, a fault before",
    "layers that are hard to copy: a user's layer with a float32 layer in it",
    "layers that are hard to copy: bilinear resizing",
    "layers that are hard to copy: nothing copied, layers in another order",
    "matching of layers: branches subtracted the wrong way round",
    "sharing and tied weights: tied embedding and head",
}
"""Pairs by default that alone find a fault that was once planted."""


def sampled(topic: str, pairs: list[Pair]) -> list[Pair]:
    """Choose two pairs: an equal one and another, if a topic has both."""
    equal = [pair for pair in pairs if pair.expected.verdict.startswith("passed")]
    others = [pair for pair in pairs if pair not in equal]
    halves = (equal, others) if equal and others else (pairs[::2], pairs[1::2])
    also = [pair for pair in pairs if f"{topic}: {pair.name}" in ALSO]
    return [half[len(half) // 2] for half in halves] + also


def parameters() -> list[Any]:
    return [
        pytest.param(
            pair,
            id=f"{topic}: {pair.name}",
            marks=[] if pair in sampled(topic, pairs) else [pytest.mark.slow],
        )
        for topic, pairs in topics().items()
        for place, pair in enumerate(pairs)
        if place % 5 == 0 or pair in sampled(topic, pairs)
    ]


@pytest.mark.parametrize("pair", parameters())
def test_a_pair_gets_its_verdict(pair: Pair) -> None:
    result = run(pair)
    assert not result.fault, f"{result.fault}: {result.verdict} {result.named}\n{result.details}"


def test_pairs_of_a_topic_have_names_of_their_own() -> None:
    for topic, pairs in topics().items():
        assert len({pair.name for pair in pairs}) == len(pairs) > 1, topic
