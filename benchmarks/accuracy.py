"""Train every config with several seeds, and make the README's table of what came out.

    python -m benchmarks.accuracy run [CONFIG ...] [--seeds 0 1 2]
    python -m benchmarks.accuracy table

`run` trains what `docs/results.csv` does not have yet, and adds a row for each run; `table` prints
that file as Markdown, a row for each config.
"""

import csv
import json
import statistics
import subprocess
import sys
from argparse import ArgumentParser
from collections import defaultdict
from pathlib import Path

RESULTS = Path("docs/results.csv")
COLUMNS = [
    *("config", "seed", "train_accuracy", "test_accuracy", "test_loss"),
    *("optimizer_steps", "device", "torch", "lightning"),
]


def main() -> None:
    """Do what the command line says."""
    parser = ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    run = commands.add_parser("run")
    run.add_argument("configs", nargs="*", type=Path, default=shipped_configs())
    run.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    run.set_defaults(do=lambda args: measure(args.configs, args.seeds))
    commands.add_parser("table").set_defaults(do=lambda args: print(table(read())))
    args = parser.parse_args()
    args.do(args)


def shipped_configs() -> list[Path]:
    """List the configs without the overlays, and B10 before B11, which goes on from it."""
    return sorted(Path("configs").glob("*/*.yaml"))


def measure(configs: list[Path], seeds: list[int]) -> None:
    """Train each config with each seed, unless that was done before."""
    done = {(row["config"], row["seed"]) for row in read()}
    for seed in seeds:
        for config in configs:
            if (name(config), str(seed)) not in done:
                add(train(config, seed))


def train(config: Path, seed: int) -> dict[str, object]:
    """Train a config, and give the row of what came out."""
    root = Path("runs", "accuracy", f"seed_{seed}")
    command = [sys.executable, "-m", "digitlab", "fit", "--config", str(config)]
    command += ["--seed_everything", str(seed), "--trainer.default_root_dir", str(root)]
    if config.stem.endswith("_continued"):
        first = finished_run(root, config.with_stem(config.stem.removesuffix("_continued")))
        command += ["--weights", str(first / "checkpoints" / "last.ckpt")]
    subprocess.run(command, check=True)
    metrics = json.loads((finished_run(root, config) / "metrics.json").read_text("utf-8"))
    return {
        "config": name(config),
        "seed": seed,
        "train_accuracy": metrics["train"]["accuracy"],
        "test_accuracy": metrics["test"]["accuracy"],
        "test_loss": round(metrics["test"]["loss"], 5),
        **{column: metrics[column] for column in ("optimizer_steps", "device")},
        **{column: metrics["versions"][column] for column in ("torch", "lightning")},
    }


def finished_run(root: Path, config: Path) -> Path:
    """Find a config's last run that was trained to its end, and so has metrics."""
    runs = root.glob(f"{config.parent.name}-{config.stem}/version_*/metrics.json")
    return max(runs, key=lambda path: path.stat().st_mtime).parent


def name(config: Path) -> str:
    """Name a config as the table does: `mnist/lenet5`."""
    return f"{config.parent.name}/{config.stem}"


def read() -> list[dict[str, str]]:
    """Read the rows of `docs/results.csv`."""
    if not RESULTS.exists():
        return []
    with RESULTS.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def add(row: dict[str, object]) -> None:
    """Add a row to `docs/results.csv`."""
    is_new = not RESULTS.exists()
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerow(row)


def table(rows: list[dict[str, str]]) -> str:
    """Make a Markdown table: per config the published figure, and mean ± deviation of n runs."""
    accuracies = defaultdict(list)
    for row in rows:
        accuracies[row["config"]].append(100 * float(row["test_accuracy"]))
    lines = ["| config | row | published | measured, % | n |", "|---|---|---|---|---|"]
    for config in shipped_configs():
        if not (measured := accuracies[name(config)]):
            continue
        figure = f"{statistics.mean(measured):.2f}"
        if len(measured) > 1:
            figure += f" ± {statistics.stdev(measured):.2f}"
        experiment, published = described(config)
        lines.append(
            f"| `{name(config)}` | {experiment} | {published} | {figure} | {len(measured)} |"
        )
    return "\n".join(lines)


def described(config: Path) -> tuple[str, str]:
    """Read the row of the documents, and the figure published there, from a config's comment."""
    text = config.read_text("utf-8")
    comment = " ".join(line[2:] for line in text.splitlines() if line.startswith("# "))
    head = comment.partition(":")[0]
    published = comment.partition("Published: ")[2].partition(". ")[0].rstrip(".")
    return (head if head[:1] in "AB" and len(head) <= 3 else "—"), published or "—"


if __name__ == "__main__":
    main()
