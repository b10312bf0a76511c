"""`parity.check` gives each pair of benchmarks/pairs its verdict; a sample of them by default."""

from typing import Any

import pytest
from benchmarks.pairs import topics
from benchmarks.pairs.common import Pair, run

MORE = {"flattening": 8, "matching of layers": 6, "layers that are hard to copy": 8}
"""Topics with more pairs by default: one in so many."""


def sampled(topic: str, pairs: list[Pair]) -> list[Pair]:
    """Choose two pairs: an equal one and another, if a topic has both."""
    equal = [pair for pair in pairs if pair.expected.verdict.startswith("passed")]
    others = [pair for pair in pairs if pair not in equal]
    halves = (equal, others) if equal and others else (pairs[::2], pairs[1::2])
    more = pairs[:: MORE[topic]] if topic in MORE else []
    return [half[len(half) // 2] for half in halves] + more


def parameters() -> list[Any]:
    return [
        pytest.param(
            pair,
            id=f"{topic}: {pair.name}",
            marks=[] if pair in sampled(topic, pairs) else [pytest.mark.slow],
        )
        for topic, pairs in topics().items()
        for pair in pairs
    ]


@pytest.mark.parametrize("pair", parameters())
def test_a_pair_gets_its_verdict(pair: Pair) -> None:
    result = run(pair)
    assert not result.fault, f"{result.fault}: {result.verdict} {result.named}\n{result.details}"


def test_pairs_of_a_topic_have_names_of_their_own() -> None:
    for topic, pairs in topics().items():
        assert len({pair.name for pair in pairs}) == len(pairs) > 1, topic
