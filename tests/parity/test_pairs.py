"""`parity.check` gives each pair of benchmarks/pairs its verdict; a sample of them by default."""

from typing import Any

import pytest
from benchmarks.pairs import topics
from benchmarks.pairs.common import Pair, run


def sampled(pairs: list[Pair]) -> list[Pair]:
    """Choose two pairs: an equal one and another, if a topic has both."""
    equal = [pair for pair in pairs if pair.expected.verdict.startswith("passed")]
    others = [pair for pair in pairs if pair not in equal]
    halves = (equal, others) if equal and others else (pairs[::2], pairs[1::2])
    return [half[len(half) // 2] for half in halves]


def parameters() -> list[Any]:
    return [
        pytest.param(
            pair,
            id=f"{topic}: {pair.name}",
            marks=[] if pair in sampled(pairs) else [pytest.mark.slow],
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
