"""The table of verdicts by topic, for docs/parity.md."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.pairs.common import Result

COLUMNS = {
    "equal pairs: `passed`": ("passed", "equal"),
    "`passed_float32`": ("passed_float32", "equal"),
    "differing pairs: found, with the right layer": ("named", "differing"),
    "others: refused in words": ("said", "invalid"),
}
"""By heading, the numbers of a cell: how many, and of how many."""


FAULTS = ("wrong accept", "crash", "false failure", "wrong name")


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
    keys = {key for pair in COLUMNS.values() for key in pair}
    all_of = {key: sum(numbers[key] for numbers in topics.values()) for key in keys}
    lines = [
        f"| topic | {' | '.join(COLUMNS)} |",
        "|---|" + "--:|" * len(COLUMNS),
        *(
            f"| {topic} | " + " | ".join(_share(numbers, *of) for of in COLUMNS.values()) + " |"
            for topic, numbers in {**topics, "**all**": all_of}.items()
        ),
    ]
    faults = Counter(it["fault"] for it in found["not passed"] if it["fault"])
    of_kind = ", ".join(f"{it}: {faults.get(it, 0)}" for it in FAULTS)
    count = sum(all_of[key] for key in ("equal", "differing", "invalid"))
    lines += ["", f"Of {count} pairs, {sum(faults.values())} are judged wrongly ({of_kind})."]
    rows = [it for it in found["not passed"] if it["fault"] or it["verdict"] == "passed_float32"]
    return {"pairs": "\n".join(lines), "pairs-not-passed": _explanations(rows)}


def _share(numbers: Mapping[str, int], part: str, whole: str) -> str:
    """Write how many of how many; empty if there are none."""
    is_rare = part == "passed_float32" and not numbers[part]
    return "" if is_rare or not numbers[whole] else f"{numbers[part]}/{numbers[whole]}"


def _explanations(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    for it in rows:
        fault = f" **{it['fault']}**: `{it['verdict']}`" if it["fault"] else ""
        named = f" names {it['named']}" if it["fault"] and it["named"] else ""
        words = f" {it['words']}" if it["words"] else ""
        lines.append(f"- {it['topic']}, {it['pair']}:{fault}{named}{words}")
    return "\n".join(lines) or "Every equal pair passed."
