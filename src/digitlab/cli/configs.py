"""Configs by name, wherever digitlab runs; `digitlab configs` lists, shows and copies them."""

import re
import shutil
import sys
from argparse import ArgumentError, ArgumentParser
from collections.abc import Sequence
from difflib import get_close_matches
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from digitlab import __version__
from digitlab.errors import InputError, reading_input
from digitlab.files import expand_path
from digitlab.terminal import command, printable

LOCAL = Path("configs")
"""The folder, below the current one, whose configs come before digitlab's own."""

OPTIONS = ("--copy",)
"""For completion by a shell."""

ROW = re.compile(r"linear|([AB])(\d+)(_as_published)?")
"""The name of a run of the documents, at the start of its config's comment."""


class Config(NamedTuple):
    """A config: a YAML file of settings."""

    path: Path
    name: str = ""  # such as `mnist/lenet5`; empty if it was given as a path
    place: str = ""  # where the name was found, such as `./configs` or `digitlab 0.1.0`
    row: str = ""  # the row of the documents that it is, such as `B3`, if it is one

    def __str__(self) -> str:
        """Say which one it is, for a reader and for a run's record."""
        row = f" ({self.row})" if self.row else ""
        return f"{self.name}{row} of {self.place}" if self.name else str(self.path)

    @property
    def comment(self) -> str:
        """The comment lines, as one: the first sentence says what the config is."""
        lines = self.path.read_text("utf-8", errors="replace").splitlines()
        return " ".join(line[2:] for line in lines if line.startswith("# "))


def shipped_folder() -> Path:
    """Find the folder of digitlab's own configs.

    A wheel has it in the package. A clone, an editable install or an unpacked source distribution
    has it beside `src`, so that an edited file takes effect.
    """
    package = Path(__file__).parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parents[1] / "configs"


def list_configs() -> dict[str, Config]:
    """List all configs by their names: digitlab's own, each replaced by one of `LOCAL`, if any."""
    own = shipped_folder()
    in_package = own.parent == Path(__file__).parents[1]
    found = {}
    for path, name in _names(own):
        config = Config(path, name, f"digitlab {__version__}" if in_package else str(own))
        head = config.comment.partition(":")[0]
        found[name] = config._replace(row=head if ROW.fullmatch(head) else "")
    for path, name in _names(LOCAL):
        # Not by its comment, which a copy of a config has, too.
        row = found[name].row if name in found else ""
        found[name] = Config(path, name, f"./{LOCAL}", row)
    return found


def _names(folder: Path) -> list[tuple[Path, str]]:
    # Not links to nothing, folders and pipes, which nobody could list.
    paths = sorted(path for path in folder.rglob("*.yaml") if path.is_file())
    return [(path, path.relative_to(folder).with_suffix("").as_posix()) for path in paths]


def find_config(given: str) -> Config:
    """Find a config: a file, else a name in `./configs`, else one of digitlab's own, else a row.

    Names are taken whatever their case.
    """
    path = expand_path(given)
    if path.exists() and not path.is_dir():  # it may be a pipe
        return Config(path)
    known = list_configs()
    names = {config.row.lower(): config for config in known.values() if config.row}
    names |= {name.lower(): config for name, config in known.items()}
    if found := names.get(given.lower()):
        return found
    hint = "give the path of a config, or a name that `digitlab configs` lists"
    bare = given.lower().removesuffix(".yaml")
    if Path(f"{path}.yaml").is_file():
        hint = f"did you mean {given}.yaml?"
    elif same := [name for name in known if name.lower().endswith(f"/{bare}")]:
        hint = f"did you mean {' or '.join(same)}?"
    elif nearest := get_close_matches(bare, names, n=1):
        best = names[nearest[0]]
        hint = f"did you mean {best.row if nearest[0] == best.row.lower() else best.name}?"
    raise InputError(f"there is no config {given}: {hint}")


def run(name: str, help: str, options: list[str]) -> int:
    """List the configs, or show or copy one."""
    with reading_input():
        given, copy = _parse(name, help, options)
        if not given:
            known = sorted(list_configs().values(), key=lambda it: it.place)
            print(printable(_format_list(known), keep="\n"))
            return 0
        config = find_config(given)
        content = config.path.read_bytes()
        if copy:
            target = expand_path(copy)
            _write_new(target, content)
            print(printable(f"Wrote {config} to {target}. What to do next:"))
            print(f"  {command('digitlab', 'fit', '--config', target)}")
        else:
            print(printable(f"# {config.path}"))
            print(printable(content.decode("utf-8", errors="replace"), keep="\n"), end="")
    return 0


def _write_new(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        file = path.open("xb")
    except FileExistsError as error:
        raise InputError(f"{path} exists and is not overwritten: give another name") from error
    with file:
        file.write(content)


def _parse(name: str, help: str, options: list[str]) -> tuple[str | None, str | None]:
    # Not jsonargparse, which takes a second to import.
    parser = ArgumentParser(
        prog=f"digitlab {name}", description=help, allow_abbrev=False, exit_on_error=False
    )
    text = "A config to show, by path, name or row. Default: list all."
    parser.add_argument("config", nargs="?", help=text)
    text = "File to write the config to; it must not exist."
    parser.add_argument("--copy", metavar="FILE", help=text)
    try:
        given, others = parser.parse_known_args(options)
    except ArgumentError as error:
        raise InputError(f"{error}: see digitlab {name} --help") from error
    if others:
        raise InputError(f"there is no option {others[0]}: see digitlab {name} --help")
    if given.copy is not None and not given.config:
        raise InputError(f"copy is {given.copy}: name the config to copy, too")
    return given.config, given.copy


def _format_list(configs: Sequence[Config]) -> str:
    """Write a line on each config, with names in one column for each folder."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    lines: list[str] = []
    place = ""
    for key, group in groupby(configs, lambda it: (it.place, it.name.rpartition("/")[0])):
        members = list(group)
        lines += [""] if lines else []
        if key[0] != place:
            place = key[0]
            lines.append(f"of {place}:")
        column = max(len(it.name) for it in members)
        for it in members:
            about = re.split("[.;] ", it.comment)[0].rstrip(".")
            line = f"  {it.name:{column}}  {about}"
            lines.append(line if len(line) <= width else f"{line[: width - 1]}…")
    lines += ["", "Train one: digitlab fit --config NAME, where a row such as B3 is a name, too."]
    return "\n".join(lines)
