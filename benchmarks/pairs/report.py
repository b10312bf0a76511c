"""The table of verdicts by topic, for docs/parity.md."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.pairs.common import Result

COLUMNS = {
    "equal": "equal pairs",
    "passed": "`passed`",
    "passed_float32": "`passed_float32`",
    "refused": "refused",
    "failed": "failed",
    "differing": "differing pairs",
    "found": "found",
    "named": "right layer named",
    "invalid": "not to be compared",
    "said": "refused in words",
}


def as_json(results: Mapping[str, Sequence[Result]]) -> dict[str, Any]:
    """Return the numbers of each topic, and what is to be explained."""
    return {
        "topics": {topic: _numbers(of_topic) for topic, of_topic in results.items()},
        "not passed": [
            {"topic": topic, "pair": it.pair.name, "verdict": it.verdict, "words": it.words}
            | {"fault": it.fault, "named": it.named}
            for topic, of_topic in results.items()
            for it in of_topic
            if it.fault or (it.pair.expected.verdict == "passed_float32")
        ],
    }


def _numbers(results: Sequence[Result]) -> dict[str, int]:
    equal = [it for it in results if it.pair.expected.verdict.startswith("passed")]
    differing = [it for it in results if it.pair.expected.verdict == "failed"]
    invalid = [it for it in results if it.pair.expected.verdict == "refused"]
    found = [it for it in differing if it.verdict in ("failed", "refused")]
    return {
        "equal": len(equal),
        **{
            verdict: sum(it.verdict == verdict for it in equal)
            for verdict in ("passed", "passed_float32", "refused", "failed")
        },
        "differing": len(differing),
        "found": len(found),
        "named": sum(not it.fault for it in found),
        "invalid": len(invalid),
        "said": sum(not it.fault for it in invalid),
    }


def tables(found: Mapping[str, Any]) -> dict[str, str]:
    """Make the tables of docs/parity.md by their names."""
    topics = found["topics"]
    all_of = {key: sum(numbers[key] for numbers in topics.values()) for key in COLUMNS}
    lines = [
        f"| topic | {' | '.join(COLUMNS.values())} |",
        "|---|" + "--:|" * len(COLUMNS),
        *(
            f"| {topic} | " + " | ".join(str(numbers[key]) for key in COLUMNS) + " |"
            for topic, numbers in {**topics, "**all**": all_of}.items()
        ),
    ]
    return {"pairs": "\n".join(lines), "pairs-not-passed": _explanations(found["not passed"])}


def _explanations(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    for it in rows:
        named = f", names {it['named']}" if it["named"] else ""
        words = f": {it['words']}" if it["words"] else ""
        lines.append(f"- {it['topic']}, {it['pair']}: `{it['verdict']}`{named}{words}")
    return "\n".join(lines) or "Every equal pair passed."
