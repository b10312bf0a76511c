"""The table of verdicts by topic, for docs/parity.md."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.pairs.common import Result

COLUMNS = {
    "equal pairs: `passed` + `passed_float32`": ("equal", "passed", "passed_float32"),
    "differing pairs: found, with the right layer": ("differing", "named"),
    "others: refused in words": ("invalid", "said"),
}
"""By heading, how many pairs there are, and what came of them."""

FAULTS = ("wrong accept", "crash", "false failure", "wrong name")
"""Kinds of wrong judgements that the table always counts."""


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
    keys = {key for of in COLUMNS.values() for key in of}
    all_of = {key: sum(numbers[key] for numbers in topics.values()) for key in keys}
    lines = [
        f"| {' | '.join(COLUMNS)} |",
        "|" + "---|" * len(COLUMNS),
        f"| {' | '.join(_share(all_of, *of) for of in COLUMNS.values())} |",
    ]
    faults = Counter(it["fault"] for it in found["not passed"] if it["fault"])
    of_kind = ", ".join(f"{it}: {faults[it]}" for it in dict.fromkeys((*FAULTS, *faults)))
    count = sum(all_of[key] for key in ("equal", "differing", "invalid"))
    lines += ["", f"Of {count} pairs, {sum(faults.values())} are judged wrongly ({of_kind})."]
    return {"pairs": "\n".join(lines), "pairs-not-passed": _explanations(found["not passed"])}


def _share(numbers: Mapping[str, int], whole: str, *parts: str) -> str:
    """Write how many of how many; empty if there are none."""
    counts = [numbers[part] for part in parts]
    right = "+".join(str(count) for i, count in enumerate(counts) if count or not i)
    return f"{right}/{numbers[whole]}" if numbers[whole] else ""


def _explanations(rows: Sequence[Mapping[str, Any]]) -> str:
    """Count the pairs that were compared in float32 alone, and explain those judged wrongly."""
    weak = [it["pair"] for it in rows if it["verdict"] == "passed_float32" and not it["fault"]]
    lines = [f"`pairs.json` names the {len(weak)} pairs with `passed_float32`."] if weak else []
    for it in rows:
        if it["fault"]:
            named = f", names {it['named']}" if it["named"] else ""
            words = f": {it['words']}" if it["words"] else ""
            where = f"{it['topic']}, {it['pair']}"
            lines += ["", f"**{it['fault']}** of {where}: `{it['verdict']}`{named}{words}"]
    return "\n".join(lines) or "Every equal pair passed."
