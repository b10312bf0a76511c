"""Check all pairs in one process, or those of the topics named, and print a line for each.

    python -m benchmarks.pairs ["recurrent layers" ...] [--out docs/results/parity/pairs.json]

With `--out`, it writes what `python -m benchmarks.pages` makes the table of docs/parity.md from.
The exit code is 1 if a pair is judged wrongly.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch

from benchmarks.pairs import topics
from benchmarks.pairs.common import Result, run
from benchmarks.pairs.report import as_json
from digitlab import files


def main() -> None:
    """Run the pairs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("topics", nargs="*", metavar="TOPIC", help="titles, or their beginnings")
    parser.add_argument("--only", default="", help="run pairs whose names contain this")
    parser.add_argument("--out", type=Path, help="JSON file for the results of all topics")
    parser.add_argument("--details", action="store_true", help="print the reports of wrong pairs")
    options = parser.parse_args()
    starts = tuple(options.topics)
    chosen = {it: pairs for it, pairs in topics().items() if not starts or it.startswith(starts)}
    if not chosen:
        parser.error(f"there is no topic {starts[0]}: choose from {', '.join(topics())}")
    torch.set_num_threads(1)
    results: dict[str, list[Result]] = {}
    faults = 0
    for topic, pairs in chosen.items():
        results[topic] = []
        for pair in pairs:
            if options.only not in pair.name:
                continue
            start = time.perf_counter()
            result = run(pair)
            results[topic].append(result)
            came = f"{result.verdict} {result.named or ''} {result.words}".strip()
            print(
                f"{result.fault or 'ok':13} | {topic}: {pair.name} | {pair.expected} | {came} | "
                f"{time.perf_counter() - start:.1f} s",
                flush=True,
            )
            faults += bool(result.fault)
            if options.details and result.fault:
                print(result.details, flush=True)
    count = sum(len(of_topic) for of_topic in results.values())
    print(f"{count - faults} of {count} pairs are judged rightly")
    if options.out:
        files.write_text(options.out, json.dumps(as_json(results), indent=1) + "\n")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
