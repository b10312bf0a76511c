"""The tables of docs/reliability.md."""

import json
from pathlib import Path
from typing import Any

from benchmarks.endurance.promises import PROMISES

RESULTS = Path("docs", "results", "reliability.json")


def tables() -> dict[str, str]:
    """Make the page's tables by their names."""
    parts = json.loads(RESULTS.read_text("utf-8"))
    return {
        "promises": _promises(parts),
        "checkpoint-price": _price(parts["price"]["result"]),
        "kills": _kills(parts["kills"]["result"]),
        "fits": _fits(parts["fits"]["result"]),
        "reliability-machine": _machine(parts),
    }


def _promises(parts: dict[str, Any]) -> str:
    lines, before = ["| promise | fault | tried | held |", "| --- | --- | --- | --- |"], ""
    for promise in PROMISES:
        tried, held = _count(promise.key, parts)
        if tried:  # else it is newer than the results
            text = "″" if promise.text == before else promise.text
            lines.append(f"| {text} | {promise.fault} | {tried:,} | {held:,} |")
            before = promise.text
    return "\n".join(lines)


def _count(key: str, parts: dict[str, Any]) -> tuple[int, int]:
    """Return how often a promise was tried and how often it held."""
    if key == "kills":
        result = parts["kills"]["result"]
        held = sum(it["kills"] for it in result["tried"] if not it["differences"])
        return result["kills"], held
    if key == "fits":
        fits = parts["fits"]["result"]["fits"]
        return fits, fits
    counts = parts["faults"]["result"].get(key, {"tried": 0, "held": 0})
    return counts["tried"], counts["held"]


def _price(result: dict[str, Any]) -> str:
    lines = ["| network | MB | ms, median | ms, most | n |", "| --- | --- | --- | --- | --- |"]
    for name, it in sorted(result.items(), key=lambda item: item[1]["MB"]):
        times = f"{it['milliseconds']:.1f} | {it['most']:.1f} | {it['n']}"
        lines.append(f"| `{name}` | {it['MB']:.2f} | {times} |")
    return "\n".join(lines)


def _kills(result: dict[str, Any]) -> str:
    """Count kills and equal runs by architecture."""
    lines = ["| config | runs | kills | bitwise equal |", "| --- | --- | --- | --- |"]
    configs = dict.fromkeys(it["config"] for it in result["tried"])
    for config in sorted(configs):
        runs = [it for it in result["tried"] if it["config"] == config]
        kills = sum(it["kills"] for it in runs)
        equal = sum(not it["differences"] for it in runs)
        name = config.removeprefix("configs/").removesuffix(".yaml")
        lines.append(f"| `{name}` | {len(runs)} | {kills} | {equal} |")
    lines.append(f"| all | {result['runs']} | {result['kills']} | {result['equal']} |")
    return "\n".join(lines)


def _fits(result: dict[str, Any]) -> str:
    columns = list(result["looks"][0])
    lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    looks = result["looks"]
    for look in [looks[0], *looks[3::4]]:
        lines.append(f"| {' | '.join(f'{look[name]:,}' for name in columns)} |")
    return "\n".join(lines)


def _machine(parts: dict[str, Any]) -> str:
    part = parts["kills"]
    cpu = f"{part['machine']['cpu']}, {part['machine']['cores']} cores, one thread a process"
    packages = ", ".join(f"{name} {version}" for name, version in part["versions"].items())
    return f"{cpu}; {packages}."
