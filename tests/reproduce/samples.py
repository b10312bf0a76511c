"""Made-up results."""

from dataclasses import replace

from digitlab.reproduce.results import Result
from digitlab.run_folder import Framework

RESULT = Result(
    row="B3",
    config="mnist/lenet5",
    recipe="012345678901",  # digits alone, which a reader might take for a number
    framework="torch",
    seed=4,
    test_accuracy=0.9877,
    test_loss=0.0391,
    train_accuracy=0.9931,
    optimizer_steps=9375,
    train_seconds=61.2,
    train_curve=((1875, 0.943967), (3750, 0.981783)),
    val_curve=((1875, 0.9817), (3750, 0.986)),
    device="cpu (1 thread)",
    versions="torch 2.15.0, lightning 2.6.6",
)
CURVE = ((1875, 0.95), (3750, 0.97))


def runs(
    row: str, *accuracies: float, framework: Framework = "torch", config: str = "mnist/lenet5"
) -> list[Result]:
    """Results without curves, with the seeds 0, 1, … and these accuracies in per cent."""
    bare = replace(
        RESULT, row=row, framework=framework, config=config, train_curve=(), val_curve=()
    )
    return [
        replace(bare, seed=seed, test_accuracy=accuracy / 100)
        for seed, accuracy in enumerate(accuracies)
    ]


def runs_with_curves(row: str, *accuracies: float, framework: Framework = "torch") -> list[Result]:
    """The same with curves, and half a point better on the training split."""
    return [
        replace(run, val_curve=CURVE, train_curve=CURVE, train_accuracy=run.test_accuracy + 0.005)
        for run in runs(row, *accuracies, framework=framework)
    ]
