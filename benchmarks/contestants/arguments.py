"""The command line of a contestant."""

from argparse import ArgumentParser
from pathlib import Path


def contestant_parser(description: str | None) -> ArgumentParser:
    """Make a parser with the options of all contestants."""
    parser = ArgumentParser(description=description)
    parser.add_argument("--config", type=Path, required=True, help="What to train.")
    parser.add_argument("--steps", type=int, required=True, help="Optimizer steps of a turn.")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    return parser
