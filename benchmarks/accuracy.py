"""Train every config with several seeds, and make the README's table of what came out.

    python -m benchmarks.accuracy run [CONFIG ...] [--seeds 0 1 2] [--framework torch|keras]
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
# The command that trains, what it adds to the name of the run, and where the last weights are.
FRAMEWORKS = {
    "torch": (["fit"], "", "checkpoints/last.ckpt"),
    "keras": (["keras", "fit"], "-keras", "model.keras"),
}
COLUMNS = [
    *("config", "seed", "train_accuracy", "test_accuracy", "test_loss"),
    *("optimizer_steps", "device", "torch", "lightning", "framework", "keras", "tensorflow"),
]


def main() -> None:
    """Do what the command line says."""
    parser = ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    run = commands.add_parser("run")
    run.add_argument("configs", nargs="*", type=Path, default=shipped_configs())
    run.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    run.add_argument("--framework", choices=["torch", "keras"], default="torch")
    run.set_defaults(do=lambda args: measure(args.configs, args.seeds, args.framework))
    commands.add_parser("table").set_defaults(do=lambda args: print(table(read())))
    args = parser.parse_args()
    args.do(args)


def shipped_configs() -> list[Path]:
    """List the configs without the overlays, and B10 before B11, which goes on from it."""
    return sorted(Path("configs").glob("*/*.yaml"))


def measure(configs: list[Path], seeds: list[int], framework: str) -> None:
    """Train each config with each seed, unless that was done before."""
    done = {(row["config"], row["seed"], row["framework"]) for row in read()}
    for seed in seeds:
        for config in configs:
            if (name(config), str(seed), framework) not in done:
                add(train(config, seed, framework))


def train(config: Path, seed: int, framework: str) -> dict[str, object]:
    """Train a config, and give the row of what came out."""
    root = Path("runs", "accuracy", f"seed_{seed}")
    fit, suffix, last = FRAMEWORKS[framework]
    command = [sys.executable, "-m", "digitlab", *fit, "--config", str(config)]
    command += ["--seed_everything", str(seed), "--trainer.default_root_dir", str(root)]
    if config.stem.endswith("_continued"):
        first = config.with_stem(config.stem.removesuffix("_continued"))
        command += ["--weights", str(finished_run(root, first, suffix) / last)]
    subprocess.run(command, check=True)
    run = finished_run(root, config, suffix)
    metrics = json.loads((run / "metrics.json").read_text("utf-8"))
    return {
        "config": name(config),
        "seed": seed,
        "framework": framework,
        "train_accuracy": metrics["train"]["accuracy"],
        "test_accuracy": metrics["test"]["accuracy"],
        "test_loss": round(metrics["test"]["loss"], 5),
        **{column: metrics[column] for column in ("optimizer_steps", "device")},
        **{
            column: metrics["versions"].get(column, "")
            for column in ("torch", "lightning", "keras", "tensorflow")
        },
    }


def finished_run(root: Path, config: Path, suffix: str) -> Path:
    """Find a config's last run that was trained to its end, and so has metrics."""
    runs = root.glob(f"{config.parent.name}-{config.stem}{suffix}/version_*/metrics.json")
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
        accuracies[row["config"], row["framework"]].append(100 * float(row["test_accuracy"]))
    lines = [
        "| config | row | published | PyTorch, measured, % | n | Keras, measured, % | n |",
        "|---|---|---|---|---|---|---|",
    ]
    for config in shipped_configs():
        cells = [cell for key in FRAMEWORKS for cell in figure(accuracies[name(config), key])]
        cells = [f"`{name(config)}`", *described(config), *cells]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def figure(accuracies: list[float]) -> tuple[str, str]:
    """Say a mean, with its standard deviation where there is one, and n."""
    if not accuracies:
        return "", ""
    mean = f"{statistics.mean(accuracies):.2f}"
    deviation = f" ± {statistics.stdev(accuracies):.2f}" if len(accuracies) > 1 else ""
    return mean + deviation, str(len(accuracies))


def described(config: Path) -> tuple[str, str]:
    """Read the row of the documents, and the figure published there, from a config's comment."""
    text = config.read_text("utf-8")
    comment = " ".join(line[2:] for line in text.splitlines() if line.startswith("# "))
    head = comment.partition(":")[0]
    published = comment.partition("Published: ")[2].partition(". ")[0].rstrip(".")
    return (head if head[:1] in "AB" and len(head) <= 3 else "—"), published or "—"


if __name__ == "__main__":
    main()
