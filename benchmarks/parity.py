"""Prove every architecture and its Keras twin equal over many training steps, as a table.

    python -m benchmarks.parity run [--steps 200]
    python -m benchmarks.parity table

`run` calls `digitlab parity` for each architecture, and for one whole epoch of NN 128 and LeNet-5;
`table` prints the results in the run folders as Markdown. `run` takes half an hour on one core.
"""

import json
import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

ROOT = Path("runs", "parity")
CONFIGS = [
    "mnist/linear",
    "mnist/mlp512_keras_recipe",
    "mnist/nn128",
    "mnist/lenet5",
    "fashion_mnist/lenet1",
    "fashion_mnist/lenet1_keras_recipe",
    "mnist/pytorch_example_net",
    "mnist/tensorflow_tutorial_cnn",
    "digits/fast_cnn",
]
EPOCHS = ["mnist/nn128", "mnist/lenet5"]
STEPS_OF_AN_EPOCH = 1875  # 60,000 images in batches of 32


def main() -> None:
    """Run the command line."""
    parser = ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    run = commands.add_parser("run")
    run.add_argument("--steps", type=int, default=200)
    run.set_defaults(do=lambda args: measure(args.steps))
    commands.add_parser("table").set_defaults(do=lambda args: print(table()))
    args = parser.parse_args()
    args.do(args)


def measure(steps: int) -> None:
    """Run `digitlab parity` for every architecture; a failed check ends the program."""
    for config, length in [
        *((c, steps) for c in CONFIGS),
        *((c, STEPS_OF_AN_EPOCH) for c in EPOCHS),
    ]:
        command = [sys.executable, "-m", "digitlab", "parity", "--config", f"configs/{config}.yaml"]
        place = ["--trainer.default_root_dir", str(ROOT)]
        subprocess.run([*command, "--steps", str(length), *place], check=True)


def table() -> str:
    """Make a Markdown table, a row for each run."""
    lines = [
        "| config | steps | largest difference | stock optimizer "
        "| logits | logits, float32 | gradients |",
        "|---|---|---|---|---|---|---|",
    ]
    results = [json.loads(path.read_text("utf-8")) for path in ROOT.glob("*/*/parity.json")]
    order = {f"configs/{config}.yaml": place for place, config in enumerate(CONFIGS)}
    for result in sorted(results, key=lambda r: (r["steps"], order[r["config"][0]])):
        lines.append(f"| {' | '.join(cells(result))} |")
    return "\n".join(lines)


def cells(result: dict[str, Any]) -> list[str]:
    """Return the cells of a run's row."""
    checks = {check["name"]: check for check in result["checks"]}
    long = f"{result['steps']} training steps, float64"
    stock = [check for name, check in checks.items() if name.startswith(f"{long}, stock")]
    names = ("logits, float64", "logits, float32", "gradients, float64")
    return [
        f"`{result['config'][0].removeprefix('configs/').removesuffix('.yaml')}`",
        f"{result['steps']:,}",
        f"{checks[long]['difference']:.1e}",
        f"{stock[0]['difference']:.1e}" if stock else "exact itself",
        *(f"{checks[name]['difference']:.1e}" for name in names),
    ]


if __name__ == "__main__":
    main()
