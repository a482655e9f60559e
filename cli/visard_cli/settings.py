"""Options from elsewhere than the command line: environment variables, and a file.

    command line > environment (VISARD_SWAP_DEADLINE) > file ([swap] deadline = 60) > default

A file is used where `--config` or VISARD_CONFIG names it, and the user's own where neither does. None that merely lies
in the working directory: it may have come with the photos, and could send them to somebody's server.
"""

from __future__ import annotations

import copy
import os
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from platformdirs import user_config_path
from typer.core import TyperOption

from visard_cli.console import SECRETS, err, plain

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

NAME = "visard.toml"
_NAMED = f"{__name__}.named"  # in a context's `meta`: the file that was named before the command

# TOML's types as its users call them.
_TYPES: dict[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text in quotes",
}

HELP = (
    "Every option can also be given as an environment variable (VISARD_SWAP_DEADLINE for --deadline of swap) and in a "
    f"file, {NAME} (deadline = 60 under \\[swap]): see --config.\n\n"
    "--install-completion lets the tab key complete commands and options.\n\n"
)


def own_file() -> Path:
    """The user's own settings: ~/.config/visard/visard.toml on Linux."""
    return user_config_path("visard", appauthor=False) / NAME


def configure(root: Any) -> None:
    """Let every option of every command be given by an environment variable and by a file.

    An option has a variable of its own, VISARD_COMMAND_OPTION. Where several commands share one too, such as
    VISARD_SERVER, their own go before it.

    Args:
        root: the click group that typer made, with `ConfigOption` among its options.
    """
    (config,) = (option for option in root.params if option.name == "config")
    for path, command in _commands(root):
        for name, option in _options(command).items():
            own = "_".join(("VISARD", *path, name)).upper().replace("-", "_")
            if option.envvar is None:
                option.envvar = own
                option.show_envvar = bool(os.environ.get(own))  # on each line of --help they would be in the way
            elif os.environ.get(own):
                option.envvar = own
        after = copy.copy(config)  # behind the command's name as well as before it
        after.envvar, after.callback = None, _use
        command.params.append(after)


def _commands(group: Any, *path: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command that does something, with its name and those of the groups around it."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, *path, name)
        else:
            yield (*path, name), command


def _options(command: Any) -> dict[str, Any]:
    """A command's options by their names on the command line, without the dashes."""
    found = {}
    for option in command.params:
        if isinstance(option, TyperOption) and option.name not in ("config", "help"):
            found[max(option.opts, key=len).lstrip("-")] = option
    return found


def _name(context: typer.Context, named: Path | None) -> Path | None:
    context.meta[_NAMED] = named
    return named


ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        envvar="VISARD_CONFIG",
        is_eager=True,
        expose_value=False,
        callback=_name,
        help=f"File with options, a section for each command; your own {NAME} by default.",
    ),
]


def _use(context: Any, _: object, named: str | Path | None) -> None:
    """Take a command's defaults from the file that was named, or from the user's own; runs before other options."""
    if context.resilient_parsing:  # a shell asks what could come next
        return
    path = Path(named) if named else context.meta.get(_NAMED)
    if path is None:
        path = own_file()
        has_own = path.is_absolute() and _is_file(path)  # it is not absolute where there is no home
        if _is_file(Path(NAME)) and not (has_own and path.samefile(NAME)):
            err.print(f"{NAME} in this folder is not used: --config {NAME} does that")
        if not has_own:
            return
    section: list[str] = []
    parent = context
    while parent.parent is not None:
        section.insert(0, parent.info_name)
        parent = parent.parent
    try:
        defaults = read(path, parent.command, context).get(tuple(section), {})
    except ValueError as error:
        raise typer.BadParameter(str(error), ctx=context, param_hint="--config") from None
    names = {option.name: f"--{name}" for name, option in _options(context.command).items()}
    said = ", ".join(names[name] for name in defaults) or f"none for {' '.join(section)}"
    err.print(f"Options from {path}: {said}", soft_wrap=True)
    context.default_map = defaults


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a service may run with a home that it may not enter
        return False


def read(path: Path, root: Any, context: Any) -> dict[tuple[str, ...], dict[str, Any]]:
    """Read a file of options and check all of it, whichever command it is read for.

    Args:
        path: of the file.
        root: the group with all commands.
        context: of the command that runs.

    Returns:
        Name of a command → option → value, as `Context.default_map` wants it.

    Raises:
        ValueError: it cannot be read, or has something that no option takes.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read '{path}' ({error.strerror})") from None
    except ValueError as error:  # no TOML, or no UTF-8
        raise ValueError(f"'{path}' is not TOML: {error}") from None
    try:
        return dict(_sections(tables, root, context))
    except ValueError as error:
        raise ValueError(f"'{path}', {error}") from None


def _sections(
    tables: Mapping[str, Any], group: Any, context: Any, *above: str
) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    for name, table in tables.items():
        path = (*above, name)
        if not isinstance(table, dict):
            where = f"[{'.'.join(above)}] {name}" if above else name
            raise ValueError(f"{where}: options stand in the section of a command, such as [{_first(group, *above)}]")
        if name not in group.commands:
            raise ValueError(f"[{'.'.join(path)}]: no command is called so{_hint(name, group.commands)}")
        command = group.commands[name]
        if hasattr(command, "commands"):
            yield from _sections(table, command, context, *path)
        else:
            yield path, dict(_defaults(table, command, context, ".".join(path)))


def _defaults(table: Mapping[str, Any], command: Any, context: Any, section: str) -> Iterator[tuple[str, Any]]:
    options = _options(command)
    for key, value in table.items():
        where = f"[{section}] {key}"
        if key not in options:
            raise ValueError(f"{where}: there is no such option{_hint(key, options)}")
        option = options[key]
        if option.name in SECRETS:
            raise ValueError(f"{where}: secrets do not belong into files that are copied; set {SECRETS[option.name]}")
        if option.multiple != isinstance(value, list):
            raise ValueError(f"{where}: {'a list in brackets' if option.multiple else 'one value, not a list'}, please")
        if option.is_flag and not isinstance(value, bool):
            raise ValueError(f"{where}: {_TYPES[bool]} is wanted, not {value!r}")
        try:
            made = option.process_value(context, value)
        except typer.BadParameter as error:
            raise ValueError(f"{where}: {plain(error.message)}") from None
        for given, taken in zip(value, made, strict=True) if option.multiple else [(value, made)]:
            wanted = type(taken) if type(taken) in _TYPES else str
            if type(given) is not wanted and (wanted, type(given)) != (float, int):
                raise ValueError(f"{where}: {_TYPES[wanted]} is wanted, not {given!r}")
        yield option.name, value


def _first(group: Any, *above: str) -> str:
    return ".".join(next(_commands(group, *above))[0])


def _hint(name: str, names: Iterable[str]) -> str:
    close = get_close_matches(name, list(names), 1)
    return f"; did you mean {close[0]}?" if close else ""
