"""`digitlab --print_completion`: a script that lets a shell complete commands and options."""

from importlib import import_module
from typing import Any

import shtab
from jsonargparse import ArgumentParser

from digitlab.cli import COMMANDS
from digitlab.cli.evaluate import EvaluationCLI, PredictionCLI
from digitlab.cli.fit import FitCLI
from digitlab.cli.messages import option_names
from digitlab.cli.options import short_parser
from digitlab.cli.parity import ParityCLI
from digitlab.cli.parser import RunCLI

_PARSERS: dict[str, type[RunCLI]] = {
    **{"fit": FitCLI, "validate": EvaluationCLI, "test": EvaluationCLI},
    **{"predict": PredictionCLI, "parity": ParityCLI},
}


_PATHS = {"FILE": shtab.FILE, "FOLDER": shtab.DIRECTORY, "RUN": shtab.DIRECTORY}


class _MadeError(Exception):
    """Carries a parser out of the constructor that would use it."""


def run(name: str, help: str, options: list[str]) -> int:
    """Print the script for the shell that the options name."""
    parser = ArgumentParser(prog="digitlab", print_config=None)
    commands = parser.add_subcommands()
    for command in COMMANDS:
        commands.add_subcommand(command, _parser_of(command), help=COMMANDS[command][1])
    print(parser.get_completion_script(f"shtab-{options[0]}"))
    return 0


def _parser_of(command: str) -> ArgumentParser:
    if command in _PARSERS:
        parser = short_parser(command, "")
        for action in parser._actions:
            if action.metavar in _PATHS:
                setattr(action, "complete", _PATHS[action.metavar])  # noqa: B010  # shtab reads it
        known = option_names(parser)
        # By name alone: with the options of all classes that they take, there are ten thousands.
        for name in option_names(parser_of(_PARSERS[command], command)):
            if name not in known and len(name) > 1:
                parser.add_argument(f"--{name}", help="")
        return parser
    if command in ("reproduce", "report"):
        made: ArgumentParser = import_module(f"digitlab.{COMMANDS[command][0]}").make_parser("", "")
        return made
    parser = ArgumentParser(print_config=None)
    parser.add_argument("paths", nargs="*").complete = shtab.FILE
    return parser


def parser_of(cli: type[RunCLI], command: str) -> ArgumentParser:
    """Make the parser of a command line, and parse nothing."""

    class Parser(cli):  # type: ignore[misc, valid-type]  # it varies
        def parse_arguments(self, parser: Any, args: Any) -> None:
            raise _MadeError(parser)

    try:
        Parser(command, [])
    except _MadeError as made:
        return made.args[0]  # type: ignore[no-any-return]
    raise AssertionError("LightningCLI has parsed nothing")
